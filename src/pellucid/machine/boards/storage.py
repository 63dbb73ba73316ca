"""The IDE and AHCI controllers of the PC boards with the drives on them, as one line of a board each."""

from pellucid.machine.devices.ahci import Ich9Ahci
from pellucid.machine.devices.piix3_ide import IRQS, Piix3Ide
from pellucid.machine.ide.drive import AtaDrive
from pellucid.machine.machine import Machine
from pellucid.machine.part import Part
from pellucid.machine.pci import PciBus


def add_piix3_ide(machine: Machine, bus: PciBus, slot: int, function: int) -> list[AtaDrive]:
    """PIIX3's function with two channels of two drives each. Raises UserError for drives that cannot be had."""
    controller = Piix3Ide(machine.system_io, [machine.gsi(irq) for irq in IRQS])
    _open(machine, buses=2, units=2)
    drives = machine.drives.connect(controller.buses)
    bus.add(slot, function, controller)
    machine.parts.append(Part(controller))
    machine.parts += [Part(part) for part in controller.parts]
    return drives


def add_ahci(machine: Machine, bus: PciBus, slot: int, function: int) -> list[AtaDrive]:
    """ICH9's function with six ports of one drive each. Raises UserError for drives that cannot be had."""
    controller = Ich9Ahci()
    _open(machine, buses=len(controller.ports), units=1)
    drives = machine.drives.connect(controller.ports)
    bus.add(slot, function, controller)
    machine.parts.append(Part(controller))
    machine.parts += [Part(part) for part in controller.parts]
    return drives


def _open(machine: Machine, *, buses: int, units: int) -> None:
    config = machine.config
    machine.drives.open(config.drives, buses=buses, units=units, default_cdrom=config.default_drives)
