"""Memory types, and which one an access has: what MTRRs, PAT, CR0.CD and EPT say, combined by the manual's tables.

Memory is coherent here whatever its type, so types change no data; these functions say which type an access has, for
`info memtype`, for people, and for the checks that depend on it. SDM vol. 3, chapter 12, "Memory Cache Control".
"""

from __future__ import annotations

from enum import IntEnum


class MemoryType(IntEnum):
    """A type, as MTRRs, the PAT and EPT entries encode it (SDM vol. 3, tables 12-8 and 12-10)."""

    UC = 0
    WC = 1
    WT = 4
    WP = 5
    WB = 6
    UC_MINUS = 7
    """In the PAT only: UC that an MTRR of type WC overrides."""

    @property
    def label(self) -> str:
        """The manual's abbreviation."""
        return "UC-" if self is MemoryType.UC_MINUS else self.name


UC, WC, WT, WP, WB, UC_MINUS = (MemoryType[name] for name in ("UC", "WC", "WT", "WP", "WB", "UC_MINUS"))
MTRR_TYPES = frozenset((UC, WC, WT, WP, WB))
PAT_TYPES = frozenset(MemoryType)

# SDM vol. 3, table 12-7: a row for each type of the MTRRs; columns by the PAT's type.
_COLUMNS = (UC, UC_MINUS, WC, WT, WB, WP)
_TABLE_12_7 = {
    UC: (UC, UC, WC, UC, UC, UC),
    WC: (UC, WC, WC, UC, WC, UC),
    WT: (UC, UC, WC, WT, WT, WP),
    WB: (UC, UC, WC, WT, WB, WP),
    WP: (UC, WC, WC, WT, WP, WP),
}
_COMBINED = {(row, column): effective for row, types in _TABLE_12_7.items()
             for column, effective in zip(_COLUMNS, types, strict=True)}


def combine(mtrr: MemoryType, pat: MemoryType) -> MemoryType:
    """The effective type of a page (SDM vol. 3, table 12-7). `mtrr`: any type but UC-."""
    return _COMBINED[mtrr, pat]


def effective_type(mtrr: MemoryType, pat: MemoryType, cache_disabled: bool = False) -> MemoryType:
    """The type of an access outside VMX non-root operation, or there without EPT.

    `pat` is WB while CR0.PG is 0, where there is no page to select from the PAT. `cache_disabled`: CR0.CD, the no-fill
    mode, in which nothing new is cached, whatever CR0.NW says (SDM vol. 3, table 12-5): what would be cached is UC.
    """
    combined = combine(mtrr, pat)
    return UC if cache_disabled else combined


def effective_ept_type(ept: MemoryType, ignore_pat: bool, pat: MemoryType, cache_disabled: bool = False) -> MemoryType:
    """The type of an access by a guest with EPT (SDM vol. 3, 29.3.7.2): the EPT entry's type stands for the MTRRs'.

    `ept` and `ignore_pat` are bits 5:3 and 6 of the EPT entry that maps the page; `pat` is WB while the guest's CR0.PG
    is 0, `cache_disabled` the guest's CR0.CD. The host's MTRRs do not count.
    """
    if cache_disabled:
        return UC
    return ept if ignore_pat else combine(ept, pat)


def pat_index(entry: int, leaf: bool = True, large: bool = False) -> int:
    """Which of the PAT's eight entries a paging-structure entry selects (SDM vol. 3, tables 5-12 and 12-11).

    A leaf's PAT bit is bit 7, or 12 where it maps a large page. CR3 and an entry that refers to another table have only
    PCD (bit 4) and PWT (bit 3), so that they select among the first four (SDM vol. 3, 5.9.2).
    """
    index = entry >> 3 & 3
    if leaf:
        index |= (entry >> (12 if large else 7) & 1) << 2
    return index


def pat_type(pat: int, index: int) -> MemoryType:
    """Entry `index` of IA32_PAT."""
    return MemoryType(pat >> 8 * index & 7)


def valid_pat(value: int) -> bool:
    """Whether IA32_PAT takes this value: WRMSR of any other raises #GP(0) (SDM vol. 3, 12.12.2)."""
    return all(byte in PAT_TYPES for byte in value.to_bytes(8, "little"))
