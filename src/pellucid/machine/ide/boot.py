"""What firmware is told of drives: the paths of those with a boot index, and the geometry of disks."""

from collections.abc import Iterable, Sequence

from pellucid.machine.ide.disk import IdeHd
from pellucid.machine.ide.drive import AtaDrive
from pellucid.machine.ide.geometry import Geometry


def boot_devices(drives: Iterable[AtaDrive], controller: str) -> list[str]:
    """Open Firmware paths in the order of the boot indices; `controller` is the part below the root bus."""
    chosen = sorted((drive for drive in drives if drive.bootindex >= 0), key=lambda drive: drive.bootindex)
    return [f"/pci@i0cf8/{controller}/drive@{drive.channel}/disk@{drive.unit}" for drive in chosen]


def disk_geometries(drives: Sequence[AtaDrive]) -> dict[int, Geometry]:
    """The geometries of disks, by channel and unit in one number."""
    return {2 * drive.channel + drive.unit: drive.geometry for drive in drives if isinstance(drive, IdeHd)}
