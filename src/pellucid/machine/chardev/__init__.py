"""Where a guest's streams of bytes go on the host."""

import os
from pathlib import Path

from pellucid.errors import UserError
from pellucid.machine.chardev.base import Chardev, ChardevEvent, MemoryChardev, NullChardev
from pellucid.machine.chardev.fd import Descriptor, FdChardev
from pellucid.machine.chardev.mux import MuxChardev, MuxPort
from pellucid.machine.chardev.pty import PtyChardev
from pellucid.machine.chardev.socket import Address, SocketChardev
from pellucid.machine.chardev.stdio import StdioChardev
from pellucid.machine.config import CharBackend, CharBackendKind
from pellucid.runtime import MainLoop

__all__ = [
    "Chardev",
    "ChardevEvent",
    "MemoryChardev",
    "MuxChardev",
    "MuxPort",
    "NullChardev",
    "PtyChardev",
    "SocketChardev",
    "StdioChardev",
    "open_chardev",
]


def open_chardev(backend: CharBackend, loop: MainLoop) -> Chardev:
    """The character device that `backend` names. Raises UserError for a file, pipe or address that cannot be had.

    On a terminal that is shared with the monitor Ctrl-C goes to the guest, since Ctrl-A x quits; else it is a signal.
    """
    match backend.kind:
        case CharBackendKind.STDIO:
            return StdioChardev(loop, signals=not backend.mux if backend.signals is None else backend.signals)
        case CharBackendKind.PTY:
            return PtyChardev(loop)
        case CharBackendKind.FILE:
            return _open_file(_path(backend), loop, append=backend.append)
        case CharBackendKind.PIPE:
            return _open_pipe(_path(backend), loop)
        case CharBackendKind.UNIX | CharBackendKind.TCP:
            is_unix = backend.kind is CharBackendKind.UNIX
            address: Address = str(_path(backend)) if is_unix else (backend.host or "localhost", backend.port)
            return SocketChardev(loop, address, server=backend.server, wait=backend.wait, telnet=backend.telnet)
        case CharBackendKind.RINGBUF:
            return MemoryChardev("ringbuf", backend.size)
        case CharBackendKind.CHARDEV:
            raise UserError(f"chardev \"{backend.id}\" not found: name it with -chardev BACKEND,id={backend.id}")
        case CharBackendKind.NULL | CharBackendKind.NONE:
            return NullChardev()


def _path(backend: CharBackend) -> Path:
    if backend.path is None:
        raise UserError(f"character device '{backend.kind.value}' needs a path")
    return backend.path


def _open_file(path: Path, loop: MainLoop, *, append: bool) -> Chardev:
    try:
        mode = os.O_APPEND if append else os.O_TRUNC
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | mode | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    except OSError as error:
        raise UserError(f"cannot write guest output to {path}: {error.strerror}") from None
    return FdChardev(f"file:{path}", loop, None, Descriptor(fd, os.O_WRONLY, own=True))


def _open_pipe(path: Path, loop: MainLoop) -> Chardev:
    """PATH.in and PATH.out when both exist, else PATH both ways, as QEMU takes them; made with mkfifo."""
    split = os.path.exists(f"{path}.in") and os.path.exists(f"{path}.out")
    names = (f"{path}.in", f"{path}.out") if split else (str(path), str(path))
    fds: list[int] = []
    try:
        # Read-write, so that opening waits for nobody and the other program may come and go.
        for name in names:
            fds.append(os.open(name, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        for fd in fds:
            os.close(fd)
        raise UserError(f"cannot open the pipe {error.filename}: {error.strerror}; make it with mkfifo") from None
    source, sink = Descriptor(fds[0], os.O_RDONLY, own=True), Descriptor(fds[1], os.O_WRONLY, own=True)
    return FdChardev(f"pipe:{path}", loop, source, sink)
