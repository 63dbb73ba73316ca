"""Memory-type range registers: what a write checks, and which type they give an address (SDM vol. 3, 12.11)."""

from __future__ import annotations

from collections.abc import Mapping

from pellucid.cpu.memtype import MTRR_TYPES, UC, WB, WT, MemoryType
from pellucid.records import dataclass

IA32_MTRRCAP, IA32_MTRR_DEF_TYPE, IA32_MTRR_PHYSBASE0 = 0xFE, 0x2FF, 0x200
VARIABLE_RANGES = 8
CAP_FIXED, CAP_WC = 1 << 8, 1 << 10
MTRRCAP = VARIABLE_RANGES | CAP_FIXED | CAP_WC
"""What IA32_MTRRCAP says: eight variable ranges, fixed ranges, write combining; no SMRR."""
DEF_TYPE_FE, DEF_TYPE_E = 1 << 10, 1 << 11
MASK_VALID = 1 << 11
MEGABYTE = 1 << 20


@dataclass(frozen=True, slots=True)
class FixedRange:
    """One fixed-range register: eight bytes, each the type of `size` bytes of memory (SDM vol. 3, table 12-9)."""

    name: str
    base: int
    size: int


FIXED: dict[int, FixedRange] = {
    0x250: FixedRange("IA32_MTRR_FIX64K_00000", 0, 0x1_0000),
    0x258: FixedRange("IA32_MTRR_FIX16K_80000", 0x8_0000, 0x4000),
    0x259: FixedRange("IA32_MTRR_FIX16K_A0000", 0xA_0000, 0x4000),
    **{0x268 + n: FixedRange(f"IA32_MTRR_FIX4K_{0xC_0000 + n * 0x8000:05X}", 0xC_0000 + n * 0x8000, 0x1000)
       for n in range(8)},
}
VARIABLE = range(IA32_MTRR_PHYSBASE0, IA32_MTRR_PHYSBASE0 + 2 * VARIABLE_RANGES)
MTRR_MSRS = (*VARIABLE, *FIXED, IA32_MTRR_DEF_TYPE)
"""The registers that can be written."""


def valid_mtrr(index: int, value: int, maxphyaddr: int) -> bool:
    """Whether MTRR `index` takes this value; WRMSR of any other raises #GP(0) (SDM vol. 3, 12.11.2).

    Reserved are the types that table 12-8 does not have, and address bits from `maxphyaddr` on.
    """
    if index in FIXED:
        return all(byte in MTRR_TYPES for byte in value.to_bytes(8, "little"))
    if index == IA32_MTRR_DEF_TYPE:
        return not value & ~0xCFF and value & 0xFF in MTRR_TYPES
    if value >> maxphyaddr:
        return False
    if index & 1:
        return not value & 0x7FF
    return not value & 0xF00 and value & 0xFF in MTRR_TYPES


@dataclass(frozen=True, slots=True)
class Match:
    """A register that gives an address a type: the range it covers, `last` inclusive.

    A mask with holes covers more than one range; then this is the smallest piece around the address.
    """

    register: str
    type: MemoryType
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class MtrrType:
    """What the MTRRs say of an address: the type, every register that matched, and the rule that chose among them.

    `defined` is False where the manual leaves the overlap of ranges undefined; the type is UC then.
    """

    type: MemoryType
    matches: tuple[Match, ...]
    rule: str
    defined: bool = True


def mtrr_type(msrs: Mapping[int, int], address: int, maxphyaddr: int) -> MtrrType:
    """The type that the MTRRs, by MSR number, give a physical address (SDM vol. 3, 12.11.4.1)."""
    control = msrs[IA32_MTRR_DEF_TYPE]
    if not control & DEF_TYPE_E:
        return MtrrType(UC, (), "the MTRRs are off (IA32_MTRR_DEF_TYPE.E is 0)")
    if address < MEGABYTE and control & DEF_TYPE_FE:
        return MtrrType((found := _fixed(msrs, address)).type, (found,), "fixed ranges come first below 1 MiB")
    matches = tuple(filter(None, (_variable(msrs, n, address, maxphyaddr) for n in range(VARIABLE_RANGES))))
    if not matches:
        return MtrrType(MemoryType(control & 0xFF), (), "no range matches: the default type")
    return _overlap(matches)


def _fixed(msrs: Mapping[int, int], address: int) -> Match:
    index, place = next((index, place) for index, place in FIXED.items()
                        if place.base <= address < place.base + 8 * place.size)
    number = (address - place.base) // place.size
    first = place.base + number * place.size
    return Match(place.name, MemoryType(msrs[index] >> 8 * number & 0xFF), first, first + place.size - 1)


def _variable(msrs: Mapping[int, int], number: int, address: int, maxphyaddr: int) -> Match | None:
    base, mask = msrs[IA32_MTRR_PHYSBASE0 + 2 * number], msrs[IA32_MTRR_PHYSBASE0 + 2 * number + 1]
    bits = mask & (1 << maxphyaddr) - 1 & ~0xFFF
    if not mask & MASK_VALID or (address ^ base) & bits:
        return None
    size = bits & -bits or 1 << maxphyaddr
    first = address & -size
    return Match(f"IA32_MTRR_PHYSBASE{number}", MemoryType(base & 0xFF), first, first + size - 1)


def _overlap(matches: tuple[Match, ...]) -> MtrrType:
    types = {match.type for match in matches}
    if len(types) == 1:
        rule = "the range that matches" if len(matches) == 1 else "all ranges that match say the same"
        return MtrrType(matches[0].type, matches, rule)
    if UC in types:
        return MtrrType(UC, matches, "of ranges that overlap, UC wins")
    if types == {WT, WB}:
        return MtrrType(WT, matches, "of WT and WB that overlap, WT wins")
    return MtrrType(UC, matches, "this overlap is undefined; taken as UC", defined=False)
