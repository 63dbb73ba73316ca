"""Character devices: a two-way stream of bytes between a front end of the guest and the host.

The front end (a serial port, the monitor) says with `can_receive` how much it takes now, so a backend never reads more
from the host than the guest has room for. In the other direction `write` takes what it can without waiting and
returns how much that was; `writable` is called when there is room again. Neither side ever waits for the other.

Everything here runs with the machine's lock held.
"""

from collections.abc import Callable
from enum import Enum


class ChardevEvent(Enum):
    """What happens to a stream besides bytes."""

    BREAK = "break"
    """The user asked for a serial break."""
    OPENED = "opened"
    """The other end is there."""
    CLOSED = "closed"
    """The other end has gone; bytes written now are dropped."""


def _anything() -> int:
    return 4096


def _ignore() -> None:
    pass


class Chardev:
    """The base of every backend: holds the front end's callbacks. `label` names it in messages."""

    def __init__(self, label: str) -> None:
        self.label = label
        self._receive: Callable[[bytes], None] | None = None
        self._can_receive: Callable[[], int] = _anything
        self._writable: Callable[[], None] = _ignore
        self._event: Callable[[ChardevEvent], None] | None = None

    @property
    def filename(self) -> str:
        """Where it leads, as `info chardev` shows it."""
        return self.label

    @property
    def has_front_end(self) -> bool:
        """Whether somebody is connected to it on the guest's side."""
        return self._receive is not None

    @property
    def connected(self) -> bool:
        """Whether the other end is there; most always are."""
        return True

    def set_receiver(
        self,
        receive: Callable[[bytes], None],
        can_receive: Callable[[], int] | None = None,
        *,
        writable: Callable[[], None] | None = None,
        event: Callable[[ChardevEvent], None] | None = None,
    ) -> None:
        """Connect the front end. Bytes arrive in pieces of at most `can_receive()` bytes (any number when None)."""
        self._receive = receive
        self._can_receive = can_receive or _anything
        self._writable = writable or _ignore
        self._event = event
        self.accept_input()

    def write(self, data: bytes) -> int:
        """Take bytes from the front end, at once and without waiting; how many were taken."""
        raise TypeError(f"{type(self).__name__} takes no output")

    def accept_input(self) -> None:
        """The front end has room again after can_receive() was 0."""

    def close(self) -> None:
        """Give back what the backend holds, output already taken being written out as far as the host lets it."""

    def room(self) -> int:
        """Bytes that the front end takes now; 0 while there is none."""
        return 0 if self._receive is None else self._can_receive()

    def deliver(self, data: bytes) -> None:
        """Give bytes from the host to the front end; at most room() of them."""
        if self._receive is not None:
            self._receive(data)

    def signal_event(self, event: ChardevEvent) -> None:
        """Tell the front end."""
        if self._event is not None:
            self._event(event)


class NullChardev(Chardev):
    """Drops what is written, never has input (`-serial null`)."""

    def __init__(self, label: str = "null") -> None:
        super().__init__(label)

    def write(self, data: bytes) -> int:
        return len(data)


class MemoryChardev(Chardev):
    """Keeps the last `capacity` bytes written, and is fed by hand (`-chardev ringbuf`; also what tests attach)."""

    def __init__(self, label: str = "memory", capacity: int = 1 << 20) -> None:
        super().__init__(label)
        self.capacity = capacity
        self.output = bytearray()
        self._input = bytearray()

    def write(self, data: bytes) -> int:
        self.output += data
        excess = len(self.output) - self.capacity
        if excess > 0:
            del self.output[:excess]
        return len(data)

    def take(self, size: int) -> bytes:
        """The oldest bytes written, at most `size`, which are gone then."""
        taken = bytes(self.output[:size])
        del self.output[:size]
        return taken

    def feed(self, data: bytes) -> None:
        """Input for the front end, handed over as it has room."""
        self._input += data
        self.accept_input()

    def accept_input(self) -> None:
        while self._input and (room := self.room()) > 0:
            piece = bytes(self._input[:room])
            del self._input[:room]
            self.deliver(piece)
