"""Effective memory types: every row of the manual's tables, and the rules of the range registers."""

from __future__ import annotations

import random

import pytest

from pellucid.cpu.memtype import (
    MTRR_TYPES,
    UC,
    UC_MINUS,
    WB,
    WC,
    WP,
    WT,
    MemoryType,
    combine,
    effective_ept_type,
    effective_type,
    pat_index,
    pat_type,
    valid_pat,
)
from pellucid.cpu.mtrr import FIXED, IA32_MTRR_DEF_TYPE, MTRR_MSRS, VARIABLE, mtrr_type, valid_mtrr

# SDM vol. 3, table 12-7, row by row: MTRR, PAT, effective.
TABLE_12_7 = """
UC UC UC    UC UC- UC   UC WC WC    UC WT UC    UC WB UC    UC WP UC
WC UC UC    WC UC- WC   WC WC WC    WC WT UC    WC WB WC    WC WP UC
WT UC UC    WT UC- UC   WT WC WC    WT WT WT    WT WB WT    WT WP WP
WB UC UC    WB UC- UC   WB WC WC    WB WT WT    WB WB WB    WB WP WP
WP UC UC    WP UC- WC   WP WC WC    WP WT WT    WP WB WP    WP WP WP
"""
TYPES = {kind.label: kind for kind in MemoryType}
_WORDS = [TYPES[word] for word in TABLE_12_7.split()]
ROWS = list(zip(_WORDS[::3], _WORDS[1::3], _WORDS[2::3], strict=True))


@pytest.mark.parametrize(("mtrr", "pat", "effective"), ROWS)
def test_table_12_7(mtrr: MemoryType, pat: MemoryType, effective: MemoryType) -> None:
    assert combine(mtrr, pat) is effective_type(mtrr, pat) is effective
    assert effective_type(mtrr, pat, cache_disabled=True) is UC
    assert effective_ept_type(mtrr, False, pat) is effective, "EPT's type in the place of the MTRRs'"
    assert effective_ept_type(mtrr, True, pat) is mtrr, "the PAT is ignored"
    assert effective_ept_type(mtrr, False, pat, cache_disabled=True) is UC
    assert effective_ept_type(mtrr, True, pat, cache_disabled=True) is UC


def test_the_table_is_whole() -> None:
    assert len(ROWS) == 30 == len({row[:2] for row in ROWS})


def test_which_entry_of_the_pat() -> None:
    assert [pat_index(bits << 3 | 0x67) for bits in range(4)] == [0, 1, 2, 3]
    assert [pat_index(bits << 3 | 0x80) for bits in range(4)] == [4, 5, 6, 7]
    assert pat_index(1 << 12) == 0 and pat_index(0x1000 | 0x80, large=True) == 4
    assert pat_index(0x80, large=True) == 0, "bit 7 says that the page is large"
    assert pat_index(0x98, leaf=False) == 3, "a reference has no PAT bit"
    linux = 0x0407_0506_0007_0106
    assert [pat_type(linux, n) for n in range(8)] == [WB, WC, UC_MINUS, UC, WB, WP, UC_MINUS, WT]


def test_pat_values() -> None:
    for byte in range(256):
        assert valid_pat(0x0007_0406_0007_0406 & ~(0xFF << 24) | byte << 24) is (byte in (0, 1, 4, 5, 6, 7))


BITS = 40


def test_mtrr_values() -> None:
    for byte in range(256):
        valid = byte in MTRR_TYPES
        assert valid_mtrr(IA32_MTRR_DEF_TYPE, 0xC00 | byte, BITS) is valid
        assert valid_mtrr(0x200, 0x12_3456_7000 | byte, BITS) is valid
        assert all(valid_mtrr(index, 0x0606_0606_0606_0606 & ~0xFF0000 | byte << 16, BITS) is valid for index in FIXED)
    for bit in range(8, 64):
        assert valid_mtrr(IA32_MTRR_DEF_TYPE, 6 | 1 << bit, BITS) is (bit in (10, 11))
        assert valid_mtrr(0x20E, 6 | 1 << bit, BITS) is (12 <= bit < BITS)
        assert valid_mtrr(0x20F, 1 << bit, BITS) is (11 <= bit < BITS)
    assert not any(valid_mtrr(0x20F, 1 << bit, BITS) for bit in range(8))


def registers(control: int = 0xC00, *ranges: tuple[int, int, int], **fixed: int) -> dict[int, int]:
    """MTRRs: `ranges` are (base, size, type)."""
    msrs = dict.fromkeys(MTRR_MSRS, 0) | {IA32_MTRR_DEF_TYPE: control}
    for number, (base, size, kind) in enumerate(ranges):
        msrs[0x200 + 2 * number] = base | kind
        msrs[0x201 + 2 * number] = (1 << BITS) - size | 0x800
    return msrs | {int(name[1:], 16): value for name, value in fixed.items()}


def test_disabled_is_uncacheable() -> None:
    msrs = registers(0x406, (0, 1 << 30, WB), x250=0x0606060606060606)
    assert [mtrr_type(msrs, at, BITS).type for at in (0, 1 << 20, 1 << 35)] == [UC] * 3


def test_fixed_ranges_come_first() -> None:
    msrs = registers(0xC00, (0, 1 << 30, WT), x250=0x0606060606060605, x259=0x0001_0000_0000_0000, x26F=0x06 << 56)
    for at, kind, first, last, name in (
        (0xFFFF, WP, 0, 0xFFFF, "IA32_MTRR_FIX64K_00000"),
        (0x1_0000, WB, 0x1_0000, 0x1_FFFF, "IA32_MTRR_FIX64K_00000"),
        (0x8_0000, UC, 0x8_0000, 0x8_3FFF, "IA32_MTRR_FIX16K_80000"),
        (0xB_9000, WC, 0xB_8000, 0xB_BFFF, "IA32_MTRR_FIX16K_A0000"),
        (0xF_FFFF, WB, 0xF_F000, 0xF_FFFF, "IA32_MTRR_FIX4K_F8000"),
    ):
        found = mtrr_type(msrs, at, BITS)
        match = found.matches[0]
        assert (found.type, match.first, match.last, match.register) == (kind, first, last, name)
    assert mtrr_type(msrs, 0x10_0000, BITS).type is WT
    msrs[IA32_MTRR_DEF_TYPE] = 0x800
    assert mtrr_type(msrs, 0xFFFF, BITS).type is WT, "FE is off: the variable ranges count there too"


def test_fixed_ranges_cover_the_first_megabyte() -> None:
    msrs = registers()
    edges = [(match.first, match.last) for at in range(0, 1 << 20, 4096) for match in mtrr_type(msrs, at, BITS).matches]
    assert len(edges) == 256 and len(set(edges)) == 8 + 16 + 64
    assert all(a[1] + 1 == b[0] for a, b in zip(sorted(set(edges)), sorted(set(edges))[1:], strict=False))


OVERLAPS = [
    # types of the ranges that match, the type, whether the manual defines it
    ((), WP, True),
    ((WC,), WC, True),
    ((WB, WB), WB, True),
    ((WB, UC), UC, True),
    ((UC, WC, WP), UC, True),
    ((WT, WB), WT, True),
    ((WB, WT, WB), WT, True),
    ((WC, WB), UC, False),
    ((WP, WT), UC, False),
    ((WT, WB, WC), UC, False),
]


@pytest.mark.parametrize(("kinds", "effective", "defined"), OVERLAPS)
def test_precedence(kinds: tuple[MemoryType, ...], effective: MemoryType, defined: bool) -> None:
    """SDM vol. 3, 12.11.4.1; the default type is WP."""
    msrs = registers(0xC00 | WP, *((0x4000_0000, 1 << 30 - n, kind) for n, kind in enumerate(kinds)))
    found = mtrr_type(msrs, 0x4000_1234, BITS)
    assert (found.type, found.defined, len(found.matches)) == (effective, defined, len(kinds))
    assert mtrr_type(msrs, 0x8000_0000, BITS).type is WP


def test_variable_range() -> None:
    msrs = registers(0x806, (0xC000_0000, 1 << 30, UC))
    types = [mtrr_type(msrs, at, BITS).type for at in (0xBFFF_FFFF, 0xC000_0000, 0xFFFF_FFFF, 1 << 32)]
    assert types == [WB, UC, UC, WB]
    match = mtrr_type(msrs, 0xFEE0_0000, BITS).matches[0]
    assert (match.first, match.last, match.register) == (0xC000_0000, 0xFFFF_FFFF, "IA32_MTRR_PHYSBASE0")
    msrs[0x201] &= ~0x800
    assert mtrr_type(msrs, 0xFEE0_0000, BITS).type is WB, "not valid"
    msrs[0x201] = 0x800 | 1 << 20
    assert [mtrr_type(msrs, at, BITS).type for at in (0, 1 << 20, 2 << 20)] == [UC, WB, UC], "a mask with holes"
    msrs[0x201] = 0x800
    assert mtrr_type(msrs, 0x1234_5678, BITS).matches[0].last == (1 << BITS) - 1, "an empty mask matches everything"


def test_no_value_that_a_register_takes_is_refused_a_type() -> None:
    """Whatever a guest can write, each address has a type."""
    chance = random.Random(4)
    for _ in range(300):
        msrs = registers()
        for index in (*VARIABLE, *FIXED, IA32_MTRR_DEF_TYPE):
            value = chance.getrandbits(BITS if index in VARIABLE else 64)
            if index in FIXED:
                value = sum(chance.choice(sorted(MTRR_TYPES)) << 8 * n for n in range(8))
            elif index == IA32_MTRR_DEF_TYPE:
                value &= 0xC00
            else:
                value &= ~0x7FF if index & 1 else ~0xFFF
            assert valid_mtrr(index, value, BITS)
            msrs[index] = value
        for _ in range(20):
            at = chance.getrandbits(chance.choice((16, 20, BITS)))
            found = mtrr_type(msrs, at, BITS)
            assert found.type in MTRR_TYPES and all(match.first <= at <= match.last for match in found.matches)
