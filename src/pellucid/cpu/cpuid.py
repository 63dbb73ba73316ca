"""CPUID: a table in memory that native code searches; Python fills it from a CPU model."""

from pellucid.cpu.state import (
    CR4_OSXSAVE, CR4_PKE, FEATURE_AMD, FEATURES_SYSTEM, MISC_ENABLE_MONITOR, TSX_CPUID_CLEAR)
from pellucid.cpu.xstate import compacted_bytes, standard_bytes
from pellucid.native import native, ptr, struct, u32, u64
from pellucid.native.layout import Struct


HLE_AND_RTM = 1 << 4 | 1 << 11
EXTENDED, CENTAUR, HYPERVISOR, HYPERVISOR_END = 0x8000_0000, 0xC000_0000, 0x4000_0000, 0x5000_0000
"""The ranges of leaves beside the basic ones; a hypervisor's come in runs of 256, each with a highest leaf."""


@struct
class CpuidEntry(Struct):
    """One leaf. `indexed` is 1 where ECX selects a subleaf."""

    leaf: u32
    subleaf: u32
    indexed: u32
    eax: u32
    ebx: u32
    ecx: u32
    edx: u32
    pad: u32


CPUID_HASH_BITS = 7


@native
def leaf_hash(leaf):
    """Fibonacci hashing: the leaves in use lie close together at 0, 0x40000000 and 0x80000000."""
    return leaf * u32(0x9E37_79B1) >> (32 - CPUID_HASH_BITS)


@native(inline=False)
def find_leaf(s, leaf: u32, subleaf: u32) -> ptr[CpuidEntry]:
    """The entry, or null. The table is in the order of the hashes of its leaves; CpuState.cpuid_first says where."""
    h = leaf_hash(leaf)
    for i in range(u64(s.cpuid_first[h]), u64(s.cpuid_first[h + 1])):
        e = ptr[CpuidEntry](s.cpuid + i * CpuidEntry.size)
        if e.leaf == leaf and (e.indexed == 0 or e.subleaf == subleaf):
            return e
    return ptr[CpuidEntry](u64(0))


@native(inline=False)
def answering_leaf(s, leaf: u32) -> u32:
    """The leaf that answers for one without an entry: beyond the highest of its range, or in a range that is not
    there, Intel's processors give the highest basic leaf's data (SDM vol. 2, CPUID); AMD's give zeros.
    """
    first = leaf & EXTENDED
    if leaf >= HYPERVISOR and leaf < HYPERVISOR_END:
        first = leaf & 0xFFFF_FF00
    elif leaf >= CENTAUR:
        first = u32(CENTAUR)
    basic = find_leaf(s, u32(0), u32(0))
    highest = find_leaf(s, first, u32(0))
    if u64(basic) == 0 or (s.features[FEATURES_SYSTEM] & FEATURE_AMD) != 0:
        return leaf
    if u64(highest) != 0 and leaf <= highest.eax:
        return leaf
    return basic.eax


@native
def xsave_bytes(s, compacted):
    """The size of an image with what is enabled now: by XCR0, in the compacted format by IA32_XSS too (SDM vol. 2)."""
    size = standard_bytes(s.xcr0)
    if compacted:
        size = compacted_bytes(s.xcr0 | s.xss)
    return u32(size)


@native(inline=False)
def cpuid_values(s, leaf: u32, subleaf: u32) -> None:
    """Execute CPUID: EAX, EBX, ECX and EDX with the bits that mirror CR4 and some MSRs."""
    e = find_leaf(s, leaf, subleaf)
    if u64(e) == 0:
        leaf = answering_leaf(s, leaf)
        e = find_leaf(s, leaf, subleaf)
    eax: u32 = 0
    ebx: u32 = 0
    ecx: u32 = 0
    edx: u32 = 0
    if u64(e) != 0:
        eax = e.eax
        ebx = e.ebx
        ecx = e.ecx
        edx = e.edx
    elif leaf == 0xB or leaf == 0x1F:  # no level: EDX is valid all the same (SDM vol. 2, CPUID)
        level = find_leaf(s, leaf, u32(0))
        if u64(level) != 0:
            ecx = subleaf & 0xFF
            edx = level.edx
    if leaf == 1:
        ecx = ecx & ~u32(1 << 27)
        if (s.cr4 & CR4_OSXSAVE) != 0:
            ecx = ecx | (1 << 27)
        if (s.apic_base & 0x800) == 0:
            edx = edx & ~u32(1 << 9)
        if (s.misc_enable & MISC_ENABLE_MONITOR) == 0:
            ecx = ecx & ~u32(1 << 3)
    if leaf == 7 and subleaf == 0:
        ecx = ecx & ~u32(1 << 4)
        if (s.cr4 & CR4_PKE) != 0:
            ecx = ecx | (1 << 4)
        if (s.tsx_ctrl & TSX_CPUID_CLEAR) != 0:
            ebx = ebx & ~u32(HLE_AND_RTM)
    if leaf == 13 and subleaf <= 1 and ebx != 0:
        ebx = xsave_bytes(s, subleaf == 1)
    s.gpr[0] = u64(eax)
    s.gpr[3] = u64(ebx)
    s.gpr[1] = u64(ecx)
    s.gpr[2] = u64(edx)
