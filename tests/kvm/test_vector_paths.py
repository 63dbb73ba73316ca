"""Random sequences of local APIC accesses by three executors: native code, Python's side of the APIC (somebody looks
on, so every access leaves), and a model of one instruction after the other over a `Lapic` without a processor.

The guest is in real mode. A handler stores its vector and the address that it returns to; the program ends interrupts.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator

import pytest

from pellucid.cpu.state import RFLAGS_IF
from pellucid.kvm.api import Exit, IntrExit, IoExit, MmioExit, ShutdownExit
from pellucid.kvm.irqchip import apicdef as d
from pellucid.kvm.irqchip.lapic import Lapic
from tests.kvm.fakes import FakeVm
from tests.kvm.test_soft_smp import Guest, running_guest
from tests.kvm.two_processors import CODE, OUT, place, use_x2apic
from tests.onlooker import OnLooker

VECTORS = (0x21, 0x2F, 0x30, 0x41, 0x42, 0x81, 0xEF, 0xFF)
LOG, HANDLERS = 0x2800, 0x5000
APIC_MSR = 0x800

# An instruction: its bytes, and what it does to the model: (register's offset, value), or "sti", "cli", "nop".
Step = tuple[str, tuple[int, int] | str]


def wrmsr(offset: int, value: int) -> list[Step]:
    """mov ecx, MSR; mov eax, low; mov edx, high; wrmsr."""
    index = (APIC_MSR + (offset >> 4)).to_bytes(4, "little").hex()
    low, high = (value & 0xFFFF_FFFF).to_bytes(4, "little").hex(), (value >> 32).to_bytes(4, "little").hex()
    return [(f"66b9{index}", "nop"), (f"66b8{low}", "nop"), (f"66ba{high}", "nop"), ("0f30", (offset, value))]


def store(offset: int, value: int) -> list[Step]:
    """mov dword es:[offset], value."""
    at, content = offset.to_bytes(2, "little").hex(), value.to_bytes(4, "little").hex()
    return [(f"2666c706{at}{content}", (offset, value))]


def random_program(rng: random.Random, *, x2apic: bool) -> list[Step]:
    write = wrmsr if x2apic else store
    program: list[Step] = []
    for _ in range(120):
        vector = rng.choice(VECTORS) if rng.random() < 0.95 else rng.randrange(16)
        kind = rng.randrange(9)
        if kind < 3:
            destination = rng.choice((0, 0, 0x4_0000, 0x8_0000, 0x800))     # own id, itself, all, logical
            if not x2apic:
                program += write(d.APIC_ICR2, (1 if destination == 0x800 else 0) << 24)
            whom = 1 << 32 if destination == 0x800 and x2apic else 0
            program += write(d.APIC_ICR, whom | destination | 0x4000 | vector)
        elif kind == 3 and x2apic:
            program += write(d.APIC_SELF_IPI, vector)
        elif kind == 4:
            program += write(d.APIC_TASKPRI, rng.choice((0, 0, 0x2F, 0x40, 0x80, 0xFF)))
        elif kind < 7:
            program += write(d.APIC_EOI, 0)
        elif kind == 7:
            program.append(("fb", "sti") if rng.random() < 0.7 else ("fa", "cli"))
        else:
            program.append(("90", "nop"))
    return program


Log = list[tuple[int, int]]


def run_guest(program: list[Step], *, x2apic: bool, watched: bool) -> tuple[Log, bytes, int]:
    """What the handlers stored, the APIC's registers, and its pending errors at the end."""
    guest = Guest(1)
    guest.clock.start()
    try:
        vcpu = place(guest, 0, "".join(code for code, _ in program) + OUT)
        if x2apic:
            use_x2apic(vcpu)
        enable(vcpu.lapic, x2apic=x2apic)
        for n, vector in enumerate(VECTORS):
            at = HANDLERS + 16 * n
            guest.put(4 * vector, at.to_bytes(4, "little").hex())
            # mov byte [di], vector; mov bp, sp; mov bp, [bp]; mov [di + 1], bp; add di, 3; iret
            guest.put(at, f"c605{vector:02x} 89e5 8b6e00 896d01 83c703 cf")
        regs = vcpu.get_regs()
        regs.rdi, regs.rflags = LOG, 2 | RFLAGS_IF
        vcpu.set_regs(regs)
        vcpu.set_log(OnLooker() if watched else None)
        assert isinstance(vcpu.run(), IoExit)
        content = guest.vm.read_guest(LOG, vcpu.get_regs().rdi - LOG)
        assert content is not None
        log = [(content[n], int.from_bytes(content[n + 1 : n + 3], "little")) for n in range(0, len(content), 3)]
        return log, vcpu.get_lapic().pack(), vcpu.lapic.esr_pending
    finally:
        guest.close()
        guest.clock.close()


def enable(lapic: Lapic, *, x2apic: bool) -> None:
    """Software enables it; an xAPIC has logical id 1."""
    if x2apic:
        lapic.msr_write(APIC_MSR + (d.APIC_SPIV >> 4), 0x1FF)
    else:
        lapic.mmio_write(d.APIC_LDR, 4, 1 << 24)
        lapic.mmio_write(d.APIC_SPIV, 4, 0x1FF)


def run_model(program: list[Step], *, x2apic: bool) -> tuple[Log, bytes, int]:
    vm = FakeVm()
    if x2apic:
        vm.x2apic()
    else:
        vm.vcpu.write(d.APIC_LDR, 1 << 24)
    lapic, log, at = vm.vcpu.lapic, [], CODE
    open_, shadow = True, False
    for code, effect in program:
        shadow = effect == "sti" and not open_
        open_ = effect == "sti" or open_ and effect != "cli"
        at += len(bytes.fromhex(code))
        if not isinstance(effect, str):
            vm.vcpu.write(*effect) if not x2apic else lapic.msr_write(APIC_MSR + (effect[0] >> 4), effect[1])
        while open_ and not shadow and (vector := vm.vcpu.take()) is not None:
            log.append((vector, at))
    return log, lapic.get_state().pack(), lapic.esr_pending


@pytest.mark.parametrize("x2apic", [False, True], ids=["xapic", "x2apic"])
@pytest.mark.parametrize("seed", range(6))
def test_native_code_does_what_the_local_apic_does(seed: int, x2apic: bool) -> None:
    program = random_program(random.Random(seed), x2apic=x2apic)
    expected = run_model(program, x2apic=x2apic)
    assert len(expected[0]) > 5
    for watched in (True, False):
        log, registers, errors = run_guest(program, x2apic=x2apic, watched=watched)
        assert log == expected[0]
        assert (registers, errors) == expected[1:]


# --- two processors at once, with a hostile guest


def run_until_kicked(guest: Guest, seconds: float) -> list[Exit]:
    """Both vCPUs for a while; each returns when it is kicked."""
    exits: list[Exit] = []
    threads = [threading.Thread(target=lambda v=v: exits.append(v.run())) for v in guest.vcpus]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    for vcpu in guest.vcpus:
        vcpu.kick()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return exits


def check_registers(lapic: Lapic) -> None:
    """What native code keeps up to date is what Python makes of the registers."""
    lapic.get_interrupt()
    assert not lapic.irr & 0xFFFF and not lapic.isr & 0xFFFF and 0 <= lapic.tpr < 256
    ppr, due = lapic.ppr, lapic.is_due
    lapic.update()
    assert (lapic.ppr, lapic.is_due) == (ppr, due)


@pytest.fixture
def two() -> Iterator[Guest]:
    """Every vector has a handler that returns; behind #GP, which WRMSR raises, it goes on two bytes further."""
    with running_guest(2) as guest:
        guest.put(0, HANDLERS.to_bytes(4, "little").hex() * 256)
        guest.put(HANDLERS, "cf")
        guest.put(4 * 13, (HANDLERS + 16).to_bytes(4, "little").hex())
        guest.put(HANDLERS + 16, "55 89e5 83460202 5d cf")
        yield guest


def test_a_storm_of_interrupts_keeps_nobody_from_leaving(two: Guest) -> None:
    """Each sends to all, again and again, and ends one of what came."""
    send, end = wrmsr(d.APIC_ICR, 0x8_4061), wrmsr(d.APIC_EOI, 0)
    loop = "".join(code for code, _ in send + end)
    loop += f"eb{-(len(bytes.fromhex(loop)) + 2) & 0xFF:02x}"
    for number, vcpu in enumerate(two.vcpus):
        place(two, number, loop, CODE + 0x3000 * number)
        use_x2apic(vcpu)
        vcpu.lapic.msr_write(0x80F, 0x1FF)
        vcpu.state.flags |= RFLAGS_IF
    assert run_until_kicked(two, 0.2) == [IntrExit()] * 2
    for vcpu in two.vcpus:
        check_registers(vcpu.lapic)


@pytest.mark.parametrize("seed", range(4))
def test_any_command_at_any_time(two: Guest, seed: int) -> None:
    """Random writes of x2APIC registers by both, INIT, SIPI and SMI among them."""
    rng = random.Random(seed)
    for number, vcpu in enumerate(two.vcpus):
        code = ""
        for _ in range(100):
            offset = rng.choice((d.APIC_ICR, d.APIC_EOI, d.APIC_SELF_IPI, d.APIC_TASKPRI, d.APIC_SPIV,
                                 rng.randrange(0x40) << 4))  # fmt: skip
            low = rng.choice((rng.getrandbits(32), rng.getrandbits(20) & ~0x3000, 0, 0x1FF, rng.getrandbits(8)))
            code += "".join(part for part, _ in wrmsr(offset, rng.choice((0, 1, 3, 0xFFFF_FFFF)) << 32 | low))
            code += rng.choice(("", "fb", "fa", "fb90"))
        code += "e9" + (-(len(bytes.fromhex(code)) + 3) & 0xFFFF).to_bytes(2, "little").hex()
        place(two, number, code, CODE + 0x8000 + 0x2000 * number)
        use_x2apic(vcpu)
        vcpu.lapic.msr_write(0x80F, 0x1FF)
    for exit in run_until_kicked(two, 0.15):
        assert isinstance(exit, IntrExit | IoExit | ShutdownExit | MmioExit)
    for vcpu in two.vcpus:
        check_registers(vcpu.lapic)
