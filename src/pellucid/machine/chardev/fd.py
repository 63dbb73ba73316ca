"""Character devices on host descriptors: non-blocking input and output through the main loop.

Output goes to the host in the call that wrote it. What the host does not take is kept, up to `BACKLOG` bytes, and
written when the loop finds room; past that, write() takes nothing more and the guest sees a full transmitter.

The descriptors of stdin and stdout are shared with the shell and with other processes, and O_NONBLOCK belongs to what
is shared. So a terminal or pipe is opened a second time through /proc, which gives flags of our own; only where that
is refused is the flag set on the shared one and put back at close().
"""

import contextlib
import errno
import fcntl
import logging
import os
import select
import stat
import time
from collections.abc import Callable

from pellucid.machine.chardev.base import Chardev, ChardevEvent
from pellucid.runtime import MainLoop

_log = logging.getLogger("pellucid.machine.chardev")

BACKLOG = 64 << 10
READ_SIZE = 4096
CLOSE_WITHIN = 1.0
"""Seconds that close() gives the host to take output already accepted."""


class Descriptor:
    """A non-blocking descriptor for the file behind `fd`, and how to undo what making it took.

    `own=True` hands `fd` itself over; otherwise it stays open and its flags are as before after close().
    """

    def __init__(self, fd: int, flags: int, *, own: bool = False) -> None:
        self._borrowed: tuple[int, int] | None = None
        if own:
            self.fd = fd
            os.set_blocking(fd, False)
        elif stat.S_ISREG(os.fstat(fd).st_mode):
            self.fd = os.dup(fd)  # A second opening would start again at offset 0; regular files never block.
        else:
            self.fd = self._open_again(fd, flags)
        self.always_ready = not _pollable(self.fd)
        """A regular file, /dev/null and the like: epoll refuses them, and reading them never waits."""

    def _open_again(self, fd: int, flags: int) -> int:
        try:
            return os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            old = fcntl.fcntl(fd, fcntl.F_GETFL)
            self._borrowed = (fd, old)
            fcntl.fcntl(fd, fcntl.F_SETFL, old | os.O_NONBLOCK)
            return os.dup(fd)

    def close(self) -> None:
        """Close ours and put the flags of the borrowed one back."""
        os.close(self.fd)
        if self._borrowed is not None:
            fd, flags = self._borrowed
            with contextlib.suppress(OSError):  # Its owner may have closed it meanwhile.
                fcntl.fcntl(fd, fcntl.F_SETFL, flags)


def _pollable(fd: int) -> bool:
    with select.epoll() as probe:
        try:
            probe.register(fd, select.EPOLLIN)
        except PermissionError:
            return False
        return True


_READER_GONE = frozenset({errno.EPIPE, errno.EIO, errno.EBADF, errno.ECONNRESET})


class OutputQueue:
    """Bytes on their way to a non-blocking descriptor, in order."""

    def __init__(self, label: str, loop: MainLoop, fd: int, room_again: Callable[[], None]) -> None:
        self._label = label
        self._loop = loop
        self._fd = fd
        self._room_again = room_again
        self._backlog = bytearray()
        self._watching = False
        self.broken = False
        """The other end has gone; everything written is dropped."""
        self._losing = False

    def write(self, data: bytes) -> int:
        """Take as much of `data` as there is room for."""
        if self.broken:
            return len(data)
        sent = 0 if self._backlog else self._send(data)
        kept = data[sent : sent + BACKLOG - len(self._backlog)]
        if kept and not self.broken:
            self._backlog += kept
            self._watch()
        return sent + len(kept)

    def _send(self, data: bytes | bytearray) -> int:
        try:
            return os.write(self._fd, data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            # ENOSPC and the like may pass; what cannot be kept now is lost, and the guest goes on.
            self.broken = error.errno in _READER_GONE
            if not self._losing and not self.broken:
                self._losing = True
                _log.warning("%s: guest output is being lost: %s", self._label, error.strerror)
            return len(data)

    def _watch(self) -> None:
        if not self._watching:
            self._watching = True
            self._loop.add_writer(self._fd, self._writable)

    def _writable(self) -> None:
        del self._backlog[: self._send(self._backlog)]
        if not self._backlog:
            self._unwatch()
        if len(self._backlog) <= BACKLOG // 2:
            self._room_again()

    def _unwatch(self) -> None:
        if self._watching:
            self._watching = False
            self._loop.remove_writer(self._fd)

    def close(self) -> None:
        """Stop watching; write out what is left, for at most CLOSE_WITHIN seconds."""
        self._unwatch()
        until = time.monotonic() + CLOSE_WITHIN
        while self._backlog and not self.broken and (left := until - time.monotonic()) > 0:
            select.select((), (self._fd,), (), left)
            del self._backlog[: self._send(self._backlog)]
        self._backlog.clear()
        self.broken = True  # The descriptor's number may soon be somebody else's.


class InputWatch:
    """Reads a non-blocking descriptor while the front end has room. `ended` is called once at end of file."""

    def __init__(
        self, loop: MainLoop, source: Descriptor, chardev: Chardev, ended: Callable[[], None] = lambda: None
    ) -> None:
        self._loop = loop
        self._source = source
        self._chardev = chardev
        self._ended = ended
        self._watching = False
        self._at_end = False

    def update(self) -> None:
        """Watch the descriptor exactly while the front end has room and there is more to come."""
        wanted = not self._at_end and self._chardev.room() > 0
        if wanted == self._watching:
            return
        self._watching = wanted
        if self._source.always_ready:
            if wanted:
                self._loop.call_soon_threadsafe(self._read_ready)
        elif wanted:
            self._loop.add_reader(self._source.fd, self._read)
        else:
            self._loop.remove_reader(self._source.fd)

    def _read(self) -> None:
        self._read_some()
        self.update()

    def _read_ready(self) -> None:
        if self._watching:
            self._watching = False
            self._read_some()
            self.update()

    def _read_some(self) -> None:
        room = min(self._chardev.room(), READ_SIZE)
        if room <= 0:
            return
        try:
            data = os.read(self._source.fd, room)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""  # EIO: the terminal has gone.
        if data:
            self._chardev.deliver(data)
        else:
            self._at_end = True
            self._ended()

    def close(self) -> None:
        """Read no more."""
        self._at_end = True
        self.update()


class FdChardev(Chardev):
    """A stream on an input and an output descriptor; either may be absent."""

    def __init__(self, label: str, loop: MainLoop, source: Descriptor | None, sink: Descriptor | None) -> None:
        super().__init__(label)
        self._source = source
        self._sink = sink
        self._input = InputWatch(loop, source, self, self.input_ended) if source else None
        self._output = OutputQueue(label, loop, sink.fd, lambda: self._writable()) if sink else None
        self._closed = False

    @property
    def filename(self) -> str:
        return self.label.partition(":")[0]

    def write(self, data: bytes) -> int:
        return self._output.write(data) if self._output else len(data)

    def accept_input(self) -> None:
        if self._input:
            self._input.update()

    def input_ended(self) -> None:
        """End of file: there will be no more input. Output goes on."""
        self.signal_event(ChardevEvent.CLOSED)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._input:
            self._input.close()
        if self._output:
            self._output.close()
        for descriptor in {self._source, self._sink} - {None}:
            assert descriptor is not None
            descriptor.close()
