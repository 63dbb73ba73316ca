"""Returns and indirect jumps in regions: they stay inside where the target is a block of the region, and leave else."""

from __future__ import annotations

import random

import pytest

from pellucid.cpu.state import EXIT_EXCEPTION, EXIT_HLT, GP, PF
from tests.cpu.bare import Bare

from .code import CODE, RAX, RBX, RCX, RDX, RSI, RSP, Compiled

# Each turn calls a leaf, jumps by a table of three addresses at RSI, and calls the leaf through RDX.
CALLS = bytes.fromhex(
    "e822000000"      # 00 top: call leaf
    "89c8 83e003"     # 05 mov eax, ecx; and eax, 3
    "ff24c6"          # 0a jmp [rsi+rax*8]
    "4883c307"        # 0d case0: add rbx, 7
    "eb0c"            # 11 jmp join
    "4883eb0b"        # 13 case1: sub rbx, 11
    "eb06"            # 17 jmp join
    "48f7d3"          # 19 case2: not rbx
    "909090"          # 1c nop
    "ffd2"            # 1f join: call rdx
    "48ffc9"          # 21 dec rcx
    "75da"            # 24 jne top
    "f4"              # 26 hlt
    "f6c301"          # 27 leaf: test bl, 1
    "7404"            # 2a je even
    "4883c30d"        # 2c add rbx, 13
    "48ffc3"          # 30 even: inc rbx
    "c3")             # 33 ret
TABLE, CASES = 0x3000, (0x0D, 0x13, 0x19, 0x0D)
OUTSIDE = 0x2000      # another page: jmp join
FAULTS = 0x7FFF_0000


def prepare(machine: Bare, count: int, cases: tuple[int, ...]) -> None:
    s = machine.state
    s.gpr[RCX], s.gpr[RBX], s.gpr[RAX], s.gpr[RSP] = count, 1, 0, 0x3F00
    s.gpr[RSI], s.gpr[RDX] = TABLE, CODE + 0x27
    machine.load(TABLE, b"".join(case.to_bytes(8, "little") for case in cases))


def model(count: int, cases: tuple[int, ...]) -> int:
    """RBX at the end."""
    def leaf(rbx: int) -> int:
        return rbx + (13 if rbx & 1 else 0) + 1

    rbx = 1
    for rcx in range(count, 0, -1):
        rbx = leaf(rbx)
        case = cases[rcx & 3]
        rbx = {CODE + 0x0D: rbx + 7, CODE + 0x13: rbx - 11, CODE + 0x19: ~rbx, OUTSIDE: rbx}[case]
        rbx = leaf(rbx & (1 << 64) - 1) & (1 << 64) - 1
    return rbx


IN_PAGE = tuple(CODE + case for case in CASES)


@pytest.fixture
def machine() -> Compiled:
    made = Compiled()
    made.load(CODE, CALLS)
    made.load(OUTSIDE, b"\xe9" + (CODE + 0x1F - OUTSIDE - 5).to_bytes(4, "little", signed=True))
    prepare(made, 9, IN_PAGE)
    assert made.run(CODE) == EXIT_HLT
    assert made.state.gpr[RBX] == model(9, IN_PAGE)
    return made


def test_the_region_holds_what_is_behind_calls_and_jumps(machine: Compiled) -> None:
    hosts = {piece.host & 0xFFF for piece in machine.compile(CODE)}
    assert {0x00, 0x05, 0x0D, 0x13, 0x19, 0x1F, 0x21, 0x27, 0x30} <= hosts


@pytest.mark.parametrize("cases", [IN_PAGE, (OUTSIDE, *IN_PAGE[1:]), (OUTSIDE,) * 4])
def test_every_way_is_taken(machine: Compiled, cases: tuple[int, ...]) -> None:
    machine.compile(CODE)
    for _ in range(10):
        count = random.randrange(1, 300)
        prepare(machine, count, cases)
        assert machine.run(CODE) == EXIT_HLT
        s = machine.state
        assert (s.gpr[RBX], s.gpr[RCX], s.gpr[RSP]) == (model(count, cases), 0, 0x3F00), count


def test_a_target_that_cannot_be(machine: Compiled) -> None:
    machine.compile(CODE)
    s = machine.state
    for target, vector in ((1 << 47, GP), (FAULTS, PF)):
        prepare(machine, 40, (*IN_PAGE[:3], target))
        assert machine.run(CODE) == EXIT_EXCEPTION and s.exc_vector == vector
        assert s.gpr[RCX] == 39 and s.gpr[RSP] == 0x3F00
        assert s.rip == (CODE + 0x0A if vector == GP else FAULTS)


def test_a_return_that_faults(machine: Compiled) -> None:
    machine.load(CODE + 0x30, bytes.fromhex("4889cc c3"))  # mov rsp, rcx: not canonical, later
    prepare(machine, 5, IN_PAGE)
    s = machine.state
    s.gpr[RCX] = 0x3F00
    machine.load(0x3F00, (CODE + 0x26).to_bytes(8, "little"))
    assert machine.run(CODE) == EXIT_HLT
    machine.compile(CODE)
    prepare(machine, 5, IN_PAGE)
    s.gpr[RCX] = 1 << 47
    assert machine.run(CODE) == EXIT_EXCEPTION
    assert s.rip == CODE + 0x33 and s.gpr[RSP] == 1 << 47


def test_code_that_changes_under_a_return(machine: Compiled) -> None:
    pieces = machine.compile(CODE)
    machine.load(CODE + 0x21, bytes.fromhex("48ffc3"))     # inc rbx for dec rcx: ends by no count
    machine.processor.forget_code(machine.ram.address + CODE + 0x21, 3)
    assert all(machine.dead(piece) for piece in pieces)
