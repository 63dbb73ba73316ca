"""The IDE and AHCI controllers of the PC boards with the drives on them, as one line of a board each."""

from collections.abc import Iterator, Sequence

from pellucid.machine.devices.ahci import Ich9Ahci
from pellucid.machine.devices.piix3_ide import IRQS, Piix3Ide
from pellucid.machine.drives import IdePlaces
from pellucid.machine.ide.disk import IdeHd
from pellucid.machine.ide.drive import AtaDrive
from pellucid.machine.ide.geometry import LARGE, LBA, NO_TRANSLATION
from pellucid.machine.irq import SharedLine
from pellucid.machine.machine import Machine
from pellucid.machine.part import Part
from pellucid.machine.pci import PciBus
from pellucid.machine.qdev import Lines, QdevNode

TRANSLATIONS = {NO_TRANSLATION: "none", LBA: "lba", LARGE: "large"}


def add_piix3_ide(
    machine: Machine, bus: PciBus, slot: int, function: int, gsi: Sequence[SharedLine]
) -> list[AtaDrive]:
    """PIIX3's function with two channels of two drives each. Raises UserError for drives that cannot be had."""
    controller = Piix3Ide(machine.system_io, [gsi[irq].input() for irq in IRQS])
    return _add(machine, bus, slot, function, controller, controller.buses, units=2)


def add_ahci(machine: Machine, bus: PciBus, slot: int, function: int) -> list[AtaDrive]:
    """ICH9's function with six ports of one drive each. Raises UserError for drives that cannot be had."""
    controller = Ich9Ahci()
    return _add(machine, bus, slot, function, controller, controller.ports, units=1)


def _add(
    machine: Machine,
    bus: PciBus,
    slot: int,
    function: int,
    controller: Piix3Ide | Ich9Ahci,
    places: Sequence[IdePlaces],
    *,
    units: int,
) -> list[AtaDrive]:
    config = machine.config
    machine.drives.open(config.drives, buses=len(places), units=units, default_cdrom=config.default_drives)
    drives = machine.drives.connect(places)
    bus.add(slot, function, controller)
    machine.parts.append(Part(controller))
    machine.parts += [Part(part) for part in controller.parts]
    node = bus.node(controller)
    for channel, place in enumerate(places):
        behind = node.add_bus(place.name, "IDE")
        for drive in drives:
            if drive.channel == channel:
                behind.plug(QdevNode(drive.kind, properties=_properties(drive)))
    return drives


def _properties(drive: AtaDrive) -> Lines:
    """A drive's lines in `info qtree`."""

    def lines() -> Iterator[str]:
        yield f'drive = "{drive.backend.name}"'
        yield 'backend_defaults = "auto"'
        for name, size in (("logical_block", 512), ("physical_block", 512), ("min_io", 0), ("opt_io", 0)):
            yield f"{name}_size = {size} ({size} B)"
        yield "discard_granularity = 512 (512 B)"
        yield 'write-cache = "auto"'
        yield "share-rw = false"
        for name in ("account-invalid", "account-failed", "rerror", "werror"):
            yield f'{name} = "auto"'
        yield f'ver = "{drive.ver}"'
        yield f"wwn = {drive.wwn} ({drive.wwn:#x})"
        yield f'serial = "{drive.names.serial}"'
        yield f'model = "{drive.model}"'
        if isinstance(drive, IdeHd):
            disk = drive.geometry
            numbers = (("cyls", disk.cylinders), ("heads", disk.heads), ("secs", disk.sectors))
            for name, value in (*numbers, ("lcyls", 0), ("lheads", 0), ("lsecs", 0)):
                yield f"{name} = {value} ({value:#x})"
            yield f'bios-chs-trans = "{TRANSLATIONS[disk.translation]}"'
            yield f"rotation_rate = {drive.rotation_rate} ({drive.rotation_rate:#x})"
        yield f"unit = {drive.unit} ({drive.unit:#x})"

    return lines
