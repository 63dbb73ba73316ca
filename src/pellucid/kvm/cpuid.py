"""The CPUID leaves by which a guest knows KVM: signature 0x40000000, features 0x40000001, frequencies 0x40000010.

Feature bits are KVM's. A bit is set only for what this hypervisor does; the board's CPU model adds these two leaves.
"""

from enum import IntFlag

from pellucid.kvm.regs import CpuidEntry

KVM_CPUID_SIGNATURE = 0x4000_0000
KVM_CPUID_FEATURES = 0x4000_0001
TIMING_LEAF = 0x4000_0010
"""VMware's, which QEMU shows too: EAX the TSC's and EBX the local APIC timer's frequency, in kHz."""
APIC_BUS_HZ = 1_000_000_000
KVM_SIGNATURE = b"KVMKVMKVM\0\0\0"

HYPERVISOR_BIT = 1 << 31
"""CPUID.1:ECX bit that tells a guest to look at leaf 0x40000000."""


class KvmFeature(IntFlag):
    """EAX of the features leaf (KVM_FEATURE_*)."""

    CLOCKSOURCE = 1 << 0
    NOP_IO_DELAY = 1 << 1
    MMU_OP = 1 << 2
    CLOCKSOURCE2 = 1 << 3
    ASYNC_PF = 1 << 4
    STEAL_TIME = 1 << 5
    PV_EOI = 1 << 6
    PV_UNHALT = 1 << 7
    PV_TLB_FLUSH = 1 << 9
    ASYNC_PF_VMEXIT = 1 << 10
    PV_SEND_IPI = 1 << 11
    POLL_CONTROL = 1 << 12
    PV_SCHED_YIELD = 1 << 13
    ASYNC_PF_INT = 1 << 14
    MSI_EXT_DEST_ID = 1 << 15
    HC_MAP_GPA_RANGE = 1 << 16
    MIGRATION_CONTROL = 1 << 17
    CLOCKSOURCE_STABLE_BIT = 1 << 24


SUPPORTED_FEATURES = (
    KvmFeature.CLOCKSOURCE | KvmFeature.CLOCKSOURCE2 | KvmFeature.CLOCKSOURCE_STABLE_BIT | KvmFeature.NOP_IO_DELAY
    | KvmFeature.STEAL_TIME | KvmFeature.PV_EOI | KvmFeature.PV_UNHALT | KvmFeature.PV_SEND_IPI
    | KvmFeature.PV_SCHED_YIELD | KvmFeature.ASYNC_PF | KvmFeature.ASYNC_PF_INT
    | KvmFeature.PV_TLB_FLUSH
)
"""What is built."""


def kvm_leaves(features: KvmFeature = SUPPORTED_FEATURES, tsc_hz: int = 0) -> list[CpuidEntry]:
    """The leaves, announcing `features` and, where `tsc_hz` is not 0, frequencies.

    `ValueError` for a feature that is not built.
    """
    if features & ~SUPPORTED_FEATURES:
        raise ValueError(f"not built: {features & ~SUPPORTED_FEATURES!r}")
    ebx, ecx, edx = (int.from_bytes(KVM_SIGNATURE[at : at + 4], "little") for at in (0, 4, 8))
    leaves = [
        CpuidEntry(KVM_CPUID_SIGNATURE, eax=TIMING_LEAF if tsc_hz else KVM_CPUID_FEATURES, ebx=ebx, ecx=ecx, edx=edx),
        CpuidEntry(KVM_CPUID_FEATURES, eax=int(features)),
    ]
    if tsc_hz:
        leaves.append(CpuidEntry(TIMING_LEAF, eax=tsc_hz // 1000, ebx=APIC_BUS_HZ // 1000))
    return leaves
