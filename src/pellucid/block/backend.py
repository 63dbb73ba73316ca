"""What a guest's drive holds: a name, the medium in it, the policy for errors, and requests that complete later.

Everything is called with the big lock held. A completion is called under it too, with an errno (0: all went well), and
may come before the request's call returns: what is in the host's page cache is read at once.
"""

import errno
from collections.abc import Callable
from enum import Enum
from typing import Protocol

from pellucid.block.node import BlockNode
from pellucid.block.pool import WorkerPool
from pellucid.block.vectors import Buffers, total
from pellucid.records import dataclass

Completion = Callable[[int], None]

AT_ONCE = 1 << 20
"""Bytes up to which a read may be done at once, on the thread that asks: about 0.1 ms of copying."""


class CacheMode(Enum):
    """`cache=`: whether a guest is told of a write before it is on the disk, and whether its flushes count."""

    WRITEBACK = "writeback"
    WRITETHROUGH = "writethrough"
    UNSAFE = "unsafe"


class ErrorAction(Enum):
    """`werror=` and `rerror=`: what a failed request does."""

    REPORT = "report"
    IGNORE = "ignore"
    STOP = "stop"
    ENOSPC = "enospc"
    """Stop where the host's disk is full, report everything else."""


@dataclass(frozen=True)
class Policy:
    """How a drive treats its requests."""

    cache: CacheMode = CacheMode.WRITEBACK
    on_read_error: ErrorAction = ErrorAction.REPORT
    on_write_error: ErrorAction = ErrorAction.ENOSPC
    discard: bool = False


class DriveUser(Protocol):
    """The device that a drive belongs to."""

    def medium_changed(self) -> None:
        """A medium was put in, or taken out."""
        ...


class BlockBackend:
    """One drive, by QEMU's name (`ide0-hd0`, or the user's id). `node` is None while a removable drive is empty.

    locked, tray_open: of a removable drive; the guest's device sets them. user: the device that has the drive.
    on_stop: called when an error is to stop the machine; `resume` tries the failed requests again.
    """

    def __init__(
        self, name: str, pool: WorkerPool, node: BlockNode | None, policy: Policy, *, removable: bool = False
    ) -> None:
        self.name, self.node, self.policy, self.removable = name, node, policy, removable
        self.user: DriveUser | None = None
        self.locked = self.tray_open = False
        self.on_stop: Callable[[str, OSError], None] | None = None
        self._pool = pool
        self._failed: list[Callable[[], None]] = []

    @property
    def size(self) -> int:
        """Bytes of the medium, 0 without one."""
        return 0 if self.node is None else self.node.size

    @property
    def read_only(self) -> bool:
        """Whether writes are refused."""
        return self.node is None or self.node.read_only

    @property
    def inserted(self) -> bool:
        """Whether there is a medium that can be read now."""
        return self.node is not None and not self.tray_open

    def read(self, offset: int, buffers: Buffers, done: Completion) -> None:
        """Fill `buffers`."""
        node, length = self.node, total(buffers)
        if node is None or offset < 0 or offset + length > node.size:
            done(errno.ENOMEDIUM if node is None else errno.EIO)
        elif length <= AT_ONCE and node.read_cached(offset, buffers):
            done(0)
        else:
            self._submit("read", lambda: node.read(offset, buffers), done)

    def write(self, offset: int, buffers: Buffers, done: Completion) -> None:
        """Store `buffers`; with cache=writethrough they are on the disk at the completion."""
        node = self.node
        if node is None or not self._may_write(offset, total(buffers)):
            done(errno.ENOMEDIUM if node is None else errno.EPERM if node.read_only else errno.EIO)
            return
        flush = self.policy.cache is CacheMode.WRITETHROUGH

        def work() -> None:
            node.write(offset, buffers)
            if flush:
                node.flush()

        self._submit("write", work, done)

    def flush(self, done: Completion) -> None:
        """Have every completed write survive a crash."""
        node = self.node
        if node is None or self.policy.cache is CacheMode.UNSAFE:
            done(0)
        else:
            self._submit("write", node.flush, done)

    def discard(self, offset: int, length: int, done: Completion) -> None:
        """The guest does not need these bytes any more; with discard=ignore nothing happens."""
        node = self.node
        if node is None or not self._may_write(offset, length):
            done(errno.EIO)
        elif not self.policy.discard or length == 0:
            done(0)
        else:
            self._submit("write", lambda: node.discard(offset, length), done)

    def write_zeroes(self, offset: int, length: int, done: Completion) -> None:
        """Make these bytes zero."""
        node = self.node
        if node is None or not self._may_write(offset, length):
            done(errno.EIO)
        else:
            unmap = self.policy.discard
            self._submit("write", lambda: node.write_zeroes(offset, length, unmap=unmap), done)

    def _may_write(self, offset: int, length: int) -> bool:
        return self.node is not None and not self.node.read_only and 0 <= offset <= offset + length <= self.node.size

    def _submit(self, kind: str, work: Callable[[], None], done: Completion) -> None:
        def finished(error: OSError | None) -> None:
            if error is None:
                done(0)
            else:
                self._fail(kind, error, lambda: self._pool.submit(work, finished), done)

        self._pool.submit(work, finished)

    def _fail(self, kind: str, error: OSError, again: Callable[[], None], done: Completion) -> None:
        action = self.policy.on_read_error if kind == "read" else self.policy.on_write_error
        if action is ErrorAction.ENOSPC:
            action = ErrorAction.STOP if error.errno == errno.ENOSPC else ErrorAction.REPORT
        if action is ErrorAction.STOP and self.on_stop is not None:
            self._failed.append(again)
            self.on_stop(kind, error)
        elif action is ErrorAction.IGNORE:
            done(0)
        else:
            done(error.errno or errno.EIO)

    def resume(self) -> None:
        """The machine runs again: retry what stopped it."""
        failed, self._failed = self._failed, []
        for again in failed:
            again()

    def drain(self) -> None:
        """Wait for everything under way and complete it."""
        self._pool.drain()

    def change(self, node: BlockNode | None) -> None:
        """Put another medium in, or none; the old one is flushed and closed."""
        self.drain()
        if self.node is not None:
            self.node.flush()
            self.node.close()
        self.node = node
        if self.user is not None:
            self.user.medium_changed()

    def close(self) -> None:
        """Flush and close the medium; nothing is under way."""
        if self.node is not None:
            if self.policy.cache is not CacheMode.UNSAFE:
                self.node.flush()
            self.node.close()
            self.node = None
