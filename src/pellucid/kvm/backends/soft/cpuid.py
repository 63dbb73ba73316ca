"""CPUID of a soft vCPU: the table that native code answers from, and what a feature permits."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pellucid.cpu.cpuid import CPUID_HASH_BITS, leaf_hash
from pellucid.cpu.cpuid import CpuidEntry as NativeEntry
from pellucid.cpu.models.counters import VERSION
from pellucid.cpu.models.leaves import AMD_VENDORS
from pellucid.cpu.state import (
    CET_SHADOW_BITS, CET_TRACK_BITS, CR4_CET, EFER_FFXSR, FEATURE_AMD, FEATURE_BUS_LOCK, FEATURE_ERROR_POINTERS,
    FEATURE_LA57, FEATURE_LAM, FEATURE_PDPE1GB, FEATURE_PSE36, FEATURES_SYSTEM, MISC_ENABLE_MONITOR)
from pellucid.engine.arrays import Array
from pellucid.isa.features import HYPERCALL, shown
from pellucid.kvm.backends.soft.msrs import AMD_MSRS, FEATURES, SPEC_CTRL_FEATURES
from pellucid.kvm.cpuid import KVM_CPUID_SIGNATURE
from pellucid.kvm.irqchip.lapic_hooks import LapicFeatures
from pellucid.kvm.regs import CpuidEntry
from pellucid.native import u32

if TYPE_CHECKING:
    from pellucid.kvm.backends.soft.vcpu import SoftVcpu

CPUID_APIC_BASE_BITS = 46
# CR4 bits by the CPUID bit that allows them: (leaf, subleaf, register, bit).
CR4_FEATURES = {0: (1, 0, "edx", 1), 1: (1, 0, "edx", 1), 2: (1, 0, "edx", 4), 3: (1, 0, "edx", 2), 4: (1, 0, "edx", 3),
                5: (1, 0, "edx", 6), 6: (1, 0, "edx", 7), 7: (1, 0, "edx", 13), 9: (1, 0, "edx", 24),
                10: (1, 0, "edx", 25), 11: (7, 0, "ecx", 2), 12: (7, 0, "ecx", 16), 13: (1, 0, "ecx", 5),
                16: (7, 0, "ebx", 0), 17: (1, 0, "ecx", 17), 18: (1, 0, "ecx", 26), 20: (7, 0, "ebx", 7),
                21: (7, 0, "ebx", 20), 22: (7, 0, "ecx", 3), 24: (7, 0, "ecx", 31),
                28: (7, 1, "eax", 26)}
CR4_PCE = 1 << 8

_AMD = {struct.unpack("<III", vendor.encode()) for vendor in AMD_VENDORS}


def show_counters(vcpu: SoftVcpu, entries: Sequence[CpuidEntry]) -> None:
    """The performance counters that leaf 0xA tells of (SDM vol. 2, CPUID), where it says version 2."""
    leaf = next((e for e in entries if e.function == 0xA and e.eax & 0xFF >= VERSION), None)
    rtm = any(e.function == 7 and not e.index and e.ebx >> 11 & 1 for e in entries)
    vcpu.pmu.show(*((leaf.eax >> 8 & 0xFF, leaf.edx & 0x1F) if leaf is not None else (0, 0)), rtm)


def install_cpuid(vcpu: SoftVcpu, entries: Sequence[CpuidEntry]) -> None:
    """Make `entries` what CPUID answers, and derive the control-register bits and APIC features they allow."""
    _write_table(vcpu, entries)
    state = vcpu.state

    def has(leaf: int, subleaf: int, register: str, bit: int) -> bool:
        found = next((e for e in entries if e.function == leaf and (e.index or 0) == subleaf), None)
        return found is not None and bool(getattr(found, register) >> bit & 1)

    amd = any(e.function == 0 and (e.ebx, e.edx, e.ecx) in _AMD for e in entries)
    shstk, ibt = has(7, 0, "ecx", 7), has(7, 0, "edx", 20)
    state.cet_allowed = CET_SHADOW_BITS * shstk | CET_TRACK_BITS * ibt
    state.cr4_allowed = (CR4_PCE | CR4_CET * (shstk or ibt)
                         | sum(1 << bit for bit, where in CR4_FEATURES.items() if has(*where)))
    state.efer_allowed = (int(has(0x8000_0001, 0, "edx", 11)) | (0x500 if has(0x8000_0001, 0, "edx", 29) else 0)
                          | (0x800 if has(0x8000_0001, 0, "edx", 20) else 0)
                          | EFER_FFXSR * has(0x8000_0001, 0, "edx", 25))
    state.xcr0_allowed = next((e.eax | e.edx << 32 for e in entries if e.function == 0xD and not e.index), 1)
    state.xss_allowed = next((e.ecx | e.edx << 32 for e in entries if (e.function, e.index) == (0xD, 1)), 0)
    sizes = next((e for e in entries if e.function == 0x8000_0008), None)
    state.maxphyaddr = sizes.eax & 0xFF if sizes else 36
    state.features[FEATURES_SYSTEM] = (FEATURE_PDPE1GB * has(0x8000_0001, 0, "edx", 26)
                                       | FEATURE_PSE36 * has(1, 0, "edx", 17)
                                       | FEATURE_LA57 * has(7, 0, "ecx", 16)
                                       | FEATURE_LAM * has(7, 1, "eax", 26)
                                       | FEATURE_BUS_LOCK * has(7, 0, "ecx", 24)
                                       | FEATURE_AMD * amd
                                       | FEATURE_ERROR_POINTERS * (not amd or has(0x8000_0008, 0, "ebx", 2)))
    hypercalls = HYPERCALL * any(e.function == KVM_CPUID_SIGNATURE for e in entries)
    vcpu.processor.show_features(shown(lambda place, bit: has(*place, bit)) | hypercalls)
    state.misc_enable = state.misc_enable & ~MISC_ENABLE_MONITOR | MISC_ENABLE_MONITOR * has(1, 0, "ecx", 3)
    vcpu.processor.flush_tlb()
    absent = frozenset(index for index, bits in FEATURES.items() if not any(has(*bit) for bit in bits))
    vcpu.msrs.absent = absent | (frozenset() if amd else AMD_MSRS)
    vcpu.msrs.has_transactions = has(7, 0, "ebx", 11)
    vcpu.msrs.spec_ctrl_allowed = sum(
        bit for bit, places in SPEC_CTRL_FEATURES.items() if any(has(*place) for place in places))
    show_counters(vcpu, entries)
    vcpu.lapic.set_features(LapicFeatures(x2apic=has(1, 0, "ecx", 21), tsc_deadline=has(1, 0, "ecx", 24),
                                          maxphyaddr=state.maxphyaddr))


def _write_table(vcpu: SoftVcpu, entries: Sequence[CpuidEntry]) -> None:
    """The table that `find_leaf` searches."""
    by_hash = sorted((int(leaf_hash(u32(entry.function))), place) for place, entry in enumerate(entries))
    table = Array(max(1, len(entries)) * NativeEntry.size)
    for i, (_, place) in enumerate(by_hash):
        entry, native = entries[place], NativeEntry.view(table.address + i * NativeEntry.size)
        native.leaf, native.subleaf, native.indexed = entry.function, entry.index or 0, int(entry.index is not None)
        native.eax, native.ebx, native.ecx, native.edx = entry.eax, entry.ebx, entry.ecx, entry.edx
    vcpu.cpuid_table = table
    state = vcpu.state
    state.cpuid, state.cpuid_count = table.address, len(entries)
    for value in range((1 << CPUID_HASH_BITS) + 1):
        state.cpuid_first[value] = sum(found < value for found, _ in by_hash)
