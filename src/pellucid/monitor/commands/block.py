"""Drives and their media: `info block`, query-block, change and eject, in QEMU's words."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pellucid.block import BlockBackend, CacheMode
from pellucid.machine.device import Device
from pellucid.machine.machine import Machine
from pellucid.monitor.command import Filename, Marker, command
from pellucid.monitor.errors import CommandError, DeviceNotFound
from pellucid.monitor.objects import device_path
from pellucid.monitor.session import Session
from pellucid.records import dataclass, field

UNITS = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")


def _named(name: str) -> Any:
    """A member that QMP spells with underlines."""
    return field(default=0, metadata={"qapi": name})


@dataclass(frozen=True)
class ImageInfo:
    """An image: sizes in bytes."""

    filename: str
    format: str
    virtual_size: int
    actual_size: int
    dirty_flag: bool = False


@dataclass(frozen=True)
class BlockdevCacheInfo:
    """How writes are cached; `no_flush` ignores the guest's flushes."""

    writeback: bool
    direct: bool
    no_flush: bool


@dataclass(frozen=True)
class BlockDeviceInfo:
    """What is in a drive."""

    file: str
    node_name: str
    ro: bool
    drv: str
    encrypted: bool
    bps: int
    iops: int
    cache: BlockdevCacheInfo
    write_threshold: int = field(metadata={"qapi": "write_threshold"})
    image: ImageInfo
    backing_file_depth: int = _named("backing_file_depth")
    bps_rd: int = _named("bps_rd")
    bps_wr: int = _named("bps_wr")
    iops_rd: int = _named("iops_rd")
    iops_wr: int = _named("iops_wr")
    detect_zeroes: Literal["off", "on", "unmap"] = field(default="off", metadata={"qapi": "detect_zeroes"})


@dataclass(frozen=True)
class BlockInfo:
    """A drive. `qdev` is the device that has it, `inserted` its medium; `tray_open` is of removable ones."""

    device: str
    type: str
    removable: bool
    locked: bool
    qdev: str | None = None
    inserted: BlockDeviceInfo | None = None
    tray_open: bool | None = field(default=None, metadata={"qapi": "tray_open"})


@command("query-block")
def query_block(session: Session) -> list[BlockInfo]:
    """Every drive, in the order in which they were asked for."""
    return [_info(session.machine, drive.backend) for drive in session.machine.drives]


def _info(machine: Machine, backend: BlockBackend) -> BlockInfo:
    return BlockInfo(
        backend.name,
        "unknown",
        backend.removable,
        backend.locked,
        _user_name(machine, backend.user) if isinstance(backend.user, Device) else None,
        _inserted(backend),
        backend.tray_open if backend.removable else None,
    )


def _user_name(machine: Machine, user: Device) -> str:
    """The user's id of a drive's device, or its path."""
    ident = next((ident for ident, device in machine.peripherals if device is user), "")
    return ident or device_path(machine, user)


def _inserted(backend: BlockBackend) -> BlockDeviceInfo | None:
    node = backend.node
    if node is None:
        return None
    mode = backend.policy.cache
    cache = BlockdevCacheInfo(mode is not CacheMode.WRITETHROUGH, False, mode is CacheMode.UNSAFE)
    image = ImageInfo(node.filename, node.driver, node.size, node.allocated_size())
    return BlockDeviceInfo(
        node.filename, node.node_name, node.read_only, node.driver, False, 0, 0, cache, 0, image
    )


@command(info="block", help="show info of one block device or all block devices", syntax="[-n] [-v] [device]")
def info_block(
    session: Session,
    nodes: Annotated[bool, Marker("flag", "n")] = False,
    verbose: Annotated[bool, Marker("flag", "v")] = False,
    device: str = "",
) -> str:
    """The drives; with -n only nodes that the user has named, of which there are none yet."""
    found = [] if nodes else query_block(session)
    if device:
        found = [info for info in found if info.device == device]
        if not found:
            return f"Device '{device}' not found\n"
    return block_text(found, verbose=verbose)


def block_text(drives: Sequence[BlockInfo], *, verbose: bool) -> str:
    """The text of `info block` for these drives."""
    return "\n".join("".join(line + "\n" for line in _drive_lines(drive, verbose)) for drive in drives)


def _drive_lines(drive: BlockInfo, verbose: bool) -> Iterator[str]:
    medium = drive.inserted
    name = drive.device or drive.qdev
    if medium is None:
        yield f"{name}: [not inserted]"
    else:
        mode = ", read-only" if medium.ro else ""
        yield f"{name} ({medium.node_name}): {medium.file} ({medium.drv}{mode})"
    if drive.qdev:
        yield f"    Attached to:      {drive.qdev}"
    if drive.removable:
        locked, tray = "locked" if drive.locked else "not locked", "open" if drive.tray_open else "closed"
        yield f"    Removable device: {locked}, tray {tray}"
    if medium is None:
        return
    ignored = ", ignore flushes" if medium.cache.no_flush else ""
    yield f"    Cache mode:       {'writeback' if medium.cache.writeback else 'writethrough'}{ignored}"
    if verbose:
        yield ""
        yield "Images:"
        yield f"image: {medium.image.filename}"
        yield f"file format: {medium.image.format}"
        yield f"virtual size: {size_text(medium.image.virtual_size)} ({medium.image.virtual_size} bytes)"
        yield f"disk size: {size_text(medium.image.actual_size)}"


def size_text(size: int) -> str:
    """Three digits and a binary unit: "10 MiB", "2.86 MiB", "0 B"."""
    value, unit = float(size), 0
    while value >= 1000 and unit + 1 < len(UNITS):
        value, unit = value / 1024, unit + 1
    return f"{value:.3g} {UNITS[unit]}B"


@command(hmp="change", help="change a removable medium, optional format", syntax="[-f] device filename [format]")
def change(
    session: Session,
    force: Annotated[bool, Marker("flag", "f")],
    device: str,
    target: Filename,
    format: str | None = None,
) -> None:
    """Put another image into a drive; the old one stays where the new one cannot be had."""
    session.machine.drives.change(device, target, format, force=force)


@command("blockdev-change-medium")
def blockdev_change_medium(
    session: Session,
    filename: str,
    device: str | None = None,
    id: str | None = None,
    format: str | None = None,
    force: bool = False,
) -> None:
    """`change` for programs; the drive by its own name, or by that of the device that has it."""
    session.machine.drives.change(_drive_name(session, device, id), filename, format, force=force)


@command("eject", hmp="eject", help="eject a removable medium (use -f to force it)", syntax="[-f] device")
def eject(
    session: Session,
    force: Annotated[bool, Marker("flag", "f")] = False,
    device: str | None = None,
    id: Annotated[str | None, Marker("")] = None,
) -> None:
    """Take the medium out."""
    session.machine.drives.eject(_drive_name(session, device, id), force=force)


def _drive_name(session: Session, device: str | None, id: str | None) -> str:
    if (device is None) == (id is None):
        raise CommandError("Need exactly one of 'device' and 'id'")
    if device is not None:
        return device
    for drive in session.machine.drives:
        user = drive.backend.user
        if isinstance(user, Device) and id in (_user_name(session.machine, user), device_path(session.machine, user)):
            return drive.options.id
    raise DeviceNotFound(f"Device '{id}' not found")
