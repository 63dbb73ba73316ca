"""What descriptors permit (LAR, LSL, VERR, VERW, accesses by type and privilege), and the limit of CS."""

import pytest
from pellucid.cpu.state import CS

from . import tables
from .machine import CODE, DATA, SPARE, STACK0, Machine
from .test_segments import at, outcome


def test_lar_lsl_verr_verw() -> None:
    """ZF, and for LAR and LSL the value, over all descriptor types, both modes and two privileges."""
    legacy_lar, legacy_lsl = {1, 2, 3, 4, 5, 9, 11, 12}, {1, 2, 3, 9, 11}
    long_lar, long_lsl = {2, 9, 11, 12}, {2, 9, 11}
    for long in (False, True):
        for kind in range(32):
            for cpl, dpl in ((0, 0), (3, 3), (3, 0)):
                m = probe(kind, cpl, dpl, long)
                system, type_ = not kind & 16, kind & 15
                visible = dpl >= cpl or not system and type_ & 12 == 12
                lar = visible and (not system or type_ in (long_lar if long else legacy_lar))
                lsl = visible and (not system or type_ in (long_lsl if long else legacy_lsl))
                verr = visible and not system and type_ & 10 != 8
                verw = visible and not system and type_ & 10 == 2
                results = m.state.gpr[5]
                assert [bool(results >> i & 1) for i in range(4)] == [lar, lsl, verr, verw], (kind, cpl, dpl, long)
                access = kind | dpl << 5 | 0x80
                assert m.state.gpr[3] & 0xFFFF_FFFF == (access << 8 | 0x40_0000 * (not system) if lar else 0xAAAA_AAAA)
                assert m.state.gpr[1] & 0xFFFF_FFFF == (0x1234 if lsl else 0xAAAA_AAAA)


def probe(kind: int, cpl: int, dpl: int, long: bool) -> Machine:
    """A machine that has asked all four about a descriptor of this type (bit 4: S)."""
    source = f"""
    mov eax, {SPARE}
    mov ebx, 0xAAAAAAAA
    mov ecx, 0xAAAAAAAA
    xor ebp, ebp
    lar ebx, eax
    jnz a
    or ebp, 1
a:  lsl ecx, eax
    jnz b
    or ebp, 2
b:  verr ax
    jnz c
    or ebp, 4
c:  verw ax
    jnz d
    or ebp, 8
d:  hlt"""
    m = Machine()
    if long:
        m.long(source, cpl=cpl)
    else:
        m.protected(source, cpl=cpl)
    m.describe(SPARE, tables.segment(kind & 15, limit=0x1234, dpl=dpl, system=not kind & 16), 16)
    m.run()
    return m


def test_lar_does_not_fault() -> None:
    for selector in (0, 3, 0x100, 0x104, 0xFFF8):
        m = at(f"mov eax, {selector}\nmov ebx, 7\nlar ebx, eax\nsetz cl\nlsl ebx, eax\nsetz ch\nverr ax\nsetz dl")
        assert outcome(m) is None
        assert m.state.gpr[3] == 7 and m.state.gpr[1] & 0xFFFF == 0 and m.state.gpr[2] & 0xFF == 0


def test_not_in_real_mode() -> None:
    for source in (
        "lar ax, bx",
        "lsl ax, bx",
        "verr ax",
        "verw ax",
        "sldt ax",
        "str ax",
        "lldt ax",
        "ltr ax",
        "arpl ax, bx",
    ):
        m = Machine()
        m.real(source)
        assert m.catch() == 6, source


def test_umip() -> None:
    for source in ("sgdt [ebx]", "sidt [ebx]", "sldt ax", "str ax", "smsw ax"):
        for cpl, umip in ((3, True), (3, False), (0, True)):
            m = Machine()
            m.protected(source + "\nhlt", cpl=cpl, cr4=umip << 11)
            m.state.gpr[3] = DATA
            m.catch() if cpl else m.run()
            where = 1 + (cpl == 3)
            if cpl == 3:
                hlt = m.read(m.stack(2, 4)[1], 1) == 0xF4
                assert hlt != umip, source
            del where


def test_table_registers() -> None:
    """LGDT and SGDT by operand size: 24 bits of base with 16-bit operands, 10 bytes in 64-bit mode."""
    m = Machine()
    m.protected("o16 lgdt [ebx]\nsgdt [ebx + 16]\nhlt")
    m.write_bytes(DATA, bytes.fromhex("ff00 78563412"))
    m.state.gpr[3] = DATA
    m.run()
    assert (m.state.gdt_base, m.state.gdt_limit) == (0x345678, 0xFF)
    assert m.read_bytes(DATA + 16, 6) == bytes.fromhex("ff00 78563400")
    m = Machine()
    m.long("lidt [rbx]\nsidt [rbx + 16]\nhlt")
    m.write_bytes(DATA, bytes.fromhex("ff00 785634120080ffff"))
    m.state.gpr[3] = DATA
    m.run()
    assert m.state.idt_base == 0xFFFF_8000_1234_5678 and m.read_bytes(DATA + 16, 10) == m.read_bytes(DATA, 10)
    m = Machine()
    m.long("lidt [rbx]\nhlt")
    m.write_bytes(DATA, bytes.fromhex("ff00 7856341200800000"))
    m.state.gpr[3] = DATA
    assert m.catch() == 13, "a base that is not canonical"


# --- the limit of CS --------------------------------------------------------------------------------------------

LIMIT = CODE + 0x20
LIMITED = tables.segment(tables.CODE, limit=LIMIT)


def limited(source: str, **more: int) -> Machine:
    """`source` at CODE in a segment that ends at LIMIT; its exceptions leave the engine."""
    m = Machine()
    m.labels |= {"LIMIT": LIMIT, **more}
    m.protected(source)
    m.describe(SPARE, LIMITED)
    m.set_segment(CS, SPARE)
    m.state.trap_exceptions = 1
    m.refresh()
    return m


NEAR = [
    "jmp LIMIT + 1",
    "jmp short LIMIT + 1",
    "call LIMIT + 1",
    "mov ebx, LIMIT + 1\nfault: jmp ebx",
    "mov ebx, LIMIT + 1\nfault: call ebx",
    "push LIMIT + 1\nfault: ret",
    "push LIMIT + 1\nfault: ret 8",
    "xor eax, eax\nfault: jz LIMIT + 1",
    "mov ecx, 5\nfault: loop LIMIT + 1",
    "xor ecx, ecx\nfault: jecxz LIMIT + 1",
    "mov ebx, pointer\nfault: jmp dword [ebx]\npointer: dd LIMIT + 1",
]


@pytest.mark.parametrize("source", NEAR)
def test_near_transfers_beyond_the_limit(source: str) -> None:
    """#GP(0) by the transfer itself, which has done nothing: no push, no count."""
    m = limited(source if "fault" in source else "fault: " + source)
    for _ in range(2):  # translated, and again from the cache
        m.state.rip, m.state.gpr[4], m.state.gpr[1] = CODE, STACK0, 9
        m.run()
        assert (m.state.exc_vector, m.state.exc_error, m.state.rip) == (13, 0, m.labels["fault"])
        assert m.state.gpr[4] == STACK0 - 4 * ("push" in source)
        assert m.state.gpr[1] == (5 if "loop" in source else 0 if "jecxz" in source else 9)


def test_transfer_to_the_last_byte() -> None:
    m = limited("jmp LIMIT")
    m.load("hlt", LIMIT, 32)
    assert m.run().reason == 5


def test_untaken_branches_may_name_anything() -> None:
    m = limited("xor eax, eax\njnz LIMIT + 1\nmov ecx, 1\nloop LIMIT + 1\nhlt")
    assert m.run().reason == 5


def test_execution_runs_into_the_limit() -> None:
    """Everything before the limit executes; the instruction that reaches beyond it faults, whole."""
    for size in (1, 2, 3, 4):
        m = limited(f"times {0x21 - size + 1} nop\nmov ebx, 5" if size > 1 else "times 33 nop\ninc ebx")
        at_fault = CODE + 0x21 - (size - 1)
        for _ in range(3):
            m.state.rip, m.state.gpr[3] = CODE, 0
            m.run()
            assert (m.state.exc_vector, m.state.rip, m.state.gpr[3]) == (13, at_fault, 0)


def test_cached_code_meets_a_smaller_limit() -> None:
    """The same code in the same mode, first in a segment that holds it, then in one that does not."""
    m = limited("times 8 inc ebx\nhlt")
    assert m.run().reason == 5 and m.state.gpr[3] == 8
    m.state.seg_limit[CS] = CODE + 3
    m.state.rip, m.state.gpr[3] = CODE, 0
    m.refresh()
    m.run()
    assert (m.state.exc_vector, m.state.rip, m.state.gpr[3]) == (13, CODE + 4, 4)


def test_real_mode_ends_at_64_kib() -> None:
    m = Machine()
    m.real("jmp 0xFFFE", cs=0)
    m.load("nop\nnop", 0xFFFE, 16)
    m.state.trap_exceptions = 1
    m.run()
    assert (m.state.exc_vector, m.state.rip) == (13, 0x10000)
    m = Machine()
    m.real(cs=0)
    m.state.trap_exceptions = 1
    m.load("o32 jmp 0x10000", 0xC000, 16)
    m.run()
    assert (m.state.exc_vector, m.state.rip) == (13, 0xC000)


def test_code_base() -> None:
    """CS has a base, which wraps at 4 GiB; code of one page under two bases is the same code."""
    for base in (0x4000, 0xFFFF_F000, 0x123):
        m = Machine()
        m.protected("inc ebx\ncall next\nnext: pop eax\nhlt")
        m.describe(SPARE, tables.segment(tables.CODE, base=base))
        m.set_segment(CS, SPARE)
        m.state.rip = CODE - base & 0xFFFF_FFFF
        m.refresh()
        assert m.run().reason == 5
        assert m.state.gpr[0] == (CODE + 6 - base) & 0xFFFF_FFFF and m.state.gpr[3] == 1


def test_chains_follow_the_linear_page() -> None:
    """Two blocks in one page of RIP, but not of linear addresses: a change of mapping parts them."""
    m = Machine()
    m.protected("times 5 nop", paging=2)
    assert m.pages is not None
    m.describe(SPARE, tables.segment(tables.CODE, base=0x800))
    m.load("jmp 0x900", CODE + 0x400, 32)  # linear 0x10400 is RIP 0xFC00
    code = bytes.fromhex("e9") + (0x10000 + 0x900 - 0xFC00 - 5).to_bytes(4, "little")
    m.write_bytes(CODE + 0x400, code)  # to RIP 0x10900: linear 0x11100
    m.load("mov al, 1\nhlt", 0x11100, 32)
    m.load("mov al, 2\nhlt", 0x12100, 32)
    m.set_segment(CS, SPARE)
    for expected in (1, 2):
        m.state.rip = 0xFC00
        m.refresh()
        assert m.run().reason == 5 and m.state.gpr[0] == expected
        m.pages.map(0x11000, 0x12000)


def test_sixteen_bit_branches_in_32_bit_code() -> None:
    """An operand-size prefix truncates EIP to 16 bits."""
    m = Machine()
    m.protected("nop")
    m.write_bytes(CODE, bytes.fromhex("66e9") + (0x8000 - 4).to_bytes(2, "little"))
    m.load("hlt", 0x8000, 32)
    assert m.run().reason == 5 and m.state.rip == 0x8001


def test_segments_that_are_not_flat_in_compatibility_mode() -> None:
    m = Machine()
    m.long(f"mov ax, {SPARE}\nmov ds, ax\nmov al, [0x1000]", compat=True)
    m.describe(SPARE, tables.segment(tables.DATA, limit=0xFFF))
    assert m.catch() == 13
    m = Machine()
    m.long(f"mov ax, {SPARE}\nmov ss, ax\nmov esp, 0x1002\npush eax", compat=True)
    m.describe(SPARE, tables.segment(tables.DATA, limit=0xFFF))
    m.gate(12, ist=1)
    assert m.catch() == 12
