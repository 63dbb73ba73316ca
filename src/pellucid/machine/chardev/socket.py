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


IAC, SB, SE, WILL, DONT, BREAK, ECHO, BINARY, GO_AHEAD = 255, 250, 240, 251, 254, 243, 1, 0, 3
TELNET_GREETING = bytes((IAC, WILL, ECHO, IAC, WILL, GO_AHEAD, IAC, WILL, BINARY, IAC, 253, BINARY))
"""We echo, nobody waits for a turn, and bytes are bytes: every key comes at once (RFC 854, 856 to 858)."""


class TelnetFilter:
    """Takes telnet's own commands out of a stream."""

    def __init__(self) -> None:
        self._command = bytearray()
        """What has come of a command: IAC, perhaps a verb; a whole subnegotiation is in it by its first two bytes."""
        self._last = 0

    def strip(self, data: bytes) -> tuple[bytes, int]:
        """(the user's bytes, how many breaks there were)."""
        text = bytearray()
        breaks = 0
        for byte in data:
            if len(self._command) == 2 and self._command[1] == SB:
                if byte == SE and self._last == IAC:
                    self._command.clear()
                self._last = byte
            elif len(self._command) == 2:
                self._command.clear()  # The option that a verb was about.
            elif self._command:
                self._command.clear()
                if byte == IAC:
                    text.append(IAC)
                elif byte == BREAK:
                    breaks += 1
                elif WILL <= byte <= DONT or byte == SB:
                    self._command += bytes((IAC, byte))
                    self._last = 0
            elif byte == IAC:
                self._command.append(IAC)
            else:
                text.append(byte)
        return bytes(text), breaks


class SocketChardev(Chardev):
    """One stream over whatever connection there is at the moment. `close` removes a unix server's socket file."""

    def __init__(
        self, loop: MainLoop, address: Address, *, server: bool, wait: bool = False, telnet: bool = False
    ) -> None:
        super().__init__(describe(address))
        self._telnet = TelnetFilter() if telnet else None
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

    @property
    def filename(self) -> str:
        text = self.label.replace("tcp:", "telnet:", 1) if self._telnet else self.label
        text += ",server=on" if self._listener is not None else ""
        return text if self._connection is not None else f"disconnected:{text}"

    @property
    def connected(self) -> bool:
        return self._connection is not None

    def cut(self) -> None:
        """End the connection there is, as if the other end had."""
        if self._connection is not None:
            self._hung_up()

    def deliver(self, data: bytes) -> None:
        if self._telnet is None:
            super().deliver(data)
            return
        text, breaks = self._telnet.strip(data)
        for _ in range(breaks):
            self.signal_event(ChardevEvent.BREAK)
        if text:
            super().deliver(text)

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
        if self._telnet is not None:
            self._telnet = TelnetFilter()
            self._output.write(TELNET_GREETING)
        self.signal_event(ChardevEvent.OPENED)
        if self._input is None:  # The front end would not have this client.
            return
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
