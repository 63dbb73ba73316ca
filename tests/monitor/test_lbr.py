"""`info lbr`: the records of a processor in the format that it has, and what a model without them says."""

from types import SimpleNamespace
from typing import Any

import pytest

from pellucid.kvm.errors import MsrAccessError
from pellucid.kvm.lbr import registers
from pellucid.monitor.commands.lbr import lbr

KERNEL = 0xFFFF_8000_0000_1000


def shown(msrs: dict[int, int]) -> str:
    """The command on a processor with these MSRs."""

    def get_msrs(indices: list[int]) -> dict[int, int]:
        if not set(indices) <= set(msrs):
            raise MsrAccessError(indices[0])
        return {index: msrs[index] for index in indices}

    thread = SimpleNamespace(vcpu=SimpleNamespace(get_msrs=get_msrs), run_on_cpu=lambda work: work())
    session: Any = SimpleNamespace(thread=lambda index: thread)
    return lbr(session)


@pytest.mark.parametrize("msrs", [{}, {0x345: 1 << 13}])
def test_without(msrs: dict[int, int]) -> None:
    assert "no last-branch records" in shown(msrs)


@pytest.mark.parametrize(("number", "flags", "cycles", "words"), [
    (3, 0, 0, ""), (4, 1 << 62, 0, " tx"), (4, 3 << 61, 0, " tx abort"), (5, 0, 7, " cycles=7"),
    (6, 1 << 63, 9, " cycles=9")])
def test_latest_first(number: int, flags: int, cycles: int, words: str) -> None:
    msrs = {0x345: number, 0x1D9: 1, **dict.fromkeys(registers(number), 0)}
    target = KERNEL & (1 << 48) - 1 | cycles << 48 if number == 6 else KERNEL
    msrs |= {0x1C9: 0, 0x1C8: 4, 0x680: 0x1234 | flags, 0x6C0: target}
    last = max(index for index in msrs if index < 0x6C0)
    msrs |= {last: 0x55, last + 0x40: 0x66}
    if number == 5:
        msrs[0xDC0] = cycles
    assert shown(msrs).splitlines() == [
        f"format={number} recording=on LBR_SELECT=004", f"0000000000001234 -> {KERNEL:016x}{words}",
        "0000000000000055 -> 0000000000000066"]
