"""`info block`: the drives and their images, in QEMU's words."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

UNITS = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")


@dataclass(frozen=True)
class ImageInfo:
    """The image in a drive: sizes in bytes."""

    node_name: str
    filename: str
    format: str
    read_only: bool
    virtual_size: int
    disk_size: int


@dataclass(frozen=True)
class DriveInfo:
    """One drive; `image` is None while a removable one is empty, `attached_to` empty while no device uses it."""

    name: str
    image: ImageInfo | None
    attached_to: str
    removable: bool
    locked: bool
    tray_open: bool
    cache_mode: str


def block_text(drives: Sequence[DriveInfo], *, verbose: bool) -> str:
    """The text of `info block` for these drives."""
    return "\n".join("".join(line + "\n" for line in _drive_lines(drive, verbose)) for drive in drives)


def _drive_lines(drive: DriveInfo, verbose: bool) -> Iterator[str]:
    image = drive.image
    if image is None:
        yield f"{drive.name}: [not inserted]"
    else:
        mode = ", read-only" if image.read_only else ""
        yield f"{drive.name} ({image.node_name}): {image.filename} ({image.format}{mode})"
    if drive.attached_to:
        yield f"    Attached to:      {drive.attached_to}"
    if drive.removable:
        locked, tray = "locked" if drive.locked else "not locked", "open" if drive.tray_open else "closed"
        yield f"    Removable device: {locked}, tray {tray}"
    if image is None:
        return
    yield f"    Cache mode:       {drive.cache_mode}"
    if verbose:
        yield ""
        yield "Images:"
        yield f"image: {image.filename}"
        yield f"file format: {image.format}"
        yield f"virtual size: {size_text(image.virtual_size)} ({image.virtual_size} bytes)"
        yield f"disk size: {size_text(image.disk_size)}"


def size_text(size: int) -> str:
    """Three digits and a binary unit: "10 MiB", "2.86 MiB", "0 B"."""
    value, unit = float(size), 0
    while value >= 1000 and unit + 1 < len(UNITS):
        value, unit = value / 1024, unit + 1
    return f"{value:.3g} {UNITS[unit]}B"
