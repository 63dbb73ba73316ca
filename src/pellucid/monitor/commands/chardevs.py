"""Character devices: which there are, and what is in a ring buffer."""

import base64
import binascii
from typing import Literal

from pellucid.machine.chardev import ChardevEvent, MemoryChardev, SocketChardev
from pellucid.machine.config import CharBackendKind
from pellucid.monitor.command import Line, command
from pellucid.monitor.errors import CommandError, DeviceNotFound
from pellucid.monitor.session import Session
from pellucid.records import dataclass

DataFormat = Literal["utf8", "base64"]


@dataclass(frozen=True)
class ChardevInfo:
    """A character device: its id, and where it leads."""

    label: str
    filename: str
    frontend_open: bool


def _text(found: list[ChardevInfo]) -> str:
    return "".join(f"{entry.label}: filename={entry.filename}\n" for entry in found)


@command("query-chardev", info="chardev", help="show the character devices", text=_text)
def query_chardev(session: Session) -> list[ChardevInfo]:
    """The character devices."""
    named = session.control.streams.named
    return [ChardevInfo(label, chardev.filename, chardev.has_front_end) for label, chardev in named.items()]


@dataclass(frozen=True)
class ChardevBackendInfo:
    """A kind of character device that -chardev takes."""

    name: str


@command("query-chardev-backends")
def query_chardev_backends(session: Session) -> list[ChardevBackendInfo]:
    """The kinds."""
    sockets = (CharBackendKind.UNIX, CharBackendKind.TCP)
    plain = [kind.value for kind in CharBackendKind if kind not in (*sockets, CharBackendKind.NONE)]
    return [ChardevBackendInfo(name) for name in (*plain, "socket") if name != "chardev"]


def _ringbuf(session: Session, device: str) -> MemoryChardev:
    found = session.control.streams.named.get(device)
    if found is None:
        raise CommandError(f"Device '{device}' not found")
    if not isinstance(found, MemoryChardev):
        raise CommandError(f"'{device}' is not a ringbuf device")
    return found


def _shown(text: str) -> str:
    """Readable on a terminal: what is not printable as its code, as QEMU shows it."""
    pieces = []
    for character in text:
        code = ord(character)
        if character == "\\":
            pieces.append("\\\\")
        elif code == 0x7F or (code < 0x20 and character != "\n"):
            pieces.append(f"\\u{code:04X}")
        else:
            pieces.append(character)
    return "".join(pieces) + "\n"


@command("ringbuf-read", hmp="ringbuf_read", help="Read from a ring buffer character device", text=_shown)
def ringbuf_read(session: Session, device: str, size: int, format: DataFormat | None = None) -> str:
    """Take up to `size` of the oldest bytes out of the buffer."""
    chardev = _ringbuf(session, device)
    if size <= 0:
        raise CommandError("size must be greater than zero")
    content = chardev.take(size)
    return base64.b64encode(content).decode() if format == "base64" else content.decode("utf-8", "replace")


@command("ringbuf-write", hmp="ringbuf_write", help="Write to a ring buffer character device")
def ringbuf_write(session: Session, device: str, data: Line, format: DataFormat | None = None) -> None:
    """Put bytes into the buffer; what does not fit pushes the oldest out."""
    chardev = _ringbuf(session, device)
    try:
        content = base64.b64decode(data, validate=True) if format == "base64" else data.encode()
    except binascii.Error:
        raise CommandError("Base64 data is not valid") from None
    chardev.write(content)


@command("chardev-send-break", hmp="chardev-send-break", help="send a break on chardev")
def chardev_send_break(session: Session, id: str) -> None:
    """A serial break to the front end."""
    found = session.control.streams.named.get(id)
    if found is None:
        raise CommandError(f"Chardev '{id}' not found")
    found.signal_event(ChardevEvent.BREAK)


@dataclass(frozen=True)
class YankInstance:
    """A connection that can be cut."""

    type: Literal["chardev"]
    id: str


@command("query-yank", oob=True)
def query_yank(session: Session) -> list[YankInstance]:
    """The connections that `yank` can cut."""
    named = session.control.streams.named
    return [YankInstance("chardev", label) for label, found in named.items() if isinstance(found, SocketChardev)]


@command("yank", oob=True)
def yank(session: Session, instances: list[YankInstance]) -> None:
    """Cut connections, all or none of them."""
    known = query_yank(session)
    for instance in instances:
        if instance not in known:
            raise DeviceNotFound(f"Instance '{instance.type}' '{instance.id}' not found")
    for instance in instances:
        found = session.control.streams.named[instance.id]
        assert isinstance(found, SocketChardev)
        found.cut()
