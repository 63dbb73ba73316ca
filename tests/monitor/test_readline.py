"""The input line, seen through a model of a terminal that shows what the editor echoes."""

from hypothesis import given
from hypothesis import strategies as st

from pellucid.monitor import commands
from pellucid.monitor.hmp import completions
from pellucid.monitor.readline import LineEditor

assert commands.__all__
UP, LEFT, DELETE, HOME = b"\x1b[A", b"\x1b[D", b"\x1b[3~", b"\x1b[H"


class Screen:
    """One line of a terminal: printable characters overwrite, backspace moves left, carriage return starts anew."""

    def __init__(self) -> None:
        self.cells: list[str] = []
        self.column = 0

    def show(self, text: str) -> None:
        for char in text:
            if char == "\b":
                self.column -= 1
                assert self.column >= 0
            elif char == "\r":
                self.cells, self.column = [], 0
            elif char != "\n":
                self.cells[self.column : self.column + 1] = [char]
                self.column += 1

    @property
    def text(self) -> str:
        return "".join(self.cells).rstrip()


def type_in(editor: LineEditor, data: bytes, screen: Screen | None = None) -> list[str]:
    lines = []
    for byte in data:
        shown, line = editor.feed(byte)
        if screen is not None:
            screen.show(shown)
        if line is not None:
            lines.append(line)
    return lines


def test_plain_lines() -> None:
    assert type_in(LineEditor("> "), b"stop\rcont\n") == ["stop", "cont"]


def test_editing() -> None:
    editor, screen = LineEditor("> "), Screen()
    assert type_in(editor, b"inf regs" + LEFT * 5 + b"o" + b"\x05" + b"\x08ters", screen) == []
    assert screen.text == "info regters"
    assert type_in(editor, b"\x17registers\r") == ["info registers"]


def test_keys_that_remove() -> None:
    assert type_in(LineEditor(""), b"abc\x15def\r") == ["def"]
    assert type_in(LineEditor(""), b"abc" + HOME + DELETE + b"\x06\x0b\r") == ["b"]
    assert type_in(LineEditor(""), b"\x08\x7f\x17" + DELETE + b"ok\r") == ["ok"]


def test_history() -> None:
    editor = LineEditor("")
    type_in(editor, b"one\rtwo\rtwo\r\r")
    assert type_in(editor, UP + b"\r" + UP + UP + b"\r" + UP + UP + UP + UP + UP + b"!\r") == ["two", "one", "one!"]


def test_completion() -> None:
    editor = LineEditor("> ", completions)
    assert type_in(editor, b"inf\tre\t\r") == ["info registers "]
    screen = Screen()
    type_in(editor, b"s\t", screen)
    assert screen.text == "> s"


@given(st.lists(st.one_of(st.binary(max_size=3), st.sampled_from([UP, LEFT, DELETE, HOME, b"ab ", b"\x08"]))))
def test_the_screen_shows_the_line(pieces: list[bytes]) -> None:
    editor, screen = LineEditor(""), Screen()
    type_in(editor, b"first one\rsecond\r")
    type_in(editor, b"".join(pieces), screen)
    shown = screen.text
    # An escape sequence may be open; the next line shows what was in the editor either way.
    lines = type_in(editor, b"\x1b[Z\r")
    assert lines[0].rstrip() == shown
