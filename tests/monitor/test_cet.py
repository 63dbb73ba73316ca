"""`info cet`: the registers of control-flow enforcement, and what a model lacks."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from pellucid.kvm.errors import MsrAccessError
from pellucid.monitor.commands.cet import cet

MSRS = {0x6A0: 0x3, 0x6A2: 0x35, 0x4B56_4DFF: 0x7FFF_F000, 0x6A8: 0x1000, **{0x6A4 + n: 8 * n for n in range(4)}}


def shown(msrs: dict[int, int]) -> str:
    def get_msrs(indices: Iterable[int]) -> dict[int, int]:
        for index in indices:
            if index not in msrs:
                raise MsrAccessError(index)
        return msrs

    thread = SimpleNamespace(vcpu=SimpleNamespace(get_msrs=get_msrs), run_on_cpu=lambda work: work())
    session: Any = SimpleNamespace(thread=lambda number: thread)
    return cet(session)


CONTROLS = "U_CET=0000000000000003 S_CET=0000000000000035\n"


@pytest.mark.parametrize(("without", "text"), [
    ((), CONTROLS + "SSP=000000007ffff000 SSP_TABLE=0000000000001000 PL0_SSP=0000000000000000 "
         "PL1_SSP=0000000000000008 PL2_SSP=0000000000000010 PL3_SSP=0000000000000018\n"),
    ((0x4B56_4DFF,), CONTROLS + "this CPU model has no shadow stacks\n"),
    ((0x6A0,), "this CPU model has neither shadow stacks nor branch tracking\n")])
def test_what_it_says(without: tuple[int, ...], text: str) -> None:
    assert shown({index: value for index, value in MSRS.items() if index not in without}) == text
