"""Numbers of the local APIC and the APIC message (Intel SDM vol. 3, ch. 11), and the message itself."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from enum import IntEnum
from typing import NamedTuple

IrqchipLock = AbstractContextManager[object, bool | None]
"""The VM's irqchip lock: a recursive lock (threading.RLock or alike), shared by all chips of a VM."""

Notify = Callable[[], None]

APIC_DEFAULT_PHYS_BASE = 0xFEE0_0000
APIC_MMIO_SIZE = 0x1000

MSR_IA32_APICBASE = 0x1B
APIC_BASE_BSP = 1 << 8
APIC_BASE_EXTD = 1 << 10
APIC_BASE_ENABLE = 1 << 11

MSR_IA32_TSC_DEADLINE = 0x6E0
X2APIC_MSR_FIRST = 0x800
X2APIC_MSR_LAST = 0x8FF

# Register offsets in the xAPIC page; the x2APIC MSR is 0x800 + (offset >> 4).
APIC_ID = 0x20
APIC_LVR = 0x30
APIC_TASKPRI = 0x80
APIC_ARBPRI = 0x90
APIC_PROCPRI = 0xA0
APIC_EOI = 0xB0
APIC_RRR = 0xC0
APIC_LDR = 0xD0
APIC_DFR = 0xE0
APIC_SPIV = 0xF0
APIC_ISR = 0x100
APIC_TMR = 0x180
APIC_IRR = 0x200
APIC_ESR = 0x280
APIC_ICR = 0x300
APIC_ICR2 = 0x310
APIC_LVTT = 0x320
APIC_LVTTHMR = 0x330
APIC_LVTPC = 0x340
APIC_LVT0 = 0x350
APIC_LVT1 = 0x360
APIC_LVTERR = 0x370
APIC_TMICT = 0x380
APIC_TMCCT = 0x390
APIC_TDCR = 0x3E0
APIC_SELF_IPI = 0x3F0

APIC_VERSION = 0x14  # integrated xAPIC of the Pentium 4 and later
APIC_LVR_DIRECTED_EOI = 1 << 24

SPIV_ENABLE = 1 << 8
SPIV_FOCUS_DISABLED = 1 << 9
SPIV_DIRECTED_EOI = 1 << 12

DFR_FLAT = 0xFFFF_FFFF

ESR_SEND_ILLEGAL_VECTOR = 1 << 5
ESR_RECEIVE_ILLEGAL_VECTOR = 1 << 6
ESR_ILLEGAL_REGISTER = 1 << 7

LVT_VECTOR = 0xFF
LVT_MODE = 7 << 8
LVT_SEND_PENDING = 1 << 12
LVT_POLARITY = 1 << 13
LVT_REMOTE_IRR = 1 << 14
LVT_LEVEL = 1 << 15
LVT_MASKED = 1 << 16
LVT_TIMER_PERIODIC = 1 << 17
LVT_TIMER_TSC_DEADLINE = 1 << 18
LVT_TIMER_MODE = 3 << 17

# Index of each local vector table entry; its register is at APIC_LVTT + 16 * index.
(
    TIMER_ENTRY,
    THERMAL_ENTRY,
    PERF_ENTRY,
    LINT0_ENTRY,
    LINT1_ENTRY,
    ERROR_ENTRY,
) = range(6)
NR_LVT_ENTRIES = 6

ICR_LOGICAL = 1 << 11
ICR_BUSY = 1 << 12
ICR_ASSERT = 1 << 14
ICR_LEVEL = 1 << 15
ICR_SHORTHAND_SHIFT = 18

XAPIC_BROADCAST = 0xFF
X2APIC_BROADCAST = 0xFFFF_FFFF

BIT = tuple(1 << n for n in range(256))
"""BIT[vector]: the vector's bit in a 256-bit register. A table, as making a big int costs more than reading one."""


# Delivery modes of ICR, LVT, IOAPIC entries and MSI data; plain ints, for the paths that run at every interrupt.
DM_FIXED, DM_LOWEST, DM_SMI, DM_REMRD, DM_NMI, DM_INIT, DM_STARTUP, DM_EXTINT = range(8)


class Shorthand(IntEnum):
    """Destination shorthands of the ICR."""

    NONE = 0
    SELF = 1
    ALL_INCLUDING_SELF = 2
    ALL_EXCLUDING_SELF = 3


class ApicMessage(NamedTuple):
    """An interrupt on its way to local APICs (struct kvm_lapic_irq)."""

    vector: int
    delivery_mode: int
    dest_id: int
    logical: bool = False
    """Destination mode: logical (LDR/DFR) or physical (APIC id)."""
    level: bool = False
    """Trigger mode: level."""
    asserted: bool = True
    """For level messages: assert or de-assert."""
    shorthand: int = Shorthand.NONE
    redirection_hint: bool = False
    """MSI's hint: deliver to one of the destinations, as lowest priority does."""


class ApicMode(IntEnum):
    """How software reaches the APIC: IA32_APIC_BASE bits 11 (enable) and 10 (x2APIC)."""

    DISABLED = 0
    XAPIC = 1
    X2APIC = 2
