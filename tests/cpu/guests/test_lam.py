"""Linear-address masking: which data addresses are masked, which fault, and what is never masked."""

import pytest
from pellucid.cpu.state import CR3_LAM_U48, CR3_LAM_U57, CR4_LAM_SUP, CR4_PCIDE, FEATURE_LAM, FEATURES_SYSTEM

from .machine import CODE, DATA, Machine

U48, U57, SUP = CR3_LAM_U48, CR3_LAM_U57, CR4_LAM_SUP
HIGH, HIGH_57 = 0xFFFF_9000_0000_0000, 0xFF10_0000_0000_0000  # supervisor addresses of 48 and of 57 bits
TOP, BIT_62, BIT_57, BIT_56, BIT_48, BIT_47 = 1 << 63, 1 << 62, 1 << 57, 1 << 56, 1 << 48, 1 << 47
VALUE = 0x1122_3344_5566_7788


def machine(source: str, *, lam: int = 0, sup: bool = False, levels: int = 4, cpl: int = 0) -> Machine:
    m = Machine()
    m.state.cr4_allowed |= SUP
    m.long(source + "\nhlt", levels=levels, cpl=cpl)
    s = m.state
    s.features[FEATURES_SYSTEM] |= FEATURE_LAM
    s.cr3 |= lam
    s.cr4 |= SUP * sup
    m.write(DATA, VALUE, 8)
    assert m.pages is not None
    m.pages.map(HIGH if levels == 4 else HIGH_57, DATA, 3)
    m.refresh()
    return m


def loads(address: int, **how: int) -> bool:
    """Whether a load reaches DATA; else it raises #GP(0)."""
    m = machine("mov rax, [rsi]", **how)  # type: ignore[arg-type]
    m.state.gpr[6] = address
    stop = m.run()
    assert stop.vector in (None, 13)
    assert stop.vector == 13 or m.state.gpr[0] == VALUE
    return stop.vector is None


@pytest.mark.parametrize(("address", "allowed"), [
    (DATA | BIT_62, (U48, U57)), (DATA | BIT_57 | BIT_62, (U48, U57)), (DATA | BIT_56, (U48,)), (DATA | BIT_48, (U48,)),
    (DATA | BIT_47, ()), (DATA | BIT_62 | BIT_47, ()), (DATA | TOP, ()), (DATA | TOP | BIT_62, ())])
def test_user_addresses_with_four_levels(address: int, allowed: tuple[int, ...]) -> None:
    for lam in (0, U48, U57):
        assert loads(address, lam=lam) == (lam in allowed), hex(lam)
    assert loads(address, lam=U48 | U57) == (U57 in allowed), "LAM_U57 goes first"
    assert not loads(address, sup=True)


@pytest.mark.parametrize(("address", "allowed"), [
    (DATA | BIT_62, (U48, U57)), (DATA | BIT_57, (U48, U57)), (DATA | BIT_56, (U48,)),
    (DATA | BIT_62 | BIT_56, (U48,))])
def test_user_addresses_with_five_levels(address: int, allowed: tuple[int, ...]) -> None:
    for lam in (0, U48, U57):
        assert loads(address, lam=lam, levels=5) == (lam in allowed), hex(lam)


def test_five_levels_and_a_width_of_48() -> None:
    """Canonical addresses are masked too, and bit 47 must be clear."""
    assert loads(DATA | BIT_48, lam=U48, levels=5)
    m = machine("mov rax, [rsi]", lam=U48, levels=5)
    assert m.pages is not None
    m.pages.map(BIT_47, DATA)
    m.state.gpr[6] = BIT_47
    assert m.catch() == 13
    m = machine("mov rax, [rsi]", lam=U57, levels=5)
    assert m.pages is not None
    m.pages.map(BIT_47, DATA)
    m.state.gpr[6] = BIT_47
    assert m.run().vector is None and m.state.gpr[0] == VALUE


@pytest.mark.parametrize(("address", "levels", "masked"), [
    (HIGH, 4, None), (HIGH ^ BIT_62, 4, True), (HIGH ^ BIT_48, 4, True), (HIGH ^ BIT_47, 4, False),
    (HIGH_57, 5, None), (HIGH_57 ^ BIT_62, 5, True), (HIGH_57 ^ BIT_57, 5, True), (HIGH_57 ^ BIT_56, 5, False)])
def test_supervisor_addresses(address: int, levels: int, masked: bool | None) -> None:
    assert loads(address, sup=True, levels=levels) == (masked is not False)
    assert loads(address, levels=levels) == (masked is None)
    assert loads(address, lam=U48 | U57, levels=levels) == (masked is None)


def test_the_privilege_level_does_not_matter() -> None:
    m = machine("mov rax, [rsi]\nint 0x80", lam=U57, cpl=3)
    m.state.gpr[6] = DATA | BIT_62
    assert m.catch() == 0x80 and m.state.gpr[0] == VALUE


def test_tags_of_one_page_reach_the_same_bytes() -> None:
    source = """
    mov qword [rsi], 1
    add qword [rdi], 2
    lock add qword [rsi], 3
    mov rax, [rbp]
    invlpg [rbp]
    mov rcx, [rsi]
    """
    m = machine(source, lam=U48)
    s = m.state
    s.gpr[6], s.gpr[7], s.gpr[5] = DATA | BIT_62, DATA | BIT_48, DATA
    assert m.run().vector is None and (s.gpr[0], s.gpr[1]) == (6, 6)


def test_a_page_is_left_by_all_its_tags() -> None:
    """INVLPG of the address itself drops what tagged ones found."""
    m = machine("mov rax, [rsi]\nmov qword [rdx], 0\ninvlpg [rdi]\nmov rax, [rsi]", lam=U57)
    assert m.pages is not None
    entry = m.pages.map(1 << 30, DATA)
    s = m.state
    s.gpr[6], s.gpr[7], s.gpr[2] = 1 << 30 | BIT_62, 1 << 30, entry
    assert m.catch() == 14 and s.gpr[0] == VALUE
    assert s.cr2 == 1 << 30, "CR2 has the address without its tag"


def test_invlpg_does_not_mask() -> None:
    """A tagged address is not canonical: no operation."""
    m = machine("invlpg [rsi]", lam=U57)
    m.state.gpr[6] = DATA | BIT_62
    assert m.run().vector is None


@pytest.mark.parametrize("source", ["jmp rsi", "call rsi", "push rsi\nret", "mov rcx, rsi\nsysretq"])
def test_branch_targets_are_not_masked(source: str) -> None:
    m = machine(source, lam=U57)
    m.state.gpr[6] = CODE | BIT_62
    assert m.catch() == 13


@pytest.mark.parametrize("cross", [False, True])
def test_pages_that_only_one_kind_of_access_may_reach(cross: bool) -> None:
    """With five levels and a width of 48, a fetch goes to another page than a load from the same address."""
    m = machine("call rsi\nmov rax, [rsi]\ncall rsi", lam=U48, levels=5)
    assert m.pages is not None
    other = DATA + 0x2000
    m.pages.map(BIT_48 | DATA, other)
    m.write_bytes(other, b"\xff\xc3\xc3")  # inc ebx; ret
    m.state.gpr[6] = BIT_48 | DATA
    if cross:
        m.state.gpr[0] = 0
    assert m.run().vector is None and (m.state.gpr[0], m.state.gpr[3]) == (VALUE, 2)


def test_a_stack_is_data() -> None:
    m = machine("push rbx\npop rax", lam=U57)
    m.state.gpr[4], m.state.gpr[3] = DATA + 0x100 | BIT_62, 7
    assert m.run().vector is None and m.state.gpr[0] == 7 and m.read(DATA + 0xF8, 8) == 7
    m = machine("push rbx", lam=U57, cpl=3)
    m.state.gpr[4] = DATA + 0x100 | BIT_48
    assert m.catch() == 12


def test_breakpoints_compare_without_the_tag() -> None:
    m = machine("mov dr0, rdi\nmov dr7, rcx\nmov rax, [rsi]\nnop", lam=U57)
    m.state.gpr[7], m.state.gpr[1] = DATA, 0x400 | 2 | 0xF << 16
    m.state.gpr[6] = DATA | BIT_62
    assert m.catch() == 1 and m.state.dr[6] & 15 == 1


def test_registers_do_not_take_tagged_addresses() -> None:
    for source in ("mov ecx, 0xC0000101\nwrmsr", "lgdt [rdi]"):
        m = machine(source, lam=U57 | U48, sup=True)
        s = m.state
        s.gpr[0], s.gpr[2] = DATA, BIT_62 >> 32
        s.gpr[7] = DATA + 0x100
        m.write(DATA + 0x102, DATA | BIT_62, 8)
        assert m.catch() == 13


def test_control_registers() -> None:
    for bits in (U48, U57, U48 | U57):
        m = machine("mov rax, cr3\nor rax, rbx\nmov cr3, rax\nmov rcx, cr3")
        m.state.gpr[3] = bits
        assert m.run().vector is None and m.state.gpr[1] & (U48 | U57) == bits
        m = machine("mov rax, cr3\nor rax, rbx\nmov cr3, rax")
        m.state.features[FEATURES_SYSTEM] &= ~FEATURE_LAM
        m.state.gpr[3] = bits
        assert m.catch() == 13
    m = machine("mov rax, cr4\nor rax, rbx\nmov cr4, rax\nmov rcx, [rsi]")
    m.state.gpr[3], m.state.gpr[6] = SUP, HIGH ^ BIT_62
    assert m.run().vector is None and m.state.gpr[1] == VALUE
    m = machine("mov rax, cr4\nor rax, rbx\nmov cr4, rax")
    m.state.cr4_allowed &= ~SUP
    m.state.gpr[3] = SUP
    assert m.catch() == 13


def test_turning_it_off_counts_at_once() -> None:
    """Also for global pages, whose translations a write of CR3 keeps otherwise."""
    m = machine("mov rax, [rsi]\nmov rcx, cr3\nbtr rcx, 61\nmov cr3, rcx\nmov rax, [rsi]", lam=U57)
    assert m.pages is not None
    m.state.cr4 |= 1 << 7
    m.pages.map(1 << 30, DATA, 7 | 1 << 8)
    m.state.gpr[6] = 1 << 30 | BIT_62
    m.refresh()
    assert m.catch() == 13 and m.state.gpr[0] == VALUE


# --- INVPCID -----------------------------------------------------------------------------------------------


def invpcid(kind: int, pcid: int, address: int, pcide: bool = True) -> Machine:
    m = machine("mov cl, [rdi]\nmov qword [rdx], 0\ninvpcid rax, [rsi]\nmov cl, [rdi]")
    assert m.pages is not None
    s = m.state
    s.cr4 |= CR4_PCIDE * pcide
    s.gpr[0], s.gpr[6], s.gpr[7], s.gpr[2] = kind, DATA + 0x80, 1 << 30, m.pages.map(1 << 30, DATA)
    m.write(DATA + 0x80, pcid, 8)
    m.write(DATA + 0x88, address, 8)
    m.refresh()
    return m


@pytest.mark.parametrize("kind", [0, 1, 2, 3])
def test_invpcid_drops_translations(kind: int) -> None:
    assert invpcid(kind, 0, 1 << 30).catch() == 14


@pytest.mark.parametrize(("kind", "pcid", "address", "pcide"), [
    (4, 0, 0, True), (0, 1 << 12, 0, True), (2, 1 << 63, 0, True), (0, 0, BIT_62, True), (0, 1, 0, False),
    (1, 1, 0, False)])
def test_invpcid_refuses(kind: int, pcid: int, address: int, pcide: bool) -> None:
    assert invpcid(kind, pcid, address, pcide).catch() == 13


def test_invpcid_needs_cpl_0_and_masks_only_its_operand() -> None:
    m = machine("invpcid rax, [rsi]", cpl=3)
    m.state.gpr[6] = DATA
    assert m.catch() == 13
    m = invpcid(0, 0, 1 << 30 | BIT_62)
    m.state.cr3 |= U57
    assert m.catch() == 13
    m = invpcid(0, 0, 1 << 30)
    m.state.cr3 |= U57
    m.state.gpr[6] |= BIT_62
    assert m.catch() == 14
