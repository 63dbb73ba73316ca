"""Guest RAM in a file on disk: set up so that it cannot fail later, put out to the disk and read back by pages.

The file is mapped and shared, so a page that is not in host memory is read by the kernel whenever somebody touches it.
"""

import ctypes
import mmap
import os
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)  # gives Python's lock away during the call, which waits for the disk
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
_WRITE_AND_WAIT = 7  # SYNC_FILE_RANGE_WAIT_BEFORE | _WRITE | _WAIT_AFTER


def open_ram_file(path: Path, size: int) -> int:
    """A descriptor of a file of `size` bytes whose place on the disk is reserved. OSError when that fails.

    `path` is a folder for a file without a name, all zeros, which goes with its last user; or a file, which is made,
    or made longer, and else kept as it is.
    """
    if path.is_dir():
        import tempfile  # which RAM in memory does not need

        # TemporaryFile would close the descriptor with its object.
        fd, name = tempfile.mkstemp(prefix="pellucid-ram-", dir=path)
        os.unlink(name)
    else:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(fd).st_size < size:
            os.ftruncate(fd, size)
        # Without its place a full disk would end the process by SIGBUS, in the middle of the guest's work.
        os.posix_fallocate(fd, 0, size)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    except OSError:
        os.close(fd)
        raise
    return fd


def write_out(fd: int, mapping: mmap.mmap, offset: int, length: int) -> None:
    """These whole pages go to the disk and out of host memory, except what is used meanwhile. OSError."""
    mapping.madvise(mmap.MADV_DONTNEED, offset, length)  # the bytes stay, in the page cache
    if _libc.sync_file_range(fd, offset, length, _WRITE_AND_WAIT):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)


def resident_pages(hva: int, length: int) -> int:
    """How many of the mapping's pages are in host memory now (mincore)."""
    vector = (ctypes.c_ubyte * -(-length // mmap.PAGESIZE))()
    if _libc.mincore(hva, length, vector):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return sum(page & 1 for page in vector)
