"""ioeventfd and irqfd: eventfds in place of exits and of interrupt calls.

An *ioeventfd* turns a guest's write to a doorbell into a signal on an eventfd: whoever serves the doorbell sleeps on
it, and the vCPU goes on at once. An *irqfd* is the other direction: signalling an eventfd raises a gsi, so a thread
that knows nothing of the VM can interrupt the guest.
"""

import logging
import os
import selectors
import threading
from collections.abc import Callable

from pellucid.kvm.errors import InvalidRequestError
from pellucid.kvm.routing import IrqRouting, IrqSource
from pellucid.records import dataclass

_log = logging.getLogger("pellucid.kvm.eventfd")

ANY_LENGTH = 0


def signal_eventfd(fd: int) -> None:
    """Add 1 to an eventfd. A counter that is full is signalled already."""
    try:
        os.eventfd_write(fd, 1)
    except BlockingIOError:
        pass


@dataclass(frozen=True, slots=True)
class Ioeventfd:
    """One doorbell: writes of `length` bytes (0 for any) at `address` whose data equals `datamatch` (None for any)."""

    fd: int
    address: int
    length: int
    datamatch: int | None = None

    def overlaps(self, other: "Ioeventfd") -> bool:
        """Whether one write could match both (KVM's ioeventfd_check_collision)."""
        lengths = self.length == other.length or ANY_LENGTH in (self.length, other.length)
        data = self.datamatch == other.datamatch or None in (self.datamatch, other.datamatch)
        return self.address == other.address and lengths and data


class IoeventfdRegistry:
    """The ioeventfds of one bus. `signal` runs at every write that leaves the guest and takes no lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_address: dict[int, tuple[Ioeventfd, ...]] = {}

    def assign(self, entry: Ioeventfd) -> None:
        """Add one; `InvalidRequestError` for a wrong length or one that collides with another."""
        if entry.length not in (ANY_LENGTH, 1, 2, 4, 8):
            raise InvalidRequestError(f"{entry}: the length must be 0, 1, 2, 4 or 8 bytes")
        if entry.length == ANY_LENGTH and entry.datamatch is not None:
            raise InvalidRequestError(f"{entry}: data cannot be matched without a length")
        with self._lock:
            others = self._by_address.get(entry.address, ())
            for other in others:
                if entry.overlaps(other):
                    raise InvalidRequestError(f"{entry} collides with {other}")
            self._by_address[entry.address] = (*others, entry)

    def deassign(self, entry: Ioeventfd) -> None:
        """Remove one; `InvalidRequestError` when there is none like it."""
        with self._lock:
            others = self._by_address.get(entry.address, ())
            if entry not in others:
                raise InvalidRequestError(f"{entry} is not assigned")
            left = tuple(other for other in others if other != entry)
            if left:
                self._by_address[entry.address] = left
            else:
                del self._by_address[entry.address]

    def signal(self, address: int, size: int, value: int) -> bool:
        """A guest write: signal the eventfd it matches; False when it matches none."""
        if not self._by_address:
            return False
        for entry in self._by_address.get(address, ()):
            if entry.length not in (ANY_LENGTH, size):
                continue
            if entry.datamatch is None or entry.datamatch == value & (1 << 8 * size) - 1:
                signal_eventfd(entry.fd)
                return True
        return False


@dataclass(slots=True)
class _Irqfd:
    fd: int
    gsi: int
    resamplefd: int | None
    notifier: Callable[[], None] | None = None


class IrqfdManager:
    """The irqfds of one VM, watched by one thread that starts with the first of them.

    Without a resamplefd each signal is a pulse. With one it asserts the gsi's level, and the guest's EOI de-asserts it
    and signals the resamplefd, upon which the device signals again if it still has cause.
    """

    def __init__(self, routing: IrqRouting) -> None:
        self._routing = routing
        self._lock = threading.Lock()
        self._irqfds: dict[int, _Irqfd] = {}
        self._selector: selectors.BaseSelector | None = None
        self._wake = -1
        self._thread: threading.Thread | None = None
        self._closing = False

    def assign(self, fd: int, gsi: int, resamplefd: int | None = None) -> None:
        """Watch eventfd `fd`; `InvalidRequestError` when it is watched already. It becomes non-blocking."""
        with self._lock:
            if self._closing:
                raise InvalidRequestError(f"irqfd {fd}: the VM is closed")
            if fd in self._irqfds:
                raise InvalidRequestError(f"irqfd {fd} is assigned to gsi {self._irqfds[fd].gsi} already")
            irqfd = _Irqfd(fd, gsi, resamplefd)
            if resamplefd is not None:
                # Before the fd is watched: the first signal's EOI must find the notifier.
                irqfd.notifier = self._resampler(gsi, resamplefd)
                self._routing.add_ack_notifier(gsi, irqfd.notifier)
            self._irqfds[fd] = irqfd
            try:
                os.set_blocking(fd, False)
                self._start().register(fd, selectors.EVENT_READ, irqfd)
            except (OSError, ValueError) as error:
                self._forget(irqfd)
                raise InvalidRequestError(f"irqfd {fd} cannot be watched: {error}") from error

    def deassign(self, fd: int, gsi: int) -> None:
        """Stop watching; `InvalidRequestError` when `fd` is not assigned to `gsi`."""
        with self._lock:
            irqfd = self._irqfds.get(fd)
            if irqfd is None or irqfd.gsi != gsi:
                raise InvalidRequestError(f"irqfd {fd} is not assigned to gsi {gsi}")
            if self._selector is not None:
                self._selector.unregister(fd)
            self._forget(irqfd)

    def _forget(self, irqfd: _Irqfd) -> None:
        """Drop the entry, its notifier and the level it asserts. The lock is held."""
        self._irqfds.pop(irqfd.fd, None)
        if irqfd.notifier is not None:
            self._routing.remove_ack_notifier(irqfd.gsi, irqfd.notifier)
            self._routing.set_irq(irqfd.gsi, False, IrqSource.IRQFD_RESAMPLE)

    def close(self) -> None:
        """Watch nothing any more and end the thread."""
        with self._lock:
            self._closing = True
            thread, self._thread = self._thread, None
            for irqfd in list(self._irqfds.values()):
                self._forget(irqfd)
        if thread is not None:
            signal_eventfd(self._wake)
            thread.join()

    def _start(self) -> selectors.BaseSelector:
        """The selector, with its thread running. The lock is held."""
        if self._selector is None:
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._selector = selectors.DefaultSelector()
            self._selector.register(self._wake, selectors.EVENT_READ, None)
            self._thread = threading.Thread(target=self._run, args=(self._selector,), name="kvm-irqfd", daemon=True)
            self._thread.start()
        return self._selector

    def _resampler(self, gsi: int, resamplefd: int) -> Callable[[], None]:
        def acked() -> None:
            self._routing.set_irq(gsi, False, IrqSource.IRQFD_RESAMPLE)
            signal_eventfd(resamplefd)

        return acked

    def _run(self, selector: selectors.BaseSelector) -> None:
        while not self._closing:
            # An fd taken off or added meanwhile is seen by epoll at once; the wake-up fd is for closing only.
            for key, _ in selector.select():
                if key.data is not None:
                    self._serve(key.data)
        selector.close()
        os.close(self._wake)

    def _serve(self, irqfd: _Irqfd) -> None:
        try:
            os.eventfd_read(irqfd.fd)
        except BlockingIOError:
            return  # taken off, or read by somebody else, since select saw it
        except OSError as error:
            # Not an eventfd, or closed by its owner without being taken off: watching it on would be a busy loop.
            _log.warning("irqfd %d of gsi %d is watched no more: %s", irqfd.fd, irqfd.gsi, error)
            self.deassign(irqfd.fd, irqfd.gsi)
            return
        if self._irqfds.get(irqfd.fd) is not irqfd:
            return
        if irqfd.resamplefd is None:
            self._routing.set_irq(irqfd.gsi, True)
            self._routing.set_irq(irqfd.gsi, False)
        else:
            self._routing.set_irq(irqfd.gsi, True, IrqSource.IRQFD_RESAMPLE)
