"""State components beyond x87, SSE and AVX: PKRU in XSAVE's formats; AMD's x87 pointers."""

import pytest
from pellucid.cpu.state import (
    CR4_OSXSAVE,
    CR4_PKE,
    EFER_FFXSR,
    FEATURE_ERROR_POINTERS,
    FEATURES_SYSTEM,
    XCR0_AVX,
    XCR0_PKRU,
)
from pellucid.cpu.xstate import PKRU_STATE, Component, compacted_bytes, compacted_offset, standard_bytes
from pellucid.isa.features import EVERYTHING, bit_of
from pellucid.native import u64

from .machine import DATA, Machine
from .tables import RWU

RIGHTS = 0x1234_5674
STANDARD, COMPACTED, COMPACTED_AVX = 2688, 576, 832
PKRU, AVX = XCR0_PKRU, XCR0_AVX


def machine(source: str, xcr0: int = 3 | PKRU, wanted: int = (1 << 64) - 1) -> Machine:
    m = Machine()
    m.labels["DATA"] = DATA
    m.long("mov ebx, DATA\n" + source + "\nhlt", cr4=CR4_OSXSAVE | CR4_PKE)
    s = m.state
    s.xcr0 = xcr0
    s.gpr[0], s.gpr[2] = wanted & 0xFFFF_FFFF, wanted >> 32
    m.refresh()
    return m


@pytest.mark.parametrize(
    ("source", "xcr0", "at"),
    [
        ("xsave [rbx]", 3 | PKRU, STANDARD),
        ("xsaveopt [rbx]", 3 | PKRU, STANDARD),
        ("xsave [rbx]", 7 | PKRU, STANDARD),
        ("xsavec [rbx]", 7 | PKRU, COMPACTED_AVX),
        ("xsavec [rbx]", 3 | PKRU, COMPACTED),
    ],
)
def test_pkru_is_saved_and_restored(source: str, xcr0: int, at: int) -> None:
    m = machine(f"{source}\nmov dword [rbx + {at}], 0xC\nxrstor [rbx]", xcr0)
    s = m.state
    s.pkru = RIGHTS
    m.write(DATA + at, 0xFFFF_FFFF, 4)
    assert m.run().reason == 5, m.history()
    assert s.pkru == 0xC and m.read(DATA + 512, 8) & PKRU
    m = machine(source, xcr0)
    m.state.pkru = RIGHTS
    assert m.run().reason == 5 and m.read(DATA + at, 8) == RIGHTS


def test_compacted_place_follows_the_layout() -> None:
    """AVX in XCOMP_BV moves PKRU even where AVX is not asked for."""
    m = machine("xrstor [rbx]", 7 | PKRU, PKRU)
    m.write(DATA + 512, PKRU, 8)
    m.write(DATA + 520, 1 << 63 | 7 | PKRU, 8)
    m.write(DATA + COMPACTED_AVX, RIGHTS, 4)
    assert m.run().reason == 5 and m.state.pkru == RIGHTS


def test_pkru_in_its_initial_configuration() -> None:
    m = machine("xsave [rbx]")
    assert m.run().reason == 5 and not m.read(DATA + 512, 8) & PKRU
    m = machine("xrstor [rbx]")
    m.state.pkru = RIGHTS
    assert m.run().reason == 5 and m.state.pkru == 0
    m = machine("xrstor [rbx]", 3)
    m.state.pkru = RIGHTS
    assert m.run().reason == 5 and m.state.pkru == RIGHTS, "not enabled: not touched"


def test_restored_rights_count_at_once() -> None:
    m = machine("mov cl, [rsi]\nxrstor [rbx]\nmov cl, [rsi]")
    assert m.pages is not None
    m.pages.map(0x4000_0000, DATA, RWU | 1 << 59)
    m.state.gpr[6] = 0x4000_0000
    m.write(DATA + 512, PKRU, 8)
    m.write(DATA + STANDARD, 4, 4)
    assert m.catch() == 14 and m.stack(1, 8)[0] == 0x21


@pytest.mark.parametrize("keeps", [True, False])
def test_x87_pointers(keeps: bool) -> None:
    """Without RstrFpErrPtrs, AMD's processors save and restore them only with an exception pending (FSW.ES)."""
    for pending in (False, True):
        m = machine("fxsave [rbx]\nhlt\nfxrstor [rbx]", 3)
        s = m.state
        if not keeps:
            s.features[FEATURES_SYSTEM] &= ~FEATURE_ERROR_POINTERS
        s.fpu_cw, s.fpu_sw = (0x37E, 0x8081) if pending else (0x37F, 0)
        s.fpu_ip, s.fpu_dp, s.fpu_opcode = 0x1111, 0x2222, 0x333
        m.write(DATA + 6, 0, 18)
        m.refresh()
        assert m.run().reason == 5
        saved = keeps or pending
        assert (m.read(DATA + 6, 2), m.read(DATA + 8, 4), m.read(DATA + 16, 4)) == (
            (0x333, 0x1111, 0x2222) if saved else (0, 0, 0)
        )
        s.fpu_ip = s.fpu_dp = s.fpu_opcode = 7
        assert m.run().reason == 5
        assert s.fpu_ip == (0x1111 if saved else 7)


@pytest.mark.parametrize(("cpl", "fast", "saved"), [(0, False, True), (0, True, False), (3, True, True)])
def test_fast_fxsave(cpl: int, fast: bool, saved: bool) -> None:
    """EFER.FFXSR: 64-bit code of CPL 0 leaves the XMM registers alone, MXCSR not (APM vol. 2, 11.4.4)."""
    m = Machine()
    m.labels["DATA"] = DATA
    m.long("fxsave [rbx]\nmov dword [rbx + 24], 0x1FA0\nxor eax, eax\nmov [rbx + 160], rax\nfxrstor [rbx]\nint 0x80",
           cpl=cpl)
    s = m.state
    s.efer |= EFER_FFXSR * fast
    s.gpr[3] = DATA
    s.xmm[0] = 0x77
    m.write(DATA + 160, 0xAA, 8)
    m.refresh()
    assert m.catch() == 0x80
    assert s.xmm[0] == (0 if saved else 0x77) and s.mxcsr & ~0x3F == 0x1F80 and s.mxcsr & 0x20


# --- XSAVES and XRSTORS ----------------------------------------------------------------------------------

RESTORE = "xrstors [rbx]"


def test_xsaves_writes_the_compacted_format_and_xrstors_takes_it_back() -> None:
    m = machine("xsaves [rbx]\nhlt\nxrstors [rbx]", 7 | PKRU)
    m.state.pkru = RIGHTS
    assert m.run().reason == 5
    assert m.read(DATA + 520, 8) == 1 << 63 | 7 | PKRU
    assert m.read(DATA + 512, 8) & (AVX | PKRU) == PKRU, "AVX state is initial: not written"
    assert m.read(DATA + COMPACTED_AVX, 8) == RIGHTS
    m.state.pkru = 0
    assert m.run().reason == 5 and m.state.pkru == RIGHTS


def test_mxcsr_counts_as_sse_state_in_the_compacted_format_only() -> None:
    """SDM vol. 1, 13.6: XINUSE[1] is the registers alone; 13.10: XSAVEC looks at MXCSR too."""
    for source, present in (("xsave", 0), ("xsaveopt", 0), ("xsavec", 2), ("xsaves", 2)):
        m = machine(f"{source} [rbx]", 3, wanted=2)
        m.write(DATA + 512, 0, 8)
        m.state.mxcsr = 0x1FA0
        m.refresh()
        assert m.run().reason == 5
        assert (m.read(DATA + 512, 8), m.read(DATA + 24, 4)) == (present, 0x1FA0), source


@pytest.mark.parametrize("source", ["xsaves [rbx]", RESTORE])
def test_supervisor_instructions_need_cpl_0(source: str) -> None:
    m = machine(source)
    m.state.cpl = 3
    m.refresh()
    assert m.catch() == 13


@pytest.mark.parametrize(
    ("present", "layout", "rest"),
    [(1, 0, 0), (1, 3, 0),
     (1 << 8, 1 << 63 | 1 << 8, 0), (2, 1 << 63 | 1, 0), (1, 1 << 63 | 1, 1), (0, 1 << 63 | 4, 0)],
)
def test_xrstors_refuses_headers(present: int, layout: int, rest: int) -> None:
    m = machine(RESTORE, 3)
    for n, word in enumerate((present, layout, rest)):
        m.write(DATA + 512 + 8 * n, word, 8)
    assert m.catch() == 13


def test_the_compacted_format_needs_xsavec() -> None:
    m = machine("xrstor [rbx]", 3)
    m.processor.show_features(EVERYTHING & ~bit_of("xsavec"))
    m.write(DATA + 512, 0, 8)
    m.write(DATA + 520, 1 << 63 | 3, 8)
    assert m.catch() == 13


def test_xgetbv_1_tells_what_is_in_use() -> None:
    m = machine("mov ecx, 1\nxgetbv", 7 | PKRU)
    m.state.pkru = RIGHTS
    m.state.mxcsr = 0x1FA0
    m.refresh()
    assert m.run().reason == 5
    assert m.state.gpr[0] & ~1 == PKRU, "MXCSR is not among it"
    m = machine("mov ecx, 1\nxgetbv", 7)
    m.processor.show_features(EVERYTHING & ~bit_of("xgetbv1"))
    assert m.catch() == 13


def test_places_in_the_compacted_format() -> None:
    """SDM vol. 1, 13.4.3: components follow each other, those that ask for it at multiples of 64 bytes."""
    layouts = {0: 576, AVX: 832, AVX | PKRU: 840, PKRU: 584}
    for layout, size in layouts.items():
        assert compacted_bytes(u64(layout)) == size
    assert compacted_offset(u64(AVX), PKRU_STATE) == 832 and compacted_offset(u64(0), PKRU_STATE) == 576
    lined = Component(12, (), 24, supervisor=True, aligned=True)
    assert compacted_offset(u64(AVX | PKRU), lined) == 896 and compacted_offset(u64(AVX), lined) == 832
    assert standard_bytes(u64(3)) == 576 and standard_bytes(u64(PKRU)) == 2696
