"""Multiple APIC description table (ACPI 6.3, 5.2.12): processors, the I/O APIC, interrupts wired unlike ISA's."""

import struct
from collections.abc import Sequence

from pellucid.records import dataclass

LEGACY_PICS_PRESENT = 1
ALL_PROCESSORS, ALL_PROCESSORS_X2APIC = 0xFF, 0xFFFF_FFFF
LAST_XAPIC_ID = 254
LAPIC_ADDRESS, IOAPIC_ADDRESS = 0xFEE0_0000, 0xFEC0_0000
ENABLED = 1
CONFORMS, EDGE_HIGH, LEVEL_HIGH = 0, 0b01_01, 0b11_01
"""Flags of an override (5.2.12.5): polarity and trigger mode; 0 is what the bus has."""
NMI_INPUT = 1


@dataclass(frozen=True)
class InterruptOverride:
    """An ISA interrupt that is wired to another global one, or not as ISA's are."""

    isa_irq: int
    gsi: int
    flags: int = CONFORMS


def processor_entry(uid: int, apic_id: int, flags: int = ENABLED) -> bytes:
    """A processor: as a local APIC up to id 254, as a local x2APIC above."""
    if apic_id <= LAST_XAPIC_ID:
        return struct.pack("<BBBBI", 0, 8, uid & 0xFF, apic_id, flags)
    return struct.pack("<BBHIII", 9, 16, 0, apic_id, flags, uid)


def madt_body(
    apic_ids: Sequence[int],
    overrides: Sequence[InterruptOverride],
    *,
    plugged: int | None = None,
    has_pics: bool = True,
) -> bytes:
    """The table without its header. NMI comes to LINT1 of every processor.

    The first `plugged` places have a processor (None: all); to the others one may come.
    """
    there = len(apic_ids) if plugged is None else plugged
    entries = [struct.pack("<II", LAPIC_ADDRESS, LEGACY_PICS_PRESENT if has_pics else 0)]
    entries += [processor_entry(uid, apic_id, ENABLED if uid < there else 0) for uid, apic_id in enumerate(apic_ids)]
    entries.append(struct.pack("<BBBBII", 1, 12, 0, 0, IOAPIC_ADDRESS, 0))
    for override in overrides:
        entries.append(struct.pack("<BBBBIH", 2, 10, 0, override.isa_irq, override.gsi, override.flags))
    entries.append(struct.pack("<BBBHB", 4, 6, ALL_PROCESSORS, 0, NMI_INPUT))
    if max(apic_ids) > LAST_XAPIC_ID:
        entries.append(struct.pack("<BBHIB3x", 10, 12, 0, ALL_PROCESSORS_X2APIC, NMI_INPUT))
    return b"".join(entries)
