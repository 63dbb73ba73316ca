"""The main loop: descriptors, timers and calls from other threads, dispatched one at a time under the big lock.

One thread, the one that calls `run`, waits in `select` without the lock and dispatches with it, as QEMU's
`main_loop_wait` does. Timers share one kernel timer among the descriptors, so they are as exact as the clocks'.
"""

import collections
import heapq
import os
import selectors
import time
from collections.abc import Callable

from pellucid.runtime.bql import BigLock
from pellucid.runtime.linux import TimerFd

Callback = Callable[[], None]


class TimerHandle:
    """A call to come; `cancel` from a callback of the loop or with the big lock held."""

    __slots__ = ("callback", "deadline_ns")

    def __init__(self, deadline_ns: int, callback: Callback) -> None:
        self.deadline_ns = deadline_ns
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        """Do not call. Cancelling twice, or after the call, changes nothing."""
        self.callback = None


class _Watch:
    """The callbacks of one descriptor, one for each direction."""

    __slots__ = ("reader", "writer")

    def __init__(self) -> None:
        self.reader: Callback | None = None
        self.writer: Callback | None = None

    def events(self) -> int:
        return (selectors.EVENT_READ if self.reader else 0) | (selectors.EVENT_WRITE if self.writer else 0)


class MainLoop:
    """Everything that happens on the main thread.

    Only `call_soon_threadsafe`, `wake` and `stop` may be called from any thread without the big lock; the rest is for
    callbacks of the loop, or for a thread that holds the lock.
    """

    def __init__(self, bql: BigLock) -> None:
        self.bql = bql
        self._selector = selectors.DefaultSelector()
        self._watches: dict[int, _Watch] = {}
        self._soon: collections.deque[Callback] = collections.deque()
        self._timers: list[tuple[int, int, TimerHandle]] = []
        self._timer_count = 0
        self._timer_fd = TimerFd()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._wake_pending = False
        self._stopping = False
        self.add_reader(self._wake_fd, self._woken)
        self.add_reader(self._timer_fd.fd, self._timer_expired)

    def add_reader(self, fd: int, callback: Callback) -> None:
        """Call back whenever `fd` is readable; replaces the reader set before."""
        watch = self._watches.get(fd) or _Watch()
        watch.reader = callback
        self._update(fd, watch)

    def remove_reader(self, fd: int) -> None:
        """Stop watching `fd` for reading. It need not be watched."""
        if watch := self._watches.get(fd):
            watch.reader = None
            self._update(fd, watch)

    def add_writer(self, fd: int, callback: Callback) -> None:
        """Call back whenever `fd` is writable; replaces the writer set before."""
        watch = self._watches.get(fd) or _Watch()
        watch.writer = callback
        self._update(fd, watch)

    def remove_writer(self, fd: int) -> None:
        """Stop watching `fd` for writing. It need not be watched."""
        if watch := self._watches.get(fd):
            watch.writer = None
            self._update(fd, watch)

    def _update(self, fd: int, watch: _Watch) -> None:
        events = watch.events()
        if fd not in self._watches:
            self._selector.register(fd, events, watch)
            self._watches[fd] = watch
        elif events:
            self._selector.modify(fd, events, watch)
        else:
            self._selector.unregister(fd)
            del self._watches[fd]

    def call_at(self, deadline_ns: int, callback: Callback) -> TimerHandle:
        """Call once when `time.monotonic_ns()` reaches `deadline_ns`."""
        handle = TimerHandle(deadline_ns, callback)
        self._timer_count += 1
        heapq.heappush(self._timers, (deadline_ns, self._timer_count, handle))
        if self._timers[0][2] is handle:
            self._timer_fd.set(deadline_ns)
        return handle

    def call_later(self, delay_ns: int, callback: Callback) -> TimerHandle:
        """Call once, `delay_ns` nanoseconds from now."""
        return self.call_at(time.monotonic_ns() + delay_ns, callback)

    def call_soon_threadsafe(self, callback: Callback) -> None:
        """Have the loop's thread call `callback`, in order, under the big lock: QEMU's bottom half. From any thread."""
        self._soon.append(callback)
        self.wake()

    def wake(self) -> None:
        """Make a sleeping loop turn once. From any thread and from a signal handler of Python's."""
        # A benign race: a wake lost here is one that came before `_woken` cleared the flag, and that turn of the loop
        # has yet to look at what the waker left. It saves a system call on every call but the first.
        if not self._wake_pending:
            self._wake_pending = True
            os.eventfd_write(self._wake_fd, 1)

    def stop(self) -> None:
        """Make `run` return after the callback that runs now. From any thread."""
        self._stopping = True
        self.wake()

    def run(self) -> None:
        """Turn until `stop`."""
        while not self._stopping:
            self.run_once()
        self._stopping = False

    def run_once(self, timeout_ns: int | None = None) -> None:
        """One turn (QEMU's main_loop_wait): wait for an event, at most `timeout_ns`, and dispatch all that is ready."""
        ready = self._selector.select(None if timeout_ns is None else timeout_ns / 1e9)
        with self.bql:
            for key, events in ready:
                watch: _Watch = key.data
                # A callback that ran before may have removed this one.
                if events & selectors.EVENT_READ and watch.reader:
                    watch.reader()
                if events & selectors.EVENT_WRITE and watch.writer:
                    watch.writer()
            # Calls made by these calls wait for the next turn, so that descriptors are not starved.
            for _ in range(len(self._soon)):
                self._soon.popleft()()

    def close(self) -> None:
        """Give the descriptors back. The loop must not be running."""
        self._selector.close()
        self._timer_fd.close()
        os.close(self._wake_fd)

    def _woken(self) -> None:
        os.eventfd_read(self._wake_fd)
        self._wake_pending = False

    def _timer_expired(self) -> None:
        # Not read: setting or disarming the kernel timer makes it unreadable, and a read would block if a callback
        # of this turn had set it again already.
        while self._timers:
            deadline, _, handle = self._timers[0]
            if handle.callback is not None and deadline > time.monotonic_ns():
                self._timer_fd.set(deadline)
                return
            heapq.heappop(self._timers)
            callback, handle.callback = handle.callback, None
            if callback is not None:
                callback()
        self._timer_fd.disarm()
