"""The instruction clock under a vCPU: interrupts come between the same two instructions in every run."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from pellucid.cli.bench.asm import assemble
from pellucid.cpu.models import resolve
from pellucid.cpu.models.leaves import cpuid_leaves
from pellucid.cpu.models.topology import CpuTopology
from pellucid.engine.arrays import Array
from pellucid.kvm.api import CpuidEntry, InstructionTime, IoExit
from pellucid.kvm.backends.soft.system import SoftHypervisor, SoftVm
from pellucid.kvm.errors import InvalidRequestError
from pellucid.records import dataclass, replace
from pellucid.runtime import InstructionClock

PMC0, PERFEVTSEL0, GLOBAL_STATUS = 0xC1, 0x186, 0x38E
CODE, HANDLER, STACK = 0x1000, 0x2000, 0x7000
TICK, DONE = 0x98, 0x99
RELOAD = 300
"""PIT ticks between two interrupts: 251 us, some 63,000 instructions of 4 ns."""

# 32-bit encodings that mean the same to a 16-bit processor.
START = f"""
    mov al, 0x11
    out 0x20, al
    mov al, 8
    out 0x21, al
    mov al, 4
    out 0x21, al
    mov al, 1
    out 0x21, al
    mov al, 0xfe
    out 0x21, al
    mov al, 0x34
    out 0x43, al
    mov al, {RELOAD & 0xFF}
    out 0x40, al
    mov al, {RELOAD >> 8}
    out 0x40, al
    sti
"""
BUSY = """
again:
    inc ebx
    add ecx, ebx
    push ecx
    pop ecx
    xor edx, ecx
    jmp again
"""
IDLE = "again:\nhlt\ninc ebx\njmp again"
TICKED = f"out {TICK}, al\nmov al, 0x20\nout 0x20, al\n"


@dataclass(frozen=True)
class Tick:
    """One interrupt: when, how many turns the loop had made, where it was, and what the TSC said."""

    ns: int
    turns: int
    ip: int
    tsc: int


def made(shift: int, sleep: bool) -> SoftVm:
    clock = InstructionClock()
    vm = SoftHypervisor(clock).create_vm()
    vm.count_instructions(InstructionTime(shift, sleep))
    vm.create_irqchip()
    vm.create_pit()
    ram = Array(0x10000)
    vm.set_user_memory_region(0, 0, 0x10000, ram.address)
    vm.ram = ram  # type: ignore[attr-defined]
    vm.create_vcpu(0)
    return vm


def ticks(text: str, count: int, *, shift: int = 2, sleep: bool = False) -> list[Tick]:
    """The first interrupts of a guest in real mode."""
    vm = made(shift, sleep)
    try:
        return list(run(vm, text, count))
    finally:
        vm.close()
        vm.clock.close()  # type: ignore[attr-defined]


def run(vm: SoftVm, text: str, count: int) -> Iterator[Tick]:
    vm.write_guest(CODE, assemble(START + text, CODE, bits=32).code)
    vm.write_guest(HANDLER, assemble(TICKED, HANDLER, bits=32).code + b"\xcf")
    vm.write_guest(8 * 4, HANDLER.to_bytes(4, "little"))
    vcpu = vm.vcpus[0]
    # Virtual wire: LINT0 takes the PIC's interrupts.
    vcpu.lapic.mmio_write(0xF0, 4, 0x1FF)
    vcpu.lapic.mmio_write(0x350, 4, 0x700)
    sregs, regs = vcpu.get_sregs(), vcpu.get_regs()
    vcpu.set_sregs(replace(sregs, cs=replace(sregs.cs, base=0, selector=0)))
    vcpu.set_regs(replace(regs, rip=CODE, rsp=STACK))
    while count:
        exit = vcpu.run()
        assert isinstance(exit, IoExit) and exit.port == TICK, exit
        sp = vcpu.get_regs().rsp
        ip = int.from_bytes(vm.read_guest(sp, 2) or b"", "little")
        yield Tick(vm.clock.now_ns(), vcpu.get_regs().rbx, ip, vcpu.guest_tsc())
        count -= 1


@pytest.mark.parametrize("text", [BUSY, IDLE], ids=["busy", "idle"])
def test_two_runs_are_the_same(text: str) -> None:
    first = ticks(text, 40)
    assert first == ticks(text, 40)
    assert len({tick.ip for tick in first}) > 1 or text == IDLE


def test_performance_counters_change_nothing_and_agree() -> None:
    """They share the count of instructions with the clock; one that interrupts often, at no vector, only stops it."""
    plain = ticks(BUSY, 20)
    vm = made(2, False)
    vcpu = vm.vcpus[0]
    leaves = cpuid_leaves(resolve("max").model, 0, CpuTopology())
    vcpu.set_cpuid([CpuidEntry(e.function, e.index, e.eax, e.ebx, e.ecx, e.edx) for e in leaves])
    instructions, interrupting, ticking = 0x43_00C0, 0x53_00C4, 0x43_013C
    vcpu.set_msrs({PERFEVTSEL0: instructions, PERFEVTSEL0 + 1: interrupting, PERFEVTSEL0 + 2: ticking,
                   PMC0 + 1: (1 << 48) - 5000})
    try:
        assert list(run(vm, BUSY, 20)) == plain
        counted = vcpu.get_msrs(range(PMC0, PMC0 + 3))
        ns = vm.clock.now_ns()
        assert counted[PMC0] == ns // 4 and counted[PMC0 + 2] == ns, "4 ns an instruction, a tick a nanosecond"
        assert vcpu.get_msrs([GLOBAL_STATUS]) == {GLOBAL_STATUS: 2}
    finally:
        vm.close()
        vm.clock.close()  # type: ignore[attr-defined]


def test_interrupts_come_when_the_clock_says() -> None:
    """Each behind the first instruction that reaches its deadline; the handler's OUT comes right behind."""
    seen = ticks(BUSY, 40)
    for before, after in zip(seen, seen[1:], strict=False):
        assert abs(after.ns - before.ns - RELOAD * 1_000_000_000 / 1_193_182) < 30
        assert abs((after.turns - before.turns & 0xFFFF) * 6 * 4 - (after.ns - before.ns)) < 80, "4 ns an instruction"
        assert after.tsc - before.tsc == after.ns - before.ns, "the TSC counts nanoseconds"


def test_a_halt_takes_no_time_or_as_much_as_in_the_guest() -> None:
    assert [tick.turns for tick in ticks(IDLE, 5)] == [0, 1, 2, 3, 4]
    count = 3000
    span = count * RELOAD / 1_193_182
    began = time.monotonic()
    slept = ticks(IDLE, count, sleep=True)
    assert time.monotonic() - began > span * 0.9
    assert slept[:40] == ticks(IDLE, 40)


def test_instructions_are_counted_from_the_first_vcpu_on() -> None:
    vm = made(0, False)
    try:
        with pytest.raises(InvalidRequestError, match="first vCPU"):
            vm.count_instructions(InstructionTime())
    finally:
        vm.close()
        vm.clock.close()  # type: ignore[attr-defined]
