"""Last-branch records under a vCPU: what a guest reads of its branches, beside counters, and what it may write."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pellucid.cpu.state import MODE_LBR
from pellucid.kvm.errors import MsrAccessError
from pellucid.kvm.irqchip import apicdef
from pellucid.kvm.pmu import FULL_WIDTH_WRITE, IA32_PERF_CAPABILITIES

from .machine import CODE, DEVICE
from .test_counters import (
    BOTH,
    BRANCHES,
    DEBUGCTL,
    FREEZE,
    GLOBAL_CTRL,
    INSTRUCTIONS,
    INT,
    LIMIT,
    PMC0,
    Counted,
    counted,
    finish,
)
from .test_interrupts import NMI


@pytest.fixture
def m() -> Iterator[Counted]:
    yield from counted()


LBR, FREEZE_LBRS = 1, 1 << 11
SELECT, TOS, LER_FROM, FROM_0, TO_0, INFO_0 = 0x1C8, 0x1C9, 0x1DD, 0x680, 0x6C0, 0xDC0


def recording(m: Counted, number: int, source: str) -> None:
    """`source` between a WRMSR that begins to record, in this format, and one that ends it."""
    m.vcpu.set_msrs({IA32_PERF_CAPABILITIES: FULL_WIDTH_WRITE | number})
    m.begin(f"mov ecx, {DEBUGCTL}\nxor edx, edx\nmov eax, {LBR | FREEZE_LBRS}\nwrmsr\n" + source
            + f"\nmov ecx, {DEBUGCTL}\nxor edx, edx\nxor eax, eax\nwrmsr\nout DONE, al")


def latest(m: Counted, count: int, first: int) -> list[int]:
    """The latest entries of one kind of register, oldest first."""
    tos = m.vcpu.get_msrs([TOS])[TOS]
    return list(m.vcpu.get_msrs([first + (tos - n) % 16 for n in range(count)][::-1]).values())


def test_a_guest_records_its_branches(m: Counted) -> None:
    recording(m, 4, "a: jmp b\nb: call c\nnop\nc: out SAY, al\nd: jmp e\ne: nop")
    finish(m)
    names = [m.labels[x] for x in "abbcde"]
    assert latest(m, 3, FROM_0) == names[::2][:2] + [m.labels["d"]] and latest(m, 3, TO_0) == names[1::2]
    assert not m.state.debugctl and not m.vcpu.measured, "nothing is counted for this format"


def test_records_with_cycles(m: Counted) -> None:
    """Instructions are counted for them, also while no counter is enabled, and also by the counters."""
    source = "nop\na: jmp b\nb: mov eax, [0xFED00000]\nnop\nc: jmp d\nd: mov ecx, 5\ne: loop e"
    for counters in (False, True):
        recording(m, 5, source)
        if counters:
            m.select(BOTH | BRANCHES)
            m.vcpu.set_msrs({GLOBAL_CTRL: 1, PMC0: 0})
        assert m.pages is not None
        m.pages.map(DEVICE, DEVICE)
        finish(m)
        tos = m.vcpu.get_msrs([TOS])[TOS]
        cycles = m.vcpu.get_msrs([INFO_0 + (tos - n) % 32 for n in range(6)])
        assert list(cycles.values())[::-1] == [3, 3, 2, 1, 1, 1], "the WRMSR and NOP; MOV and NOP; MOV"
        assert m.vcpu.measured == counters
    assert m.counts(1) == [7], "two jumps, five loops"


@pytest.mark.parametrize("freeze", [False, True])
def test_an_overflow_ends_the_recording(m: Counted, freeze: bool) -> None:
    """The request itself does, before the interrupt is delivered; without the flag that is recorded, too."""
    recording(m, 4, "nop\na: jmp b\nnop\nb: nop\nc: jmp d\nd: nop")
    m.load(f"mov eax, {LBR | FREEZE_LBRS * freeze}", CODE + m.read_bytes(CODE, 64).index(b"\xb8"))
    m.select(BOTH | INT | INSTRUCTIONS)
    m.vcpu.lapic.mmio_write(apicdef.APIC_LVTPC, 4, apicdef.DM_NMI << 8)
    m.vcpu.set_msrs({GLOBAL_CTRL: 1, PMC0: LIMIT - 7, DEBUGCTL: 0})
    assert m.events() == [(NMI, m.labels["c"])]
    n = m.labels
    if freeze:
        assert latest(m, 2, FROM_0) == [0, n["a"]]
    else:
        assert latest(m, 4, FROM_0)[:2] == [n["a"], n["c"]] and latest(m, 1, TO_0) == [n["d"]]
        assert m.vcpu.get_msrs([LER_FROM])[LER_FROM] == n["a"]


def test_who_may_write_what_of_the_records(m: Counted) -> None:
    """Without records there is none of their registers, but the top of the stack, which reads as 0."""
    m.begin("nop")
    for index, value in ((SELECT, 0), (FROM_0, 0), (LER_FROM, 0), (DEBUGCTL, FREEZE_LBRS)):
        with pytest.raises(MsrAccessError):
            m.vcpu.msrs.write(index, value)
    assert m.vcpu.msrs.read(TOS) == 0
    for number in (1, 2, 8, 63):
        with pytest.raises(MsrAccessError):
            m.vcpu.set_msrs({IA32_PERF_CAPABILITIES: number})
    m.vcpu.set_msrs({IA32_PERF_CAPABILITIES: 4})
    m.vcpu.msrs.write(DEBUGCTL, LBR | FREEZE_LBRS | FREEZE)
    m.vcpu.msrs.write(FROM_0 + 15, 5)
    assert m.state.mode & MODE_LBR
    with pytest.raises(MsrAccessError):
        m.vcpu.msrs.write(IA32_PERF_CAPABILITIES, 4)
    m.vcpu.set_msrs({IA32_PERF_CAPABILITIES: 4})
    assert m.vcpu.msrs.read(FROM_0 + 15) == 5, "the same format again changes nothing"
    m.vcpu.set_msrs({IA32_PERF_CAPABILITIES: 0})
    assert not m.state.mode & MODE_LBR
