"""Machine code in this process: linked bytes are mapped, told where the outside is, and made executable.

Linked code runs at any address; what it calls outside of itself it reaches through slots that hold addresses.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
from collections.abc import Mapping, Sequence
from contextlib import suppress

from pellucid.native.errors import NativeError
from pellucid.records import dataclass

HUGE_PAGE = 2 << 20
_SLOT = 8


@dataclass(frozen=True)
class Layout:
    """Linked code. `symbols`: offset by name; `imports`: offset of the slot for the address of each outside name."""

    code: bytes
    symbols: Mapping[str, int]
    imports: Mapping[str, int]


class Code:
    """A layout in executable memory, released with the object; `code[NAME]` is a symbol's address."""

    def __init__(self, layout: Layout, libraries: Sequence[Code] = ()) -> None:
        """`libraries` have the outside names that the C library has not. Raises NativeError for an unknown one."""
        self.layout, self._libraries = layout, libraries
        size = _round_up(len(layout.code), mmap.PAGESIZE)
        # What nearly fills a huge page gets one: the processor then finds all of it by one TLB entry.
        huge = HUGE_PAGE if size >= HUGE_PAGE // 2 else 0
        room = _round_up(size, huge) if huge else size
        self._map = mmap.mmap(-1, room + huge, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        at = -start % huge if huge else 0
        self.address = start + at
        if huge:
            with suppress(OSError):  # a kernel without huge pages: small ones do
                self._map.madvise(mmap.MADV_HUGEPAGE, at, room)
        self._map[at:at + len(layout.code)] = layout.code
        for name, slot in layout.imports.items():
            self._map[at + slot:at + slot + _SLOT] = self._outside(name).to_bytes(_SLOT, "little")
        _make_executable(self.address, size)

    def __getitem__(self, name: str) -> int:
        return self.address + self.layout.symbols[name]

    def _outside(self, name: str) -> int:
        for library in self._libraries:
            if name in library.layout.symbols:
                return library[name]
        try:
            return ctypes.cast(getattr(_process(), name), ctypes.c_void_p).value or 0
        except AttributeError:
            raise NativeError(f"compiled code needs '{name}', which neither this image nor the C library has") from None


def _round_up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


@functools.cache
def _process() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _make_executable(address: int, size: int) -> None:
    protect = _process().mprotect
    protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if protect(address, size, mmap.PROT_READ | mmap.PROT_EXEC):
        raise NativeError("this computer does not let a process make code executable (mprotect: "
                          f"{ctypes.get_errno()}); a security policy such as SELinux's execmem must allow it")
