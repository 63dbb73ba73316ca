"""The floppy controller of the PC boards with its drives, as one line of the board."""

from collections.abc import Sequence

from pellucid.machine.devices.dma8237 import Dma8237
from pellucid.machine.devices.fdc import Fdc
from pellucid.machine.devices.rtc import Rtc
from pellucid.machine.floppy.core import DRIVES
from pellucid.machine.floppy.drive import FloppyDrive
from pellucid.machine.floppy.formats import CMOS_TYPES, LARGEST_DRIVE
from pellucid.machine.irq import IrqLine
from pellucid.machine.machine import Machine
from pellucid.machine.part import Part
from pellucid.machine.qdev import QdevBus, QdevNode, fixed

PORTS, FLOPPY_GSI, DMA_CHANNEL = (0x3F1, 0x3F7), 6, 2
FIRST_PORT = 0x3F0
"""Where QEMU says that the controller is; it answers from the next port on."""
CMOS_DRIVES, CMOS_EQUIPMENT = 0x10, 0x14
EQUIPMENT_DRIVES, EQUIPMENT_TWO = 0x01, 0x40


def add_floppy(machine: Machine, isa: QdevBus, line: IrqLine, *, always: bool) -> None:
    """The controller, two places for drives, and what CMOS RAM says of them. Wants DMA and RTC to be there.

    always: the board has a controller and a drive, whether or not the user asked for one.
    """
    config = machine.config
    if not always and all(drive.interface != "floppy" for drive in config.drives):
        return
    drives = machine.drives.open_floppies(config.drives, DRIVES, default=always and config.wants_default("floppy"))
    controller = Fdc(drives, line, machine.device(Dma8237).channel(DMA_CHANNEL), machine.device_clock)
    machine.add(Part(controller, ports=PORTS, gsi=FLOPPY_GSI))
    node = isa.plug(QdevNode("isa-fdc", properties=fixed(
        ("iobase", f"{FIRST_PORT} ({FIRST_PORT:#x})"), ("irq", f"{FLOPPY_GSI} ({FLOPPY_GSI:#x})"),
        ("dma", f"{DMA_CHANNEL} ({DMA_CHANNEL:#x})"), ("fdtypeA", '"auto"'), ("fdtypeB", '"auto"'),
        ("fallback", f'"{LARGEST_DRIVE}"'),
    )))  # fmt: skip
    bus = node.add_bus("floppy-bus.0", "floppy-bus")
    for drive in drives:
        if drive.backend is not None:
            machine.parts.append(Part(drive))
            bus.plug(drive.qdev_node())
    bus.host = controller

    def tell() -> None:
        _tell_cmos(machine.device(Rtc), drives)

    machine.drives.on_plugged.append(tell)
    tell()


def _tell_cmos(rtc: Rtc, drives: Sequence[FloppyDrive]) -> None:
    """The drives' types, and in the equipment byte how many there are."""
    types = [CMOS_TYPES[drive.drive_type] for drive in drives]
    there = sum(type != 0 for type in types)
    rtc.set_cmos(CMOS_DRIVES, types[0] << 4 | types[1])
    bits = (EQUIPMENT_DRIVES if there else 0) | (EQUIPMENT_TWO if there == len(types) else 0)
    rtc.set_cmos(CMOS_EQUIPMENT, rtc.cmos[CMOS_EQUIPMENT] | bits)
