"""Shadow stacks across levels: events, IRET, far calls through gates, system calls, tasks (SDM vol. 2, INT, IRET)."""

import pytest
from pellucid.cpu.state import (
    CP_FAR_RET,
    CR4_CET,
    EXIT_HLT,
    GP,
    MODE_SHADOW,
    RFLAGS_VM,
    TS,
)

from . import tables
from .cet_guest import (
    IST_TOP,
    ON,
    SHADOW,
    TOP,
    TRACKS,
    USER_TOP,
    WAITS,
    enforce,
    long,
    violated,
)
from .machine import CODE32, CODE64, HANDLERS, SPARE, TSS, TSS2_AT, Machine
from .test_tasks import NAMES, NEW, TASK, tss32

ENTRY = 0x12000


def test_event_from_level_three() -> None:
    """SSP goes to IA32_PL3_SSP; the kernel's stack is claimed, and gets no frame."""
    m = long("int 0x30", cpl=3, user=ON, kernel=ON)
    assert m.catch() == 0x30
    s = m.state
    assert (s.pl_ssp[3], s.ssp) == (USER_TOP, TOP) and m.read(TOP, 8) == TOP | 1 and m.read(TOP - 8, 8) == 0


def test_return_to_level_three_frees_the_stack() -> None:
    m = long("call near\nint 0x31\nnear: int 0x30\nret", cpl=3, user=ON, kernel=ON)
    m.load("iretq", ENTRY)
    m.gate(0x30, offset=ENTRY)
    assert m.catch() == 0x31
    # The second event found the stack free.
    assert m.state.pl_ssp[3] == USER_TOP and m.read(TOP, 8) == TOP | 1


@pytest.mark.parametrize("token", [0, TOP | 1, TOP + 8, TOP | 2])
def test_event_without_a_free_stack(token: int) -> None:
    m = long("int 0x30", cpl=3, user=ON, kernel=ON)
    m.write(TOP, token, 8)
    m.gate(GP, ist=1)
    assert m.catch() == GP and m.state.exc_error == 0
    assert m.read(TOP, 8) == token and m.state.ssp == IST_TOP


@pytest.mark.parametrize("ssp", [TOP - 8, TOP + 4, TOP - 0x10])
def test_stack_must_end_a_line_of_32_bytes(ssp: int) -> None:
    m = long("int 0x30", cpl=3, user=ON, kernel=ON)
    m.state.pl_ssp[0] = ssp
    m.write(ssp & ~7, ssp, 8)
    m.gate(GP, ist=1)
    assert m.catch() == GP


def test_event_at_the_same_level() -> None:
    m = long("at: int 0x30\nback: hlt", kernel=ON)
    m.load("rdsspq rbx\niretq", ENTRY)
    m.gate(0x30, offset=ENTRY)
    m.state.ssp = SHADOW + 0x804
    assert m.run().reason == EXIT_HLT and m.state.rip == m.labels["back"] + 1
    frame = SHADOW + 0x800 - 24
    assert m.state.gpr[3] == frame and m.state.ssp == SHADOW + 0x804
    assert m.words(frame, 4, 8) == [SHADOW + 0x804, m.labels["back"], CODE64, 0]


def test_interrupt_stack_table() -> None:
    """The stack of the table is claimed, gets a frame, and is free again behind IRET."""
    m = long("int 0x30\nback: hlt", kernel=ON)
    m.load("rdsspq rbx\nmov rcx, [IST]\niretq", ENTRY, IST=IST_TOP)
    m.gate(0x30, offset=ENTRY, ist=1)
    assert m.run().reason == EXIT_HLT
    s = m.state
    assert (s.gpr[3], s.gpr[1], s.ssp) == (IST_TOP - 24, IST_TOP | 1, SHADOW + 0x800)
    assert m.read(IST_TOP, 8) == IST_TOP
    assert m.words(IST_TOP - 24, 3, 8) == [SHADOW + 0x800, m.labels["back"], CODE64]


@pytest.mark.parametrize("change", ["inc qword [rsp]", "mov word [rsp+8], CONFORMING", "mov eax, 1\nincsspq rax"])
def test_iret_checks_its_frame(change: str) -> None:
    m = long("int 0x30\nnop\nhlt", kernel=ON)
    m.load(f"{change}\nbad: iretq", ENTRY, CONFORMING=SPARE)
    m.describe(SPARE, tables.segment(tables.CONFORMING, bits=64))
    m.gate(0x30, offset=ENTRY)
    m.gate(21, ist=1)
    violated(m, CP_FAR_RET)
    assert m.read(m.state.gpr[4] + 8, 8) == m.labels["bad"]


def test_misaligned_ssp_at_iret() -> None:
    m = long("int 0x30", kernel=ON)
    m.load("mov eax, 1\nincsspd eax\niretq", ENTRY)
    m.gate(0x30, offset=ENTRY)
    m.gate(21, ist=1)
    violated(m, CP_FAR_RET)


def test_system_call_leaves_no_stack() -> None:
    m = long("syscall", cpl=3, user=ON, kernel=ON | TRACKS)
    m.load("endbr64\nhlt", ENTRY)
    m.state.lstar = ENTRY
    assert m.run().reason == EXIT_HLT
    s = m.state
    assert (s.ssp, s.pl_ssp[3], s.cpl) == (0, USER_TOP, 0) and s.s_cet == ON | TRACKS


@pytest.mark.parametrize("name", ["sysretq", "sysexitq"])
def test_return_from_a_system_call(name: str) -> None:
    m = long(name, user=ON, kernel=ON)
    m.load("int 0x30", ENTRY)
    s = m.state
    s.sysenter_cs = CODE64
    s.gpr[1] = ENTRY if name == "sysretq" else 0xB000
    s.gpr[2] = ENTRY
    s.gpr[11] = 2
    s.gpr[4] = 0xB000
    s.pl_ssp[3] = USER_TOP - 64
    assert m.catch() == 0x30 and s.pl_ssp[3] == USER_TOP - 64 and s.ssp == TOP


def test_call_gate_to_an_inner_level() -> None:
    m = Machine()
    m.long("call far [rel pointer]\nback: int 0x30\npointer: dd 0\ndw 0x73", cpl=3)
    enforce(m, ON, ON)
    m.load("rdsspq rbx\nretfq", ENTRY)
    m.describe(SPARE, tables.gate(tables.CALL, CODE64, ENTRY, dpl=3), 16)
    assert m.catch() == 0x30
    assert m.state.gpr[3] == TOP and m.state.pl_ssp[3] == USER_TOP


def test_a_breakpoint_on_the_token() -> None:
    """Claiming it is a write: #DB comes behind the call, which has happened once."""
    m = Machine()
    m.long("call far [rel pointer]\nback: int 0x30\npointer: dd 0\ndw 0x73", cpl=3)
    enforce(m, ON, ON)
    m.load("mov ebx, 1\nretfq", ENTRY)
    m.describe(SPARE, tables.gate(tables.CALL, CODE64, ENTRY, dpl=3), 16)
    s = m.state
    s.dr[0], s.dr[7] = TOP, 0x402 | 9 << 16
    s.watch_data = 1
    m.processor.flush_tlb()
    m.gate(1, ist=1)
    assert m.catch() == 1 and s.dr[6] & 15 == 1
    assert m.read(TOP, 8) == TOP | 1 and s.gpr[3] != 1


def test_a_pointer_that_is_not_canonical_is_kept_as_one_that_is() -> None:
    """LA_adjust (SDM vol. 2, SYSCALL)."""
    m = long("syscall", cpl=3, user=ON, kernel=0)
    s = m.state
    s.lstar, s.sfmask = ENTRY, 0
    s.star = CODE64 << 32
    s.ssp = 1 << 47
    m.load("int 0x30", ENTRY)
    assert m.catch() == 0x30
    assert s.pl_ssp[3] == (1 << 64) - (1 << 47)


def test_iret_to_virtual_8086_mode() -> None:
    m = Machine()
    m.protected("mov esp, 0x7000\niretd", paging=3)
    enforce(m, 0, ON)
    m.state.ssp = TOP
    m.write(TOP, TOP | 1, 8)
    m.write_bytes(0xC000, b"\xf4")
    for n, value in enumerate((0xC000, 0, RFLAGS_VM | 2, 0x7000, 0, 0, 0, 0, 0)):
        m.write(0x7000 + 4 * n, value, 4)
    m.refresh()
    assert m.catch() == GP  # HLT at level 3
    assert m.read(TOP, 8) == TOP | 1 and m.state.ssp == TOP
    m = Machine()
    m.protected("mov esp, 0x7000\niretd", paging=3)
    enforce(m, TRACKS, 0)
    for n, value in enumerate((0xC000, 0, RFLAGS_VM | 2, 0x7000, 0, 0, 0, 0, 0)):
        m.write(0x7000 + 4 * n, value, 4)
    assert m.catch() == GP and not m.rflags & RFLAGS_VM


# --- tasks -----------------------------------------------------------------------------------------------


def task_machine(source: str, **fields: int) -> Machine:
    m = Machine()
    m.labels |= NAMES
    m.protected(source, paging=3)
    enforce(m, 0, ON)
    m.describe(NEW, tables.segment(tables.TSS, base=TSS2_AT, limit=0x6B, system=True))
    m.describe(TSS, tables.segment(tables.TSS_BUSY, base=0x3000, limit=0x6B, system=True))
    m.state.seg_limit[7] = 0x6B
    tss32(m, TSS2_AT, cr3=m.state.cr3, **fields)
    m.write(TSS2_AT + 0x68, IST_TOP, 4)
    m.load("nop\nrdsspd ebx\niretd", TASK, 32)
    m.state.gpr[4] = 0x8000
    m.refresh()
    return m


def test_nested_task() -> None:
    m = task_machine("call NEW:0\nback: hlt")
    m.write(0x3000 + 0x1C, m.state.cr3, 4)
    assert m.run().reason == EXIT_HLT and m.state.rip == m.labels["back"] + 1
    assert m.state.ssp == SHADOW + 0x800 and m.read(IST_TOP, 8) == IST_TOP
    assert m.words(IST_TOP - 24, 3, 8) == [SHADOW + 0x800, m.labels["back"], CODE32]


def test_jump_to_a_task() -> None:
    m = task_machine("jmp NEW:0")
    m.load("hlt", TASK, 32)
    assert m.run().reason == EXIT_HLT and m.state.ssp == IST_TOP and m.read(IST_TOP, 8) == IST_TOP | 1


def test_return_to_another_place_than_called_from() -> None:
    m = task_machine("call NEW:0\nback: hlt")
    m.write(0x3000 + 0x1C, m.state.cr3, 4)
    m.load("inc dword [0x3020]\niretd", TASK, 32)
    m.gate(21, offset=HANDLERS + 21)
    violated(m, CP_FAR_RET)


@pytest.mark.parametrize("token", [0, IST_TOP | 1])
def test_task_without_a_free_stack(token: int) -> None:
    m = task_machine("jmp NEW:0")
    m.write(IST_TOP, token, 8)
    assert m.catch() == TS and m.state.exc_error == NEW


def test_task_with_a_misaligned_stack() -> None:
    m = task_machine("jmp NEW:0")
    m.write(TSS2_AT + 0x68, IST_TOP + 4, 4)
    assert m.catch() == TS and m.state.exc_error == NEW


def test_mode_follows_the_level() -> None:
    m = long("int 0x30", cpl=3, user=ON)
    assert m.state.mode & MODE_SHADOW
    assert m.catch() == 0x30 and not m.state.mode & MODE_SHADOW
    m.state.cr4 &= ~CR4_CET
    m.refresh()
    assert not m.state.mode & MODE_SHADOW


def test_wait_state_survives_an_event_at_another_level() -> None:
    m = long("nop", cpl=3, user=TRACKS | WAITS)
    assert m.catch() == 21 and m.state.u_cet == TRACKS | WAITS
