"""Native memory for the engine: anonymous, lazily touched, never moved."""

from __future__ import annotations

import ctypes
import mmap


class Array:
    """`size` zeroed bytes at `.address`, released with the object."""

    def __init__(self, size: int) -> None:
        self.size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self.map = mmap.mmap(-1, self.size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))

    def discard(self) -> None:
        """Give the pages back to the host; they read as zero again."""
        self.map.madvise(mmap.MADV_DONTNEED)
