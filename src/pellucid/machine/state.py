"""What a declared value may be: the kinds that device state and properties are checked against.

State comes back from files and from other hosts, so a stream is hostile until every value in it has passed its kind.
A kind turns a value into plain data (int, bool, bytes, None) for saving, and plain data into a value or a StateError.
"""

from typing import Generic, TypeVar

from pellucid.errors import PellucidError
from pellucid.records import dataclass

T = TypeVar("T")

Plain = int | bool | bytes | str | None
"""What a saved value is made of."""


class StateError(PellucidError):
    """Saved state that a device cannot have been in: the text names the device, the value and what was expected."""


class Kind(Generic[T]):
    """The values that a declaration admits."""

    wanted: str
    """In words, for the error."""

    def load(self, plain: object) -> T:
        """The value of saved data. Raises StateError when it is not of this kind."""
        raise StateError(f"expected {self.wanted}, got {plain!r:.60}")

    def save(self, value: T) -> Plain:
        """Plain data that load() turns back into the same value."""
        assert value is None or isinstance(value, int | bytes | str)
        return value


@dataclass(frozen=True)
class Integer(Kind[int]):
    """A whole number from `low` to `high`, both included."""

    low: int
    high: int

    @property
    def wanted(self) -> str:  # type: ignore[override]
        return f"a whole number from {self.low} to {self.high}"

    def load(self, plain: object) -> int:
        if isinstance(plain, int) and not isinstance(plain, bool) and self.low <= plain <= self.high:
            return plain
        return super().load(plain)


@dataclass(frozen=True)
class Boolean(Kind[bool]):
    """True or False."""

    wanted: str = "true or false"

    def load(self, plain: object) -> bool:
        return plain if isinstance(plain, bool) else super().load(plain)


@dataclass(frozen=True)
class Text(Kind[str]):
    """A string of at most `longest` characters."""

    longest: int = 255

    @property
    def wanted(self) -> str:  # type: ignore[override]
        return f"at most {self.longest} characters of text"

    def load(self, plain: object) -> str:
        if isinstance(plain, str) and len(plain) <= self.longest:
            return plain
        return super().load(plain)


@dataclass(frozen=True)
class Queue(Kind[bytes]):
    """At most `longest` bytes, oldest first: a hardware FIFO."""

    longest: int

    @property
    def wanted(self) -> str:  # type: ignore[override]
        return f"at most {self.longest} bytes"

    def load(self, plain: object) -> bytes:
        if isinstance(plain, bytes) and len(plain) <= self.longest:
            return plain
        return super().load(plain)


@dataclass(frozen=True)
class Memory(Kind[bytearray]):
    """Exactly `size` bytes that the device changes in place."""

    size: int

    @property
    def wanted(self) -> str:  # type: ignore[override]
        return f"exactly {self.size} bytes"

    def load(self, plain: object) -> bytearray:
        if isinstance(plain, bytes) and len(plain) == self.size:
            return bytearray(plain)
        return super().load(plain)

    def save(self, value: bytearray) -> bytes:
        return bytes(value)


@dataclass(frozen=True)
class Buffer(Kind[bytearray]):
    """At most `longest` bytes that the device changes in place."""

    longest: int

    @property
    def wanted(self) -> str:  # type: ignore[override]
        return f"at most {self.longest} bytes"

    def load(self, plain: object) -> bytearray:
        if isinstance(plain, bytes) and len(plain) <= self.longest:
            return bytearray(plain)
        return super().load(plain)

    def save(self, value: bytearray) -> bytes:
        return bytes(value)


U8 = Integer(0, 0xFF)
U16 = Integer(0, 0xFFFF)
U32 = Integer(0, 0xFFFF_FFFF)
U64 = Integer(0, 0xFFFF_FFFF_FFFF_FFFF)
S64 = Integer(-(1 << 63), (1 << 63) - 1)
BOOL = Boolean()
