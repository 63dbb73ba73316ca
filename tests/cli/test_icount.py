"""-icount: what it takes, and QEMU's words for what it does not."""

import pytest

from pellucid.cli.options import parse_options
from pellucid.errors import NotBuiltError, UserError
from pellucid.kvm.api import InstructionTime


@pytest.mark.parametrize(("text", "expected"), [
    ("2", InstructionTime(2)), ("shift=0", InstructionTime(0)), ("shift=0xa,sleep=off", InstructionTime(10, False)),
    ("3,align=off,sleep=on", InstructionTime(3)), ("auto", InstructionTime(auto=True)),
    ("1,align=on", InstructionTime(1, align=True)), ("sleep=on", None)])
def test_values(text: str, expected: InstructionTime | None) -> None:
    assert parse_options(["-icount", text, "-smp", "2"]).icount == expected


def test_vcpus_in_turn_do_not_go_with_threads_of_their_own() -> None:
    with pytest.raises(UserError, match="No MTTCG when icount is enabled"):
        parse_options(["-icount", "1", "-accel", "tcg,thread=multi"])


@pytest.mark.parametrize(("text", "message"), [
    ("11", "icount: Invalid shift value"), ("shift=-1", "icount: Invalid shift value"),
    ("two", "icount: Invalid shift value"), ("align=on", "Please specify shift option when using align"),
    ("auto,align=on", "shift=auto and align=on are incompatible"),
    ("auto,sleep=off", "shift=auto and sleep=off are incompatible"),
    ("1,align=on,sleep=off", "align=on and sleep=off are incompatible")])
def test_what_qemu_refuses(text: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}$"):
        parse_options(["-icount", text])


@pytest.mark.parametrize("words", [["1,rr=record,rrfile=x"], ["1,rr=replay,rrfile=x"], ["1,rrsnapshot=a"]])
def test_what_is_not_built(words: list[str]) -> None:
    with pytest.raises(NotBuiltError, match="not built yet"):
        parse_options(["-icount", *words])
