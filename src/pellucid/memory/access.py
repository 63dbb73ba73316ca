"""The vocabulary of accesses: declared sizes, endianness, results, and what an I/O region's device looks like."""

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from pellucid.kvm.clock import ClockValue
from pellucid.records import dataclass

if TYPE_CHECKING:
    from pellucid.memory.ram_block import RamBlock

MASKS = (0, 0xFF, 0xFFFF, 0, 0xFFFF_FFFF, 0, 0, 0, 0xFFFF_FFFF_FFFF_FFFF)
"""By access size in bytes: the mask of a value of that size; 0 where no such access exists."""


class Endianness(enum.Enum):
    """Byte order of a device's registers. NATIVE is the guest processor's, which on x86 is little."""

    LITTLE = "little"
    BIG = "big"
    NATIVE = "native"


class MemTxResult(enum.IntFlag):
    """How an access ended; several results of one split access are or-ed (QEMU's MEMTX_*)."""

    OK = 0
    ERROR = 1
    """The device answered with an error."""
    DECODE_ERROR = 2
    """Nothing is there, or it does not take such an access."""
    ACCESS_ERROR = 4
    """The access was not allowed."""


@dataclass(frozen=True, slots=True)
class AccessSizes:
    """Sizes in bytes (powers of two, 1 to 8), and whether accesses need not be aligned to their size.

    A region declares two of them. `valid` is what the guest may do: other sizes read zero, are dropped when written,
    and are traced. `impl` is what the device's methods are written for: an access that is valid but larger is split,
    one that is smaller is cut out of the surrounding `impl.min` bytes.
    """

    min: int = 1
    max: int = 4
    unaligned: bool = False

    def __post_init__(self) -> None:
        if self.min not in (1, 2, 4, 8) or self.max not in (1, 2, 4, 8) or self.min > self.max:
            raise ValueError(f"access sizes {self.min}..{self.max}: each is 1, 2, 4 or 8, the smaller first")


class IoOps(Protocol):
    """What stands behind an I/O region: a device. It sees offsets into the region, never addresses."""

    def read(self, offset: int, size: int) -> int:
        """The value of the `size` bytes at `offset`, in the region's declared byte order. Higher bits are ignored."""
        ...

    def write(self, offset: int, size: int, value: int) -> None:
        """Store `value`, already cut to `size` bytes."""
        ...


@runtime_checkable
class StringOps(Protocol):
    """A device that can answer INS with many elements at once."""

    def read_string(self, offset: int, size: int, count: int) -> bytes:
        """Up to `count` elements of `size` bytes, all read at `offset`; empty: they are to be read one by one."""
        ...


Accepts = Callable[[int, int, bool], bool]
"""`accepts(offset, size, is_write)`: a further condition on valid accesses."""


class Translated(NamedTuple):
    """Where an access behind an IOMMU goes: `size` bytes from `address` of `space` on are one piece."""

    space: "TargetSpace"
    address: int
    size: int


Translate = Callable[[int, bool], Translated | None]
"""`translate(offset, is_write)`: None when the access is not allowed, which has been recorded."""


class TargetSpace(Protocol):
    """The part of an `AddressSpace` that translated accesses need. It has no IOMMU in it itself."""

    def try_read_bytes(self, addr: int, length: int) -> tuple[bytearray, MemTxResult]: ...
    def write_bytes(self, addr: int, data: bytes | bytearray | memoryview) -> MemTxResult: ...
    def map(self, addr: int, length: int, is_write: bool) -> "tuple[RamBlock, int, int] | None": ...


@dataclass(frozen=True, slots=True)
class IoEventfd:
    """A doorbell: a guest write here signals `fd` and does not reach the device.

    Attributes:
        offset: into the region.
        size: of the write in bytes; 0 takes every size.
        fd: an eventfd.
        datamatch: only this value rings; None takes every value.
    """

    offset: int
    size: int
    fd: int
    datamatch: int | None = None

    def matches(self, offset: int, size: int, value: int) -> bool:
        """Whether a write of `value` rings this bell."""
        return (
            offset == self.offset
            and (self.size == 0 or self.size == size)
            and (self.datamatch is None or self.datamatch == value)
        )


@dataclass(frozen=True, slots=True)
class ClockRegister:
    """A register that reads as a function of the guest's clock: the hypervisor may answer it without an exit.

    Attributes:
        offset: into the region.
        size: of the reads that it answers, in bytes.
        value: what the device's own read gives, too.
    """

    offset: int
    size: int
    value: ClockValue


def swap_bytes(value: int, size: int) -> int:
    """`value`, of `size` bytes, with its bytes in the opposite order."""
    return int.from_bytes(value.to_bytes(size, "little"), "big")
