"""Far transfers: JMP, CALL and RET far, call gates between levels, conforming code, IRET to every kind of place."""

import pytest
from pellucid.cpu.state import (
    CS,
    EXIT_HLT,
    SS,
)

from . import tables
from .machine import (
    CODE,
    CODE16,
    CODE32,
    CODE64,
    CONFORMING,
    DATA,
    DATA0,
    SPARE,
    STACK0,
    STACK3,
    STACK_TSS,
    TSS_AT,
    USER32,
    USER64,
    USER_DATA,
    Machine,
)

TARGET = 0x12000
NAMES = {
    "CODE32": CODE32,
    "CODE64": CODE64,
    "CODE16": CODE16,
    "CONFORMING": CONFORMING,
    "DATA0": DATA0,
    "USER32": USER32,
    "USER64": USER64,
    "USER_DATA": USER_DATA,
    "SPARE": SPARE,
    "TARGET": TARGET,
    "DATA": DATA,
}


def protected(source: str, cpl: int = 0, target: str = "hlt", target_bits: int = 32) -> Machine:
    m = Machine()
    m.labels |= NAMES
    m.protected(source, cpl=cpl)
    m.load(target, TARGET, target_bits)
    return m


def long(source: str, cpl: int = 0, target: str = "hlt", target_bits: int = 64, compat: bool = False) -> Machine:
    m = Machine()
    m.labels |= NAMES
    m.long(source, cpl=cpl, compat=compat)
    m.load(target, TARGET, target_bits)
    return m


def reached(m: Machine) -> bool:
    """Whether the guest halted at TARGET."""
    stop = m.run()
    return stop.reason == EXIT_HLT and m.state.rip + m.state.cs_base == TARGET + 1


# --- direct -----------------------------------------------------------------------------------------------------

DIRECT = [
    # target descriptor, selector's RPL, CPL, vector or None
    (tables.segment(tables.CODE), 0, 0, None),
    (tables.segment(tables.CODE_XO), 0, 0, None),
    (tables.segment(tables.CODE), 3, 0, 13),
    (tables.segment(tables.CODE, dpl=3), 3, 3, None),
    (tables.segment(tables.CODE, dpl=3), 0, 3, None),
    (tables.segment(tables.CODE, dpl=3), 0, 0, 13),
    (tables.segment(tables.CODE, dpl=0), 3, 3, 13),
    (tables.segment(tables.CONFORMING, dpl=0), 3, 3, None),
    (tables.segment(tables.CONFORMING, dpl=0), 3, 0, None),
    (tables.segment(tables.CONFORMING, dpl=3), 0, 0, 13),
    (tables.segment(tables.DATA), 0, 0, 13),
    (tables.segment(tables.CODE, present=False), 0, 0, 11),
    (tables.segment(tables.CODE, limit=TARGET - 1), 0, 0, 13),
    (tables.segment(tables.CODE, limit=TARGET + 1), 0, 0, None),
    (tables.segment(tables.LDT, system=True), 0, 0, 13),
    (tables.segment(tables.INT, system=True), 0, 0, 13),
]


@pytest.mark.parametrize("how", ["jmp", "call", "retf"])
@pytest.mark.parametrize(("descriptor", "rpl", "cpl", "vector"), DIRECT)
def test_direct(how: str, descriptor: int, rpl: int, cpl: int, vector: int | None) -> None:
    """CS gets the CPL as its RPL; a fault names the selector (#GP(0) for the limit) and leaves everything as it was."""
    source = f"{how} SPARE + {rpl}:TARGET" if how != "retf" else f"push SPARE + {rpl}\npush TARGET\nfault: retf"
    m = protected(source, cpl, "int 0x77")
    m.describe(SPARE, descriptor)
    s = m.state
    s.trap_exceptions = 1
    m.run()
    if how == "retf":
        # A return to the same level wants RPL = CPL, and DPL = RPL unless conforming.
        kind, dpl = descriptor >> 40 & 15, descriptor >> 45 & 3
        if vector is None and rpl != cpl:
            vector = 13 if rpl < cpl else 12
        if vector == 13 and descriptor >> 44 & 1 and kind == tables.CONFORMING and dpl <= rpl == cpl:
            vector = None
        if rpl > cpl:
            return
    if vector is None:
        assert (s.exc_vector, s.rip) == (0x77, TARGET)
        assert s.seg_selector[CS] == (SPARE | (rpl if how == "retf" else cpl)) and s.cpl == cpl
        if how == "call":
            assert m.stack(2, 4) == [CODE + 7, USER32 if cpl else CODE32]
    else:
        beyond = descriptor == tables.segment(tables.CODE, limit=TARGET - 1)
        assert (s.exc_vector, s.exc_error) == (vector, 0 if beyond else SPARE)
        assert s.rip == m.labels.get("fault", CODE) and s.seg_selector[CS] == (USER32 if cpl else CODE32)
        assert s.gpr[4] == (STACK3 if cpl else STACK0) - (8 if how == "retf" else 0)


def test_null_and_far_selectors() -> None:
    for selector, error in ((0, 0), (3, 0), (0x100, 0x100), (0x14, 0x14)):
        m = protected(f"jmp {selector}:TARGET")
        assert m.catch() == 13 and m.stack(1, 4) == [error]


def test_operand_sizes() -> None:
    """A 16-bit CALL far pushes two words, a 16-bit RETF pops them; RETF n drops n more bytes."""
    m = protected("nop")
    m.describe(CODE16, tables.segment(tables.CODE, base=TARGET - 0x100, limit=0xFFFF, bits=16))
    m.load("hlt", TARGET, 16)
    m.write_bytes(CODE, bytes.fromhex("669a 0001") + CODE16.to_bytes(2, "little"))
    assert reached(m) and m.stack(2, 2) == [(CODE + 6) & 0xFFFF, CODE32] and m.state.gpr[4] == STACK0 - 4
    m = protected("push 7\npush 8\npush CODE32\npush TARGET\nretf 4")
    assert reached(m) and m.stack(1, 4) == [7]
    m = protected("mov ebx, pointer\ncall far [ebx]\npointer: dd TARGET\ndw CODE32")
    assert reached(m) and m.stack(2, 4) == [CODE + 7, CODE32]
    m = protected("mov ebx, pointer\njmp far [ebx]\npointer: dd TARGET\ndw CODE32")
    assert reached(m) and m.state.gpr[4] == STACK0


def test_a_fault_of_the_second_push_undoes_the_first() -> None:
    m = protected("mov esp, 6\ncall CODE32:TARGET")
    m.describe(SPARE, tables.segment(tables.DATA, limit=0xFFF))
    m.set_segment(SS, SPARE)
    m.refresh()
    m.state.trap_exceptions = 1
    m.run()
    assert m.state.exc_vector == 12 and m.state.gpr[4] == 6 and m.state.seg_selector[CS] == CODE32


def test_64_bit_direct() -> None:
    m = long("jmp far [rel pointer]\npointer: dd TARGET\ndw CODE32", target_bits=32)
    assert reached(m) and not m.state.cs_base and m.state.seg_selector[CS] == CODE32
    m = long("mov eax, 0x48\ncall far [rel pointer]\npointer: dd TARGET\ndw CODE64")
    assert reached(m) and m.stack(2, 4) == [CODE + 5 + 6, CODE64]
    m = long("nop\ndb 0x48\njmp far [rel pointer]\npointer: dq TARGET\ndw CODE64")
    assert reached(m)
    m = long("db 0x48\njmp far [rel pointer]\npointer: dq 0x800000000000\ndw CODE64")
    assert m.catch() == 13 and m.stack(1, 8) == [0], "a target that is not canonical"
    m = long("jmp far [rel pointer]\npointer: dd TARGET\ndw SPARE")
    m.describe(SPARE, tables.segment(tables.CODE, bits=64) | 1 << 54)
    assert m.catch() == 13 and m.stack(1, 8) == [SPARE], "L and D together"


# --- call gates -------------------------------------------------------------------------------------------------


def call_gate(
    m: Machine,
    selector: int = CODE32,
    offset: int = TARGET,
    *,
    dpl: int = 3,
    kind: int = tables.CALL,
    count: int = 0,
    present: bool = True,
) -> None:
    m.describe(SPARE, tables.gate(kind, selector, offset, dpl=dpl, count=count, present=present), 16)


def test_gate_to_an_inner_level() -> None:
    """The stack of the TSS, with the old SS:ESP, the parameters in order, and the return address."""
    m = protected("push 0x111\npush 0x222\npush 0x333\ncall SPARE:0xDEAD\nback: nop", 3)
    call_gate(m, count=2)
    assert reached(m)
    s = m.state
    assert s.cpl == 0 and s.seg_selector[CS] == CODE32 and s.seg_selector[SS] == DATA0
    assert s.gpr[4] == STACK_TSS - 24
    assert m.stack(6, 4) == [m.labels["back"], USER32, 0x333, 0x222, STACK3 - 12, USER_DATA]


def test_return_from_the_gate_restores_the_outer_level() -> None:
    m = protected(
        "push 0x111\npush 0x222\ncall SPARE:0\nback: mov eax, esp\nmov ecx, cs\nmov edx, ss\nmov esi, ds\nint 0x30",
        3,
        "mov bx, DATA0\nmov ds, bx\nretf 8",
    )
    call_gate(m, count=2)
    assert m.catch() == 0x30
    s = m.state
    assert (s.gpr[0], s.gpr[1], s.gpr[2]) == (STACK3, USER32, USER_DATA)
    assert s.gpr[6] == 0, "a data segment that the outer level may not use became null"


def test_gate_without_change_of_level() -> None:
    for cpl, selector in ((0, CODE32), (3, CONFORMING), (3, USER32 & ~3)):
        m = protected("call SPARE:0\nback: nop", cpl, "int 0x30")
        call_gate(m, selector)
        m.state.trap_exceptions = 1
        m.run()
        assert m.state.rip == TARGET and m.state.cpl == cpl and m.state.seg_selector[CS] == selector | cpl
        assert m.stack(2, 4) == [m.labels["back"], USER32 if cpl else CODE32]


def test_gate_pushes_with_its_own_privilege() -> None:
    """A call that stays at CPL 3 cannot write to the supervisor's page."""
    m = Machine()
    m.labels |= NAMES
    m.protected("call SPARE:0", cpl=3, paging=2)
    assert m.pages is not None
    call_gate(m, CONFORMING)
    m.pages.map(STACK3 - 0x1000, STACK3 - 0x1000, tables.P | tables.W)
    m.processor.flush_tlb()
    assert m.catch() == 14 and m.stack(1, 4) == [7] and m.state.cr2 == STACK3 - 4


def test_16_bit_gate() -> None:
    m = protected("call SPARE:0\nback: nop", 3)
    m.describe(CODE16, tables.segment(tables.CODE, base=TARGET, limit=0xFFFF, bits=16))
    m.load("hlt", TARGET, 16)
    call_gate(m, CODE16, 0, kind=tables.CALL16)
    assert reached(m)
    assert m.stack(4, 2) == [m.labels["back"] & 0xFFFF, USER32, STACK3 & 0xFFFF, USER_DATA]


def test_jump_through_a_gate() -> None:
    m = protected("jmp SPARE:0")
    call_gate(m)
    assert reached(m) and m.state.gpr[4] == STACK0
    m = protected("jmp SPARE:0", 3)
    call_gate(m)
    assert m.catch() == 13 and m.stack(1, 4) == [CODE32], "JMP does not change the level"


GATE_FAULTS = [
    ({"dpl": 0}, 3, 13, SPARE),
    ({"present": False}, 3, 11, SPARE),
    ({"selector": 0}, 3, 13, 0),
    ({"selector": 0x100}, 3, 13, 0x100),
    ({"selector": DATA0}, 3, 13, DATA0),
    ({"selector": SPARE + 16}, 3, 11, SPARE + 16),
    ({"selector": USER32}, 0, 13, USER32 & ~3),
    ({"offset": 0x30_0000, "selector": SPARE + 24}, 0, 13, 0),
    ({"kind": tables.INT}, 0, 13, SPARE),
]


@pytest.mark.parametrize(("changes", "cpl", "vector", "error"), GATE_FAULTS)
def test_gate_faults(changes: dict[str, int], cpl: int, vector: int, error: int) -> None:
    m = protected("call SPARE:0", cpl)
    call_gate(m, **changes)  # type: ignore[arg-type]
    m.describe(SPARE + 16, tables.segment(tables.CODE, present=False))
    m.describe(SPARE + 24, tables.segment(tables.CODE, limit=0x2F_FFFF))
    sp = m.state.gpr[4]
    assert m.catch() == vector
    assert m.stack(2, 4) == [error, CODE] and (m.stack(5, 4)[4] == sp if cpl else m.state.gpr[4] == sp - 16)


def test_gates_rpl_counts() -> None:
    m = protected("call SPARE + 3:0")
    call_gate(m, dpl=2)
    assert m.catch() == 13 and m.stack(1, 4) == [SPARE]


def test_gate_stack_faults() -> None:
    """The inner stack comes from the TSS: #TS for its selector, #SS for its room."""
    for value, vector in ((0, 10), (USER_DATA, 10), (SPARE + 16, 12), (SPARE + 24, 12)):
        m = protected("call SPARE:0", 3)
        call_gate(m)
        m.describe(SPARE + 16, tables.segment(tables.DATA, limit=0xFFF))
        m.describe(SPARE + 24, tables.segment(tables.DATA, present=False))
        m.write(TSS_AT + 8, value, 4)
        m.state.trap_exceptions = 1
        m.run()
        assert (m.state.exc_vector, m.state.exc_error) == (vector, value & ~3)
        assert m.state.gpr[4] == STACK3 and m.state.cpl == 3


def test_64_bit_gate() -> None:
    m = long("call far [rel pointer]\nback: nop\npointer: dd 0\ndw SPARE", 3)
    call_gate(m, CODE64)
    assert reached(m)
    assert m.state.seg_selector[SS] == 0 and m.state.cpl == 0
    assert m.stack(4, 8) == [m.labels["back"], USER64, STACK3, USER_DATA]
    m = long("call SPARE:0\nback: nop", 3, compat=True)
    call_gate(m, CODE64)
    assert reached(m) and m.stack(4, 8) == [m.labels["back"], USER32, STACK3, USER_DATA]


def test_64_bit_gate_faults() -> None:
    high = 1 << 104
    for descriptor, vector, error in (
        (tables.gate(tables.CALL, CODE32, TARGET, dpl=3), 13, CODE32),
        (tables.gate(tables.CALL16, CODE64, TARGET, dpl=3), 13, SPARE),
        (tables.gate(tables.CALL, CODE64, TARGET, dpl=3) | high, 13, SPARE),
        (tables.gate(tables.CALL, CODE64, 1 << 47, dpl=3), 13, 0),
        (tables.gate(tables.TASK_GATE, CODE64, 0, dpl=3), 13, SPARE),
        (tables.system_segment(tables.TSS, TSS_AT, 0x67, dpl=3), 13, SPARE),
    ):
        m = long("call far [rel pointer]\npointer: dd 0\ndw SPARE", 3)
        m.describe(SPARE, descriptor, 16)
        assert m.catch() == vector and m.stack(1, 8) == [error]
    m = long("call far [rel pointer]\npointer: dd 0\ndw 0xF8", 3)
    m.describe(0xF8, tables.gate(tables.CALL, CODE64, TARGET, dpl=3) & (1 << 64) - 1)
    assert m.catch() == 13 and m.stack(1, 8) == [0xF8], "half of it lies beyond the table"


def test_accessed_bits() -> None:
    m = protected("call SPARE:0", 3)
    call_gate(m, SPARE + 16)
    m.describe(SPARE + 16, tables.segment(tables.CODE & ~1))
    m.describe(SPARE + 24, tables.segment(tables.DATA & ~1))
    m.write(TSS_AT + 8, SPARE + 24, 4)
    assert reached(m)
    assert m.descriptor(SPARE + 16) >> 40 & 1 and m.descriptor(SPARE + 24) >> 40 & 1
