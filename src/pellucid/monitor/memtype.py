"""Why an address has its memory type: the walk, the PAT entry, the MTRR, CR0.CD and how they combine, step by step.

The tables and registers are those of one processor as they stand; nothing is cached, and no accessed bit is set. The
rules are `pellucid.cpu.memtype`'s and `pellucid.cpu.mtrr`'s (SDM vol. 3, 5.9.2, 12.5.2.2 and 12.11.4.1).
"""

from collections.abc import Mapping

from pellucid.cpu.memtype import WB, MemoryType, combine, effective_type, pat_index, pat_type
from pellucid.cpu.mtrr import MTRR_MSRS, MtrrType, mtrr_type
from pellucid.cpu.state import CR0_CD, CR0_NW, CR4_PCIDE
from pellucid.kvm.regs import Sregs
from pellucid.monitor.errors import CommandError
from pellucid.monitor.page_tables import Layout, ReadTable, layout_of
from pellucid.monitor.page_walk import walk
from pellucid.records import dataclass

IA32_PAT = 0x277
MSRS = (IA32_PAT, *MTRR_MSRS)
"""What a processor is asked for; all of them only where CPUID shows MTRR and PAT."""
_PAE_ROOT_SHIFT = 30


@dataclass(frozen=True)
class MemtypeEntry:
    """CR3, or an entry of the walk at guest-physical `address`; `pat` is None where there is no such bit.

    read_as: the type of the processor's own access to the entry, by the bits of what refers to it; None for CR3, and
    for an entry of PAE paging that was loaded together with CR3.
    """

    level: str
    value: int
    pcd: bool
    pwt: bool
    address: int | None = None
    pat: bool | None = None
    page_size: int | None = None
    read_as: str | None = None


@dataclass(frozen=True)
class MemtypeRange:
    """An MTRR that matches: `first` to `last`, inclusive."""

    register: str
    type: str
    first: int
    last: int


@dataclass(frozen=True)
class MemtypeInfo:
    """The effective type of an access and what it comes from.

    pat_index: the entry of IA32_PAT (`pat_msr`) that the page selects; None without paging, where `pat` is WB.
    combined: `mtrr` and `pat` together, before CR0.CD. mtrr_defined: false where the manual leaves it undefined.
    """

    address: int
    physical: int
    effective: str
    mtrr: str
    mtrr_rule: str
    mtrr_defined: bool
    mtrr_default: int
    mtrr_ranges: list[MemtypeRange]
    pat: str
    pat_msr: int
    combined: str
    cache_disabled: bool
    not_write_through: bool
    entries: list[MemtypeEntry]
    pat_index: int | None = None


@dataclass(frozen=True)
class Source:
    """One processor: its registers and MSRs (those of MSRS), memory, address width, and what its A20 gate lets by."""

    sregs: Sregs
    msrs: Mapping[int, int]
    read: ReadTable
    maxphyaddr: int
    a20_mask: int = (1 << 64) - 1

    def mtrr(self, address: int) -> MtrrType:
        """What the MTRRs say."""
        return mtrr_type(self.msrs, address, self.maxphyaddr)

    def access(self, physical: int, pat: MemoryType) -> MemoryType:
        """The type of an access whose page, or whose reference, says `pat`."""
        return effective_type(self.mtrr(physical).type, pat, bool(self.sregs.cr0 & CR0_CD))


def explain_physical(source: Source, address: int) -> MemtypeInfo:
    """The type of a physical address by itself: what an access without paging has."""
    if address >> source.maxphyaddr:
        raise CommandError(f"0x{address:x} is wider than this CPU's {source.maxphyaddr} physical address bits")
    return _combine(source, address, address, [], None)


def explain_linear(source: Source, address: int) -> MemtypeInfo:
    """The type of a linear address. Raises CommandError where it is not mapped."""
    layout = layout_of(source.sregs)
    if layout is None:
        return _combine(source, address, address & 0xFFFF_FFFF & source.a20_mask, [], None)
    if layout.canonical_bits:
        unused = layout.canonical_bits - 1
        if address >> unused not in (0, (1 << 64 - unused) - 1):
            raise CommandError(f"0x{address:x} is not canonical")
    elif address >> 32:
        raise CommandError(f"0x{address:x} is wider than 32 bits, and the CPU is not in IA-32e mode")
    entries, physical = _walk(source, layout, address)
    leaf = entries[-1]
    return _combine(source, address, physical, entries, pat_index(leaf.value, large=leaf.page_size != 4096))


def _combine(
    source: Source, address: int, physical: int, entries: list[MemtypeEntry], index: int | None
) -> MemtypeInfo:
    cr0, pat_msr = source.sregs.cr0, source.msrs[IA32_PAT]
    mtrr = source.mtrr(physical)
    pat = WB if index is None else pat_type(pat_msr, index)
    return MemtypeInfo(
        address=address,
        physical=physical,
        effective=source.access(physical, pat).label,
        mtrr=mtrr.type.label,
        mtrr_rule=mtrr.rule,
        mtrr_defined=mtrr.defined,
        mtrr_default=source.msrs[MTRR_MSRS[-1]],
        mtrr_ranges=[MemtypeRange(match.register, match.type.label, match.first, match.last) for match in mtrr.matches],
        pat=pat.label,
        pat_msr=pat_msr,
        pat_index=index,
        combined=combine(mtrr.type, pat).label,
        cache_disabled=bool(cr0 & CR0_CD),
        not_write_through=bool(cr0 & CR0_NW),
        entries=entries,
    )


def _walk(source: Source, layout: Layout, linear: int) -> tuple[list[MemtypeEntry], int]:
    """CR3 and every entry down to the leaf, and the physical address."""
    sregs, pat_msr = source.sregs, source.msrs[IA32_PAT]
    # With CR4.PCIDE the bits are part of the PCID, and the root is read as if both were 0.
    root = 0 if sregs.cr4 & CR4_PCIDE else sregs.cr3
    entries = [MemtypeEntry("CR3", sregs.cr3, *_cache_bits(root))]
    referring = pat_index(root, leaf=False)
    for step in walk(layout, source.read, linear, source.a20_mask):
        value = step.value or 0
        if not step.present:
            what = f"at 0x{step.address:x} is not in RAM"
            if step.value is not None:
                what = f"0x{value:x} at 0x{step.address:x} is not present"
            raise CommandError(f"0x{linear:x} is not mapped: its {step.name} {what}")
        # PAE paging has the root's entries in registers, loaded together with CR3.
        in_register = step.root and step.shift == _PAE_ROOT_SHIFT
        read_as = None if in_register else source.access(step.address, pat_type(pat_msr, referring)).label
        if step.leaf:
            shift, bits = step.shift, _cache_bits(value)
            pat = bool(pat_index(value, large=shift != 12) & 4)
            entries.append(MemtypeEntry(step.name, value, *bits, step.address, pat, 1 << shift, read_as))
            return entries, step.physical(linear) & source.a20_mask
        entries.append(MemtypeEntry(step.name, value, *_cache_bits(value), step.address, read_as=read_as))
        referring = pat_index(value, leaf=False)
    raise AssertionError("the last level has no leaf")


def _cache_bits(entry: int) -> tuple[bool, bool]:
    """PCD and PWT."""
    return bool(entry & 0x10), bool(entry & 8)


def memtype_text(info: MemtypeInfo) -> str:
    """The same for people: the answer, then every step."""
    where = f"0x{info.address:x}"
    if info.physical != info.address:
        where += f" (physical 0x{info.physical:x})"
    lines = [f"{where}: {info.effective}"]
    lines += [f"  walk   {_entry_text(entry)}" for entry in info.entries]
    if info.pat_index is None:
        lines.append("  PAT    no page selects an entry: WB")
    else:
        lines.append(f"  PAT    entry {info.pat_index} of IA32_PAT 0x{info.pat_msr:016x}: {info.pat}")
    default = MemoryType(info.mtrr_default & 0xFF).label
    for found in info.mtrr_ranges:
        lines.append(f"  MTRR   {found.register} 0x{found.first:x}-0x{found.last:x}: {found.type}")
    lines.append(f"  MTRR   {info.mtrr_rule}: {info.mtrr} (IA32_MTRR_DEF_TYPE 0x{info.mtrr_default:x}: {default})")
    lines.append(f"  both   MTRR {info.mtrr} and PAT {info.pat}: {info.combined} (SDM vol. 3, table 12-7)")
    disabled = "1: no-fill mode, nothing is cached" if info.cache_disabled else "0"
    lines.append(f"  CR0.CD {disabled}: {info.effective}")
    return "\n".join(lines) + "\n"


def _entry_text(entry: MemtypeEntry) -> str:
    place = "" if entry.address is None else f" at 0x{entry.address:x}"
    bits = "" if entry.pat is None else f"PAT={entry.pat:d} "
    bits += f"PCD={entry.pcd:d} PWT={entry.pwt:d}"
    size = "" if entry.page_size is None else f", page of {entry.page_size >> 10} KiB"
    read = "" if entry.read_as is None else f", itself read as {entry.read_as}"
    return f"{entry.level:<5} 0x{entry.value:016x}{place} {bits}{size}{read}"


