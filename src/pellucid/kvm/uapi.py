"""Structures with KVM's binary layout, declared once as dataclasses.

A field is declared with its width, `irr: int = u8()`; from the declaration come the byte layout (little endian, no
hidden padding: KVM's headers spell their padding out, and so do the declarations here), the check that a value fits its
width, and `pack`/`unpack`. Saved state and the /dev/kvm backend thereby share one description of a chip.
"""

import struct
from typing import Any, Self

from pellucid.kvm.errors import StateError
from pellucid.records import Field, dataclass, field, fields

_RANGES = {
    "B": (0, 0xFF),
    "H": (0, 0xFFFF),
    "I": (0, 0xFFFF_FFFF),
    "Q": (0, (1 << 64) - 1),
    "q": (-(1 << 63), (1 << 63) - 1),
}


def _scalar(code: str, default: int) -> Any:
    return field(default=default, metadata={"code": code})


def u8(default: int = 0) -> Any:
    """A field of 8 bits, unsigned."""
    return _scalar("B", default)


def u16(default: int = 0) -> Any:
    """A field of 16 bits, unsigned."""
    return _scalar("H", default)


def u32(default: int = 0) -> Any:
    """A field of 32 bits, unsigned."""
    return _scalar("I", default)


def u64(default: int = 0) -> Any:
    """A field of 64 bits, unsigned."""
    return _scalar("Q", default)


def s64(default: int = 0) -> Any:
    """A field of 64 bits, signed."""
    return _scalar("q", default)


def array(code: str, count: int) -> Any:
    """A field of `count` integers, each of struct code `code` ("B", "I", "Q" …); a tuple of ints, zeros by default."""
    return field(default=(0,) * count, metadata={"code": code, "count": count})


def nested(kind: type["UapiStruct"], count: int) -> Any:
    """A field of `count` structures of one kind; a tuple, each with its defaults."""
    return field(default=(kind(),) * count, metadata={"kind": kind, "count": count})


@dataclass(frozen=True)
class UapiStruct:
    """Base of the declared structures. Construction checks every value's width and raises `StateError`."""

    def __post_init__(self) -> None:
        for declared in fields(self):
            _check(type(self).__name__, declared, getattr(self, declared.name))

    @classmethod
    def size(cls) -> int:
        """Bytes of the packed structure."""
        return sum(_field_size(declared) for declared in fields(cls))

    def pack(self) -> bytes:
        """The bytes that KVM's structure of the same name holds."""
        parts = []
        for declared in fields(self):
            value = getattr(self, declared.name)
            if "kind" in declared.metadata:
                parts.append(b"".join(item.pack() for item in value))
            elif "count" in declared.metadata:
                parts.append(struct.pack(f"<{declared.metadata['count']}{declared.metadata['code']}", *value))
            else:
                parts.append(struct.pack(f"<{declared.metadata['code']}", value))
        return b"".join(parts)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """The structure from its bytes; `StateError` when there are too few or too many."""
        if len(data) != cls.size():
            raise StateError(f"{cls.__name__}: {len(data)} bytes given, the structure has {cls.size()}")
        values: dict[str, Any] = {}
        offset = 0
        for declared in fields(cls):
            end = offset + _field_size(declared)
            values[declared.name] = _unpack_field(declared, data[offset:end])
            offset = end
        return cls(**values)


def _field_size(declared: Field[Any]) -> int:
    count: int = declared.metadata.get("count", 1)
    kind: type[UapiStruct] | None = declared.metadata.get("kind")
    return count * (kind.size() if kind else struct.calcsize(f"<{declared.metadata['code']}"))


def _unpack_field(declared: Field[Any], data: bytes) -> Any:
    kind: type[UapiStruct] | None = declared.metadata.get("kind")
    if kind:
        step = kind.size()
        return tuple(kind.unpack(data[at : at + step]) for at in range(0, len(data), step))
    values = struct.unpack(f"<{declared.metadata.get('count', 1)}{declared.metadata['code']}", data)
    return values if "count" in declared.metadata else values[0]


def _check(owner: str, declared: Field[Any], value: Any) -> None:
    where = f"{owner}.{declared.name}"
    count = declared.metadata.get("count")
    if count is not None and (not isinstance(value, tuple) or len(value) != count):
        raise StateError(f"{where}: a tuple of {count} is needed")
    items = value if count is not None else (value,)
    kind = declared.metadata.get("kind")
    for item in items:
        if kind is not None:
            if not isinstance(item, kind):
                raise StateError(f"{where}: {item!r} is not a {kind.__name__}")
            continue
        low, high = _RANGES[declared.metadata["code"]]
        if type(item) is not int or not low <= item <= high:
            raise StateError(f"{where}: {item!r} does not fit {low:#x}..{high:#x}")
