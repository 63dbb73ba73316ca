"""Native memory between pages that nobody may touch, so that a write outside ends the process."""

from __future__ import annotations

import ctypes
import mmap

from pellucid.engine.arrays import Array

_GUARD = 64 << 10
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_PROT_NONE = 0


class GuardedArray(Array):
    """An `Array` with 64 KiB of inaccessible memory on either side."""

    def __init__(self, size: int) -> None:
        self.size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self.map = mmap.mmap(-1, self.size + 2 * _GUARD, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        first = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        self.address = first + _GUARD
        for guard in (first, self.address + self.size):
            if _libc.mprotect(guard, _GUARD, _PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect of a guard page")

    def discard(self) -> None:
        """Give the pages back to the host; they read as zero again."""
        self.map.madvise(mmap.MADV_DONTNEED, _GUARD, self.size)


def guard_the_engine() -> None:
    """From here on a new `Processor` and its memory have guards around everything that native code writes."""
    from pellucid.engine import memory, processor

    memory.Array = processor.Array = GuardedArray  # type: ignore[misc]
