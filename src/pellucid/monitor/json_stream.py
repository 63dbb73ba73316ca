"""JSON values out of a stream of bytes, with QEMU's dialect and words: single quotes too, values not bound to lines.

A stream may be cut anywhere, hold several values in a row, or garbage. Each value that is whole comes out of `read`;
what is wrong comes out as a `JsonError` in its place, and reading goes on behind it: after a bad character at the next
structural or control character, as QEMU's lexer recovers. What one value may take is bounded.
"""

import json
import re
from collections.abc import Iterator

from pellucid.monitor.json_value import JsonValue

MAX_NESTING = 1024
MAX_TOKENS = 1 << 17
MAX_BYTES = 1 << 20
"""Of one value, and of one token."""


_SPACE = re.compile(rb"[ \t\r\n]*")
_DOUBLE = rb"""[^"\\\x00-\x1f\xfe\xff]*(?:\\[\x20-\xfd][^"\\\x00-\x1f\xfe\xff]*)*"""
_SINGLE = _DOUBLE.replace(b'"', b"'")
_TOKEN = re.compile(
    rb"""[\[\]{},:]|"%b"|'%b'"""
    rb"""|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?(?=[^0-9.eE])|[a-z]+(?=[^a-z])""" % (_DOUBLE, _SINGLE)
)
_PARTIAL = re.compile(
    rb"""(?:"%b\\?|'%b\\?|[a-z]+"""
    rb"""|-?(?:0|[1-9][0-9]*)(?:\.(?:[0-9]+(?:[eE](?:[-+]?[0-9]*))?)?|[eE](?:[-+]?[0-9]*))?|-)""" % (_DOUBLE, _SINGLE)
)
"""As much of a token as is right: all there is when the stream merely ends here."""
_RECOVERY = re.compile(rb"[\x00-\x1f\xfe\xff\[\]{},:]")
_ESCAPE = re.compile(r"\\(u....|.|$)", re.DOTALL)
_SIMPLE = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", '"': '"', "'": "'", "\\": "\\", "/": "/"}
_KEYWORDS: dict[bytes, JsonValue] = {b"true": True, b"false": False, b"null": None}


class JsonError(Exception):
    """What stands in place of a value; the text is QEMU's."""


class JsonStream:
    """A reader: `feed` it bytes, then take what came out of `read`."""

    def __init__(self) -> None:
        self._data = b""
        self._recovering = False
        self._forget()

    def feed(self, data: bytes) -> None:
        """More of the stream."""
        self._data += data

    @property
    def waiting(self) -> int:
        """Bytes held: not read yet, or of a value that is not whole."""
        return len(self._data) + self._size

    def read(self) -> Iterator[JsonValue | JsonError]:
        """Every value that is whole by now. Stop taking at any time; the rest stays for the next call."""
        while (token := self._next_token()) is not None:
            if isinstance(token, JsonError):
                self._forget()
                yield token
            elif (outcome := self._take(token)) is not None:
                yield outcome[0]

    def _forget(self) -> None:
        self._tokens: list[bytes] = []
        self._size = self._braces = self._brackets = 0

    def _next_token(self) -> bytes | JsonError | None:
        data = self._data
        if self._recovering:
            found = _RECOVERY.search(data)
            if found is None:
                self._data = b""
                return None
            data = data[found.start() :]
            self._recovering = False
        start = _SPACE.match(data).end()  # type: ignore[union-attr]
        found = _TOKEN.match(data, start)
        if found is not None:
            self._data = data[found.end() :]
            return found[0]
        self._data = data = data[start:]
        if not data:
            return None
        partial = _PARTIAL.match(data)
        right = partial.end() if partial else 0
        if 0 < right == len(data):
            return self._too_long(right)
        # The bad character belongs to the message, and is skipped.
        self._data = data[right + 1 :]
        self._recovering = True
        stray = data[: right + 1].decode("utf-8", "replace")
        return JsonError(f"JSON parse error, stray '{_shortened(stray)}'")

    def _too_long(self, length: int) -> JsonError | None:
        if length <= MAX_BYTES:
            return None
        self._data = b""
        self._recovering = True
        return JsonError("JSON token size limit exceeded")

    def _take(self, token: bytes) -> tuple[JsonValue | JsonError] | None:
        """Add a token; (what the value was,) when it is whole."""
        self._tokens.append(token)
        self._size += len(token)
        if token in b"{}":
            self._braces += 1 if token == b"{" else -1
        elif token in b"[]":
            self._brackets += 1 if token == b"[" else -1
        if self._braces < 0 or self._brackets < 0 or self._braces == self._brackets == 0:
            tokens = self._tokens
            self._forget()
            return (_parse(tokens),)
        problem = self._limit()
        if problem is None:
            return None
        self._forget()
        return (JsonError(problem),)

    def _limit(self) -> str | None:
        if self._size > MAX_BYTES:
            return "JSON token size limit exceeded"
        if len(self._tokens) > MAX_TOKENS:
            return "JSON token count limit exceeded"
        if self._braces + self._brackets > MAX_NESTING:
            return "JSON nesting depth limit exceeded"
        return None


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else text[:80] + "..."


def _parse(tokens: list[bytes]) -> JsonValue | JsonError:
    """The value of tokens that lie between balanced brackets."""
    text = b" ".join(tokens)
    if b"'" not in text and b"\\u" not in text:
        try:
            value: JsonValue = json.loads(text, object_pairs_hook=_object, parse_int=_number, parse_float=_number)
            return value
        except (ValueError, RecursionError):
            pass  # Not plain JSON; below it says in QEMU's words why.
    try:
        return _Parser(tokens).value()
    except JsonError as error:
        return error


def _object(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("duplicate key")
    return made


def _number(text: str) -> int | float:
    """64-bit integers of either sign are exact; all else is a double."""
    if len(text) <= 20 and text.lstrip("-").isdigit():
        value = int(text)
        if -(1 << 63) <= value < 1 << 64:
            return value
    result = float(text)
    if result in (float("inf"), float("-inf")):
        raise ValueError("number out of range")
    return result


class _Parser:
    """Token by token with a stack of its own: 1,024 levels would be too many for Python's."""

    def __init__(self, tokens: list[bytes]) -> None:
        self._tokens = tokens
        self._position = 0
        self._open: list[tuple[list[JsonValue] | dict[str, JsonValue], str]] = []
        """The containers around the present place, each with the key that its next value gets."""

    def value(self) -> JsonValue:
        while True:
            made = self._begin()
            if made is None:
                continue
            while True:
                if not self._open:
                    return made[0]
                container, key = self._open[-1]
                if isinstance(container, dict):
                    container[key] = made[0]
                    kind, end = "dict", b"}"
                else:
                    container.append(made[0])
                    kind, end = "list", b"]"
                token = self._next()
                if token == b",":
                    if isinstance(container, dict):
                        self._open[-1] = (container, self._key(container))
                    break
                if token != end:
                    raise JsonError(f"JSON parse error, expected separator in {kind}")
                made = (self._open.pop()[0],)

    def _begin(self) -> tuple[JsonValue] | None:
        """A value, or None when a container was opened that is not empty."""
        token = self._next()
        if token in (b"{", b"["):
            made: dict[str, JsonValue] | list[JsonValue] = {} if token == b"{" else []
            end = b"}" if token == b"{" else b"]"
            if self._tokens[self._position : self._position + 1] == [end]:
                self._position += 1
                return (made,)
            self._open.append((made, self._key(made) if isinstance(made, dict) else ""))
            return None
        return (_scalar(token),)

    def _key(self, container: dict[str, JsonValue]) -> str:
        token = self._next()
        key = _scalar(token)
        if not isinstance(key, str):
            raise JsonError("JSON parse error, key is not a string in object")
        if self._next() != b":":
            raise JsonError("JSON parse error, missing : in object pair")
        if key in container:
            raise JsonError("JSON parse error, duplicate key")
        return key

    def _next(self) -> bytes:
        self._position += 1
        return self._tokens[self._position - 1] if self._position <= len(self._tokens) else b""


def _scalar(token: bytes) -> JsonValue:
    if token[:1] in (b'"', b"'"):
        return _string(token[1:-1])
    if token in _KEYWORDS:
        return _KEYWORDS[token]
    if token.isalpha():
        raise JsonError(f"JSON parse error, invalid keyword '{_shortened(token.decode())}'")
    if token[:1].isdigit() or token[:1] == b"-":
        try:
            return _number(token.decode())
        except ValueError as error:
            raise JsonError(f"JSON parse error, {error}") from None
    raise JsonError("JSON parse error, expecting value")


def _string(content: bytes) -> str:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise JsonError("JSON parse error, invalid UTF-8 sequence in string") from None
    pieces: list[str] = []
    end = 0
    while (found := _ESCAPE.search(text, end)) is not None:
        pieces.append(text[end : found.start()])
        character, end = _escaped(text, found)
        pieces.append(character)
    return "".join(pieces) + text[end:]


def _escaped(text: str, found: "re.Match[str]") -> tuple[str, int]:
    """(the character, where the text goes on)."""
    if not text.startswith("u", found.start() + 1):
        letter = found[1]
        if letter not in _SIMPLE:
            raise JsonError("JSON parse error, invalid escape sequence in string")
        return _SIMPLE[letter], found.end()
    code, end = _unit(text, found.start()), found.start() + 6
    if 0xD800 <= code < 0xDC00 and text.startswith("\\u", end):
        low = _unit(text, end)
        if 0xDC00 <= low < 0xE000:
            return chr(0x10000 + (code - 0xD800 << 10) + low - 0xDC00), end + 6
    if 0xD800 <= code < 0xE000 or code in (0xFFFE, 0xFFFF):
        raise JsonError(f"JSON parse error, {text[found.start() : end]} is not a valid Unicode character")
    return chr(code), end


def _unit(text: str, start: int) -> int:
    digits = text[start + 2 : start + 6]
    if not re.fullmatch(r"[0-9a-fA-F]{4}", digits):
        raise JsonError(f"JSON parse error, {text[start : start + 6]} is not a valid Unicode character")
    return int(digits, 16)
