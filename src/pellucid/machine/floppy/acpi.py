"""What ACPI says of a floppy controller: _FDE, which drives there are, and each drive's _FDI (ACPI 6.4, 9.8)."""

import struct
from collections.abc import Iterator, Sequence

from pellucid.machine.firmware import aml
from pellucid.machine.floppy.drive import FloppyDrive
from pellucid.machine.floppy.formats import CMOS_TYPES, FORMATS

PLACES, TAPE_UNKNOWN = 4, 2
BIOS_PARAMETERS = (0xAF, 0x02, 0x25, 0x02, 0x12, 0x1B, 0xFF, 0x6C, 0xF6, 0x0F, 0x08)
"""The diskette parameter table of INT 0x1E, as PC firmware has it for 1.44 MB."""


def floppy_aml(drives: Sequence[FloppyDrive], where: aml.Resources) -> bytes:
    """The controller's device with those of its drives in it."""
    there = [drive for drive in drives if CMOS_TYPES[drive.drive_type]]
    ports = aml.io_ports(0x3F2, 4) + aml.io_ports(0x3F7, 1)
    present = [int(any(drive.unit == unit for drive in there)) for unit in range(PLACES)]
    return aml.device(
        "FDC0",
        aml.name("_HID", aml.eisa_id("PNP0700"))
        + aml.name("_CRS", aml.resource_template(ports, aml.irq(where.gsi), aml.dma(2)))
        + b"".join(_drives(there))
        + aml.name("_FDE", aml.buffer(struct.pack("<5I", *present, TAPE_UNKNOWN))),
    )


def _drives(there: Sequence[FloppyDrive]) -> Iterator[bytes]:
    for drive in there:
        formats = [form for form in FORMATS if form.drive == drive.drive_type]
        most = (max(f.tracks for f in formats) - 1, max(f.sectors for f in formats), max(f.heads for f in formats) - 1)
        info = (drive.unit, CMOS_TYPES[drive.drive_type], *most, *BIOS_PARAMETERS)
        yield aml.device(
            "FLP" + "AB"[drive.unit], aml.name("_ADR", drive.unit) + aml.name("_FDI", aml.package(list(info)))
        )
