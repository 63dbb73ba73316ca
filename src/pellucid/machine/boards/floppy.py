"""The floppy controller of the board `pc` with its drives, as one line of the board."""

from pellucid.machine.devices.dma8237 import Dma8237
from pellucid.machine.devices.fdc import Fdc
from pellucid.machine.devices.rtc import Rtc
from pellucid.machine.floppy.core import DRIVES
from pellucid.machine.floppy.drive import FloppyDrive
from pellucid.machine.floppy.formats import CMOS_TYPES
from pellucid.machine.irq import IrqLine
from pellucid.machine.machine import Machine
from pellucid.machine.part import Part

PORTS, IRQ, DMA_CHANNEL = (0x3F1, 0x3F7), 6, 2
CMOS_DRIVES, CMOS_EQUIPMENT = 0x10, 0x14
EQUIPMENT_DRIVES, EQUIPMENT_TWO = 0x01, 0x40


def add_floppy(machine: Machine, line: IrqLine) -> Fdc:
    """The controller, two places for drives, and what CMOS RAM says of them. Wants DMA and RTC to be there."""
    config = machine.config
    drives = machine.drives.open_floppies(config.drives, DRIVES, default=config.default_drives)
    controller = Fdc(drives, line, machine.device(Dma8237).channel(DMA_CHANNEL), machine.device_clock)
    machine.add(Part(controller, ports=PORTS, gsi=IRQ))
    machine.parts += [Part(drive) for drive in drives if drive.backend is not None]
    tell_cmos(machine.device(Rtc), drives)
    return controller


def tell_cmos(rtc: Rtc, drives: list[FloppyDrive]) -> None:
    """The drives' types, and in the equipment byte how many there are."""
    types = [CMOS_TYPES[drive.drive_type] for drive in drives]
    there = sum(type != 0 for type in types)
    rtc.set_cmos(CMOS_DRIVES, types[0] << 4 | types[1])
    bits = (EQUIPMENT_DRIVES if there else 0) | (EQUIPMENT_TWO if there == 2 else 0)
    rtc.set_cmos(CMOS_EQUIPMENT, rtc.cmos[CMOS_EQUIPMENT] | bits)
