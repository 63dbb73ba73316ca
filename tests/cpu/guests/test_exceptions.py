"""Exceptions and interrupts through every kind of gate: vector, error code, frame, flags, stack."""


import pytest
from pellucid.cpu.state import (
    CR0_TS,
    RFLAGS_AC,
    RFLAGS_IF,
    RFLAGS_NT,
    RFLAGS_RF,
    RFLAGS_TF,
    SS,
)

from . import tables
from .machine import (
    CODE16,
    CODE32,
    CODE64,
    CONFORMING,
    DATA0,
    SPARE,
    STACK0,
    STACK3,
    STACK_IST,
    STACK_TSS,
    TSS_AT,
    USER32,
    USER64,
    USER_DATA,
    Machine,
)

MODES = ("real", "protected16", "protected32", "pae", "user32", "compat", "user_compat", "long", "user64", "long57")


def start(mode: str, source: str) -> Machine:
    """A machine in one of MODES at `source`."""
    m = Machine()
    if mode == "real":
        m.real(source)
    elif mode == "protected16":
        m.protected(source, bits=16, gates=False)
        m.gates(kind=tables.INT16, selector=CODE16)
    elif mode.startswith(("protected32", "pae", "user32")):
        m.protected(source, cpl=3 if mode == "user32" else 0, paging={"pae": 3, "user32": 2}.get(mode, 0))
    else:
        m.long(
            source, cpl=3 if mode.startswith("user") else 0, compat="compat" in mode, levels=5 if "57" in mode else 4
        )
    return m


def frame(m: Machine, mode: str, error: bool) -> list[int]:
    """What was pushed, error code first where there is one: [error], IP, CS, flags[, SP, SS]."""
    size = 2 if mode in ("real", "protected16") else 4 if mode in ("protected32", "pae", "user32") else 8
    switched = mode.startswith("user") or size == 8
    return m.stack(error + 3 + 2 * switched, size)


def expected_frame(mode: str, ip: int, flags: int, sp: int, error: int | None) -> list[int]:
    code = {
        "real": 0,
        "protected16": CODE16,
        "protected32": CODE32,
        "pae": CODE32,
        "user32": USER32,
        "compat": CODE32,
        "user_compat": USER32,
        "user64": USER64,
    }.get(mode, CODE64)
    result = [ip, code, flags]
    if mode.startswith("user") or mode in ("compat", "long", "long57"):
        result += [sp, USER_DATA if mode.startswith("user") else DATA0]
    return result if error is None or mode == "real" else [error, *result]


FAULTS: list[tuple[str, int, int | None, tuple[str, ...]]] = [
    ("xor cx, cx\nfault: div cx", 0, None, MODES),
    ("fault: ud2", 6, None, MODES),
    ("fault: db 0x0F, 0xFF", 6, None, MODES),
    ("fault: movups xmm0, [ebx]", 7, None, ("protected32", "compat")),
    (
        "mov ebx, bounds\nmov eax, 9\nfault: bound eax, [ebx]\nbounds: dd 1, 2",
        5,
        None,
        ("protected32", "user32", "compat"),
    ),
    ("mov ebx, SPARE\nfault: mov ds, bx", 11, SPARE, ("protected16", "protected32", "compat", "long")),
    ("mov ebx, 0xFFF8\nfault: mov ds, bx", 13, 0xFFF8, ("protected16", "protected32", "user32", "compat", "long")),
    ("mov ebx, 0x67\nfault: mov es, bx", 13, 0x64, ("protected32", "user64")),
    ("fault: mov ss, cx", 13, 0, ("protected32", "user32", "compat", "user64")),
    ("fault: hlt", 13, 0, ("user32", "user_compat", "user64")),
    ("fault: cli", 13, 0, ("user32", "user_compat", "user64")),
    ("fault: mov eax, [0x500000]", 14, 0, ("pae", "compat", "long57")),
    ("fault: mov eax, [0x500000]", 14, 4, ("user32", "user_compat")),
    ("fault: mov dword [0x500000], 5", 14, 6, ("user32", "user_compat")),
    ("fault: in al, dx", 13, 0, ("user32", "user64")),
    ("fault: int 0x80", 13, 0x80 * 8 + 2, ("user32", "user_compat")),
]


@pytest.mark.parametrize(
    ("source", "vector", "error", "mode"), [(s, v, e, mode) for s, v, e, modes in FAULTS for mode in modes]
)
def test_faults(source: str, vector: int, error: int | None, mode: str) -> None:
    """The frame points at the instruction; RF is set in the pushed flags, and clear afterwards."""
    m = Machine()
    m.labels["SPARE"] = SPARE
    m = start(mode, source.replace("SPARE", str(SPARE)))
    m.describe(SPARE, tables.segment(tables.DATA, present=False))
    if vector == 7:
        m.state.cr0 |= CR0_TS
    if vector == 13 and error == 0x80 * 8 + 2:
        m.gate(0x80, dpl=0)
    m.rflags = 0xAD5 | 2
    sp = m.state.gpr[4]
    assert m.catch() == vector, (source, mode)
    got = frame(m, mode, error is not None and mode != "real")
    flags_at = 2 + (error is not None and mode != "real")
    rf = RFLAGS_RF if mode not in ("real", "protected16") else 0
    assert got[flags_at] & (RFLAGS_IF | RFLAGS_RF | RFLAGS_TF) == RFLAGS_IF | rf
    got[flags_at] = 0
    assert got == expected_frame(mode, m.labels["fault"], 0, sp, error)
    assert not m.rflags & (RFLAGS_IF | RFLAGS_RF | RFLAGS_TF | RFLAGS_NT) and m.state.cpl == 0


TRAPS = [
    ("int 0x33", 0x33, ()),
    ("int3", 3, ()),
    ("int1", 1, ()),
    ("int 3", 3, ()),
    ("into", 4, ("long", "user64", "long57")),
]


@pytest.mark.parametrize(
    ("source", "vector", "mode"), [(s, v, mode) for s, v, not_in in TRAPS for mode in MODES if mode not in not_in]
)
def test_traps(source: str, vector: int, mode: str) -> None:
    """Software interrupts return behind themselves; RF stays clear in the pushed flags; no error code."""
    m = start(mode, "nop\n" + source + "\nbehind: hlt")
    m.rflags = 0xA02 | RFLAGS_AC if mode != "real" else 0xA02
    flags, sp = m.rflags, m.state.gpr[4]
    assert m.catch() == vector
    size = 0xFFFF if mode in ("real", "protected16") else 0xFFFF_FFFF
    assert frame(m, mode, False) == expected_frame(mode, m.labels["behind"], flags & size, sp, None)
    assert m.state.dr[6] == 0xFFFF_0FF0, "INT1 says nothing in DR6"


def test_page_fault_address() -> None:
    for mode, address in (
        ("pae", 0x50_0123),
        ("user64", 0x7FFF_FFFF_F123),
        ("long57", 0xFF00_0000_0000_0123 & ~(1 << 63)),
    ):
        m = start(mode, "mov al, [ebx]" if mode == "pae" else "mov al, [rbx]")
        if mode == "long57":
            address = 0x00FF_FFFF_0000_0123
        m.state.gpr[3] = address
        assert m.catch() == 14 and m.state.cr2 == address


@pytest.mark.parametrize("kind", [tables.INT, tables.TRAP])
@pytest.mark.parametrize("mode", ["protected32", "long", "user64"])
def test_trap_gates_leave_if(mode: str, kind: int) -> None:
    m = start(mode, "int 0x40")
    m.gate(0x40, kind=kind)
    m.rflags = 0x202 | RFLAGS_TF * 0 | RFLAGS_NT
    assert m.catch() == 0x40
    assert m.rflags & RFLAGS_IF == (RFLAGS_IF if kind == tables.TRAP else 0)
    assert not m.rflags & RFLAGS_NT


def test_interrupt_stack_table() -> None:
    """IST: always that stack, aligned to 16 bytes; SS stays as it is without a change of level."""
    for cpl, sp in ((0, STACK0 - 3), (3, STACK3 - 3)):
        m = Machine()
        m.long("ud2", cpl=cpl)
        m.gate(6, ist=1)
        m.write(TSS_AT + 36, STACK_IST - 5, 8)
        m.state.gpr[4] = sp
        assert m.catch() == 6
        assert m.state.gpr[4] == STACK_IST - 16 - 40
        assert m.stack(5, 8)[3:] == [sp, USER_DATA if cpl else DATA0]
        assert m.state.seg_selector[SS] == (0 if cpl else DATA0)


def test_stack_alignment_without_switch() -> None:
    m = Machine()
    m.long("mov al, [0x500000]")
    m.state.gpr[4] = STACK0 - 1
    assert m.catch() == 14
    assert m.state.gpr[4] == STACK0 - 16 - 48 and m.stack(6, 8)[4] == STACK0 - 1


def test_inner_stack_of_64_bit_mode() -> None:
    """A change of level loads RSP from the TSS and a null SS with the new level as RPL."""
    m = Machine()
    m.long("ud2", cpl=3)
    assert m.catch() == 6
    assert m.state.gpr[4] == STACK_TSS - 40 and m.state.seg_selector[SS] == 0 and m.state.cpl == 0


def test_sixteen_bit_gate_of_32_bit_code() -> None:
    m = Machine()
    m.protected("fault: ud2", gates=False)
    m.gates(kind=tables.INT16, selector=CODE32)
    assert m.catch() == 6
    assert m.stack(3, 2) == [m.labels["fault"] & 0xFFFF, CODE32, 2] and m.state.gpr[4] == STACK0 - 6


def test_conforming_handler_keeps_the_level() -> None:
    """A handler in a conforming segment runs at the level of who was interrupted, on its stack, with its rights."""
    m = Machine()
    m.protected("fault: ud2", cpl=3, paging=2)
    m.gate(6, selector=CONFORMING, offset=0x11000)
    m.load("mov ebx, esp\nmov ecx, cs\nint 0x50", 0x11000, 32)
    assert m.catch() == 0x50
    assert m.state.gpr[1] == CONFORMING | 3 and m.state.gpr[3] == STACK3 - 12
    assert m.words(STACK3 - 12, 3, 4) == [m.labels["fault"], USER32, RFLAGS_RF | 2]


def test_pushes_have_the_handlers_privilege() -> None:
    """A handler that stays at CPL 3 pushes with CPL 3: a supervisor's page is not writable for it."""
    m = Machine()
    m.protected("ud2", cpl=3, paging=2)
    assert m.pages is not None
    m.gate(6, selector=CONFORMING)
    m.pages.map(STACK3 - 0x1000, STACK3 - 0x1000, tables.P | tables.W)
    assert m.catch() == 14
    assert m.stack(1, 4) == [7] and m.state.cr2 == STACK3 - 4


@pytest.mark.parametrize(("code", "vector", "kept"), [("fault: ud2", 6, True), ("nop\nint3", 3, False),
                                                       ("int3", 3, False), ("nop\nfault: ud2", 6, True)])
def test_rf_of_a_frame_lasts_for_one_instruction(code: str, vector: int, kept: bool) -> None:
    """IRET takes RF from its frame; a fault pushes it set again, INT n behind it does not (SDM vol. 3, 17.3.1.1)."""
    m = start("long", f"push {DATA0}\npush {STACK0}\npush {RFLAGS_RF | 2}\npush {CODE64}\nlea rax, [rel a]\npush rax\n"
                      f"iretq\na: {code}\nhlt")  # fmt: skip
    m.describe(DATA0, tables.segment(tables.DATA))
    assert m.catch() == vector
    assert bool(frame(m, "long", False)[2] & RFLAGS_RF) == kept
    assert not m.rflags & RFLAGS_RF


def test_rf_before_an_interrupt_is_pushed() -> None:
    """An interrupt between IRET and the next instruction finds RF set, and its own IRET brings it back."""
    m = start("long", "nop\nhlt")
    m.rflags = RFLAGS_RF | 2
    assert m.interrupt(0x44)
    assert m.catch() == 0x44 and m.stack(5, 8)[2] & RFLAGS_RF
