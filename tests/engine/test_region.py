"""Regions: what is compiled computes what is interpreted, leaves when asked, and goes when its code changes."""

from __future__ import annotations

import random
import threading

import pytest

from pellucid.cpu.code_cache import Block, Op
from pellucid.cpu.state import (
    EXIT_EXCEPTION, EXIT_HLT, EXIT_PENDING, GP, PENDING_REQUEST, PF, RFLAGS_STATUS, SS_FAULT, UD,
)
from pellucid.native.program import Program, out_of_line
from tests.cpu.bare import MMIO, Bare

from .code import CODE, RAX, RBP, RBX, RCX, RDI, RDX, RSI, Compiled, roots

SUM = bytes.fromhex(
    "31c0"            # xor eax, eax
    "4801c8"          # loop: add rax, rcx
    "48894500"        # mov [rbp], rax
    "a801 7403"       # test al, 1; je even
    "48ffc2"          # inc rdx
    "4883e901 75ec"   # even: sub rcx, 1; jne loop
    "f4")
LOOP = CODE + 2


def run_sum(machine: Bare, count: int) -> None:
    machine.state.gpr[RCX], machine.state.gpr[RDX], machine.state.gpr[RBP] = count, 0, 0x3000
    assert machine.run(CODE) == EXIT_HLT


def check_sum(machine: Bare, count: int) -> None:
    totals = [sum(range(n, count + 1)) for n in range(count, 0, -1)]
    s = machine.state
    assert s.gpr[RAX] == totals[-1] and s.gpr[RCX] == 0
    assert s.gpr[RDX] == sum(total & 1 for total in totals)
    assert machine.bytes(0x3000, 8) == totals[-1].to_bytes(8, "little")
    assert machine.processor.get_rflags() & RFLAGS_STATUS == 0x44


@pytest.fixture
def machine() -> Compiled:
    made = Compiled()
    made.load(CODE, SUM)
    run_sum(made, 5)
    return made


def test_a_region_holds_the_loop(machine: Compiled) -> None:
    pieces = machine.compile(LOOP)
    assert len(pieces) >= 3, "the loop's head, the odd case, the way back"
    run_sum(machine, 100)
    check_sum(machine, 100)


def test_random_counts_agree_with_the_interpreter(machine: Compiled) -> None:
    plain = Compiled()
    plain.load(CODE, SUM)
    machine.compile(LOOP)
    for _ in range(20):
        count = random.randrange(1, 300)
        run_sum(machine, count)
        run_sum(plain, count)
        assert list(machine.state.gpr) == list(plain.state.gpr), count
        assert machine.processor.get_rflags() == plain.processor.get_rflags()


def test_a_region_leaves_when_asked(machine: Compiled) -> None:
    machine.compile(LOOP)
    s = machine.state
    s.gpr[RCX], s.gpr[RBP], s.rip = 1 << 60, 0x3000, CODE
    while s.gpr[RCX] == 1 << 60:  # a kick may come before the first instruction
        threading.Timer(0.05, machine.processor.kick).start()
        assert machine.processor.run() == EXIT_PENDING
        assert s.pending & PENDING_REQUEST and s.rip in range(CODE, CODE + len(SUM))
        s.pending = 0
    s.gpr[RCX], before = 7, s.gpr[RAX]
    assert machine.run() == EXIT_HLT
    assert s.gpr[RAX] - before in (28, 21), "it goes on where it was"


def test_a_fault_inside_is_precise(machine: Compiled) -> None:
    """The store leaves guest memory by a page that is not present: RIP and registers are those before it."""
    machine.compile(LOOP)
    s = machine.state
    s.gpr[RAX], s.gpr[RCX], s.gpr[RDX], s.gpr[RBP] = 0, 9, 0, 0x7F_0000_0000
    assert machine.run(LOOP) == EXIT_EXCEPTION
    assert (s.exc_vector, s.exc_address, s.rip) == (PF, 0x7F_0000_0000, CODE + 5)
    assert s.gpr[RAX] == 9 and s.gpr[RCX] == 9
    s.gpr[RBP] = 1 << 63
    assert machine.run(LOOP) == EXIT_EXCEPTION
    assert (s.exc_vector, s.rip) == (SS_FAULT, CODE + 5), "a non-canonical address through SS"


def test_a_block_that_ends_in_no_instruction() -> None:
    """An undefined opcode ends its block without a branch; the region that holds it raises #UD there."""
    machine = Compiled()
    machine.load(CODE, bytes.fromhex("48ffc0 a801 7404 48ffc2 06 48ffc1 06"))  # inc; test; je; inc; (06); inc; (06)
    for rax in (0, 1, 0, 1):  # the second time a branch is chained
        machine.state.gpr[RAX] = rax
        assert machine.run(CODE) == EXIT_EXCEPTION
    machine.state.gpr[RAX], machine.state.gpr[RDX] = 2, 0
    pieces = machine.compile(CODE)
    assert len(pieces) >= 2
    assert machine.run(CODE) == EXIT_EXCEPTION and machine.state.exc_vector == UD
    assert (machine.state.rip, machine.state.gpr[RAX], machine.state.gpr[RDX]) == (CODE + 10, 3, 1)


def test_x87_operations_that_share_a_function() -> None:
    """What a region calls out of line is the function of its own operation, not another specialization of it: here the
    path of a guest whose status flags differ from the host's.
    """
    machine = Compiled()
    s = machine.state
    machine.load(CODE, bytes.fromhex("90 90 db1c2500300000 06"))    # nop; nop; fistp dword [0x3000]; (06)
    for turn in range(4):
        s.st[:] = [0x55] * 128          # far beyond 32 bits: #IA, and the integer indefinite
        s.fpu_top, s.fpu_tags, s.fpu_sw, s.fpu_cw = 0, 0xFF, 0, 0x37F
        machine.load(0x3000, bytes(4))
        assert machine.run(CODE) == EXIT_EXCEPTION
        assert machine.bytes(0x3000, 4) == bytes.fromhex("00000080") and s.fpu_sw == 1, turn
        if turn == 0:
            machine.compile(CODE)


def test_a_device_inside(machine: Compiled) -> None:
    machine.compile(LOOP)
    s = machine.state
    s.gpr[RCX], s.gpr[RBP] = 4, MMIO
    assert machine.run(CODE) == EXIT_HLT
    assert [(access.address, access.size, access.value) for access in machine.accesses] == [
        (MMIO, 8, total) for total in (4, 7, 9, 10)]
    assert s.gpr[RAX] == 10


# --- code that changes -----------------------------------------------------------------------------------


def test_memory_changed_from_outside(machine: Compiled) -> None:
    pieces = machine.compile(LOOP)
    machine.load(LOOP, bytes.fromhex("4829c8"))    # sub rax, rcx
    assert all(machine.dead(piece) for piece in pieces)
    run_sum(machine, 10)
    assert machine.state.gpr[RAX] == -55 & (1 << 64) - 1


def test_one_byte_of_one_block_takes_the_region_along(machine: Compiled) -> None:
    """A region has copies of its blocks, so none of them may outlive another."""
    pieces = machine.compile(LOOP)
    machine.processor.engine.forget_code(machine.processor.address, CODE + len(SUM) - 3, 1)
    assert all(machine.dead(piece) for piece in pieces)
    run_sum(machine, 12)
    check_sum(machine, 12)


PATCHING = bytes.fromhex(
    "4801c8"             # loop: add rax, rcx
    "4839d9 7503"        # cmp rcx, rbx; jne on
    "408837"             # mov [rdi], sil
    "4883e901 75ef"      # on: sub rcx, 1; jne loop
    "f4")


def test_a_region_that_changes_itself() -> None:
    """At RCX = 10 the loop's ADD becomes a SUB; what follows runs the new code, at once."""
    machine = Compiled()
    machine.load(CODE, PATCHING)
    s = machine.state

    def run() -> int:
        s.gpr[RAX], s.gpr[RCX], s.gpr[RBX], s.gpr[RDI], s.gpr[RSI] = 0, 20, 10, CODE + 1, 0x29
        assert machine.run(CODE) == EXIT_HLT
        return int(s.gpr[RAX])

    s.gpr[RCX] = 3
    assert machine.run(CODE) == EXIT_HLT
    pieces = machine.compile(CODE)
    assert run() == sum(range(10, 21)) - sum(range(1, 10))
    assert machine.dead(pieces[0]) and machine.bytes(CODE, 3) == bytes.fromhex("4829c8")
    machine.load(CODE, PATCHING)
    s.gpr[RCX] = 3
    machine.run(CODE)
    machine.compile(CODE)
    assert run() == sum(range(10, 21)) - sum(range(1, 10)), "and again, translated anew"


def test_a_region_of_dead_blocks_is_not_installed(machine: Compiled) -> None:
    pieces = machine.compile(LOOP)
    region = machine.processor.hot.installed[0]
    machine.load(CODE, SUM)
    machine.processor.hot._install(machine.processor.hot.generation, pieces, region)
    assert Op.view(pieces[0].ops).handler != region.address
    machine.processor.hot._install(machine.processor.hot.generation - 1, pieces, region)
    assert len(machine.processor.hot.installed) == 1


def test_a_dead_block_is_no_source(machine: Compiled) -> None:
    ops = machine.block(LOOP)
    machine.load(CODE, SUM)
    assert Block.view(ops - Block.size).dead
    assert machine.processor.hot.source.region(ops) == []


# --- the arena -------------------------------------------------------------------------------------------


def test_a_full_arena_is_emptied_and_filled_again(machine: Compiled) -> None:
    """Blocks in 40 pages, room for a few: every pass translates anew, regions included, and computes the same."""
    machine.compile(LOOP)
    code = machine.processor.code
    flushes, flush = [], machine.processor.flush_code
    machine.processor.flush_code = lambda: (flushes.append(code.arena_used), flush())  # type: ignore[method-assign]
    code.arena_size = code.arena_used + 12_000
    for page in range(40):
        here = 0x10000 + page * 4096
        after = 0x10000 + (page + 1) * 4096
        machine.load(here, bytes.fromhex("48ffc0 e9") + (after - here - 8).to_bytes(4, "little", signed=True))
    machine.load(0x10000 + 40 * 4096, b"\xf4")
    for turn in range(3):
        machine.state.gpr[RAX] = 0
        assert machine.run(0x10000) == EXIT_HLT
        assert machine.state.gpr[RAX] == 40, turn
    assert len(flushes) >= 3 and all(used <= code.arena_size for used in flushes)
    assert machine.processor.hot.installed == [] and not machine.processor.hot.source.original
    run_sum(machine, 30)
    check_sum(machine, 30)


def test_an_arena_flush_forgets_invalid_code(machine: Compiled) -> None:
    machine.load(0x5000, b"\x06")
    assert machine.run(0x5000) == EXIT_EXCEPTION and machine.state.exc_vector == UD
    machine.processor.flush_code()
    machine.load(0x5000, b"\xf4")
    assert machine.run(0x5000) == EXIT_HLT


# --- what leaves a region --------------------------------------------------------------------------------


def test_a_block_that_ends_in_an_undefined_instruction() -> None:
    """UD2 ends its block without a branch; the region leaves through its handler."""
    machine = Compiled()
    machine.load(CODE, bytes.fromhex("4801c8 0f0b"))
    for number in range(3):
        machine.state.gpr[RAX], machine.state.gpr[RCX] = 5, number
        assert machine.run(CODE) == EXIT_EXCEPTION
        s = machine.state
        assert (s.exc_vector, s.rip, s.gpr[RAX]) == (UD, CODE + 3, 5 + number)
        if number == 0:
            machine.compile(CODE)


def test_a_branch_beyond_the_segment_faults_at_itself() -> None:
    """In 32-bit code: #GP(0) with RIP at the branch (SDM vol. 2, Jcc), compiled as interpreted; so does the fetch."""
    machine = Compiled(32)
    machine.state.seg_limit[1] = CODE + 0x10
    machine.processor.refresh_mode()
    machine.load(CODE, bytes.fromhex("01c8 39d8 740c 41 f4"))   # add eax, ecx; cmp eax, ebx; je +12; inc ecx; hlt
    for compiled in (False, True):
        for equal in (False, True):
            s = machine.state
            s.gpr[RAX], s.gpr[RCX], s.gpr[RBX] = 1, 2, 3 if equal else 4
            assert machine.run(CODE) == (EXIT_EXCEPTION if equal else EXIT_HLT), (compiled, equal)
            if equal:
                assert (s.exc_vector, s.exc_error, s.rip) == (GP, 0, CODE + 4)
            else:
                assert s.gpr[RCX] == 3
        if not compiled:
            machine.compile(CODE)
    machine.state.seg_limit[1] = CODE + 2
    machine.state.gpr[RAX] = 0
    assert machine.run(CODE) == EXIT_EXCEPTION
    assert (machine.state.exc_vector, machine.state.rip, machine.state.gpr[RAX]) == (GP, CODE + 2, 2)


def test_calls_link_to_what_they_mean() -> None:
    """FADD and FMUL out of line, asked for in another order than when the image was made."""
    first, second = Program(), Program()
    names = sorted(name for name in roots() if name.startswith(("float_with_memory:", "float_registers:")))
    asked = [[program.request(*roots()[name]) for name in order]
             for program, order in ((first, names), (second, names[::-1]))]
    symbols = [{instance.symbol for instance in out_of_line(every) if not instance.fn.tail} for every in asked]
    assert symbols[0] == symbols[1] and not any("~" in symbol for symbol in symbols[0])
    assert sum("careful" in symbol for symbol in symbols[0]) > 6
