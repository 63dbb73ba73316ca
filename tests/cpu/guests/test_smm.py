"""System-management mode as guests see it: entry from every mode, the save map, RSM, what is blocked meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pellucid.cpu import smm
from pellucid.cpu.state import (
    CR0_PG, CS, EFER_LMA, RFLAGS_IF, RFLAGS_TF, RFLAGS_VM, SHADOW_STI, SS,
    TR)
from pellucid.kvm.api import IntrExit, MmioExit, MpState, ShutdownExit
from pellucid.kvm.errors import MsrAccessError
from pellucid.kvm.irqchip import apicdef

from .machine import CODE, STACK0
from .smm_guest import IA32_SMBASE, IA32_SMI_COUNT, SMI, SMRAM, Smm
from .test_interrupts import NMI, SAY_3, VECTOR

U32, U64 = (1 << 32) - 1, (1 << 64) - 1
SAY_SMI = f"mov al, {SMI}\nout SAY, al\n"
END = "\nout DONE, al"
SPOIL = "mov al, 7\nout SAY, al\n" + "\n".join(f"mov {r}, 0x1111" for r in ("ebx", "ecx", "edx", "esi", "edi", "ebp"))
SPOIL += "\nmov esp, 0x2222\nmov eax, 0xFFFF\nmov ds, ax\nmov ss, ax\nmov fs, ax\nstc\nstd\nrsm"
RIP, RFLAGS, EFER, CR0, CR3, CR4, DR6, DR7 = 0xFF78, 0xFF70, 0xFED0, 0xFF58, 0xFF50, 0xFF48, 0xFF68, 0xFF60
REVISION, SAVED_SMBASE, AUTO_HALT, SHADOW, RAX = 0xFEFC, 0xFF00, 0xFEC9, 0xFECB, 0xFFF8


@pytest.fixture
def m() -> Iterator[Smm]:
    machine = Smm()
    yield machine
    machine.close()


def v86(m: Smm, source: str) -> None:
    m.protected("hlt")
    m.load(source, 0xC000, 16)
    m.rflags = RFLAGS_VM | 0x3002
    for n in range(6):
        m.state.seg_selector[n], m.state.seg_base[n], m.state.seg_limit[n], m.state.seg_attr[n] = 0, 0, 0xFFFF, 0xF3
    m.state.rip, m.state.gpr[4] = 0xC000, 0x7000
    m.state.seg_limit[TR] = 0x1FF  # with a bitmap that allows every port used here
    m.refresh()


def user(m: Smm, source: str) -> None:
    m.long(source, cpl=3)
    m.rflags = 0x3202 & ~RFLAGS_IF


MODES: dict[str, Callable[[Smm, str], Any]] = {
    "real": lambda m, source: m.real(source),
    "16-bit protected": lambda m, source: m.protected(source, bits=16),
    "protected": lambda m, source: m.protected(source),
    "two-level paging": lambda m, source: m.protected(source, paging=2),
    "PAE": lambda m, source: m.protected(source, paging=3),
    "virtual-8086": v86,
    "compatibility": lambda m, source: m.long(source, compat=True),
    "64-bit": lambda m, source: m.long(source),
    "64-bit, CPL 3": user,
    "five levels": lambda m, source: m.long(source, levels=5),
}


def number_registers(m: Smm) -> None:
    long = bool(m.state.efer & EFER_LMA)
    if long:
        m.vcpu.set_msrs({0xC000_0101: 0x7FFF_1234_5678})
    for n in range(16):
        if n not in (0, 4):
            m.state.gpr[n] = 0x0101_0101_0101_0101 * n & (U64 if long else U32)


@pytest.mark.parametrize("mode", MODES)
def test_entry_and_exit(m: Smm, mode: str) -> None:
    """Registers on entry, the map of the interrupted state, and every register back."""
    m.handler(SPOIL)
    MODES[mode](m, SAY_SMI + "a: nop" + END)
    number_registers(m)
    before: list[Any] = []

    def inside() -> None:
        s = m.state
        regs, sregs = m.vcpu.get_regs(), m.vcpu.get_sregs()
        assert (regs.rip, regs.rflags) == (smm.ENTRY_POINT + 2, 2)
        assert (sregs.cs.selector, sregs.cs.base, sregs.cs.limit) == (SMRAM >> 4, SMRAM, 0xFFFF_FFFF)
        for segment in (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs):
            assert (segment.selector, segment.base, segment.limit, segment.present) == (0, 0, 0xFFFF_FFFF, True)
        assert (sregs.cr0 & 0x8000_000D, sregs.cr4, sregs.efer, s.dr[7], s.cpl) == (0, 0, 0, 0x400, 0)
        old, old_s = before
        assert [m.saved(RAX - 8 * n, 8) for n in range(16)] == [getattr(old, name) for name in GPRS]
        assert (m.saved(RIP, 8), m.saved(RFLAGS, 8)) == (m.labels["a"], old.rflags)
        assert [m.saved(at, 8) for at in (CR0, CR3, CR4, EFER)] == [old_s.cr0, old_s.cr3, old_s.cr4, old_s.efer]
        assert (m.saved(REVISION, 4), m.saved(SAVED_SMBASE, 4), m.saved(AUTO_HALT, 1)) == (0x2_0064, SMRAM, 0)
        for at, name in ((0xFE00, "es"), (0xFE10, "cs"), (0xFE20, "ss"), (0xFE70, "ldt"), (0xFE90, "tr")):
            segment = getattr(old_s, name)
            assert m.saved(at, 2) == segment.selector and m.saved(at + 8, 8) == segment.base
            assert m.saved(at + 4, 4) == segment.limit and m.saved(at + 2, 2) & 15 == segment.type
        assert (m.saved(0xFE64, 4), m.saved(0xFE68, 8)) == (old_s.gdt.limit, old_s.gdt.base)

    def note(value: int) -> None:
        if value == SMI:
            before[:] = m.vcpu.get_regs(), m.vcpu.get_sregs()
        Smm.on_say(m, value)

    m.inside, m.on_say = inside, note  # type: ignore[method-assign]
    m.finish()
    assert m.entries == 1 and not m.state.smm and not m.state.nmi_blocked
    regs, sregs = m.vcpu.get_regs(), m.vcpu.get_sregs()
    before[0].rip = regs.rip
    assert (regs, sregs) == tuple(before)
    assert m.vcpu.get_msrs((IA32_SMI_COUNT, IA32_SMBASE)) == {IA32_SMI_COUNT: 1, IA32_SMBASE: SMRAM}


GPRS = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))


def test_rsm_outside_is_undefined(m: Smm) -> None:
    m.begin("a: rsm" + END)
    m.gate(6)
    m.state.pending = 0
    assert m.catch() == 6 and m.stack(1, 8) == [m.labels["a"]]


def test_guests_read_the_count_and_nothing_else(m: Smm) -> None:
    assert m.vcpu.msrs.read(IA32_SMI_COUNT) == 0
    for access in (
        lambda: m.vcpu.msrs.read(IA32_SMBASE),
        lambda: m.vcpu.msrs.write(IA32_SMBASE, 0),
        lambda: m.vcpu.msrs.write(IA32_SMI_COUNT, 0),
    ):
        with pytest.raises(MsrAccessError):
            access()


# --- HLT, shadows, traps ---------------------------------------------------------------------------------


def halted_guest(m: Smm) -> None:
    """Behind an HLT that nothing has ended yet, and an SMI comes."""
    m.begin("hlt\na: mov ebx, 2" + END, RFLAGS_IF | 2)
    m.state.rip, m.state.gpr[3] = m.labels["a"], 1
    m.vcpu.set_mp_state(MpState.HALTED)
    m.vcpu.smi()


def test_smi_in_hlt_goes_back_to_hlt(m: Smm) -> None:
    halted_guest(m)
    seen: list[tuple[int, int, MpState]] = []
    m.inside = lambda: seen.append(  # type: ignore[method-assign]
        (m.saved(AUTO_HALT, 1), m.saved(RIP, 8), m.vcpu.get_mp_state())
    )
    thread = threading.Thread(target=m.finish)
    thread.start()
    while not m.entries or m.vcpu.get_mp_state() is not MpState.HALTED:
        thread.join(0.001)
    assert seen == [(1, m.labels["a"], MpState.RUNNABLE)] and m.state.gpr[3] == 1 and not m.state.smm
    m.post()
    thread.join()
    assert m.state.gpr[3] == 2 and m.log == [VECTOR, m.labels["a"]]


def test_a_handler_ends_hlt_by_clearing_the_flag(m: Smm) -> None:
    halted_guest(m)
    m.inside = lambda: m.change(AUTO_HALT, 0, 1)  # type: ignore[method-assign]
    m.finish()
    assert m.state.gpr[3] == 2 and m.log == []


def test_smi_in_an_interrupt_shadow(m: Smm) -> None:
    """No shadow delays an SMI; the shadow is there again behind it."""
    m.begin("sti\na: nop\nb: nop" + END, RFLAGS_IF | 2)
    m.state.rip, m.state.shadow = m.labels["a"], SHADOW_STI
    seen: list[tuple[int, int]] = []
    m.inside = lambda: seen.append((m.saved(RIP, 8), m.saved(SHADOW, 1)))  # type: ignore[method-assign]
    m.post()
    m.vcpu.smi()
    m.finish()
    assert seen == [(m.labels["a"], 2)] and m.log == [VECTOR, m.labels["b"]]


def test_an_smi_comes_before_the_trap_of_the_instruction_that_raised_it(m: Smm) -> None:
    m.begin(f"mov al, {SMI}\nb: out SAY, al\na: nop\nc: nop" + END)
    m.load("push rax\nmov rax, [rsp + 8]\nout LOG, eax\nand dword [rsp + 24], 0xFFFFFEFF\npop rax\niretq", 0x13000)
    m.gate(1, offset=0x13000)
    seen: list[int] = []
    m.inside = lambda: seen.append(m.saved(RIP, 8))  # type: ignore[method-assign]
    m.state.gpr[0], m.state.rip = SMI, m.labels["b"]
    m.rflags = RFLAGS_TF | 2
    m.finish()
    assert seen == [m.labels["a"]] and m.log == [m.labels["a"]]


def test_breakpoints_are_off_inside(m: Smm) -> None:
    m.begin(SAY_SMI + "a: nop" + END)
    m.state.dr[0], m.state.dr[7] = SMRAM + smm.ENTRY_POINT, 0x402
    m.refresh()
    m.inside = lambda: m.state.smm  # type: ignore[method-assign]
    m.finish()
    assert m.state.dr[7] == 0x402 and m.state.watch_code == 1 and m.log == []


# --- what waits ------------------------------------------------------------------------------------------


def test_nmi_and_interrupts_wait_for_the_end(m: Smm) -> None:
    m.handler("mov al, 7\nout SAY, al\nnop\nmov al, 8\nout SAY, al\nrsm")
    m.begin(SAY_SMI + "a: nop\nb: nop" + END, RFLAGS_IF | 2)

    def inside() -> None:
        m.vcpu.nmi()
        m.post()

    m.inside = inside  # type: ignore[method-assign]
    m.finish()
    assert m.said == [SMI, 7, 8] and m.log == [NMI, m.labels["a"], VECTOR, m.labels["a"]]


def test_an_interrupt_inside_meets_an_empty_idt(m: Smm) -> None:
    m.handler("mov al, 7\nout SAY, al\nsti\nnop\nnop\nrsm")
    m.begin(SAY_SMI + END)
    m.inside = m.post  # type: ignore[method-assign]
    assert isinstance(m.go(), ShutdownExit) and m.state.smm


def test_nmi_blocked_before_stays_blocked_behind(m: Smm) -> None:
    """The SMI comes in an NMI's handler: another NMI waits for that handler's IRET, not for RSM."""
    m.begin(SAY_3 + "a: nop" + END)
    m.load(f"push rax\nmov eax, 2\nout LOG, eax\nmov al, {SMI}\nout SAY, al\nmov eax, 3\nout LOG, eax\npop rax\niretq",
           0x13000)
    m.gate(NMI, offset=0x13000)
    m.inside = lambda: m.vcpu.nmi() if m.entries == 1 else None  # type: ignore[method-assign]
    m.finish()
    assert m.log == [2, 3, 2, 3] and m.entries == 2


def test_iret_inside_lets_nmis_through(m: Smm) -> None:
    """SDM vol. 3, 31.8. The handler has loaded an IDT; the NMI comes behind its IRET, in SMM."""
    m.handler(
        "mov al, 7\nout SAY, al\ncs lidt [table]\nmov sp, 0x7000\npushf\npush cs\npush back\niret\n"
        "back: nop\nnop\nmov al, 9\nout SAY, al\nrsm\nnmi: mov al, 8\nout SAY, al\niret\n"
        "table: dw 0x3FF\ndd 0".replace("cs lidt [table]", "lidt [cs:table]")
    )
    m.begin(SAY_SMI + "a: nop" + END)
    m.write(8, m.labels["nmi"] | SMRAM >> 4 << 16, 4)
    m.inside = m.vcpu.nmi  # type: ignore[method-assign]
    m.finish()
    assert m.said == [SMI, 7, 8, 9] and m.log == []


def test_a_second_smi_is_latched_once(m: Smm) -> None:
    m.begin(SAY_SMI + "a: nop" + END)
    rips: list[int] = []

    def inside() -> None:
        rips.append(m.saved(RIP, 8))
        if m.entries == 1:
            m.vcpu.smi()
            m.vcpu.smi()

    m.inside = inside  # type: ignore[method-assign]
    m.finish()
    assert rips == [m.labels["a"]] * 2 and m.vcpu.get_msrs((IA32_SMI_COUNT,)) == {IA32_SMI_COUNT: 2}


def test_init_is_latched_and_sipi_lost(m: Smm) -> None:
    m.begin(SAY_SMI + "a: nop" + END)

    def inside() -> None:
        m.vcpu.lapic.deliver(apicdef.DM_INIT, 0)
        assert m.vcpu.get_vcpu_events().smi_latched_init == 1
        m.vcpu.kick()

    m.inside = inside  # type: ignore[method-assign]
    assert isinstance(m.go(), IntrExit)
    assert m.state.smm and m.state.seg_base[CS] == SMRAM
    m.load("out DONE, al", 0x1000, 16)
    exit = m.go()
    # INIT took the processor to the reset vector, where this machine has nothing.
    assert isinstance(exit, MmioExit | ShutdownExit) or m.trace
    assert m.trace[0][:2] == ("read", 0xFFFF_FFF0) and not m.state.smm
    assert m.vcpu.get_msrs((IA32_SMBASE,)) == {IA32_SMBASE: SMRAM}


# --- the save map changed --------------------------------------------------------------------------------


def test_rsm_goes_where_the_map_says(m: Smm) -> None:
    m.begin(SAY_SMI + "a: hlt\nb: mov ecx, ebx" + END)

    def inside() -> None:
        m.change(RIP, m.labels["b"], 8)
        m.change(RAX - 8 * 3, 0x1_2345_6789, 8)
        m.change(RFLAGS, 0x8D5 | 2, 8)
        m.change(SAVED_SMBASE, 0x3_0000, 4)

    m.inside = inside  # type: ignore[method-assign]
    m.finish()
    assert m.state.gpr[1] == 0x2345_6789 and m.rflags == 0x8D7
    m.load("mov al, 8\nout SAY, al\nrsm", 0x3_8000, 16)
    m.state.rip = m.labels["start"] if "start" in m.labels else CODE
    m.vcpu.smi()
    m.said.clear()
    m.inside = lambda: m.change(RIP, m.labels["b"], 8)  # type: ignore[method-assign]
    m.state.replay_count = 0
    m.vcpu.set_regs(m.vcpu.get_regs())
    m.load("out DONE, al", CODE)
    m.finish()
    assert m.said == [8] and m.read(0x3_FF78, 8) == CODE, "the next SMI goes to the new SMBASE"


def test_from_real_mode_to_64_bit_mode_by_rsm(m: Smm) -> None:
    """A map of another mode altogether, as firmware uses it to call 32-bit code."""
    m.begin(SAY_SMI + END)
    kept: list[bytes] = []
    m.inside = lambda: kept.append(m.save_map)  # type: ignore[method-assign]
    m.finish()
    paging = m.state.cr3
    m.real(SAY_SMI + "hlt", sp=0x7000)
    m.inside = lambda: setattr(m, "save_map", kept[0])  # type: ignore[method-assign]
    m.finish()
    assert m.state.efer == 0xD01 and m.state.cr0 & CR0_PG and m.state.cr3 == paging and m.state.gpr[4] == STACK0


ILLEGAL = {
    "CR0 bit 32": (CR0, lambda v: v | 1 << 32, "bits above 31"),
    "PG without PE": (CR0, lambda v: v & ~1, "CR0.PG without CR0.PE"),
    "NW without CD": (CR0, lambda v: v | 1 << 29, "CR0.NW without CR0.CD"),
    "CR4": (CR4, lambda v: v | 1 << 15, "CR4 has reserved bits"),
    "EFER": (EFER, lambda v: v | 1 << 16, "EFER has reserved bits"),
    "no PAE": (CR4, lambda v: v & ~0x20, "without CR4.PAE"),
    "CR3": (CR3, lambda v: v | 1 << 45, "CR3 has reserved bits"),
    "DR7": (DR7, lambda v: v | 1 << 40, "bits above 31"),
    "DR6": (DR6, lambda v: v | 1 << 32, "bits above 31"),
    "L and D": (0xFE12, lambda v: v | 1 << 14, "CS.L and CS.D"),
    "CET without WP": (CR0, lambda v: v & ~(1 << 16), "CR4.CET without CR0.WP"),
    "PCIDE outside long mode": (EFER, lambda v: 0, "PCIDE"),
}


def test_the_shadow_stack_pointer_is_in_the_map(m: Smm) -> None:
    m.begin(SAY_SMI + END)
    m.state.ssp = 0x1_2345_6780
    seen: list[int] = []

    def inside() -> None:
        seen.append(m.saved(0xFF18, 8))
        m.change(0xFF18, 0x7654_3210, 8)

    m.inside = inside  # type: ignore[method-assign]
    m.finish()
    assert seen == [0x1_2345_6780] and m.state.ssp == 0x7654_3210


@pytest.mark.parametrize("name", ILLEGAL)
def test_illegal_maps_shut_the_processor_down(m: Smm, name: str) -> None:
    at, change, text = ILLEGAL[name]
    size = 2 if at < 0xFE80 else 8
    m.begin(SAY_SMI + END)
    if name.startswith("PCIDE"):
        m.state.cr4 |= 1 << 17
    if name.startswith("CET"):
        m.state.cr4_allowed |= 1 << 23
        m.state.cr4 |= 1 << 23
    m.inside = lambda: m.change(at, change(m.saved(at, size)), size)  # type: ignore[method-assign]
    exit = m.go()
    assert isinstance(exit, ShutdownExit) and exit.reason.startswith("RSM: ") and text in exit.reason.splitlines()[0]
    assert m.state.smm


def test_pae_pointers_are_read_again_and_checked(m: Smm) -> None:
    m.protected(SAY_SMI + END, paging=3)
    m.inside = lambda: m.write(m.state.cr3, m.read(m.state.cr3, 8) | 2, 8)  # type: ignore[method-assign]
    exit = m.go()
    assert isinstance(exit, ShutdownExit) and "page-directory-pointer" in exit.reason


def test_the_32_bit_map(m: Smm) -> None:
    machine = Smm(SPOIL, long_mode=False)
    machine.protected(SAY_SMI + "a: nop" + END, paging=2)
    number_registers(machine)
    before = []

    def inside() -> None:
        image = machine.saved
        assert (image(0xFEFC, 4), image(0xFEF8, 4)) == (0x2_0000, SMRAM)
        assert (image(0xFFF0, 4), image(0xFFFC, 4), image(0xFFF8, 4)) == (
            machine.labels["a"], before[1].cr0, before[1].cr3)  # fmt: skip
        assert [image(0xFFD0 + 4 * n, 4) for n in range(8)] == [getattr(before[0], name) for name in GPRS[:8]]
        assert (image(0xFFAC, 4), image(0xFF94, 4), image(0xFF14, 4)) == (
            before[1].cs.selector, before[1].cs.limit, before[1].cr4)  # fmt: skip

    def note(value: int) -> None:
        if value == SMI:
            before[:] = machine.vcpu.get_regs(), machine.vcpu.get_sregs()
        Smm.on_say(machine, value)

    machine.inside, machine.on_say = inside, note  # type: ignore[method-assign]
    machine.finish()
    regs = machine.vcpu.get_regs()
    before[0].rip = regs.rip
    assert [regs, machine.vcpu.get_sregs()] == before
    machine.close()


# --- the interface ---------------------------------------------------------------------------------------


def test_an_smi_while_stopped_is_pending_and_taken_later(m: Smm) -> None:
    m.begin("nop" + END)
    m.vcpu.smi()
    events = m.vcpu.get_vcpu_events()
    assert (events.smi_pending, events.smi_smm) == (1, 0)
    m.vcpu.set_vcpu_events(events)
    m.finish()
    assert m.said == [7] and m.entries == 1


def test_an_ipi_brings_an_smi(m: Smm) -> None:
    m.begin("nop" + END)
    m.vcpu.lapic.mmio_write(apicdef.APIC_ICR, 4, apicdef.DM_SMI << 8 | 1 << 18)
    m.finish()
    assert m.entries == 1


def test_state_inside_can_be_taken_and_put_back(m: Smm) -> None:
    """What an interrupted handler needs is in the interface's state: events, SMBASE, registers."""
    m.begin(SAY_SMI + "a: nop" + END)
    m.state.nmi_blocked = 1
    m.inside = m.vcpu.kick  # type: ignore[method-assign]
    assert isinstance(m.go(), IntrExit)
    assert m.vcpu.run().port == 0x11 if not m.entries else True  # type: ignore[union-attr]
    v = m.vcpu
    regs, sregs, events, msrs = v.get_regs(), v.get_sregs(), v.get_vcpu_events(), v.get_msrs((IA32_SMBASE,))
    assert (events.smi_smm, events.smi_smm_inside_nmi, events.nmi_masked) == (1, 1, 1)
    other = Smm()
    other.put_smram(0, m.smram_bytes(0, 0x2_0000))
    other.begin(SAY_SMI + "a: nop" + END)
    other.vcpu.set_sregs(sregs)
    other.vcpu.set_regs(regs)
    other.vcpu.set_msrs(msrs)
    other.vcpu.set_vcpu_events(events)
    other.finish()
    assert not other.state.smm and other.state.nmi_blocked and other.state.seg_selector[SS] == 0x10
    other.vcpu.set_vcpu_events(events)
    assert other.state.smm
    other.close()
