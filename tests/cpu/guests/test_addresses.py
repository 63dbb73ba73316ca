"""Address arithmetic: canonical addresses and which fault they raise, wrap-around at 16 and 32 bits, the A20 line."""

import pytest
from pellucid.cpu.state import CR4_FSGSBASE, EXIT_HLT, FEATURE_LA57, FEATURES_SYSTEM, FS, GS, LDTR, SS, TR

from . import tables
from .machine import CODE, DATA, LDT, SPARE, STACK0, TSS, Machine

BAD = 1 << 47
TOP = (1 << 64) - 1

CANONICAL = [
    # source with RBX (or RSP, RBP) at a bad address, vector
    ("mov al, [rbx]", 13),
    ("mov [rbx], al", 13),
    ("add [rbx], eax", 13),
    ("lock inc dword [rbx]", 13),
    ("mov al, [rbp]", 12),
    ("mov al, [rsp]", 12),
    ("mov al, [rbp + rbx]", None),
    ("mov al, [ds:rbp]", 12),
    ("push rax", 12),
    ("pop rax", 12),
    ("pushfq", 12),
    ("call CODE", 12),
    ("ret", 12),
    ("retfq", 12),
    ("iretq", 12),
    ("enter 0, 0", 12),
    ("leave", 12),
    ("push qword [rbx]", 13),
    ("pop qword [rbx]", 12),
    ("movups xmm0, [rbx]", 13),
    ("movups xmm0, [rbp]", 12),
    ("lodsb", 13),
    ("stosb", 13),
    ("rep movsb", 13),
    ("fxsave [rbx]", 13),
    ("lgdt [rbx]", 13),
    ("mov al, [fs:rbx]", 13),
    ("mov al, [fs:rbp]", 13),
    ("cmpxchg16b [rbx]", 13),
    ("jmp qword [rbx]", 13),
    ("call qword [rbx]", 13),
    ("invlpg [rbx]", None),
    ("prefetcht0 [rbx]", None),
    ("lea rax, [rbx]", None),
]


@pytest.mark.parametrize(("source", "vector"), CANONICAL)
@pytest.mark.parametrize("address", [BAD + 0x100, TOP - BAD, 1 << 63])
def test_canonical(source: str, vector: int | None, address: int) -> None:
    """#SS(0) through the stack pointer and the frame pointer, #GP(0) elsewhere; some accesses check nothing."""
    m = Machine()
    m.labels |= {"CODE": CODE}
    m.long("nop\nfault: " + source + "\nhlt")
    s = m.state
    for n in (3, 5, 6, 7):
        s.gpr[n] = address
    if source == "mov al, [rbp + rbx]":
        s.gpr[5], s.gpr[3] = BAD - 1, (0x2_0001 - BAD) & TOP
    if (
        any(word in source for word in ("rsp", "push", "pop", "call", "ret", "enter"))
        and "[rb" not in source
        or source == "pop qword [rbx]"
    ):
        s.gpr[4] = address
    s.gpr[1] = 4
    s.trap_exceptions = 1
    before = list(s.gpr)
    stop = m.run()
    if vector is None:
        assert stop.reason == EXIT_HLT
    else:
        assert (s.exc_vector, s.exc_error, s.rip) == (vector, 0, m.labels["fault"])
        assert list(s.gpr) == before


def test_edge_of_the_canonical_half() -> None:
    """The last byte below the hole is good; an access that reaches into the hole is not."""
    for source, address, vector in (
        ("mov al, [rbx]", BAD - 1, 14),
        ("mov ax, [rbx]", BAD - 1, 13),
        ("mov [rbx], rax", BAD - 4, 13),
    ):
        m = Machine()
        m.long(source)
        assert m.pages is not None
        if vector == 13:
            m.pages.map(BAD - 0x1000, DATA)
        m.state.gpr[3] = address
        assert m.catch() == vector, source


@pytest.mark.parametrize("source", ["jmp rbx", "call rbx", "ret", "jmp qword [rcx]", "call qword [rcx]"])
def test_indirect_branches(source: str) -> None:
    m = Machine()
    m.long("nop\nfault: " + source)
    m.state.gpr[3], m.state.gpr[1] = BAD, DATA
    m.write(DATA, BAD, 8)
    m.write(STACK0, BAD, 8)
    m.state.trap_exceptions = 1
    m.run()
    assert (m.state.exc_vector, m.state.rip, m.state.gpr[4]) == (13, m.labels["fault"], STACK0)


@pytest.mark.parametrize(
    "source",
    [
        "jmp BAD",
        "call BAD",
        "xor eax, eax\nfault: jz BAD",
        "mov ecx, 5\nfault: loop BAD",
        "xor ecx, ecx\nfault: jrcxz BAD",
    ],
)
def test_direct_branches_out_of_the_half(source: str) -> None:
    """A relative branch beyond the canonical half is #GP(0) by the branch, which has pushed and counted nothing."""
    m = Machine()
    m.long()
    assert m.pages is not None
    page = BAD - 0x1000
    m.pages.map(page, DATA)
    m.labels["BAD"] = BAD
    from .asm import assemble

    done = assemble(source if "fault" in source else "fault: " + source, BAD - 0x20, 64, m.labels)
    m.write_bytes(DATA + 0xFE0, done.code)
    s = m.state
    s.trap_exceptions = 1
    for _ in range(2):
        s.rip, s.gpr[4], s.gpr[1] = BAD - 0x20, STACK0, 7
        m.run()
        assert (s.exc_vector, s.exc_error, s.rip, s.gpr[4]) == (13, 0, done.labels["fault"], STACK0)
        assert s.gpr[1] == {"loop": 5, "jrcxz": 0}.get(source.split()[-2], 7)


def test_falling_out_of_the_half() -> None:
    """Execution that reaches the hole faults in front of it, on the address itself."""
    m = Machine()
    m.long()
    assert m.pages is not None
    m.pages.map(BAD - 0x1000, DATA)
    m.write_bytes(DATA + 0xFF8, b"\x90" * 8)
    m.state.rip = BAD - 8
    m.state.trap_exceptions = 1
    m.run()
    assert (m.state.exc_vector, m.state.rip) == (13, BAD)


BASES = ("lgdt [DATA]", "lidt [DATA]", "ltr [SELECTOR]", "lldt [SELECTOR]", "wrfsbase rbx", "wrgsbase rbx",
         *(f"mov ecx, {0xC000_0100 + n}\nwrmsr" for n in range(3)))  # fmt: skip


def load_base(source: str, base: int, width: int, levels: int = 4) -> tuple[Machine, int | None]:
    m = Machine()
    m.labels |= {"DATA": DATA, "SELECTOR": DATA + 16}
    m.long(source + "\nhlt", levels=levels, cr4=CR4_FSGSBASE)
    m.state.features[FEATURES_SYSTEM] |= FEATURE_LA57 * (width == 57)
    m.write(DATA, 0xFFF | base << 16, 10)
    m.write(DATA + 16, TSS if "ltr" in source else LDT, 2)
    m.describe(TSS, tables.system_segment(tables.TSS, base, 0x67), 16)
    m.describe(LDT, tables.system_segment(tables.LDT, base, 0x67), 16)
    s = m.state
    s.gpr[3], s.gpr[2], s.gpr[0] = base, base >> 32, base & 0xFFFF_FFFF
    s.trap_exceptions = 1
    stop = m.run()
    return m, None if stop.reason == EXIT_HLT else s.exc_vector


@pytest.mark.parametrize("source", BASES)
def test_a_base_has_the_width_that_cpuid_tells(source: str) -> None:
    """Registers that hold a linear address take 57 bits where the processor has them, whatever CR4.LA57 says."""
    good, hole = 0xFFAA_AAAA_AAAA_A000, 0xAAAA_AAAA_AAAA_A000
    for base, width, levels, vector in ((good, 48, 4, 13), (good, 57, 4, None), (good, 57, 5, None), (hole, 57, 4, 13),
                                        (0xFFFF_AAAA_AAAA_A000, 48, 4, None)):  # fmt: skip
        m, got = load_base(source, base, width, levels)
        assert got == vector, (hex(base), width, levels)
        s = m.state
        places = (s.gdt_base, s.idt_base, s.seg_base[TR], s.seg_base[LDTR], s.seg_base[FS], s.seg_base[GS],
                  s.seg_base[FS], s.seg_base[GS], s.kernel_gs_base)  # fmt: skip
        assert (places[BASES.index(source)] == base) == (vector is None)


@pytest.mark.parametrize("number", [0xC000_0100, 0xC000_0101, 0xC000_0102])
def test_wrmsr_checks_a_base_in_every_mode(number: int) -> None:
    for base, vector in ((0xAAAA_AAAA_AAAA_AAAA, 13), (0xFFFF_AAAA_AAAA_AAAA, None)):
        m = Machine()
        m.protected(f"mov ecx, {number}\nmov eax, {base & 0xFFFF_FFFF}\nmov edx, {base >> 32}\nwrmsr\nint 0x30")
        assert m.catch() == (vector or 0x30)


# --- wrap-around ---------------------------------------------------------------------------------------------------


def test_16_bit_addresses_wrap() -> None:
    """The effective address is taken modulo 64 KiB before the segment's base is added."""
    m = Machine()
    m.real("mov bx, 0xFFF0\nmov si, 0x20\nmov al, [bx + si]\nmov cl, [bx + 0x22]\nmov dl, [0xFFFF]\nhlt")
    m.state.seg_base[3] = 0x10000
    m.write_bytes(0x10010, bytes((1, 0, 2)))
    m.write(0x1FFFF, 3, 1)
    assert m.run().reason == EXIT_HLT
    assert [m.state.gpr[n] & 0xFF for n in (0, 1, 2)] == [1, 2, 3]
    m = Machine()
    m.protected("a16 mov al, [bx + 0x10]\na32 mov cl, [ebx + 0x10]\nhlt")
    m.state.gpr[3] = 0xFFFF
    m.write(0xF, 4, 1)
    m.write(0x1000F, 5, 1)
    m.load("a16 mov al, [bx + 0x10]\nmov cl, [ebx + 0x10]\nhlt", 0x12000, 32)
    m.write(0x1000F, 5, 1)
    m.state.rip = 0x12000
    assert m.run().reason == EXIT_HLT and m.state.gpr[0] & 0xFF == 4 and m.state.gpr[1] & 0xFF == 5


def test_16_bit_strings_wrap() -> None:
    """SI and DI wrap at 64 KiB, their upper halves stay; REP goes on behind the wrap."""
    m = Machine()
    m.real("cld\nmov cx, 8\nrep movsb\nhlt")
    s = m.state
    s.seg_base[3], s.seg_base[0] = 0x10000, 0x20000
    s.gpr[6], s.gpr[7] = 0xABCD_FFFC, 0x1234_FFFA
    m.write_bytes(0x1FFFC, b"ABCD")
    m.write_bytes(0x10000, b"EFGH")
    assert m.run().reason == EXIT_HLT
    assert m.read_bytes(0x2FFFA, 6) == b"ABCDEF" and m.read_bytes(0x20000, 2) == b"GH"
    assert s.gpr[6] == 0xABCD_0004 and s.gpr[7] == 0x1234_0002 and s.gpr[1] == 0


def test_32_bit_strings_in_64_bit_mode() -> None:
    m = Machine()
    m.long("mov ecx, 4\na32 rep stosb\nhlt")
    m.state.gpr[7] = 0x5_0000_0000 + DATA
    m.state.gpr[0] = 0x77
    assert m.run().reason == EXIT_HLT and m.read(DATA, 4) == 0x77777777 and m.state.gpr[7] == DATA + 4


def test_32_bit_addresses_wrap() -> None:
    m = Machine()
    m.protected("mov al, [ebx + 0x20]\nhlt")
    m.state.gpr[3] = 0xFFFF_FFF0 + 0x20000
    m.write(0x2_0010, 6, 1)
    assert m.run().reason == EXIT_HLT and m.state.gpr[0] == 6
    m = Machine()
    m.long("a32 mov al, [ebx + 0x7FFFFFFF]\nhlt")
    m.state.gpr[3] = 0x1_8002_0001
    m.write(0x2_0000, 7, 1)
    assert m.run().reason == EXIT_HLT and m.state.gpr[0] & 0xFF == 7
    m = Machine()
    m.long("a32 mov al, [fs:ebx]\nhlt")
    m.state.gpr[3], m.state.seg_base[FS] = 0x10, 0xFFFF_8000_0000_0000
    assert m.catch() == 14 and m.state.cr2 == 0xFFFF_8000_0000_0010, "the sum has 64 bits there"


def test_stack_wraps() -> None:
    for bits, mask in ((16, 0xFFFF), (32, 0xFFFF_FFFF)):
        m = Machine()
        m.protected("push eax\npop ebx\nhlt")
        if bits == 16:
            m.describe(SPARE, tables.segment(tables.DATA, limit=0xFFFF, bits=16))
            m.set_segment(SS, SPARE)
        m.state.gpr[4], m.state.gpr[0] = 0x5555_0000 & ~mask & 0xFFFF_FFFF, 0x12345678
        m.refresh()
        m.device = lambda address, size: 0x12345678
        assert m.run().reason == EXIT_HLT
        assert m.state.gpr[3] == 0x12345678 and m.state.gpr[4] == 0x5555_0000 & ~mask & 0xFFFF_FFFF


def test_access_across_the_end_of_32_bits() -> None:
    """Outside 64-bit mode the byte behind 0xFFFFFFFF is byte 0."""
    m = Machine()
    m.protected("mov eax, [ebx]\nhlt")
    m.state.gpr[3] = 0xFFFF_FFFE
    m.device = lambda address, size: 0xAA
    m.write_bytes(0, b"\x11\x22")
    assert m.run().reason == EXIT_HLT and m.state.gpr[0] == 0x2211AAAA


# --- A20 -----------------------------------------------------------------------------------------------------------


def test_a20() -> None:
    """With the line masked, bit 20 of physical addresses is 0: for data, code and page tables."""
    for masked, expected in ((False, 2), (True, 1)):
        m = Machine()
        m.real("mov ax, 0xFFFF\nmov ds, ax\nmov bl, [0x510]\nhlt")
        m.write(0x500, 1, 1)
        m.write(0x10_0500, 2, 1)
        m.state.a20_mask = ~(masked << 20) & TOP
        m.refresh()
        assert m.run().reason == EXIT_HLT and m.state.gpr[3] & 0xFF == expected
    m = Machine()
    m.protected("mov eax, [0x1F0000]\nmov [0x180000], eax\nhlt", paging=2)
    assert m.pages is not None
    m.write(0xF_0000, 0x1234, 4)
    m.state.cr3 |= 1 << 20
    m.state.a20_mask = TOP ^ 1 << 20
    m.refresh()
    assert m.run().reason == EXIT_HLT
    assert m.state.gpr[0] == 0x1234 and m.read(0x8_0000, 4) == 0x1234
