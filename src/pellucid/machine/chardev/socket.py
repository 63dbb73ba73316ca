"""A unix or TCP socket (`-serial unix:PATH,server=on,wait=off`, `-serial tcp:HOST:PORT,...`).

A server takes one client at a time; while there is none, output is dropped, as on a serial line with no cable. When a
client goes the server listens again. `wait=on` (QEMU's default for a server) waits for the first client before the
guest starts.
"""

import contextlib
import os
import socket
import stat
from collections.abc import Callable
from typing import Any

from pellucid.errors import UserError
from pellucid.machine.chardev.base import Chardev, ChardevEvent
from pellucid.machine.chardev.fd import Descriptor, InputWatch, OutputQueue
from pellucid.runtime import MainLoop

Address = str | tuple[str, int]
"""A unix socket's path, or a TCP host and port."""


class SocketChardev(Chardev):
    """One stream over whatever connection there is at the moment. `close` removes a unix server's socket file."""

    def __init__(self, loop: MainLoop, address: Address, *, server: bool, wait: bool = False) -> None:
        super().__init__(describe(address))
        self._loop = loop
        self._address = address
        self._listener: socket.socket | None = None
        self._connection: socket.socket | None = None
        self._source: Descriptor | None = None
        self._input: InputWatch | None = None
        self._output: OutputQueue | None = None
        if not server:
            self._connected(_reach(address))
        else:
            self._listener = _listen(address)
            if wait:
                self._connected(self._listener.accept()[0])
            else:
                self._listen_again()

    @property
    def port(self) -> int:
        """The TCP port listened on, which the system chose when 0 was asked for."""
        assert self._listener is not None
        name = self._listener.getsockname()
        return int(name[1])

    def write(self, data: bytes) -> int:
        return self._output.write(data) if self._output else len(data)

    def accept_input(self) -> None:
        if self._input:
            self._input.update()

    def close(self) -> None:
        self._disconnect()
        if self._listener is not None:
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None
            if isinstance(self._address, str):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._address)

    def _listen_again(self) -> None:
        assert self._listener is not None
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # The client went away again before it was served.
        self._loop.remove_reader(self._listener.fileno())
        self._connected(connection)

    def _connected(self, connection: socket.socket) -> None:
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = connection
        self._source = Descriptor(connection.fileno(), os.O_RDWR, own=True)
        self._output = OutputQueue(self.label, self._loop, connection.fileno(), self._room_again)
        self._input = InputWatch(self._loop, self._source, self, self._hung_up)
        self.signal_event(ChardevEvent.OPENED)
        self._input.update()

    def _room_again(self) -> None:
        self._writable()

    def _hung_up(self) -> None:
        self._disconnect()
        self.signal_event(ChardevEvent.CLOSED)
        self._writable()  # A front end that waited for this client need not wait any longer.
        if self._listener is not None:
            self._listen_again()

    def _disconnect(self) -> None:
        if self._connection is None:
            return
        assert self._input is not None and self._output is not None
        self._input.close()
        self._output.close()
        self._connection.close()
        self._connection = self._source = self._input = self._output = None


def describe(address: Address) -> str:
    """The address as an option writes it."""
    return f"unix:{address}" if isinstance(address, str) else f"tcp:{address[0]}:{address[1]}"


def _listen(address: Address) -> socket.socket:
    if isinstance(address, str):
        with contextlib.suppress(FileNotFoundError):
            # A socket file left by a process that was killed would be in the way; anything else there is kept.
            if stat.S_ISSOCK(os.stat(address).st_mode) and not _alive(address):
                os.unlink(address)

    def listen(made: socket.socket, at: Any) -> None:
        made.bind(at)
        made.listen(1)

    return _open(address, "listen on", listen)


def _reach(address: Address) -> socket.socket:
    return _open(address, "connect to", socket.socket.connect)


def _open(address: Address, what: str, use: Callable[[socket.socket, Any], None]) -> socket.socket:
    """A socket on which `use` has succeeded. Raises UserError."""
    made: socket.socket | None = None
    try:
        if isinstance(address, str):
            made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            use(made, address)
        else:
            family, kind, protocol, _, sockaddr = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0]
            made = socket.socket(family, kind, protocol)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            use(made, sockaddr)
    except OSError as error:
        if made is not None:
            made.close()
        raise UserError(f"cannot {what} {describe(address)}: {error.strerror or error}") from None
    return made


def _alive(path: str) -> bool:
    """Whether somebody listens on the socket file."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(path) == 0
