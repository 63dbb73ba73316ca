"""One chardev shared by several front ends, as `-serial mon:stdio` does with a serial port and the monitor.

Output of all of them goes through; input goes to the one in focus. Ctrl-A, or another key by choice, is the
escape: h help, x quit, b serial break, c next front end, the key itself a plain one.
"""

from collections.abc import Callable

from pellucid.machine.chardev.base import Chardev, ChardevEvent
from pellucid.machine.config import ESCAPE

HELP = (
    b"\r\n"
    b"%(key)b h    print this help\r\n"
    b"%(key)b x    quit\r\n"
    b"%(key)b b    send break (magic sysrq)\r\n"
    b"%(key)b c    switch between console and monitor\r\n"
    b"%(key)b %(key)b  send %(key)b\r\n"
)
KEPT = 4096
"""Bytes of input kept for a front end that has no room at the moment."""


class MuxPort(Chardev):
    """What one front end of a mux is connected to. `focused` is called with True and False as the focus moves."""

    def __init__(self, mux: "MuxChardev", label: str, focused: Callable[[bool], None] | None) -> None:
        super().__init__(label)
        self._mux = mux
        self.focused = focused
        self.waiting = bytearray()

    def write(self, data: bytes) -> int:
        return self._mux.write_through(data)

    def accept_input(self) -> None:
        while self.waiting and (room := self.room()) > 0:
            piece = bytes(self.waiting[:room])
            del self.waiting[:room]
            self.deliver(piece)
        self._mux.accept_input()

    def close(self) -> None:
        self._mux.detach(self)

    def has_room(self) -> None:
        """The shared chardev takes output again."""
        self._writable()


class MuxChardev:
    """The sharing of `backend`. `request_quit` is what Ctrl-A x does; `escape` the byte in place of Ctrl-A."""

    def __init__(self, backend: Chardev, request_quit: Callable[[], None], escape: int = ESCAPE) -> None:
        self._escape = escape
        self.backend = backend
        self._request_quit = request_quit
        self._ports: list[MuxPort] = []
        self._focus = 0
        self._escaped = False
        backend.set_receiver(self._receive, self._room, writable=self._writable, event=self._event)

    def port(self, label: str, focused: Callable[[bool], None] | None = None) -> MuxPort:
        """A new front end's connection; the first one has the focus."""
        port = MuxPort(self, label, focused)
        self._ports.append(port)
        return port

    def detach(self, port: MuxPort) -> None:
        """Forget a front end; the backend is closed with the last."""
        if port in self._ports:
            self._ports.remove(port)
            self._focus = min(self._focus, max(len(self._ports) - 1, 0))
        if not self._ports:
            self.backend.close()

    def focus_on(self, port: MuxPort) -> None:
        """Give a front end the input."""
        index = self._ports.index(port)
        if index == self._focus:
            return
        before, self._focus = self._ports[self._focus], index
        for changed, has_it in ((before, False), (port, True)):
            if changed.focused is not None:
                changed.focused(has_it)
        self.accept_input()

    def write_through(self, data: bytes) -> int:
        """A front end's output."""
        return self.backend.write(data)

    def accept_input(self) -> None:
        """A front end has room again."""
        self.backend.accept_input()

    def _room(self) -> int:
        # The escape must get through to a guest that reads nothing, so there is always some room.
        return KEPT - len(self._ports[self._focus].waiting) if self._ports else 0

    def _receive(self, data: bytes) -> None:
        for byte in data:
            if self._escaped:
                self._escaped = False
                self._command(byte)
            elif byte == self._escape:
                self._escaped = True
            else:
                self._ports[self._focus].waiting.append(byte)
        if self._ports:
            self._ports[self._focus].accept_input()

    def _command(self, byte: int) -> None:
        focus = self._ports[self._focus]
        focus.accept_input()  # What was typed before the command comes before it.
        if byte == self._escape:
            focus.waiting.append(byte)
            return
        match chr(byte).lower():
            case "c":
                self.focus_on(self._ports[(self._focus + 1) % len(self._ports)])
            case "x":
                self.backend.write(b"\r\nTerminated\r\n")
                self._request_quit()
            case "b":
                focus.signal_event(ChardevEvent.BREAK)
            case "h" | "?":
                key = b"C-%c" % (self._escape | 0x60) if 0 < self._escape < 27 else b"0x%02x" % self._escape
                self.backend.write(HELP % {b"key": key})

    def _writable(self) -> None:
        for port in self._ports:
            port.has_room()

    def _event(self, event: ChardevEvent) -> None:
        for port in self._ports:
            port.signal_event(event)
