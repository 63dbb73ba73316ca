"""The IDE and AHCI controllers of the PC boards with the drives on them, as one line of a board each."""

from collections.abc import Sequence

from pellucid.machine.devices.ahci import Ich9Ahci
from pellucid.machine.devices.piix3_ide import IRQS, Piix3Ide
from pellucid.machine.drives import add_controller
from pellucid.machine.irq import SharedLine
from pellucid.machine.machine import Machine
from pellucid.machine.part import Part
from pellucid.machine.pci import PciBus


def add_piix3_ide(machine: Machine, bus: PciBus, slot: int, function: int, gsi: Sequence[SharedLine]) -> None:
    """PIIX3's function with two channels of two drives each. Raises UserError for drives that cannot be had."""
    _add(machine, bus, slot, function, Piix3Ide(machine.system_io, [gsi[irq].input() for irq in IRQS]))


def add_ahci(machine: Machine, bus: PciBus, slot: int, function: int) -> None:
    """ICH9's function with six ports of one drive each. Raises UserError for drives that cannot be had."""
    _add(machine, bus, slot, function, Ich9Ahci())


def _add(machine: Machine, bus: PciBus, slot: int, function: int, controller: Piix3Ide | Ich9Ahci) -> None:
    config, places = machine.config, controller.places
    units = len(places[0].drives)
    default_cdrom = config.wants_default("ide-cd", "ide-hd")
    machine.drives.open(config.drives, buses=len(places), units=units, default_cdrom=default_cdrom)
    bus.add(slot, function, controller)
    buses = add_controller(machine.drives, bus.node(controller), controller, places)
    for channel, drive in machine.drives.connect(places):
        buses[channel].plug(drive.qdev_node())
    machine.parts.append(Part(controller))
    machine.parts += [Part(part) for part in controller.parts]
