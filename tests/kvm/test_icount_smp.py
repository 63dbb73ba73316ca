"""Several vCPUs by the instruction clock: they execute in turn, and two runs are the same to the instruction."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pellucid.cli.bench.asm import assemble
from pellucid.engine.arrays import Array
from pellucid.kvm.api import Exit, InstructionTime, IntrExit, IoExit, MpState
from pellucid.kvm.backends.soft.pace import SLICE
from pellucid.kvm.backends.soft.rate import Rate
from pellucid.kvm.backends.soft.system import SoftHypervisor, SoftVm
from pellucid.records import dataclass, replace
from pellucid.runtime import InstructionClock

RAM, GDT, IDT, STACKS = 0x10000, 0x500, 0x600, 0x7000
FIRST, SECOND, TICK, HELLO, SHARED = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000
TIMER_VECTOR, IPI_VECTOR = 0x30, 0x31
TIMER_COUNT = 250_000
"""Nanoseconds between two timer interrupts of the first vCPU."""
PORT = 0x98
APIC = "mov edi, 0xfee00000\n"
ENABLE = f"{APIC}mov dword [edi+0xf0], 0x1ff\n"
END_OF_INTERRUPT = f"{APIC}mov dword [edi+0xb0], 0\npop edi\npop eax\niretd"
SAY = f"mov eax, ebx\nout {PORT}, eax\n"

# The first vCPU works, and its timer interrupts it; each time it sends an IPI to the second.
BUSY = f"""{ENABLE}
    mov dword [edi+0x3e0], 0xb
    mov dword [edi+0x320], {0x20000 | TIMER_VECTOR}
    mov dword [edi+0x380], {TIMER_COUNT}
    sti
again:
    inc dword [{SHARED}]
    inc ebx
    jmp again
"""
SLEEPY = BUSY.replace(f"inc dword [{SHARED}]", "hlt")
TICKED = f"""
    push eax
    push edi
    {SAY}{APIC}
    mov dword [edi+0x310], 0x01000000
    mov dword [edi+0x300], {0x4000 | IPI_VECTOR}
"""
# The second counts with plain reads and writes of what the first counts too, and waits with PAUSE; or it sleeps.
MIXED = f"""{ENABLE}
    sti
again:
    inc dword [{SHARED}]
    inc ebx
    test bl, 0x3f
    jne again
    pause
    jmp again
"""
ASLEEP = f"{ENABLE}sti\nagain:\nhlt\ninc ebx\njmp again"
HEARD = f"push eax\npush edi\n{SAY}"
IN_NO_TIME = InstructionTime(2, sleep=False)


@dataclass(frozen=True)
class Word:
    """A write to the port: by whom, when, its count, the shared one, the TSC, and where it was."""

    cpu: int
    ns: int
    count: int
    shared: int
    tsc: int
    where: int


def descriptor(access: int) -> bytes:
    return (0x00CF_0000_0000_FFFF | access << 40).to_bytes(8, "little")


def gate(at: int) -> bytes:
    return (at & 0xFFFF | 8 << 16 | 0x8E00 << 32 | at >> 16 << 48).to_bytes(8, "little")


@contextmanager
def guest(first: str, second: str, asked: InstructionTime) -> Iterator[SoftVm]:
    """Two vCPUs in protected mode."""
    clock = InstructionClock()
    vm = SoftHypervisor(clock).create_vm()
    vm.count_instructions(asked)
    vm.create_irqchip()
    ram = Array(RAM)
    vm.set_user_memory_region(0, 0, RAM, ram.address)
    try:
        for at, text in ((FIRST, first), (SECOND, second), (TICK, TICKED + END_OF_INTERRUPT),
                         (HELLO, HEARD + END_OF_INTERRUPT)):
            vm.write_guest(at, assemble(text, at, bits=32).code)
        vm.write_guest(GDT, bytes(8) + descriptor(0x9B) + descriptor(0x93))
        vm.write_guest(IDT + 8 * TIMER_VECTOR, gate(TICK) + gate(HELLO))
        for n, start in enumerate((FIRST, SECOND)):
            vcpu = vm.create_vcpu(n)
            sregs = vcpu.get_sregs()
            code = replace(sregs.cs, base=0, selector=8, limit=0xFFFF_FFFF, type=11, db=1, g=1)
            data = replace(sregs.ds, base=0, selector=16, limit=0xFFFF_FFFF, type=3, db=1, g=1)
            gdt, idt = replace(sregs.gdt, base=GDT, limit=23), replace(sregs.idt, base=IDT, limit=0x7FF)
            vcpu.set_sregs(replace(sregs, cs=code, ds=data, es=data, ss=data, gdt=gdt, idt=idt, cr0=0x11))
            vcpu.set_regs(replace(vcpu.get_regs(), rip=start, rsp=STACKS + 0x800 * n))
            vcpu.set_mp_state(MpState.RUNNABLE)
        yield vm
    finally:
        vm.close()
        clock.close()
        del ram


def run(vm: SoftVm, count: int) -> list[Word]:
    """The first writes to the port; each vCPU on a thread of its own."""
    words: list[Word] = []
    ended = threading.Event()

    def body(n: int) -> None:
        vcpu = vm.vcpus[n]
        while not ended.is_set():
            exit = vcpu.run()
            if isinstance(exit, IntrExit):
                continue
            assert isinstance(exit, IoExit) and exit.port == PORT and exit.data is not None, exit
            shared = int.from_bytes(vm.read_guest(SHARED, 4) or b"", "little")
            where = int.from_bytes(vm.read_guest(vcpu.get_regs().rsp + 8, 4) or b"", "little")
            words.append(Word(n, vm.clock.now_ns(), exit.data, shared, vcpu.guest_tsc(), where))
            if len(words) >= count:
                ended.set()

    threads = [threading.Thread(target=body, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    assert ended.wait(60)
    for vcpu in vm.vcpus:
        vcpu.kick()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    return words[:count]


def words(first: str, second: str, count: int, asked: InstructionTime = IN_NO_TIME) -> list[Word]:
    with guest(first, second, asked) as vm:
        return run(vm, count)


@pytest.mark.parametrize(("first", "second"), [(BUSY, MIXED), (BUSY, ASLEEP), (SLEEPY, ASLEEP), (SLEEPY, MIXED)],
                         ids=["busy-busy", "busy-asleep", "asleep", "asleep-busy"])
def test_two_runs_are_the_same(first: str, second: str) -> None:
    once = words(first, second, 40)
    assert once == words(first, second, 40)
    assert {word.cpu for word in once} == {0, 1}
    assert all(word.tsc == word.ns for word in once)


def test_turns_are_of_equal_length_and_end_with_pause() -> None:
    spin = MIXED.replace("pause\n", "")
    seen = [word for word in words(BUSY, spin, 60) if word.cpu == 0]
    mine = (seen[-1].count - seen[0].count) * 3
    passed = (seen[-1].ns - seen[0].ns) >> 2
    assert 0.4 < mine / passed < 0.6, "half of the instructions are those of the first"
    polite = [word for word in words(BUSY, MIXED, 60) if word.cpu == 0]
    mine = (polite[-1].count - polite[0].count) * 3
    assert mine / ((polite[-1].ns - polite[0].ns) >> 2) > 0.95, "PAUSE gives the turn away"
    assert SLICE > 64 * 4


def test_timers_come_when_the_clock_says_on_whoever_s_turn() -> None:
    first = [word for word in words(SLEEPY, ASLEEP, 40) if word.cpu == 0]
    for before, after in zip(first, first[1:], strict=False):
        assert abs(after.ns - before.ns - TIMER_COUNT) < 400


def test_a_kick_reaches_a_vcpu_that_waits_for_its_turn() -> None:
    with guest("again:\njmp again", "again:\njmp again", IN_NO_TIME) as vm:
        done: list[tuple[int, Exit]] = []

        def once(n: int) -> None:
            done.append((n, vm.vcpus[n].run()))

        for n in (1, 0):  # without the first, the second never has the turn
            thread = threading.Thread(target=once, args=(n,))
            thread.start()
            time.sleep(0.05)
            vm.vcpus[n].kick()
            thread.join(10)
        assert done == [(1, IntrExit()), (0, IntrExit())]


def test_a_request_from_outside_reaches_a_sleeper_while_another_sleeps() -> None:
    """Both halted, no timer: the first has the turn and sleeps on the host."""
    with guest(ASLEEP, ASLEEP, InstructionTime(2)) as vm:
        threading.Timer(0.1, lambda: vm.vcpus[1].lapic.deliver(0, IPI_VECTOR)).start()
        (word,) = run(vm, 1)
        assert word.cpu == 1


class Stands:
    """A host's clock and a vCPU for `Rate`."""

    def __init__(self) -> None:
        self.real, self.slept = 0, 0.0

    def real_ns(self) -> int:
        return self.real

    def wait_for_wake(self, seconds: float) -> bool:
        self.slept += seconds
        self.real += int(seconds * 1e9)
        return False


def test_auto_follows_the_host() -> None:
    for host_ns, expected in ((1, 0), (8, 3), (500, 9)):  # that an instruction takes on the host
        stands = Stands()
        rate = Rate(stands, InstructionTime(auto=True))  # type: ignore[arg-type]
        now, shifts = 0, []
        for _ in range(400):
            instructions = 10**8 >> rate.shift
            now += instructions << rate.shift
            stands.real += instructions * host_ns
            shifts.append(rate.adapt(stands, now))  # type: ignore[arg-type]
        settled = shifts[200:]
        assert abs(sum(settled) / len(settled) - expected) <= 1.5, (host_ns, settled[-20:])
        assert abs(now - stands.real) < now / 5, "the two clocks stay together"


def test_align_waits_for_the_host_and_tells_of_delay(caplog: pytest.LogCaptureFixture) -> None:
    stands = Stands()
    rate = Rate(stands, InstructionTime(3, align=True))  # type: ignore[arg-type]
    assert rate.adapt(stands, 0) == 3  # type: ignore[arg-type]
    rate.adapt(stands, 2_000_000)  # type: ignore[arg-type]
    assert stands.slept == 0, "two milliseconds ahead are let be"
    rate.adapt(stands, 50_000_000)  # type: ignore[arg-type]
    assert abs(stands.slept - 0.05) < 1e-6
    stands.real += 7_500_000_000
    rate.adapt(stands, 60_000_000)  # type: ignore[arg-type]
    assert caplog.messages == ["The guest is now late by 7.0 to 8.0 seconds"]


def test_align_holds_a_guest_back() -> None:
    began = time.monotonic_ns()
    last = words(BUSY, ASLEEP, 400, InstructionTime(8, align=True))[-1]
    assert last.ns > 40_000_000
    assert time.monotonic_ns() - began > last.ns - 10_000_000
