"""A drive as the user asks for it (`-drive`), and the opening of its image."""

import os
import sys
from collections.abc import Callable

from pellucid.block.backend import Policy
from pellucid.block.file import FileNode
from pellucid.block.locks import FOR_READING, FOR_WRITING, UNATTACHED, ImageLocked
from pellucid.block.node import BlockNode
from pellucid.block.overlay import TemporaryOverlay
from pellucid.block.probe import BUILT, PROBE_SIZE, probe
from pellucid.block.raw import RawNode
from pellucid.errors import NotBuiltError, UserError
from pellucid.records import dataclass, field, replace

PROTOCOLS_NOT_BUILT = """
blkdebug blklogwrites blkverify ftp ftps fat gluster http https iscsi json nbd nfs nvme quorum rbd replication ssh vvfat
""".split()
"""What may stand before a colon in place of a file's name in QEMU."""


@dataclass(frozen=True)
class DriveOptions:
    """One drive. `option` is how the user asked for it, for messages.

    interface: "ide", "floppy" or "none"; bus, unit: its place, None for the first free one; index: both in one number.
    media: "disk" or "cdrom". format: None for a guess. file: None for an empty removable drive.
    """

    option: str
    file: str | None = None
    interface: str = "ide"
    bus: int | None = None
    unit: int | None = None
    index: int | None = None
    media: str = "disk"
    format: str | None = None
    snapshot: bool = False
    read_only: bool = False
    id: str = ""
    policy: Policy = field(default_factory=Policy)

    @property
    def is_cdrom(self) -> bool:
        """Whether the drive's media can only be read."""
        return self.media == "cdrom" and self.interface != "floppy"

    @property
    def is_removable(self) -> bool:
        """Whether the drive can be empty."""
        return self.is_cdrom or self.interface == "floppy"


def warn(text: str) -> None:
    """A line for the user that stops nothing."""
    print(f"pellucid: {text}", file=sys.stderr, flush=True)


def open_image(options: DriveOptions, *, attached: bool = True, tell: Callable[[str], None] = warn) -> BlockNode:
    """The node on top of the image of a drive. Raises UserError or NotBuiltError with what to do.

    attached: a device is to use it; else others may still write to it.
    """
    name = _file_name(options)
    read_only = options.read_only or options.is_cdrom
    below_read_only = read_only or options.snapshot
    permissions = (FOR_READING if below_read_only else FOR_WRITING) if attached else UNATTACHED
    where = f"{options.option}: "
    try:
        file = FileNode(name, read_only=below_read_only, permissions=permissions)
    except ImageLocked as error:
        raise UserError(
            f'{where}Failed to get {error.lock} lock. Is another process using the image [{name}]? '
            "Stop it, or use snapshot=on"
        ) from error
    except OSError as error:
        raise UserError(f"{where}Could not open '{name}': {_reason(error, below_read_only)}") from error
    try:
        node: BlockNode = _format_node(options, file, tell)
        return TemporaryOverlay(node) if options.snapshot and not read_only else node
    except OSError as error:
        file.close()
        raise UserError(f"{where}Could not read '{name}': {error.strerror}") from error
    except (UserError, NotBuiltError):
        file.close()
        raise


def attach(node: BlockNode) -> None:
    """A device begins to use an image that was opened for nobody. Raises ImageLocked."""
    for child in node.children.values():
        attach(child)
    if isinstance(node, FileNode):
        node.relock(FOR_READING if node.read_only else FOR_WRITING)


def _file_name(options: DriveOptions) -> str:
    if not options.file:
        raise UserError(f'{options.option}: A block device must be specified for "file": give file=PATH')
    protocol, colon, rest = options.file.partition(":")
    if colon and protocol in PROTOCOLS_NOT_BUILT:
        raise NotBuiltError(f"{options.option}: the protocol {protocol}: is not built yet: give the path of a file")
    return rest if colon and protocol in ("file", "host_device") else options.file


def _reason(error: OSError, read_only: bool) -> str:
    text = error.strerror or os.strerror(error.errno or 0)
    if isinstance(error, PermissionError) and not read_only:
        return f"{text}: change its permissions, or add readonly=on (a CD) or snapshot=on (a disk)"
    return f"{text}: check the path" if isinstance(error, FileNotFoundError) else text


def _format_node(options: DriveOptions, file: FileNode, tell: Callable[[str], None]) -> BlockNode:
    header = bytearray(min(PROBE_SIZE, file.size))
    if header:
        file.read(0, [memoryview(header)])
    name = options.format or probe(bytes(header))
    if name not in BUILT:
        convert = f"convert it: qemu-img convert -O raw {file.filename} NEW"
        raise NotBuiltError(f"{options.option}: the image format {name} is not built yet: {convert}")
    probed = options.format is None and not options.is_cdrom
    if probed and not file.read_only:
        tell(
            f"WARNING: Image format was not specified for '{file.filename}' and probing guessed raw: "
            "write operations on block 0 will be restricted. Add format=raw to remove the restrictions."
        )
    return RawNode(file, probed=probed)


def medium(options: DriveOptions, file: str, format: str | None, *, read_only: bool) -> DriveOptions:
    """The options of another medium in the same drive (`change`)."""
    return replace(options, option=f"change {options.id}", file=file, format=format, read_only=read_only)
