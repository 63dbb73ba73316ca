"""The load/store family: every width, sign and byte order, for address spaces and for buffers, from one definition.

Names are QEMU's: `ld` or `st`; `u` or `s` (signed) for loads; `b`, `w`, `l`, `q` for 1, 2, 4, 8 bytes; `_le`, `_be`, or
nothing for the guest processor's order, which on x86 is little. Loads of 4 and 8 bytes without `s` are unsigned (`ldl`,
`ldq`). The functions that end in `_p` work on a buffer and an offset into it.
"""

import struct
from collections.abc import Callable
from typing import Protocol

from pellucid.memory.access import MASKS, swap_bytes

Buffer = bytes | bytearray | memoryview
WritableBuffer = bytearray | memoryview


class _Bus(Protocol):
    def read(self, addr: int, size: int) -> int: ...

    def write(self, addr: int, size: int, value: int) -> None: ...


def _load(size: int, *, signed: bool = False, big: bool = False) -> Callable[[_Bus, int], int]:
    sign_bit = 1 << (8 * size - 1) if signed else 0

    def load(self: _Bus, addr: int) -> int:
        value = self.read(addr, size)
        if big:
            value = swap_bytes(value, size)
        return (value ^ sign_bit) - sign_bit

    load.__doc__ = f"Load {size} byte(s) at `addr`: {'big' if big else 'little'} endian, {_sign(signed)}."
    return load


def _store(size: int, *, big: bool = False) -> Callable[[_Bus, int, int], None]:
    mask = MASKS[size]

    def store(self: _Bus, addr: int, value: int) -> None:
        value &= mask
        self.write(addr, size, swap_bytes(value, size) if big else value)

    store.__doc__ = f"Store the low {size} byte(s) of `value` at `addr`: {'big' if big else 'little'} endian."
    return store


def _load_p(size: int, *, signed: bool = False, big: bool = False) -> Callable[[Buffer, int], int]:
    unpack = _struct(size, signed, big).unpack_from

    def load(buffer: Buffer, offset: int) -> int:
        value: int = unpack(buffer, offset)[0]
        return value

    load.__doc__ = f"Load {size} byte(s) at `offset`: {'big' if big else 'little'} endian, {_sign(signed)}."
    return load


def _store_p(size: int, *, big: bool = False) -> Callable[[WritableBuffer, int, int], None]:
    pack = _struct(size, False, big).pack_into
    mask = MASKS[size]

    def store(buffer: WritableBuffer, offset: int, value: int) -> None:
        pack(buffer, offset, value & mask)

    store.__doc__ = f"Store the low {size} byte(s) of `value` at `offset`: {'big' if big else 'little'} endian."
    return store


def _struct(size: int, signed: bool, big: bool) -> struct.Struct:
    code = {1: "B", 2: "H", 4: "I", 8: "Q"}[size]
    return struct.Struct((">" if big else "<") + (code.lower() if signed else code))


def _sign(signed: bool) -> str:
    return "signed" if signed else "unsigned"


class LoadStore:
    """The family as methods `ldX(addr)` and `stX(addr, value)` of whatever has `read` and `write`."""

    __slots__ = ()

    ldub = _load(1)
    ldsb = _load(1, signed=True)
    lduw = lduw_le = _load(2)
    lduw_be = _load(2, big=True)
    ldsw = ldsw_le = _load(2, signed=True)
    ldsw_be = _load(2, signed=True, big=True)
    ldl = ldl_le = _load(4)
    ldl_be = _load(4, big=True)
    ldsl = ldsl_le = _load(4, signed=True)
    ldsl_be = _load(4, signed=True, big=True)
    ldq = ldq_le = _load(8)
    ldq_be = _load(8, big=True)
    ldsq = ldsq_le = _load(8, signed=True)
    ldsq_be = _load(8, signed=True, big=True)
    stb = _store(1)
    stw = stw_le = _store(2)
    stw_be = _store(2, big=True)
    stl = stl_le = _store(4)
    stl_be = _store(4, big=True)
    stq = stq_le = _store(8)
    stq_be = _store(8, big=True)


ldub_p = _load_p(1)
ldsb_p = _load_p(1, signed=True)
lduw_p = lduw_le_p = _load_p(2)
lduw_be_p = _load_p(2, big=True)
ldsw_p = ldsw_le_p = _load_p(2, signed=True)
ldsw_be_p = _load_p(2, signed=True, big=True)
ldl_p = ldl_le_p = _load_p(4)
ldl_be_p = _load_p(4, big=True)
ldsl_p = ldsl_le_p = _load_p(4, signed=True)
ldsl_be_p = _load_p(4, signed=True, big=True)
ldq_p = ldq_le_p = _load_p(8)
ldq_be_p = _load_p(8, big=True)
ldsq_p = ldsq_le_p = _load_p(8, signed=True)
ldsq_be_p = _load_p(8, signed=True, big=True)
stb_p = _store_p(1)
stw_p = stw_le_p = _store_p(2)
stw_be_p = _store_p(2, big=True)
stl_p = stl_le_p = _store_p(4)
stl_be_p = _store_p(4, big=True)
stq_p = stq_le_p = _store_p(8)
stq_be_p = _store_p(8, big=True)
