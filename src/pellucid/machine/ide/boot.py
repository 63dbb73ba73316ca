"""What firmware is told of drives: the paths of those with a boot index, and the geometry of disks."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from pellucid.machine.ide.disk import IdeHd
from pellucid.machine.ide.drive import AtaDrive
from pellucid.machine.ide.geometry import Geometry
from pellucid.machine.pci import PciBus, PciFunction
from pellucid.records import dataclass

IDE_CLASS, BRIDGE_CLASS = 0x0101, 0x0604


class IdePlaces(Protocol):
    """Where drives are connected: an IDE channel (units 0 and 1) or an AHCI port (unit 0)."""

    name: str

    @property
    def drives(self) -> Sequence[AtaDrive | None]:
        """What is connected, by unit."""
        ...

    def attach(self, unit: int, drive: AtaDrive) -> None:
        """Connect. Raises ValueError when the place is taken or does not exist."""
        ...


@dataclass(frozen=True, eq=False)
class IdeController:
    """A controller and its channels or ports."""

    function: PciFunction
    places: Sequence[IdePlaces]


def boot_devices(controllers: Sequence[IdeController]) -> list[str]:
    """Open Firmware paths of the drives with a boot index, in its order."""
    found = [(drive.bootindex, path) for path, drive in _paths(controllers) if drive.bootindex >= 0]
    return [path for _, path in sorted(found)]


def bios_geometries(controllers: Sequence[IdeController]) -> list[str]:
    """Path, cylinders, heads and sectors of each disk whose user has chosen what the BIOS is to take."""
    return [
        f"{path} {disk.lcyls} {disk.lheads} {disk.lsecs}"
        for path, disk in _paths(controllers)
        if isinstance(disk, IdeHd) and (disk.lcyls or disk.lheads or disk.lsecs)
    ]


def disk_geometries(places: Sequence[IdePlaces]) -> dict[int, Geometry]:
    """The geometries of disks on the first two channels, by channel and unit in one number."""
    return {
        2 * channel + unit: disk.geometry
        for channel, place in enumerate(places[:2])
        for unit, disk in enumerate(place.drives)
        if isinstance(disk, IdeHd)
    }


def _paths(controllers: Sequence[IdeController]) -> Iterator[tuple[str, AtaDrive]]:
    for controller in controllers:
        above = _path(controller.function)
        for channel, place in enumerate(controller.places):
            for unit, drive in enumerate(place.drives):
                if drive is not None:
                    yield f"{above}/drive@{channel}/disk@{unit}", drive


def _path(function: PciFunction) -> str:
    """A function's path: each bridge above it, and itself, by kind and place."""
    bus = function.bus
    assert isinstance(bus, PciBus)
    above = _path(bus.bridge) if isinstance(bus.bridge, PciFunction) else "/pci@i0cf8"
    kind = function.class_code >> 8
    name = {IDE_CLASS: "ide", BRIDGE_CLASS: "pci-bridge"}.get(
        kind, f"pci{function.vendor_id:x},{function.device_id:x}"
    )
    place = f"{function.devfn >> 3:x}" + (f",{function.devfn & 7:x}" if function.devfn & 7 else "")
    return f"{above}/{name}@{place}"
