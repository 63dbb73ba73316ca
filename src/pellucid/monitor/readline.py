"""The monitor's input line: bytes from a raw terminal in, echo for the terminal and finished lines out.

Keys: printable bytes, Backspace/Ctrl-H, Delete, Left/Right, Home/End (Ctrl-E), Ctrl-K, Ctrl-U, Ctrl-W, Up/Down for
history, Tab for completion, Enter. Ctrl-A never arrives where the stream is shared: it is the mux's escape.
"""

from collections.abc import Callable, Sequence

MAX_LINE = 4095
"""Bytes of a line; more are ignored."""
MAX_HISTORY = 64

ENTER = (0x0D, 0x0A)
BACKSPACE = (0x08, 0x7F)
KEY_SEQUENCES = {
    b"[A": "up", b"OA": "up", b"[B": "down", b"OB": "down", b"[C": "right", b"OC": "right", b"[D": "left",
    b"OD": "left", b"[H": "home", b"OH": "home", b"[1~": "home", b"[F": "end", b"OF": "end", b"[4~": "end",
    b"[3~": "delete",
}  # fmt: skip
CONTROL_KEYS = {0x01: "home", 0x02: "left", 0x04: "delete", 0x05: "end", 0x06: "right", 0x0B: "kill-to-end"}
CONTROL_KEYS |= {0x0E: "down", 0x10: "up", 0x15: "kill-line", 0x17: "kill-word"}


class LineEditor:
    """Edits one line at a time. `complete(line)` gives the words that the last word of `line` could become."""

    def __init__(self, prompt: str, complete: Callable[[str], Sequence[str]] = lambda _: ()) -> None:
        self._prompt = prompt
        self._complete = complete
        self._line = ""
        self._cursor = 0
        self.history: list[str] = []
        self._position = 0  # in history; its length means the line being written
        self._escape: bytes | None = None

    def prompt(self) -> str:
        """What to show when a line begins, and again when the terminal was used for something else meanwhile."""
        return self._prompt + self._line + "\b" * (len(self._line) - self._cursor)

    def feed(self, byte: int) -> tuple[str, str | None]:
        """(text to show, the line when this byte finished one)."""
        if self._escape is not None:
            return self._feed_escape(byte), None
        if byte == 0x1B:
            self._escape = b""
            return "", None
        if byte in ENTER:
            return self._finish()
        if byte in BACKSPACE:
            return (self._remove(self._cursor - 1, self._cursor) if self._cursor else ""), None
        if byte == 0x09:
            return self._completed(), None
        if byte in CONTROL_KEYS:
            return self._key(CONTROL_KEYS[byte]), None
        if 0x20 <= byte < 0x7F and len(self._line) < MAX_LINE:
            return self._insert(chr(byte)), None
        return "", None

    def _finish(self) -> tuple[str, str]:
        line = self._line
        if line.strip() and self.history[-1:] != [line]:
            self.history = [*self.history, line][-MAX_HISTORY:]
        self._position = len(self.history)
        self._line, self._cursor = "", 0
        return "\r\n", line

    def _feed_escape(self, byte: int) -> str:
        assert self._escape is not None
        if byte == 0x1B:
            self._escape = b""
            return ""
        self._escape += bytes([byte])
        if self._escape in (b"[", b"O") or (self._escape[:1] == b"[" and chr(byte).isdigit() and len(self._escape) < 8):
            return ""
        key = KEY_SEQUENCES.get(self._escape)
        self._escape = None
        return self._key(key) if key else ""

    def _key(self, key: str) -> str:
        end = len(self._line)
        if key == "left":
            return self._move(max(self._cursor - 1, 0))
        if key == "right":
            return self._move(min(self._cursor + 1, end))
        if key in ("home", "end"):
            return self._move(0 if key == "home" else end)
        if key == "delete":
            return self._remove(self._cursor, min(self._cursor + 1, end))
        if key == "kill-to-end":
            return self._remove(self._cursor, end)
        if key == "kill-line":
            return self._remove(0, end)
        if key == "kill-word":
            before, blank, _ = self._line[: self._cursor].rstrip().rpartition(" ")
            return self._remove(len(before) + len(blank), self._cursor)
        return self._recall(self._position + (1 if key == "down" else -1))

    def _recall(self, position: int) -> str:
        if not 0 <= position <= len(self.history):
            return ""
        self._position = position
        return self._remove(0, len(self._line)) + self._insert((*self.history, "")[position])

    def _move(self, cursor: int) -> str:
        step = cursor - self._cursor
        shown = "\b" * -step if step < 0 else self._line[self._cursor : cursor]
        self._cursor = cursor
        return shown

    def _insert(self, text: str) -> str:
        tail = self._line[self._cursor :]
        self._line = self._line[: self._cursor] + text + tail
        self._cursor += len(text)
        return text + tail + "\b" * len(tail)

    def _remove(self, start: int, end: int) -> str:
        if start >= end:
            return ""
        shown = self._move(start)
        tail = self._line[end:]
        self._line = self._line[:start] + tail
        return shown + tail + " " * (end - start) + "\b" * (len(tail) + end - start)

    def _completed(self) -> str:
        if self._cursor != len(self._line):
            return ""
        word = self._line.rpartition(" ")[2]
        choices = sorted(choice for choice in self._complete(self._line) if choice.startswith(word))
        if not choices:
            return ""
        if len(choices) == 1:
            return self._insert(choices[0][len(word) :] + " ")
        common = _common_prefix(choices)
        if len(common) > len(word):
            return self._insert(common[len(word) :])
        return "\r\n" + "  ".join(choices) + "\r\n" + self.prompt()


def _common_prefix(words: Sequence[str]) -> str:
    first, last = min(words), max(words)
    same = next((index for index, char in enumerate(first) if last[index : index + 1] != char), len(first))
    return first[:same]
