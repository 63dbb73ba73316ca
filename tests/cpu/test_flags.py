"""PUSHF and POPF by privilege, alignment checks, and BCD and frames where the host cannot show them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pellucid.cpu.flags import CC_KINDS, kind_flags, known_flags
from pellucid.cpu.state import (
    AC, CR0_AM, DB, EXIT_EXCEPTION, EXIT_HLT, GP, RFLAGS_AC, RFLAGS_DF, RFLAGS_ID, RFLAGS_IF, RFLAGS_IOPL, RFLAGS_NT,
    RFLAGS_RF, RFLAGS_TF, RFLAGS_VIF, RFLAGS_VIP, RFLAGS_VM)
from pellucid.native import u64
from tests.cpu.bare import Bare

RAX, RSP = 0, 4
CODE, HLT, UD2 = 0x1000, b"\xf4", b"\x0f\x0b"
EVERYTHING = 0x3F_7FD5 & ~RFLAGS_TF
ALWAYS = 0x8D5 | RFLAGS_DF | RFLAGS_NT


def popf(machine: Bare, value: int, width: int, flags: int) -> int:
    """Pop `value` with these flags before; the flags after."""
    s = machine.state
    s.cc_kind, s.cc_src = 0, flags & 0x8D5
    s.flags = flags & ~0x8D5 | 2
    s.gpr[RSP] = 0x8000
    machine.load(0x8000, value.to_bytes(8, "little"))
    prefix = b"\x66" if width == 2 and machine.bits != 16 or width == 4 and machine.bits == 16 else b""
    machine.load(CODE, prefix + b"\x9d" + UD2)
    machine.processor.refresh_mode()
    assert machine.run(CODE) == EXIT_EXCEPTION
    assert s.exc_vector == 6, s.exc_vector
    assert s.gpr[RSP] == 0x8000 + width
    return machine.processor.get_rflags()


def at_level(cpl: int, bits: int = 64) -> Bare:
    machine = Bare(bits)
    machine.state.cpl = cpl
    return machine


@pytest.mark.parametrize(("cpl", "iopl", "extra"), [
    (0, 0, RFLAGS_IF | RFLAGS_IOPL), (3, 0, 0), (3, 3, RFLAGS_IF), (2, 2, RFLAGS_IF), (1, 0, 0)])
def test_popf_changes_what_the_privilege_allows(cpl: int, iopl: int, extra: int) -> None:
    machine = at_level(cpl)
    may = ALWAYS | extra | RFLAGS_AC | RFLAGS_ID
    before = 2 | iopl << 12
    assert popf(machine, EVERYTHING, 8, before) == before & ~may | EVERYTHING & may | 2
    before = EVERYTHING & ~RFLAGS_IOPL & ~RFLAGS_VM | iopl << 12 | 2
    assert popf(machine, 0, 8, before) == before & ~may & ~RFLAGS_RF | 2


def test_a_16_bit_popf_leaves_the_upper_half() -> None:
    machine = at_level(0)
    upper = RFLAGS_AC | RFLAGS_ID | RFLAGS_VIF | RFLAGS_VIP
    assert popf(machine, 0, 2, upper | 2) == upper | 2
    assert popf(machine, EVERYTHING, 2, 2) == EVERYTHING & 0xFFFF | 2


@pytest.mark.parametrize("width", [2, 4])
def test_real_mode_may_change_iopl(width: int) -> None:
    machine = Bare(16)
    after = popf(machine, RFLAGS_IOPL | RFLAGS_IF | RFLAGS_NT, width, 2)
    assert after == RFLAGS_IOPL | RFLAGS_IF | RFLAGS_NT | 2


def virtual_8086(iopl: int) -> Bare:
    machine = Bare(32)
    s = machine.state
    s.cpl, s.flags = 3, 2 | RFLAGS_VM | iopl << 12
    for number in range(6):
        s.seg_attr[number], s.seg_limit[number] = 0xF3, 0xFFFF
    machine.bits = 16
    machine.processor.refresh_mode()
    return machine


@pytest.mark.parametrize("code", [b"\x9c", b"\x9d", b"\x66\x9c", b"\x66\x9d"])
def test_virtual_8086_mode_faults_below_iopl_3(code: bytes) -> None:
    machine = virtual_8086(2)
    machine.load(CODE, code)
    assert machine.run(CODE) == EXIT_EXCEPTION
    assert (machine.state.exc_vector, machine.state.exc_error, machine.state.rip) == (GP, 0, CODE)
    assert machine.state.gpr[RSP] == 0x8000


def test_virtual_8086_mode_with_iopl_3_keeps_iopl_and_vm() -> None:
    machine = virtual_8086(3)
    flags = popf(machine, RFLAGS_IF, 2, 2 | RFLAGS_VM | RFLAGS_IOPL)
    assert flags == RFLAGS_IF | RFLAGS_VM | RFLAGS_IOPL | 2


def test_pushf_does_not_show_vm_and_rf() -> None:
    machine = virtual_8086(3)
    machine.state.flags |= RFLAGS_RF | RFLAGS_IF
    machine.load(CODE, b"\x66\x9c" + UD2)
    assert machine.run(CODE) == EXIT_EXCEPTION
    pushed = int.from_bytes(machine.bytes(0x7FFC, 4), "little")
    assert pushed == 2 | RFLAGS_IF | RFLAGS_IOPL


def test_popf_that_sets_tf_traps_after_the_next_instruction() -> None:
    machine = at_level(0)
    machine.load(0x8000, (2 | RFLAGS_TF).to_bytes(8, "little"))
    machine.load(CODE, b"\x9d\x90\x90" + HLT)
    machine.state.gpr[RSP] = 0x8000
    assert machine.run(CODE) == EXIT_EXCEPTION
    assert (machine.state.exc_vector, machine.state.rip) == (DB, CODE + 2)


def test_a_load_of_ss_holds_the_trap_off_for_one_instruction() -> None:
    machine = Bare(32)
    s = machine.state
    s.gdt_base, s.gdt_limit = 0x2000, 0xF
    machine.load(0x2008, 0x00CF_9300_0000_FFFF.to_bytes(8, "little"))
    s.gpr[RAX], s.flags = 8, 2 | RFLAGS_TF
    machine.load(CODE, b"\x8e\xd0\x90\x90" + HLT)
    assert machine.run(CODE) == EXIT_EXCEPTION
    assert (s.exc_vector, s.rip) == (DB, CODE + 3)


# --- alignment -------------------------------------------------------------------------------------------

MOV_FROM_RSI, MOV_TO_RSI, LOCK_ADD_RSI = b"\x8b\x06", b"\x89\x06", b"\xf0\x01\x06"


@pytest.mark.parametrize("code", [MOV_FROM_RSI, MOV_TO_RSI, LOCK_ADD_RSI])
@pytest.mark.parametrize(("cpl", "flags", "cr0", "faults"), [
    (3, RFLAGS_AC, CR0_AM, True), (3, RFLAGS_AC, 0, False), (3, 0, CR0_AM, False), (0, RFLAGS_AC, CR0_AM, False)])
def test_alignment_is_checked_in_user_mode_where_both_bits_ask(code: bytes, cpl: int, flags: int, cr0: int,
                                                               faults: bool) -> None:
    machine = at_level(cpl)
    s = machine.state
    machine.load(CODE, MOV_FROM_RSI + MOV_FROM_RSI + code + UD2)
    s.gpr[6] = 0x3002
    machine.processor.refresh_mode()
    s.cr0 |= cr0
    s.flags = 2 | flags
    s.gpr[6] = 0x3000
    machine.processor.refresh_mode()
    assert machine.run(CODE) == EXIT_EXCEPTION and s.exc_vector == 6  # aligned: the translations are there now
    s.gpr[6] = 0x3002
    assert machine.run(CODE + 4) == EXIT_EXCEPTION
    assert (s.exc_vector == AC) == faults
    if faults:
        assert (s.exc_error, s.rip) == (0, CODE + 4)
        s.flags = 2
        machine.processor.refresh_mode()
        assert machine.run(CODE) == EXIT_EXCEPTION and s.exc_vector == 6


# --- what has no 64-bit form -----------------------------------------------------------------------------


@pytest.mark.parametrize(("opcode", "before", "after"), [
    ("27", 0x9A, 0x00), ("27", 0x79, 0x79), ("27", 0x3F, 0x45), ("2f", 0x0A, 0x04), ("2f", 0x9F, 0x39),
    ("37", 0x0209, 0x0209), ("37", 0x020B, 0x0301), ("3f", 0x020B, 0x0105)])
def test_decimal_adjustment(opcode: str, before: int, after: int) -> None:
    machine = Bare(16)
    machine.state.gpr[RAX], machine.state.cc_src = before, 0
    machine.load(CODE, bytes.fromhex(opcode) + HLT)
    assert machine.run(CODE) == EXIT_HLT
    assert machine.state.gpr[RAX] == after


def test_enter_and_leave_in_real_mode_use_sp_and_bp() -> None:
    machine = Bare(16)
    s = machine.state
    s.gpr[RSP], s.gpr[5] = 0xAAAA_0100, 0xBBBB_1234
    machine.load(CODE, bytes.fromhex("c8100000 c9") + HLT)
    machine.load(0x2000, bytes.fromhex("c8100000") + HLT)
    assert machine.run(0x2000) == EXIT_HLT
    assert (s.gpr[RSP], s.gpr[5]) == (0xAAAA_00EE, 0xBBBB_00FE)
    s.gpr[RSP], s.gpr[5] = 0xAAAA_0100, 0xBBBB_1234
    assert machine.run(CODE) == EXIT_HLT
    assert (s.gpr[RSP], s.gpr[5]) == (0xAAAA_0100, 0xBBBB_1234)


EDGES = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1]
WORDS = st.one_of(st.sampled_from(EDGES), st.integers(0, (1 << 64) - 1))


@given(WORDS, WORDS)
def test_regions_have_the_flags_of_handlers(dst: int, src: int) -> None:
    """Two ways to compute them: by a kind known when handlers are made, or when LLVM sees what came before."""
    for kind in range(4, CC_KINDS):
        mask = (1 << (8 << (kind & 3))) - 1
        wanted = kind_flags(u64(dst & mask), u64(src & mask), kind >> 2, 1 << (kind & 3))
        assert known_flags(u64(kind), u64(dst & mask), u64(src & mask)) == wanted, hex(kind)
