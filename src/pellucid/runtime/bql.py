"""The big lock: one lock for the devices and the memory tree, as QEMU's BQL.

Held by the main loop while it dispatches, by a vCPU thread while it handles an exit, and by nobody while guest code
runs or a thread sleeps. It is recursive, so code that may be reached from either side simply takes it.
"""

import threading
from types import TracebackType


class BigLock:
    """A recursive lock that knows whether the calling thread holds it.

    `acquire` and `release` are the C methods of the lock inside: the exit path calls them without a Python frame.
    """

    __slots__ = ("_lock", "acquire", "release")

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.acquire = self._lock.acquire
        self.release = self._lock.release

    def __enter__(self) -> "BigLock":
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()

    def locked_by_me(self) -> bool:
        """True when the calling thread holds the lock (QEMU's qemu_mutex_iothread_locked)."""
        return self._lock._is_owned()  # type: ignore[attr-defined, no-any-return]

    def condition(self) -> threading.Condition:
        """A condition variable on this lock; waiting gives the lock up whole, however deep it was taken."""
        return threading.Condition(self._lock)
