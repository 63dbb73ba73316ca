"""Segmentation outside 64-bit mode: loading, limits, types, expand-down, null selectors, the LDT, code limits."""

import pytest
from pellucid.cpu.state import DS, ES, FS, GS, LDTR, SS, TR

from . import tables
from .machine import CODE32, CONFORMING, DATA0, LDT, LDT_AT, SPARE, TSS, TSS2_AT, USER_DATA, Machine

ABSENT = SPARE + 8


def at(source: str, descriptor: int | None = None, cpl: int = 0, **names: int) -> Machine:
    """Protected mode at `source`, with a descriptor in SPARE."""
    m = Machine()
    m.labels |= {
        "SPARE": SPARE,
        "ABSENT": ABSENT,
        "LDTS": 4,
        "DATA0": DATA0,
        "USER_DATA": USER_DATA,
        "CODE32": CODE32,
        "CONFORMING": CONFORMING,
        "TSS": TSS,
        "LDT": LDT,
        **names,
    }
    m.protected(source + "\nhlt", cpl=cpl)
    if descriptor is not None:
        m.describe(SPARE, descriptor)
    m.describe(ABSENT, tables.segment(tables.DATA, present=False))
    return m


def outcome(m: Machine) -> tuple[int, int] | None:
    """Vector and error code, or None where the guest ran to its HLT (or at CPL 3, to #GP(0) at it)."""
    stop = m.run()
    assert stop.reason == 5, m.explain(stop)
    if stop.vector is None:
        return None
    where = m.stack(2, 4)
    hlt = m.read(where[1], 1) == 0xF4 if where[1] < 1 << 20 else False
    return None if hlt and stop.vector == 13 else (stop.vector, where[0])


LOADS = [
    # descriptor in SPARE, instruction, CPL, outcome
    (tables.segment(tables.DATA), "mov ax, SPARE\nmov ds, ax", 0, None),
    (tables.segment(tables.DATA_RO), "mov ax, SPARE\nmov ds, ax", 0, None),
    (tables.segment(tables.CODE), "mov ax, SPARE\nmov es, ax", 0, None),
    (tables.segment(tables.CODE_XO), "mov ax, SPARE\nmov es, ax", 0, (13, SPARE)),
    (tables.segment(tables.DATA, present=False), "mov ax, SPARE\nmov fs, ax", 0, (11, SPARE)),
    (tables.segment(tables.DATA, dpl=0), "mov ax, SPARE + 3\nmov ds, ax", 0, (13, SPARE)),
    (tables.segment(tables.DATA, dpl=0), "mov ax, SPARE\nmov ds, ax", 3, (13, SPARE)),
    (tables.segment(tables.DATA, dpl=3), "mov ax, SPARE\nmov ds, ax", 3, None),
    (tables.segment(tables.CONFORMING, dpl=0), "mov ax, SPARE + 3\nmov gs, ax", 3, None),
    (tables.segment(tables.DATA), "xor ax, ax\nmov ds, ax", 0, None),
    (tables.segment(tables.DATA), "mov ax, 3\nmov gs, ax", 0, None),
    (tables.segment(tables.DATA), "xor ax, ax\nmov ss, ax", 0, (13, 0)),
    (tables.segment(tables.DATA), "mov ax, SPARE\nmov ss, ax", 0, None),
    (tables.segment(tables.DATA_RO), "mov ax, SPARE\nmov ss, ax", 0, (13, SPARE)),
    (tables.segment(tables.CODE), "mov ax, SPARE\nmov ss, ax", 0, (13, SPARE)),
    (tables.segment(tables.DATA, present=False), "mov ax, SPARE\nmov ss, ax", 0, (12, SPARE)),
    (tables.segment(tables.DATA, dpl=3), "mov ax, SPARE\nmov ss, ax", 0, (13, SPARE)),
    (tables.segment(tables.DATA, dpl=0), "mov ax, SPARE + 1\nmov ss, ax", 0, (13, SPARE)),
    (tables.system_segment(tables.LDT, LDT_AT, 0xFF), "mov ax, SPARE\nmov ds, ax", 0, (13, SPARE)),
    (None, "mov ax, 0x100\nmov ds, ax", 0, (13, 0x100)),
    (None, "mov ax, 0xF8\nmov ds, ax", 0, (13, 0xF8)),
    (None, "mov ax, 4\nmov ds, ax", 0, (13, 4)),
    (tables.segment(tables.DATA), "push SPARE\npop ds", 0, None),
    (tables.segment(tables.DATA, present=False), "push SPARE\npop ss", 0, (12, SPARE)),
    (tables.segment(tables.DATA), "mov ebx, at\nlds eax, [ebx]\nhlt\nat: dd 5\ndw SPARE", 0, None),
    (tables.segment(tables.DATA, present=False), "mov ebx, at\nlss esp, [ebx]\nat: dd 5\ndw SPARE", 0, (12, SPARE)),
    (tables.system_segment(tables.LDT, LDT_AT, 0x17), "mov ax, SPARE\nlldt ax", 0, None),
    (tables.system_segment(tables.LDT, LDT_AT, 0x17, present=False), "mov ax, SPARE\nlldt ax", 0, (11, SPARE)),
    (tables.segment(tables.DATA), "mov ax, SPARE\nlldt ax", 0, (13, SPARE)),
    (None, "xor eax, eax\nlldt ax", 0, None),
    (None, "mov ax, 4\nlldt ax", 0, (13, 4)),
    (None, "mov ax, LDT\nlldt ax", 3, (13, 0)),
    (tables.system_segment(tables.TSS, TSS2_AT, 0x67), "mov ax, SPARE\nltr ax", 0, None),
    (tables.system_segment(tables.TSS_BUSY, TSS2_AT, 0x67), "mov ax, SPARE\nltr ax", 0, (13, SPARE)),
    (tables.system_segment(tables.TSS, TSS2_AT, 0x67, present=False), "mov ax, SPARE\nltr ax", 0, (11, SPARE)),
    (None, "xor eax, eax\nltr ax", 0, (13, 0)),
]


@pytest.mark.parametrize(("descriptor", "source", "cpl", "expected"), LOADS)
def test_loads(descriptor: int | None, source: str, cpl: int, expected: tuple[int, int] | None) -> None:
    m = at(source, descriptor, cpl)
    before = list(m.state.seg_selector)
    assert outcome(m) == expected
    if expected is not None and cpl == 0:
        assert list(m.state.seg_selector) == before


def test_accessed_and_busy_bits() -> None:
    """A load marks the descriptor accessed; LTR marks its own busy, in memory and in TR."""
    m = at("mov ax, SPARE\nmov ds, ax", tables.segment(tables.DATA & ~1))
    assert outcome(m) is None and m.descriptor(SPARE) >> 40 & 0xF == tables.DATA
    m = at("mov ax, SPARE\nltr ax", tables.system_segment(tables.TSS, TSS2_AT, 0x123))
    assert outcome(m) is None and m.descriptor(SPARE) >> 40 & 0xF == tables.TSS_BUSY
    s = m.state
    assert (s.seg_selector[TR], s.seg_base[TR], s.seg_limit[TR], s.seg_attr[TR] & 15) == (SPARE, TSS2_AT, 0x123, 11)


def test_accessed_bit_in_a_read_only_page_faults() -> None:
    m = Machine()
    m.protected(f"mov ax, {SPARE}\nmov ds, ax", paging=2)
    assert m.pages is not None
    m.describe(SPARE, tables.segment(tables.DATA & ~1))
    m.state.cr0 |= 1 << 16
    m.pages.map(0x1000, 0x1000, tables.P)
    m.refresh()
    assert m.catch() == 14 and m.state.cr2 == 0x1000 + SPARE + 5 and m.stack(1, 4) == [3]


LIMITS = [
    # descriptor, access, outcome
    (tables.segment(tables.DATA, limit=0xFFF), "mov al, [0xFFF]", None),
    (tables.segment(tables.DATA, limit=0xFFF), "mov al, [0x1000]", (13, 0)),
    (tables.segment(tables.DATA, limit=0xFFF), "mov ax, [0xFFF]", (13, 0)),
    (tables.segment(tables.DATA, limit=0xFFF), "mov eax, [0xFFC]", None),
    (tables.segment(tables.DATA, limit=0xFFF), "movups xmm0, [0xFF1]", (13, 0)),
    (tables.segment(tables.DATA, limit=0xFFF), "movups xmm0, [0xFF0]", None),
    (tables.segment(tables.DATA, limit=0xFFF), "mov eax, [ebp + 0xFFD]", None),
    (tables.segment(tables.DATA, limit=0x1FFFFF), "mov al, [0x1FFFFF]", None),
    (tables.segment(tables.DATA, limit=0x1FFFFF), "mov al, [0x200000]", (13, 0)),
    (tables.segment(tables.DATA, limit=0xFFF), "lea eax, [0x5000]", None),
    (tables.segment(tables.DATA, limit=0xFFF), "push dword [0x1000]", (13, 0)),
    (tables.segment(tables.DATA, limit=0xFFF), "pop dword [0x1000]", (13, 0)),
    (tables.segment(tables.DATA, limit=0xFFF), "add dword [0x1000], 1", (13, 0)),
    (tables.segment(tables.DATA, limit=0xFFF), "lgdt [0xFFB]", (13, 0)),
    (tables.segment(tables.DATA, limit=0xFFF), "lds eax, [0xFFB]", (13, 0)),
    (tables.segment(tables.DATA, limit=0xFFF), "fxsave [0xE10]", (13, 0)),
    (tables.segment(tables.DATA, limit=0xFFF), "mov esi, 0x1000\nlodsb", (13, 0)),
    (tables.segment(tables.DATA, limit=0xFFF), "mov al, [fs:0x5000]", None),
    (tables.segment(tables.DATA_RO), "mov al, [0x20000]", None),
    (tables.segment(tables.DATA_RO), "mov [0x20000], al", (13, 0)),
    (tables.segment(tables.DATA_RO), "inc byte [0x20000]", (13, 0)),
    (tables.segment(tables.CODE), "mov al, [0x20000]", None),
    (tables.segment(tables.CODE), "mov [0x20000], al", (13, 0)),
    (tables.segment(tables.DATA_DOWN, limit=0xFFF), "mov al, [0xFFF]", (13, 0)),
    (tables.segment(tables.DATA_DOWN, limit=0xFFF), "mov al, [0x1000]", None),
    (tables.segment(tables.DATA_DOWN, limit=0xFFF), "mov eax, [0xFFE]", (13, 0)),
    (tables.segment(tables.DATA_DOWN, limit=0xFFF, bits=16), "mov al, [0xFFFF]", None),
    (tables.segment(tables.DATA_DOWN, limit=0xFFF, bits=16), "mov al, [0x10000]", (13, 0)),
    (tables.segment(tables.DATA_DOWN, limit=0xFFF, bits=16), "mov ax, [0xFFFF]", (13, 0)),
]


@pytest.mark.parametrize(("descriptor", "source", "expected"), LIMITS)
def test_limits_and_types(descriptor: int, source: str, expected: tuple[int, int] | None) -> None:
    m = at("mov ax, SPARE\nmov ds, ax\nxor eax, eax\n" + source, descriptor)
    before = m.read_bytes(0x20000, 4)
    assert outcome(m) == expected
    if expected:
        assert m.read_bytes(0x20000, 4) == before


def test_segment_bases() -> None:
    """The base is added, the sum wraps at 4 GiB."""
    m = at(
        "mov ax, SPARE\nmov ds, ax\nmov ebx, [0x10]\nmov ecx, [0xFFFFF010]", tables.segment(tables.DATA, base=0x1_8000)
    )
    m.write(0x18010, 5, 4)
    m.write(0x17010, 7, 4)
    assert outcome(m) is None and (m.state.gpr[3], m.state.gpr[1]) == (5, 7)


def test_null_selectors() -> None:
    """A null DS, ES, FS or GS loads; using it is #GP(0), for reads and writes, and even for what is flat elsewhere."""
    for register in ("ds", "es", "fs", "gs"):
        for access in (f"mov al, [{register}:0x20000]", f"mov [{register}:0x20000], al"):
            m = at(f"xor eax, eax\nmov {register}, ax\n" + access)
            assert outcome(m) == (13, 0), (register, access)


def test_code_segment_reads() -> None:
    """CS serves reads where it is readable, and never writes."""
    m = at("mov al, [cs:0x20000]")
    assert outcome(m) is None
    m = at("mov [cs:0x20000], al")
    assert outcome(m) == (13, 0)
    m = at("jmp SPARE:next\nnext: mov al, [cs:0x20000]", tables.segment(tables.CODE_XO))
    assert outcome(m) == (13, 0)


STACKS = [
    (tables.segment(tables.DATA, limit=0xFFF), "mov esp, 0x1000\npush eax", None),
    (tables.segment(tables.DATA, limit=0xFFF), "mov esp, 0x1001\npush eax", (12, 0)),
    (tables.segment(tables.DATA, limit=0xFFF), "mov esp, 2\npush eax", (12, 0)),
    (tables.segment(tables.DATA, limit=0xFFF), "mov esp, 0xFFE\npop eax", (12, 0)),
    (tables.segment(tables.DATA, limit=0xFFF), "mov ebp, 0x1000\nmov al, [ebp]", (12, 0)),
    (tables.segment(tables.DATA, limit=0xFFF), "mov al, [ss:0x1000]", (12, 0)),
    (tables.segment(tables.DATA, limit=0xFFF), "mov esp, 0x1001\ncall next\nnext: nop", (12, 0)),
    (tables.segment(tables.DATA, limit=0xFFF), "mov esp, 0xFFE\nret", (12, 0)),
    (tables.segment(tables.DATA, limit=0xFFF), "mov esp, 0x10\npushad", (12, 0)),
    (tables.segment(tables.DATA, limit=0xFFF), "mov esp, 0xFF0\npopad", (12, 0)),
    (tables.segment(tables.DATA, limit=0xFFF), "mov esp, 0x10\nenter 0x20, 0", (12, 0)),
    (tables.segment(tables.DATA, limit=0xFFF), "mov ebp, 0xFFE\nleave", (12, 0)),
    (tables.segment(tables.DATA_DOWN, limit=0xFFF), "mov esp, 0x1004\npush eax", None),
    (tables.segment(tables.DATA_DOWN, limit=0xFFF), "mov esp, 0x1003\npush eax", (12, 0)),
    (
        tables.segment(tables.DATA, limit=0xFFFF, bits=16),
        "mov esp, 0x12340000\npush eax\ncmp esp, 0x1234FFFC\njne fail",
        None,
    ),
    (tables.segment(tables.DATA, limit=0xFFFF, bits=16), "mov esp, 0x12340002\npush eax", (12, 0)),
]


@pytest.mark.parametrize(("descriptor", "source", "expected"), STACKS)
def test_stack_limits(descriptor: int, source: str, expected: tuple[int, int] | None) -> None:
    """The stack's faults are #SS(0); their handler runs on another stack here, by a change to a flat SS in its TSS."""
    m = at(f"mov ax, SPARE\nmov ss, ax\n{source}\nhlt\nfail: ud2", descriptor)
    s = m.state
    s.trap_exceptions = 1
    stop = m.run()
    got = None if stop.reason == 5 else (s.exc_vector, s.exc_error)
    assert got == expected
    if expected:
        assert m.read(s.rip, 1) != 0x0F


def test_fault_leaves_the_stack_pointer() -> None:
    for source in ("push eax", "pushad", "call next\nnext: nop", "enter 8, 3", "push dword [ebx]"):
        m = at(f"mov ax, SPARE\nmov ss, ax\nmov esp, 3\n{source}", tables.segment(tables.DATA, limit=0xFFF))
        m.state.trap_exceptions = 1
        m.run()
        assert m.state.exc_vector == 12 and m.state.gpr[4] == 3, source


def test_local_descriptor_table() -> None:
    m = at("mov ax, LDT\nlldt ax\nmov bx, 0xC\nmov ds, bx\nmov eax, [0]\nsldt cx")
    m.describe(0xC, tables.segment(tables.DATA, base=0x20000, limit=0xFF))
    m.write(0x20000, 0x4444, 4)
    assert outcome(m) is None
    assert m.state.gpr[0] == 0x4444 and m.state.gpr[1] & 0xFFFF == LDT and m.state.seg_selector[DS] == 0xC
    m = at("mov ax, SPARE\nlldt ax\nmov bx, 0x1C\nmov ds, bx", tables.system_segment(tables.LDT, LDT_AT, 0x1E))
    assert outcome(m) == (13, 0x1C), "beyond the table's limit"
    m = at("mov bx, 0xC\nmov ds, bx")
    assert outcome(m) == (13, 0xC), "no LDT at all"
    assert m.state.seg_selector[LDTR] == 0


def test_ldt_and_tss_have_wide_bases_in_64_bit_mode() -> None:
    base = 0xFFFF_8000_1234_5000
    m = Machine()
    m.long(f"mov ax, {SPARE}\nlldt ax\nmov ax, {SPARE + 16}\nltr ax\nhlt")
    m.describe(SPARE, tables.system_segment(tables.LDT, base, 0xFF), 16)
    m.describe(SPARE + 16, tables.system_segment(tables.TSS, base + 0x1000, 0x67), 16)
    assert m.run().vector is None
    assert m.state.seg_base[LDTR] == base and m.state.seg_base[TR] == base + 0x1000
    for spoilt in (
        tables.system_segment(tables.LDT, 1 << 47, 0xFF),
        tables.system_segment(tables.LDT, 0, 0xFF) | 1 << 104,
    ):
        m = Machine()
        m.long(f"mov ax, {SPARE}\nlldt ax\nhlt")
        m.describe(SPARE, spoilt, 16)
        assert m.catch() == 13 and m.stack(1, 8) == [SPARE]
    m = Machine()
    m.long("mov ax, 0xF8\nlldt ax\nhlt")
    m.describe(0xF8, tables.system_segment(tables.LDT, 0, 0xFF))
    assert m.catch() == 13, "its high half lies beyond the limit of the GDT"


def test_64_bit_mode_ignores_segments() -> None:
    """No bases but those of FS and GS, no limits, null selectors serve."""
    m = Machine()
    m.long(
        "xor eax, eax\nmov ds, ax\nmov es, ax\nmov ss, ax\n"
        "mov rbx, [0x20000]\nmov rcx, [fs:0x10]\nmov es, dx\npush rax\nhlt"
    )
    m.describe(SPARE, tables.segment(tables.DATA, base=0x9999, limit=0))
    m.state.gpr[2] = SPARE
    m.state.seg_base[FS] = 0x20000
    m.write(0x20000, 1, 8)
    m.write(0x20010, 2, 8)
    assert m.run().vector is None
    assert m.state.gpr[3] == 1 and m.state.gpr[1] == 2
    assert m.state.seg_selector[SS] == 0 and m.state.seg_base[ES] == 0x9999
    m = Machine()
    m.long("xor eax, eax\nmov ss, ax", cpl=3)
    assert m.catch() == 13, "at CPL 3 a null SS is refused"
    m = Machine()
    m.long("mov eax, 1\nmov ss, ax")
    assert m.catch() == 13, "RPL must be CPL"


def test_loading_fs_and_gs_sets_32_bit_bases() -> None:
    m = Machine()
    m.long(f"mov ax, {SPARE}\nmov fs, ax\nmov rbx, [fs:8]\nxor eax, eax\nmov gs, ax\nhlt")
    m.describe(SPARE, tables.segment(tables.DATA, base=0x20000))
    m.state.seg_base[FS] = m.state.seg_base[GS] = 0xFFFF_8000_0000_0000
    m.write(0x20008, 9, 8)
    assert m.run().vector is None
    assert m.state.gpr[3] == 9 and m.state.seg_base[GS] == 0
