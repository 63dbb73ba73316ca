"""Indirect branch tracking: where ENDBR is due, what is not tracked, legacy pages (SDM vol. 1, 17.3)."""

import pytest
from pellucid.cpu.state import (
    CET_LEGACY,
    CET_NO_SUPPRESS,
    CET_NO_TRACK,
    CET_SUPPRESS,
    CP,
    CP_ENDBRANCH,
    DB,
    DR6_BS,
    EXIT_HLT,
    GP,
    PF,
    RFLAGS_TF,
    UD,
)

from . import tables
from .cet_guest import TRACKS, WAITS, enforce, long, violated
from .machine import CODE, DATA, STACK3, Machine, Stop

BITMAP = 0x1_8000
BRANCHES = [f"lea rax, [rel to]\n{how}" for how in ("jmp rax", "mov [DATA], rax\njmp [DATA]", "call rax")]


def tracked(source: str, control: int = TRACKS, *, cpl: int = 3, compat: bool = False) -> Machine:
    m = Machine()
    m.labels |= {"DATA": DATA}
    m.long(source, cpl=cpl, compat=compat)
    return enforce(m, control if cpl == 3 else 0, control if cpl == 0 else 0)


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("cpl", [0, 3])
def test_endbr_where_it_is_due(branch: str, cpl: int) -> None:
    m = tracked(f"{branch}\nnop\nto: endbr64\nmov ebx, 5\n" + ("hlt" if cpl == 0 else "int 0x30"), cpl=cpl)
    assert m.run() == Stop(EXIT_HLT, None if cpl == 0 else 0x30)
    assert m.state.gpr[3] == 5 and not (m.state.u_cet | m.state.s_cet) & WAITS


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("instruction", ["nop", "ud2", "endbr32", "mov rax, [0]", "db 0x0F, 0xFF", "lock nop"])
def test_anything_else_violates(branch: str, instruction: str) -> None:
    """Before the instruction is decoded any further: no #UD, no page fault of its own."""
    code = "db 0xF0, 0x90" if instruction == "lock nop" else instruction
    m = tracked(f"{branch}\nnop\nto: {code}\nint 0x30")
    violated(m, CP_ENDBRANCH)
    assert m.read(m.state.gpr[4] + 8, 8) == m.labels["to"] and m.state.u_cet == TRACKS | WAITS


def test_page_fault_of_the_fetch_comes_first() -> None:
    m = tracked("mov eax, 0x300000\njmp rax")
    assert m.catch() == PF and m.state.cr2 == 0x300000 and m.state.u_cet == TRACKS | WAITS


@pytest.mark.parametrize(("instruction", "vector"), [("int3", 3), ("int1", 1)])
def test_breakpoints_are_let_through(instruction: str, vector: int) -> None:
    m = tracked(f"lea rax, [rel to]\njmp rax\nto: {instruction}")
    assert m.catch() == vector and m.state.u_cet == TRACKS | WAITS


def test_direct_branches_and_returns_are_free() -> None:
    m = tracked("jmp on\non: call near\nint 0x30\nnear: jz on2\non2: ret")
    assert m.catch() == 0x30 and m.state.u_cet == TRACKS


@pytest.mark.parametrize("allowed", [True, False])
def test_no_track_prefix(allowed: bool) -> None:
    m = tracked("lea rax, [rel to]\ndb 0x3E\njmp rax\nto: int 0x30", TRACKS | CET_NO_TRACK * allowed)
    if allowed:
        assert m.catch() == 0x30
    else:
        violated(m, CP_ENDBRANCH)


@pytest.mark.parametrize("prefixes", ["0x3E, 0x2E", "0x3E, 0x64"])
def test_no_track_is_the_last_segment_prefix(prefixes: str) -> None:
    violated(tracked(f"lea rax, [rel to]\ndb {prefixes}\njmp rax\nto: int 0x30", TRACKS | CET_NO_TRACK), CP_ENDBRANCH)


def test_compatibility_mode_wants_endbr32() -> None:
    m = tracked("mov eax, to\njmp eax\nto: endbr32\nint 0x30", compat=True)
    assert m.catch() == 0x30
    violated(tracked("mov eax, to\njmp eax\nto: endbr64\nint 0x30", compat=True), CP_ENDBRANCH)


def test_suppressed_tracking_ends_with_endbr() -> None:
    m = tracked("lea rax, [rel to]\njmp rax\nto: endbr64\nlea rax, [rel on]\njmp rax\non: nop", TRACKS | CET_SUPPRESS)
    violated(m, CP_ENDBRANCH)
    assert m.read(m.state.gpr[4] + 8, 8) == m.labels["on"]


def legacy(control: int = 0, *, marked: bool = True) -> Machine:
    m = tracked("lea rax, [rel to]\njmp rax\nto: mov ebx, 7\nint 0x30", TRACKS | CET_LEGACY | control | BITMAP)
    page = CODE >> 12
    m.write(BITMAP + (page >> 3), marked << (page & 7), 1)
    return m


def test_legacy_page() -> None:
    m = legacy()
    assert m.catch() == 0x30 and m.state.gpr[3] == 7 and m.state.u_cet & (WAITS | CET_SUPPRESS) == CET_SUPPRESS
    m = legacy(CET_NO_SUPPRESS)
    assert m.catch() == 0x30 and not m.state.u_cet & (WAITS | CET_SUPPRESS)
    violated(legacy(marked=False), CP_ENDBRANCH)


def test_legacy_bitmap_is_read_with_the_level_of_the_code() -> None:
    m = legacy()
    assert m.pages is not None
    m.pages.map(BITMAP, BITMAP, tables.P | tables.W)
    m.refresh()
    assert m.catch() == PF and m.state.cr2 == BITMAP + (CODE >> 15) and m.state.exc_error == 5


def test_legacy_instruction_steps_once() -> None:
    """The step that finds the page marked is no step of the guest's."""
    m = legacy()
    m.rflags = 2 | RFLAGS_TF
    m.gate(DB, offset=0x12000)
    m.load("inc r15\niretq", 0x12000)
    m.load("lea rax, [rel to]\njmp rax\nto: mov ebx, 7\nint 0x30")
    assert m.catch() == 0x30
    assert m.state.gpr[15] == 3 and m.state.dr[6] & DR6_BS


def test_events_begin_with_endbr() -> None:
    m = long("int 0x30", cpl=3, kernel=TRACKS)
    m.load("endbr64\nhlt", 0x12000)
    m.gate(0x30, offset=0x12000)
    assert m.run().vector is None and m.state.rip == 0x12005
    m = long("int 0x30", cpl=3, kernel=TRACKS)
    m.load("endbr64\nhlt", 0x12000)
    m.gate(CP, offset=0x12000)
    assert m.run().vector is None and m.state.rip == 0x12005 and m.state.exc_error == CP_ENDBRANCH
    assert m.state.s_cet == TRACKS


def test_far_transfers_are_tracked() -> None:
    m = tracked("jmp far [rel pointer]\npointer: dd to\ndw 0x43\nto: nop\nint 0x30")
    violated(m, CP_ENDBRANCH)
    m = tracked("call far [rel pointer]\npointer: dd to\ndw 0x43\nto: endbr64\nint 0x30", TRACKS | CET_SUPPRESS)
    assert m.catch() == 0x30 and m.state.u_cet == TRACKS


def test_faulting_branch_is_not_tracked() -> None:
    m = tracked("mov rax, 0x800000000000\njmp rax")
    assert m.catch() == GP and m.state.u_cet == TRACKS
    m = tracked("mov rsp, 0x300000\nlea rax, [rel to]\ncall rax\nto: nop")
    assert m.catch() == PF and m.state.u_cet == TRACKS and m.read(m.state.gpr[4] + 32, 8) == 0x300000


def test_endbr_across_a_page() -> None:
    at = CODE + 0x1FFE
    m = tracked(f"mov eax, {at}\njmp rax")
    m.load("endbr64\nint 0x30", at)
    assert m.catch() == 0x30
    m = tracked(f"mov eax, {at}\njmp rax")
    m.load("db 0xF3, 0x0F, 0x1E, 0xFB\nint 0x30", at)
    violated(m, CP_ENDBRANCH)


def test_endbr_is_a_no_operation_otherwise() -> None:
    m = tracked("endbr64\nendbr32\nmov ebx, esp\nint 0x30", 0)
    assert m.catch() == 0x30 and m.state.gpr[3] == STACK3
    assert tracked("jmp on\non: ud2").catch() == UD
