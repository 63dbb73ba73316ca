"""Virtual interrupts: virtual-8086 mode with CR4.VME, protected mode with CR4.PVI (SDM vol. 3, 20.3 and 20.4)."""

import random

import pytest
from pellucid.cpu.state import (
    CR4_PVI,
    CR4_VME,
    EXIT_HLT,
    RFLAGS_AC,
    RFLAGS_IF,
    RFLAGS_TF,
    RFLAGS_VIF,
    RFLAGS_VIP,
    RFLAGS_VM,
)

from . import tables
from .machine import TSS2_AT, TSS_AT, Machine
from .test_v86 import IOPL3, START, frame, v86

IOPL0, IOPL2 = 0, 0x2000
IO_MAP, TSS_SIZE = 0xA8, 0x200
"""Where the TSS of these guests has its I/O map; the redirection map is the 32 bytes before."""
TABLE_SEGMENT, TABLE_OFFSET = 0x1230, 0x40


def vme(source: str, flags: int, *, cr4: int = CR4_VME, protected: tuple[int, ...] = (0x40,)) -> Machine:
    """A guest of `v86` with CR4.VME, whose INT n are the program's own but for the vectors in `protected`."""
    m = v86(source, flags=flags)
    bitmap = bytearray(32)
    for vector in protected:
        bitmap[vector >> 3] |= 1 << (vector & 7)
    m.describe(0x50, tables.system_segment(tables.TSS_BUSY, TSS_AT, TSS_SIZE))
    m.write(TSS_AT + 0x66, IO_MAP, 2)
    m.write_bytes(TSS_AT + IO_MAP - 32, bytes(bitmap))
    m.state.seg_limit[7] = TSS_SIZE
    m.state.cr4 |= cr4
    m.refresh()
    return m


def refused(m: Machine) -> None:
    """Run to #GP(0) at the label `fault`."""
    assert m.catch() == 13 and m.stack(2, 4) == [0, m.labels["fault"]]


# --- CLI and STI: the decision tables of SDM vol. 2 ---------------------------------------------------------------

CLI_STI = [
    # instruction, VME, IOPL, flags before, flags after or None for #GP(0)
    ("cli", False, IOPL3, RFLAGS_IF | RFLAGS_VIF, RFLAGS_VIF),
    ("cli", False, IOPL2, RFLAGS_IF | RFLAGS_VIF, None),
    ("cli", True, IOPL3, RFLAGS_IF | RFLAGS_VIF, RFLAGS_VIF),
    ("cli", True, IOPL2, RFLAGS_IF | RFLAGS_VIF, RFLAGS_IF),
    ("cli", True, IOPL0, RFLAGS_IF | RFLAGS_VIP, RFLAGS_IF | RFLAGS_VIP),
    ("sti", False, IOPL3, RFLAGS_VIP, RFLAGS_IF | RFLAGS_VIP),
    ("sti", False, IOPL2, 0, None),
    ("sti", True, IOPL3, RFLAGS_VIP, RFLAGS_IF | RFLAGS_VIP),
    ("sti", True, IOPL2, 0, RFLAGS_VIF),
    ("sti", True, IOPL0, RFLAGS_IF, RFLAGS_IF | RFLAGS_VIF),
    ("sti", True, IOPL2, RFLAGS_VIP, None),
]


@pytest.mark.parametrize(("instruction", "on", "iopl", "before", "after"), CLI_STI)
def test_cli_and_sti(instruction: str, on: bool, iopl: int, before: int, after: int | None) -> None:
    m = vme(f"nop\nfault: {instruction}\nint3", iopl | before, cr4=CR4_VME * on)
    if after is None:
        refused(m)
    else:
        assert m.catch() == 3 and frame(m)[2] == iopl | RFLAGS_VM | after | 2


# --- PUSHF, POPF, IRET -----------------------------------------------------------------------------------------------

PUSHED = [
    # IOPL, flags, what PUSHF shows of them
    (IOPL3, RFLAGS_IF, IOPL3 | RFLAGS_IF),
    (IOPL3, RFLAGS_VIF, IOPL3),
    (IOPL2, RFLAGS_IF, IOPL3),
    (IOPL2, RFLAGS_VIF, IOPL3 | RFLAGS_IF),
    (IOPL0, RFLAGS_IF | RFLAGS_VIF, IOPL3 | RFLAGS_IF),
]


@pytest.mark.parametrize(("iopl", "flags", "shown"), PUSHED)
def test_pushf(iopl: int, flags: int, shown: int) -> None:
    m = vme("pushfw\npop ax\nint3", iopl | flags | 0x4D5)
    assert m.catch() == 3
    assert m.state.gpr[0] & 0xFFFF == shown | 0x4D7


@pytest.mark.parametrize("source", ["o32 pushfd", "o32 popfd", "o32 iretd"])
@pytest.mark.parametrize("on", [False, True])
def test_32_bits_are_the_monitors(source: str, on: bool) -> None:
    refused(vme(f"nop\nfault: {source}", IOPL2, cr4=CR4_VME * on))


@pytest.mark.parametrize("source", ["pushfw", "popfw", "iretw", "cli", "sti", "int 0x41"])
def test_without_vme_all_is_the_monitors(source: str) -> None:
    refused(vme(f"nop\nfault: {source}", IOPL2, cr4=0))


POPPED = [
    # IOPL, flags before, image, flags after or None
    (IOPL3, 0, RFLAGS_IF, RFLAGS_IF),
    (IOPL3, RFLAGS_VIF, 0, RFLAGS_VIF),
    (IOPL3, RFLAGS_VIP, RFLAGS_IF, RFLAGS_IF | RFLAGS_VIP),
    (IOPL2, 0, RFLAGS_IF | IOPL3, RFLAGS_VIF),
    (IOPL2, RFLAGS_IF | RFLAGS_VIF, 0, RFLAGS_IF),
    (IOPL0, RFLAGS_IF, RFLAGS_IF, RFLAGS_IF | RFLAGS_VIF),
    (IOPL2, RFLAGS_VIP, 0, RFLAGS_VIP),
    (IOPL2, RFLAGS_VIP, RFLAGS_IF, None),
    (IOPL2, 0, RFLAGS_TF, None),
    (IOPL0, RFLAGS_AC, 0x4000, RFLAGS_AC | 0x4000),
]


@pytest.mark.parametrize(("iopl", "before", "image", "after"), POPPED)
def test_popf_and_iret(iopl: int, before: int, image: int, after: int | None) -> None:
    """Both load FLAGS alike; a fault leaves the stack as it was."""
    for pops in (f"push {image}\nfault: popfw\n", f"push {image}\npush cs\npush to\nfault: iretw\nto: "):
        m = vme(pops + "int3", iopl | before)
        if after is None:
            refused(m)
            assert frame(m, True)[3] == 0x100 - (2 if "popfw" in pops else 6)
        else:
            assert m.catch() == 3
            assert frame(m)[2] == iopl | RFLAGS_VM | after | 2 and frame(m)[3] == 0x100


def test_a_pending_interrupt_faults_where_it_is_let_in() -> None:
    """VIF and VIP both set by the monitor's IRET: #GP(0) before the first instruction."""
    m = vme("fault: nop\nint3", IOPL2 | RFLAGS_VIF | RFLAGS_VIP)
    refused(m)
    assert frame(m, True)[2] & RFLAGS_VM
    for flags, cr4 in ((IOPL3, CR4_VME), (IOPL2, 0)):
        m = vme("nop\nint3", flags | RFLAGS_VIF | RFLAGS_VIP, cr4=cr4)
        assert m.catch() == 3, "not in force"


# --- software interrupts (SDM vol. 3, table 20-2) ----------------------------------------------------------------


def with_handler(m: Machine, vector: int = 0x41) -> Machine:
    """The 8086 program's own handler for a vector, which copies its frame to AX, BX, CX and ends."""
    m.write(vector * 4, TABLE_SEGMENT << 16 | TABLE_OFFSET, 4)
    m.load("pop ax\npop bx\npop cx\nint3", (TABLE_SEGMENT << 4) + TABLE_OFFSET, 16)
    return m


METHODS = [
    # method, VME, IOPL, bit in the map, outcome
    (1, False, IOPL3, 0, "monitor"),
    (1, False, IOPL3, 1, "monitor"),
    (2, False, IOPL2, 0, "#GP"),
    (2, False, IOPL2, 1, "#GP"),
    (3, True, IOPL2, 1, "#GP"),
    (3, True, IOPL0, 1, "#GP"),
    (4, True, IOPL3, 1, "monitor"),
    (5, True, IOPL3, 0, "program"),
    (6, True, IOPL2, 0, "program"),
    (6, True, IOPL0, 0, "program"),
]


@pytest.mark.parametrize(("method", "on", "iopl", "bit", "outcome"), METHODS)
@pytest.mark.parametrize("flags", [RFLAGS_IF, RFLAGS_VIF, RFLAGS_IF | RFLAGS_VIF, RFLAGS_VIP])
def test_methods(method: int, on: bool, iopl: int, bit: int, outcome: str, flags: int) -> None:
    vectors = (0x40, 0x41) if bit else (0x40,)
    m = with_handler(vme("nop\nfault: int 0x41\nback: nop", iopl | flags, cr4=CR4_VME * on, protected=vectors))
    if outcome == "#GP":
        refused(m)
    elif outcome == "monitor":
        assert m.catch() == 0x41 and frame(m)[:3] == [m.labels["back"], 0x1200, iopl | flags | RFLAGS_VM | 2]
    else:
        assert m.catch() == 3
        s = m.state
        assert (s.gpr[0] & 0xFFFF, s.gpr[3] & 0xFFFF) == (m.labels["back"], 0x1200)
        image = s.gpr[1] & 0xFFFF
        after = frame(m)[2]
        if method == 5:
            assert image == iopl | flags & RFLAGS_IF | 2
            assert after == iopl | RFLAGS_VM | flags & ~RFLAGS_IF | 2
        else:
            assert image == IOPL3 | bool(flags & RFLAGS_VIF) * RFLAGS_IF | 2
            assert after == iopl | RFLAGS_VM | flags & ~RFLAGS_VIF | 2
        assert frame(m)[1] == TABLE_SEGMENT


def test_there_and_back() -> None:
    """INT n and IRET within the program, VIF kept on the way: the monitor hears nothing."""
    m = vme("sti\nint 0x41\npushfw\npop dx\nint3", IOPL0 | RFLAGS_IF)
    m.write(0x41 * 4, TABLE_SEGMENT << 16 | TABLE_OFFSET, 4)
    m.load("pushfw\npop ax\niretw", (TABLE_SEGMENT << 4) + TABLE_OFFSET, 16)
    assert m.catch() == 3
    assert not m.state.gpr[0] & RFLAGS_IF and m.state.gpr[2] & RFLAGS_IF
    assert frame(m)[2] == RFLAGS_VM | RFLAGS_IF | RFLAGS_VIF | 2 and frame(m)[3] == 0x100


@pytest.mark.parametrize(("source", "vector"), [("int3", 3), ("mov ax, 0x7FFF\nadd ax, 1\ninto", 4)])
@pytest.mark.parametrize("iopl", [IOPL0, IOPL3])
def test_int3_and_into_are_never_redirected(source: str, vector: int, iopl: int) -> None:
    m = with_handler(vme(source, iopl), vector)
    assert m.catch() == vector and m.state.cpl == 0


def test_interrupts_and_exceptions_are_never_redirected() -> None:
    m = with_handler(vme("fault: mov ax, [0xFFFF]", IOPL3), 13)
    assert m.catch() == 13 and m.state.cpl == 0
    m = vme("here: jmp here", IOPL0 | RFLAGS_IF | RFLAGS_VIF)
    m.processor.kick()
    while not m.rflags & RFLAGS_VM:
        m.state.step_once = 1
        m.processor.kick()
        m.run()
        m.state.pending = 0
    assert m.interrupt(0x41)
    assert m.catch() == 0x41 and frame(m)[2] == RFLAGS_VM | RFLAGS_IF | RFLAGS_VIF | 2


def test_a_trap_flag_ends_with_the_interrupt() -> None:
    """INT n clears TF, and no trap comes behind it."""
    m = with_handler(vme("nop\nint 0x41", IOPL3 | RFLAGS_TF))
    assert m.catch() == 1 and frame(m)[0] == 1, "behind the NOP"
    m = with_handler(vme("int 0x41", IOPL3 | RFLAGS_TF))
    assert m.catch() == 3
    assert m.state.gpr[1] & RFLAGS_TF and not frame(m)[2] & RFLAGS_TF


@pytest.mark.parametrize(
    ("io_map", "limit", "kind"),
    [
        (IO_MAP, 0x8F, tables.TSS_BUSY),
        (10, TSS_SIZE, tables.TSS_BUSY),
        (IO_MAP, 0x60, tables.TSS_BUSY),
        (IO_MAP, TSS_SIZE, 3),
    ],
)
def test_no_map_in_the_tss(io_map: int, limit: int, kind: int) -> None:
    """A map that the TSS does not hold, or a 16-bit TSS: #GP(0)."""
    m = with_handler(vme("nop\nfault: int 0x41", IOPL3))
    m.write(TSS_AT + 0x66, io_map, 2)
    m.state.seg_limit[7] = limit
    m.state.seg_attr[7] = 0x80 | kind
    if kind == 3:
        m.write(TSS_AT + 2, 0x9000, 2)
        m.write(TSS_AT + 4, 0x10, 2)
        assert m.run().vector == 13
        return
    refused(m)


def test_a_stack_that_does_not_hold_the_frame() -> None:
    """#SS(0), with nothing changed."""
    m = with_handler(vme("mov sp, 3\nfault: int 0x41", IOPL2 | RFLAGS_VIF))
    assert m.catch() == 12
    assert m.stack(2, 4) == [0, m.labels["fault"]] and frame(m, True)[2] & RFLAGS_VIF and frame(m, True)[3] == 3


def test_a_task_that_begins_with_a_pending_interrupt() -> None:
    """A task switch into virtual-8086 mode with VIF and VIP: #GP(0) before its first instruction."""
    m = Machine()
    m.protected("jmp 0x70:0")
    m.state.cr4 |= CR4_VME
    m.refresh()
    m.load("nop\nint3", START, 16)
    m.describe(0x70, tables.system_segment(9, TSS2_AT, 0x67))
    m.write_bytes(TSS2_AT, bytes(0x68))
    flags = RFLAGS_VM | RFLAGS_VIF | RFLAGS_VIP | 2
    for at, value in ((4, 0x9000), (8, 0x10), (0x20, 0), (0x24, flags), (0x38, 0x100), (0x4C, 0x1200), (0x50, 0x800)):
        m.write(TSS2_AT + at, value, 4)
    assert m.catch() == 13
    assert m.words(0x9000 - 40, 4, 4) == [0, 0, 0x1200, flags | 0x10000]


# --- PVI --------------------------------------------------------------------------------------------------------

PVI = [
    # instruction, PVI, CPL, IOPL, flags before, flags after or None
    ("cli", True, 3, IOPL2, RFLAGS_IF | RFLAGS_VIF, RFLAGS_IF),
    ("cli", True, 3, IOPL3, RFLAGS_IF | RFLAGS_VIF, RFLAGS_VIF),
    ("cli", True, 0, IOPL0, RFLAGS_IF | RFLAGS_VIF, RFLAGS_VIF),
    ("cli", False, 3, IOPL2, RFLAGS_VIF, None),
    ("sti", True, 3, IOPL2, 0, RFLAGS_VIF),
    ("sti", True, 3, IOPL0, RFLAGS_IF, RFLAGS_IF | RFLAGS_VIF),
    ("sti", True, 3, IOPL2, RFLAGS_VIP, None),
    ("sti", True, 3, IOPL3, RFLAGS_VIP, RFLAGS_IF | RFLAGS_VIP),
    ("sti", True, 0, IOPL0, RFLAGS_VIP, RFLAGS_IF | RFLAGS_VIP),
    ("sti", False, 3, IOPL2, 0, None),
]


@pytest.mark.parametrize(("instruction", "on", "cpl", "iopl", "before", "after"), PVI)
@pytest.mark.parametrize("wide", [False, True])
def test_protected_mode(
    instruction: str, on: bool, cpl: int, iopl: int, before: int, after: int | None, wide: bool
) -> None:
    """Also in 64-bit mode."""
    m = Machine()
    source = f"nop\nfault: {instruction}\nint 0x30"
    if wide:
        m.long(source, cpl=cpl, cr4=CR4_PVI * on)
    else:
        m.protected(source, cpl=cpl, cr4=CR4_PVI * on)
    m.rflags = iopl | before | 2
    size = 8 if wide else 4
    if after is None:
        assert m.catch() == 13 and m.stack(2, size) == [0, m.labels["fault"]]
    else:
        assert m.catch() == 0x30 and m.stack(3, size)[2] == iopl | after | 2


@pytest.mark.parametrize("source", ["pushfd\npop eax", "push 0x202\npopfd"])
def test_pvi_is_for_cli_and_sti_only(source: str) -> None:
    """PUSHF shows IF itself, and POPF leaves both as they are."""
    m = Machine()
    m.protected(source + "\nint 0x30", cpl=3, cr4=CR4_PVI)
    m.rflags = RFLAGS_VIF | 2
    assert m.catch() == 0x30 and m.stack(3, 4)[2] == RFLAGS_VIF | 2
    if "pop eax" in source:
        assert m.state.gpr[0] == RFLAGS_VIF | 2


@pytest.mark.parametrize(
    ("iopl", "cr4", "vector"), [(IOPL0, CR4_PVI, 13), (IOPL3, CR4_PVI, 0x30), (IOPL0, CR4_VME, 0x30)]
)
def test_pvi_pending(iopl: int, cr4: int, vector: int) -> None:
    """An IRET to CPL 3 with VIF and VIP: #GP(0) at its target."""
    flags = iopl | RFLAGS_VIF | RFLAGS_VIP | 2
    m = Machine()
    m.protected(f"push 0x3B\npush 0xC000\npush {flags}\npush 0x33\npush user\niretd\nuser: nop\nint 0x30", cr4=cr4)
    assert m.catch() == vector
    if vector == 13:
        assert m.stack(2, 4) == [0, m.labels["user"]]
    assert m.run().reason == EXIT_HLT


def test_random_programs() -> None:
    """Whatever an 8086 program and its monitor's TSS hold, the processor stops or goes on, and IOPL and VM stay."""
    chance = random.Random(86)
    words = ["cli", "sti", "pushfw", "popfw", "iretw", "int 0x41", "int 0x42", "push 0x202", "push 0x100", "push 0",
             "push cs", "add sp, 2", "int3", "o32 pushfd"]  # fmt: skip
    for _ in range(60):
        source = "\n".join(chance.choice(words) for _ in range(12)) + "\nint3"
        iopl = chance.choice((IOPL0, IOPL2, IOPL3))
        m = vme(source, iopl | chance.choice((0, RFLAGS_IF, RFLAGS_VIF, RFLAGS_VIP)), protected=(0x42,))
        with_handler(m)
        m.write(TSS_AT + 0x66, chance.choice((IO_MAP, IO_MAP, 0, 0xFFFF)), 2)
        vector = m.catch()
        flags = frame(m, error=vector in (12, 13))[2]
        assert flags & (RFLAGS_VM | IOPL3) == RFLAGS_VM | iopl, source
