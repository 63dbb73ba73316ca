"""The CPUID leaves of a model (SDM vol. 2, CPUID), as plain values: what a processor answers is made of them.

Bits that follow the running processor's state (OSXSAVE, APIC, the current XSAVE size) are the engine's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pellucid.cpu.models import CpuModel
from pellucid.cpu.models.caches import CACHE_SETS, LINE, descriptors, first_level, listed, upper_levels
from pellucid.cpu.models.counters import EVENT_COUNT, EVENTS_ABSENT, FIXED, GENERAL, VERSION, WIDTH
from pellucid.cpu.models.topology import CpuTopology
from pellucid.cpu.xstate import AREA, COMPONENTS, SSE, X87, standard_bytes
from pellucid.native import u64
from pellucid.records import dataclass

LINEAR_BITS, LINEAR_BITS_LA57 = 48, 57
EXTENDED, CENTAUR = 0x8000_0000, 0xC000_0000
HTT = 1 << 28
XSAVEC_OR_XSAVES = 1 << 1 | 1 << 3
AMD, AMD_VENDORS = "AuthenticAMD", ("AuthenticAMD", "HygonGenuine")
CMP_LEGACY = 1 << 1
SMT, CORE, DIE = 1, 2, 5
"""Types of levels in leaves 0xB and 0x1F."""
MWAIT_EXTENSIONS = 3
"""Leaf 5, ECX: they are told of, and masked interrupts can end MWAIT. No C-state is told of: all are the same."""
TLBS, SECOND_TLBS = 0x01FF_01FF, 0x4200_4200
"""Leaf 0x80000005: direct-mapped, with the most entries that the field can say, for data and for code; leaf 0x80000006:
512 entries, four ways. QEMU's numbers.
"""
AMD_ALIASES = 0x0183_F3FF
"""Bits of leaf 1, EDX that leaf 0x80000001 repeats on AMD's processors (APM vol. 3, appendix E)."""


@dataclass(frozen=True, slots=True)
class CpuidLeaf:
    """One leaf, or one subleaf where `index` is not None: the four registers of its answer."""

    function: int
    index: int | None = None
    eax: int = 0
    ebx: int = 0
    ecx: int = 0
    edx: int = 0


def cpuid_leaves(model: CpuModel, apic_id: int, topology: CpuTopology) -> list[CpuidLeaf]:
    """Every leaf that the processor with `apic_id` answers."""
    several = topology.package_threads > 1
    monitored = LINE if "monitor" in model.features else 0
    words = model.words()
    last = max((index for function, index, _ in words if function == 7), default=0)

    def leaf(function: int, index: int | None = None, **registers: int) -> CpuidLeaf:
        bits = {name: words.get((function, index or 0, name), 0) for name in ("eax", "ebx", "ecx", "edx")}
        return CpuidLeaf(function, index, **{name: bits[name] | registers.get(name, 0) for name in bits})

    basic = [
        _identity(model, 0, model.level),
        leaf(1, eax=model.signature, ebx=_package(apic_id, topology), edx=HTT if several else 0),
        *_caches(model, topology),
        CpuidLeaf(5, None, monitored, monitored, MWAIT_EXTENSIONS),
        leaf(6),
        *(leaf(7, index, eax=last if not index else 0) for index in range(last + 1)),
        *(_counters() if model.pmu and model.vendor not in AMD_VENDORS else []),
        *(_topology(0xB, apic_id, topology, (SMT, CORE)) if model.extended_topology else [CpuidLeaf(0xB)]),
        *(_xsave(model, leaf(0xD, 1)) if "xsave" in model.features else []),
        *(_topology(0x1F, apic_id, topology, (SMT, CORE, DIE)) if topology.dies > 1 else ()),
    ]
    linear = LINEAR_BITS_LA57 if "la57" in model.features else LINEAR_BITS
    amd = model.vendor in AMD_VENDORS
    aliases = words.get((1, 0, "edx"), 0) & AMD_ALIASES if amd else 0
    together = topology.package_threads - 1 | topology.package_bits << 12 if several else 0
    caches = CACHE_SETS[model.caches]
    extended = [
        _identity(model, EXTENDED, model.xlevel),
        leaf(EXTENDED + 1, eax=model.signature, ecx=CMP_LEGACY if amd and several else 0, edx=aliases),
        *_brand(model.model_id),
        CpuidLeaf(EXTENDED + 5, None, TLBS, TLBS, *first_level(caches)),
        CpuidLeaf(EXTENDED + 6, None, 0, SECOND_TLBS, *upper_levels(caches, model.l3)),
        leaf(EXTENDED + 7),
        leaf(EXTENDED + 8, eax=linear << 8 | model.phys_bits, ecx=together),
        *(_extended_topology(model, apic_id, topology) if "topoext" in model.features else []),
    ]
    centaur = [CpuidLeaf(CENTAUR, eax=model.xlevel2), leaf(CENTAUR + 1, eax=model.signature)]
    limits = ((basic, model.level), (extended, model.xlevel), (centaur, model.xlevel2))
    return [found for leaves, highest in limits for found in leaves if found.function <= highest]


def _identity(model: CpuModel, function: int, highest: int) -> CpuidLeaf:
    """Leaf 0 or 0x80000000: the highest leaf of its range, and the vendor."""
    ebx, edx, ecx = (int.from_bytes(model.vendor.encode()[at : at + 4], "little") for at in (0, 4, 8))
    return CpuidLeaf(function, None, highest, ebx, ecx, edx)


def _package(apic_id: int, topology: CpuTopology) -> int:
    """Leaf 1, EBX: initial APIC id, the package's logical processors where there are several, CLFLUSH size by eight.

    The power of two that holds the second says how many APIC ids the package has (SDM vol. 2, table 3-8).
    """
    several = topology.package_threads if topology.package_threads > 1 else 0
    return (apic_id & 0xFF) << 24 | min(several, 255) << 16 | LINE // 8 << 8


def _caches(model: CpuModel, topology: CpuTopology) -> Iterator[CpuidLeaf]:
    """Leaves 2 and 4, of that one subleaf a cache and an empty one behind (SDM vol. 2, CPUID). AMD's have neither."""
    if model.vendor == AMD:
        return
    caches = CACHE_SETS[model.caches]
    yield CpuidLeaf(2, None, *descriptors(caches, model.l3))
    cores = min((1 << topology.package_bits - topology.thread_bits) - 1, 63)
    shown = caches.listed[: None if model.l3 else -1]
    for index, cache in enumerate(shown):
        sharing = min((1 << (topology.die_bits if cache.shared else topology.thread_bits)) - 1, 0xFFF)
        yield CpuidLeaf(4, index, *listed(cache, sharing, cores))
    yield CpuidLeaf(4, len(shown))


def _extended_topology(model: CpuModel, apic_id: int, topology: CpuTopology) -> Iterator[CpuidLeaf]:
    """Leaves 0x8000001D, a subleaf for each cache, and 0x8000001E: unit and node (APM vol. 3, appendix E.4.15)."""
    caches = CACHE_SETS[model.caches].listed
    for index, cache in enumerate(caches):
        sharing = (topology.cores if cache.shared else 1) * topology.threads - 1
        yield CpuidLeaf(EXTENDED + 0x1D, index, *listed(cache, sharing))
    yield CpuidLeaf(EXTENDED + 0x1D, len(caches))
    core = (apic_id & (1 << topology.die_bits) - 1) >> topology.thread_bits
    ebx = topology.threads - 1 << 8 | core & 0xFF
    node = apic_id >> topology.die_bits & 0xFF
    yield CpuidLeaf(EXTENDED + 0x1E, None, apic_id, ebx, topology.dies - 1 << 8 | node)


def _counters() -> Iterator[CpuidLeaf]:
    """Leaf 0xA: the performance counters (SDM vol. 2, CPUID)."""
    eax = VERSION | GENERAL << 8 | WIDTH << 16 | EVENT_COUNT << 24
    yield CpuidLeaf(0xA, eax=eax, ebx=EVENTS_ABSENT, edx=FIXED | WIDTH << 5)


def _topology(function: int, apic_id: int, topology: CpuTopology, levels: Sequence[int]) -> Iterator[CpuidLeaf]:
    """Leaves 0xB and 0x1F: how many bits of the APIC id number the threads of each level (SDM vol. 2, table 3-8).

    The last level is bounded by the package, whatever its name.
    """
    sizes = {SMT: (topology.thread_bits, topology.threads), CORE: (topology.die_bits, topology.die_threads)}
    sizes[levels[-1]] = topology.package_bits, topology.package_threads
    for index, level in enumerate(levels):
        bits, threads = sizes[level]
        yield CpuidLeaf(function, index, eax=bits, ebx=threads, ecx=level << 8 | index, edx=apic_id)
    yield CpuidLeaf(function, len(levels), ecx=len(levels), edx=apic_id)


def _xsave(model: CpuModel, features: CpuidLeaf) -> Iterator[CpuidLeaf]:
    """Leaf 0xD: components, and the sizes of an image with all of them, in the standard and the compacted format.

    EBX of the first two is the running processor's where it is not 0.
    """
    found = [c for c in COMPONENTS if not model.features.isdisjoint(c.features)
             and (not c.supervisor or "xsaves" in model.features)]
    user = X87 | SSE | sum(c.bit for c in found if not c.supervisor)
    supervisor = sum(c.bit for c in found if c.supervisor)
    yield CpuidLeaf(0xD, 0, user & 0xFFFF_FFFF, AREA, int(standard_bytes(u64(user))), user >> 32)
    yield CpuidLeaf(0xD, 1, features.eax, AREA if features.eax & XSAVEC_OR_XSAVES else 0, supervisor)
    for c in found:
        yield CpuidLeaf(0xD, c.number, c.size, c.offset, int(c.supervisor) | int(c.aligned) << 1)


def _brand(text: str) -> Iterator[CpuidLeaf]:
    """Leaves 0x80000002 to 0x80000004: 48 bytes of text."""
    content = text.encode("ascii", "replace")[:48].ljust(48, b"\0")
    for index in range(3):
        part = content[16 * index : 16 * index + 16]
        eax, ebx, ecx, edx = (int.from_bytes(part[at : at + 4], "little") for at in (0, 4, 8, 12))
        yield CpuidLeaf(EXTENDED + 2 + index, eax=eax, ebx=ebx, ecx=ecx, edx=edx)
