"""What a local APIC is made with: its features, the vCPU that it tells of events, and a place for a register."""

from typing import Protocol

from pellucid.kvm.irqchip.apicdef import Notify
from pellucid.records import dataclass


@dataclass(frozen=True, slots=True)
class LapicFeatures:
    """What the vCPU's CPUID says of its APIC."""

    x2apic: bool = True
    tsc_deadline: bool = True
    directed_eoi: bool = False
    """Software may suppress EOI broadcasts (SPIV bit 12); needs an IOAPIC with an EOI register, version 0x20."""
    maxphyaddr: int = 46
    """Physical address width in bits: IA32_APIC_BASE bits from here up are reserved."""


class Cell(Protocol):
    """Where one number is kept: its element 0. A list, or memory that others see."""

    def __getitem__(self, index: int, /) -> int: ...
    def __setitem__(self, index: int, value: int, /) -> None: ...


@dataclass(frozen=True, slots=True)
class LapicHooks:
    """What a local APIC tells its vCPU. Called with the irqchip lock held, from any thread; they must not block."""

    notify: Notify
    """An interrupt, INIT or SIPI is there: make KVM_REQ_EVENT and kick the vCPU."""
    nmi: Notify
    """Queue an NMI (`PendingEvents.queue_nmi`), make KVM_REQ_NMI and kick."""
    smi: Notify
    """Queue an SMI, make KVM_REQ_SMI and kick."""
    enabled: Notify = lambda: None
    """Software has enabled the APIC: what was kept back until then may come (KVM_REQ_APF_READY)."""
    collect: Notify = lambda: None
    """Make the vectors that native code of other processors has posted requested ones; on the vCPU's thread."""
