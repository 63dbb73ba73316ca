"""Counted execution: a processor leaves behind exactly so many instructions, and knows how many have retired."""

from __future__ import annotations

import random

import pytest

from pellucid.cli.bench.asm import assemble
from pellucid.cpu.state import EXIT_BUDGET, EXIT_EXCEPTION, EXIT_HLT, EXIT_IO, PENDING_REQUEST
from tests.cpu.bare import MMIO

from .code import CODE, RAX, RCX, RDI, Compiled

ENOUGH = 1 << 40
LOOP = "again:\ninc rax\nadd rbx, rax\ndec rcx\njne again\nhlt"
# A call, a store, a string instruction, a device, a fused and a plain jump: every way from block to block.
MIXED = f"""
again:
    call function
    mov rdi, 0x9000
    mov ecx, 5
    rep stosb
    mov ebx, [{MMIO}]
    cmp rax, r8
    jb again
    out 0x80, al
    hlt
function:
    inc rax
    push rbx
    pop rbx
    ret
"""
MIXED_TURN = 11


def counted(text: str, bits: int = 64) -> Compiled:
    machine = Compiled(bits)
    machine.load(CODE, assemble(text, CODE).code if bits == 64 else bytes.fromhex(text))
    machine.processor.count_instructions(True)
    machine.state.rip = CODE
    return machine


def retired(machine: Compiled, granted: int = ENOUGH) -> int:
    return int(granted - machine.state.budget)


def test_what_retires_is_counted() -> None:
    machine = counted(LOOP)
    machine.state.gpr[RCX] = 1000
    machine.processor.grant(ENOUGH)
    assert machine.run() == EXIT_HLT
    assert retired(machine) == 4 * 1000 + 1


@pytest.mark.parametrize("budget", [0, 1, 2, 3, 4, 5, 6, 47, 48, 49, 397, 400, 401])
def test_the_budget_ends_behind_exactly_so_many(budget: int) -> None:
    machine = counted(LOOP)
    machine.state.gpr[RCX] = 100
    machine.processor.grant(budget)
    reason = machine.run()
    turns, rest = divmod(min(budget, 400), 4)
    assert machine.state.gpr[RAX] == turns + (rest > 0)
    assert (reason, machine.state.budget) == ((EXIT_HLT, 0) if budget == 401 else (EXIT_BUDGET, 0))


@pytest.mark.parametrize("step", [1, 2, 7, 50, 333])
def test_any_slices_do_the_same_work(step: int) -> None:
    machine = counted(MIXED)
    machine.state.gpr[8] = 40
    total = 0
    while True:
        machine.processor.grant(step)
        reason = machine.run()
        total += retired(machine, step)
        if reason == EXIT_HLT:
            break
        assert reason == EXIT_BUDGET and machine.state.budget == 0
    assert total == 40 * MIXED_TURN + 2
    assert len(machine.accesses) == 41, "no access is made twice"


def test_an_instruction_that_faults_does_not_count() -> None:
    machine = counted("inc rax\ninc rax\nmov rbx, 0x700000000000\nmov rcx, [rbx]\ninc rax\nhlt")
    machine.processor.grant(ENOUGH)
    assert machine.run() == EXIT_EXCEPTION
    assert retired(machine) == 3


def test_a_software_interrupt_counts_and_an_undefined_instruction_does_not() -> None:
    for text, count in (("inc rax\nint3\nhlt", 2), ("inc rax\nud2\nhlt", 1)):
        machine = counted(text)
        machine.processor.grant(ENOUGH)
        assert machine.run() == EXIT_EXCEPTION
        assert retired(machine) == count, text


def test_an_exit_to_a_device_is_exact() -> None:
    machine = counted("inc rax\nin al, 0x60\ninc rbx\nhlt")
    machine.processor.grant(ENOUGH)
    assert machine.processor.run() == EXIT_IO
    assert retired(machine) == 1, "IN has not retired"
    machine.processor.complete(7)
    assert machine.run() == EXIT_HLT
    assert retired(machine) == 4 and machine.state.gpr[RAX] == 7


def test_code_that_changes_itself_counts_the_same() -> None:
    text = "again:\nmov byte [patched], 1\npatched:\nnop\ndec rcx\njne again\nhlt"
    code = bytearray(assemble(text, CODE).code)
    at = code.index(b"\x90")
    code[at - 1] = 0x90  # NOP is written over NOP
    machine = counted(LOOP)
    machine.load(CODE, bytes(code))
    machine.state.gpr[RCX] = 20
    machine.processor.grant(ENOUGH)
    assert machine.run(CODE) == EXIT_HLT
    assert retired(machine) == 4 * 20 + 1


def test_a_segment_limit_and_the_count_go_together() -> None:
    machine = counted("40 40 ebfc", bits=16)     # again: inc ax; inc ax; jmp again
    machine.processor.grant(300)
    assert machine.run() == EXIT_BUDGET
    assert machine.state.gpr[RAX] & 0xFFFF == 200


def test_kicks_and_samples_cost_nothing() -> None:
    machine = counted(LOOP)
    machine.state.gpr[RCX] = 500
    machine.processor.grant(ENOUGH)
    for _ in range(3):
        machine.processor.kick()
        machine.processor.ask_for_sample()
        machine.processor.run()
        machine.processor.engine.drop_pending(machine.processor.address, PENDING_REQUEST)
    assert machine.run() == EXIT_HLT
    assert retired(machine) == 2001


@pytest.mark.parametrize("text", [LOOP, MIXED])
def test_compiled_regions_count_alike(text: str) -> None:
    machine = counted(text)
    state = machine.state
    state.gpr[RCX] = state.gpr[8] = 30
    machine.processor.grant(ENOUGH)
    assert machine.run(CODE) == EXIT_HLT
    expected = retired(machine)
    machine.compile(CODE)
    for budget in (ENOUGH, *random.Random(1).sample(range(1, expected), 10)):
        state.gpr[RAX], state.gpr[RCX], state.gpr[8], state.gpr[RDI] = 0, 30, 30, 0
        machine.processor.grant(budget)
        reason = machine.run(CODE)
        assert (reason, retired(machine, budget)) == (
            (EXIT_HLT, expected) if budget == ENOUGH else (EXIT_BUDGET, budget))


def test_nothing_is_counted_unless_asked_for() -> None:
    machine = counted(LOOP)
    machine.state.gpr[RCX] = 10
    machine.processor.count_instructions(False)
    assert machine.run() == EXIT_HLT
    assert machine.state.budget == 0 and machine.state.gpr[RAX] == 10


def test_the_tsc_follows_the_instruction_clock() -> None:
    """Ten nanoseconds an instruction would not be a power of two: 2**3 here, and three ticks for each two of them."""
    machine = counted("rdtsc\nmov ebx, eax\ninc rcx\nrdtsc\nhlt")
    state = machine.state
    state.clock_on, state.clock_shift, state.tsc_scale, state.tsc_offset = 1, 3, 3 << 47, 1000
    for budget in (ENOUGH, 2):
        machine.processor.grant(budget)
        state.clock_end = (budget << 3) + 800
        machine.run(CODE)
        assert state.gpr[3] == 1000 + 1200, "before the first instruction"
        if budget == ENOUGH:
            assert state.gpr[RAX] == 2200 + 3 * 8 * 3 // 2
