"""Instructions that do nothing have no op in a block, and are there all the same: counted, stepped, a place to stop."""

from __future__ import annotations

import pytest

from pellucid.cli.bench.asm import assemble
from pellucid.cpu.code_cache import Block
from pellucid.cpu.state import EXIT_BUDGET, EXIT_HLT

from .code import CODE, RAX, RCX, Compiled

NOPS = bytes.fromhex("90 0f1f00 48ffc0 0f180f 90 f4".replace(" ", ""))
"""NOP, NOP [RAX], INC RAX, PREFETCHT0 [RDI], NOP, HLT."""


def loaded(code: bytes) -> Compiled:
    machine = Compiled(64)
    machine.load(CODE, code)
    machine.state.rip = CODE
    return machine


def test_they_have_no_op() -> None:
    machine = loaded(NOPS)
    assert machine.run() == EXIT_HLT and machine.state.gpr[RAX] == 1
    assert Block.view(machine.block(CODE) - Block.size).count == 2, "INC and HLT"


@pytest.mark.parametrize("budget", range(7))
def test_they_are_counted(budget: int) -> None:
    machine = loaded(NOPS)
    starts = [CODE + n for n in (0, 1, 4, 7, 10, 11, 12)]
    machine.processor.count_instructions(True)
    machine.processor.grant(budget)
    assert machine.run() == (EXIT_BUDGET if budget < 6 else EXIT_HLT)
    assert (machine.state.rip, machine.state.gpr[RAX]) == (starts[budget], int(budget > 2))


def test_a_compare_meets_its_jump_across_one() -> None:
    """As one handler, in a block and in a region."""
    machine = loaded(assemble("again:\ninc rax\ncmp rax, rcx\nnop\njne again\nnop\nhlt", CODE).code)
    for count in (10, 20):
        machine.state.rip, machine.state.gpr[RAX], machine.state.gpr[RCX] = CODE, 0, count
        assert machine.run() == EXIT_HLT and machine.state.gpr[RAX] == count
        if count == 10:
            machine.compile(CODE)


def test_a_block_of_nothing_else() -> None:
    """More of them than a block holds, up to the end of a page."""
    machine = loaded(b"\x90" * 0x1000 + b"\x48\xff\xc0\xf4")
    machine.processor.count_instructions(True)
    machine.processor.grant(0x1000 + 2)
    assert machine.run() == EXIT_HLT and (machine.state.budget, machine.state.gpr[RAX]) == (0, 1)
