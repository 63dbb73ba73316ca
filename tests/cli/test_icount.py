"""-icount: what it takes, and QEMU's words for what it does not."""

import pytest

from pellucid.cli.options import parse_options
from pellucid.errors import NotBuiltError, UserError
from pellucid.machine.config import IcountConfig


@pytest.mark.parametrize(("text", "expected"), [
    ("2", IcountConfig(2)), ("shift=0", IcountConfig(0)), ("shift=0xa,sleep=off", IcountConfig(10, False)),
    ("3,align=off,sleep=on", IcountConfig(3)), ("sleep=on", None)])
def test_values(text: str, expected: IcountConfig | None) -> None:
    assert parse_options(["-icount", text]).icount == expected


@pytest.mark.parametrize(("text", "message"), [
    ("11", "icount: Invalid shift value"), ("shift=-1", "icount: Invalid shift value"),
    ("two", "icount: Invalid shift value"), ("align=on", "Please specify shift option when using align"),
    ("auto,align=on", "shift=auto and align=on are incompatible"),
    ("auto,sleep=off", "shift=auto and sleep=off are incompatible"),
    ("1,align=on,sleep=off", "align=on and sleep=off are incompatible")])
def test_what_qemu_refuses(text: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}$"):
        parse_options(["-icount", text])


@pytest.mark.parametrize("words", [["auto"], ["1,align=on"], ["1,rr=record,rrfile=x"], ["1", "-smp", "2"]])
def test_what_is_not_built(words: list[str]) -> None:
    with pytest.raises(NotBuiltError, match="not built yet"):
        parse_options(["-icount", *words])
