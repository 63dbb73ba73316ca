"""The `file` driver: an image's bytes in a file or block device of this host."""

import ctypes
import errno
import os
import stat

from pellucid.block.locks import Permissions, lock_image
from pellucid.block.node import SECTOR_SIZE, BlockNode
from pellucid.block.vectors import Buffers, batches, fill_zero, part, total, zeroes

MOST_BUFFERS = 1024
"""IOV_MAX: what one preadv takes."""
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 0x01, 0x02, 0x10

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class FileNode(BlockNode):
    """An open file. Raises OSError when it cannot be opened or somebody has it (`ImageLocked`).

    A size that is no multiple of 512 counts up to the next: the missing bytes read as zeros, and a write there makes
    the file longer. A file that has become shorter since reads as zeros behind its end.
    """

    driver = "file"

    def __init__(self, filename: str, *, read_only: bool, permissions: Permissions) -> None:
        self.fd = os.open(filename, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        try:
            kind = os.fstat(self.fd).st_mode
            if not stat.S_ISREG(kind) and not stat.S_ISBLK(kind):
                raise OSError(errno.EINVAL, f"'file' driver requires '{filename}' to be a regular file")
            lock_image(self.fd, permissions)
            size = os.lseek(self.fd, 0, os.SEEK_END)
        except OSError:
            os.close(self.fd)
            raise
        super().__init__(filename, -(-size // SECTOR_SIZE) * SECTOR_SIZE, read_only=read_only)
        self._nowait = os.RWF_NOWAIT
        self._can_zero = True

    def read(self, offset: int, buffers: Buffers) -> None:
        for batch in batches(buffers, MOST_BUFFERS):
            left = batch
            while left:
                count = os.preadv(self.fd, left, offset)
                if count == 0:
                    fill_zero(left)
                    count = total(left)
                offset += count
                left = part(left, count, total(left))

    def read_cached(self, offset: int, buffers: Buffers) -> bool:
        if not self._nowait or len(buffers) > MOST_BUFFERS:
            return False
        try:
            return os.preadv(self.fd, buffers, offset, self._nowait) == total(buffers)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
                self._nowait = 0  # This file system cannot tell.
            return False

    def write(self, offset: int, buffers: Buffers) -> None:
        for batch in batches(buffers, MOST_BUFFERS):
            left = batch
            while left:
                count = os.pwritev(self.fd, left, offset)
                offset += count
                left = part(left, count, total(left))

    def flush(self) -> None:
        if not self.read_only:
            os.fdatasync(self.fd)

    def discard(self, offset: int, length: int) -> None:
        self._fallocate(PUNCH_HOLE | KEEP_SIZE, offset, length)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = False) -> None:
        mode = PUNCH_HOLE | KEEP_SIZE if unmap else ZERO_RANGE
        if not self._can_zero or not self._fallocate(mode, offset, length):
            self._can_zero = False
            self.write(offset, zeroes(length))

    def _fallocate(self, mode: int, offset: int, length: int) -> bool:
        """False where the file system does not know that operation."""
        if length == 0 or _libc.fallocate(self.fd, mode, offset, length) == 0:
            return True
        number = ctypes.get_errno()
        if number in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV):
            return False
        raise OSError(number, os.strerror(number))

    def allocated_size(self) -> int:
        return os.fstat(self.fd).st_blocks * 512

    def relock(self, permissions: Permissions) -> None:
        """Take more locks: a device begins to use an image that nobody used. Raises ImageLocked."""
        lock_image(self.fd, permissions)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
