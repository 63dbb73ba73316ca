"""Structs: declared once as a Python class, laid out as C lays them out, seen from both sides.

    @struct
    class Point:
        x: u32
        y: u32

`Point.size`, `Point.fields["y"].offset`; `ptr[Point](address).y` in native code and plain Python alike;
`Point.view(address)` is a ctypes structure over the same bytes, whose fields are Python ints (fast, untyped).
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from typing import Any, get_type_hints

from pellucid.native.aliasing import OWN, REGISTERS, STEADY
from pellucid.native.types import NativeType, Ptr, Vec, _ArrayType, _Float, _Int, f80
from pellucid.records import dataclass


@dataclass(frozen=True, slots=True)
class Field:
    """One field: its native type, its offset in bytes and its class of memory, see `aliasing`."""

    name: str
    type: Any
    offset: int
    memory: str = ""


def struct(cls: type | None = None, *, own: bool = False, registers: Iterable[str] = (),
           steady: Iterable[str] = ()) -> Any:
    """Turn an annotated class into a native struct type.

    `own`: no `foreign` pointer reaches it. `registers`: such a struct too; these fields are reached through pointers
    to it alone, and by no function that spares registers. `at(p, n, T)` of such a pointer is an access to registers.
    `steady`: fields that no code of a region changes.
    """
    if cls is None:
        special = dict.fromkeys(registers, REGISTERS) | dict.fromkeys(steady, STEADY)
        return lambda made: _struct(made, OWN if own or special else "", special)
    return _struct(cls, "", {})


def _struct(cls: type, memory: str, special: dict[str, str]) -> Any:
    hints = get_type_hints(cls, vars(sys.modules[cls.__module__]))
    fields: dict[str, Field] = {}
    offset, align = 0, 1
    for name, kind in hints.items():
        if kind is not bool and not isinstance(kind, NativeType) or getattr(kind, "ir", "").endswith("x i1>"):
            raise TypeError(f"{cls.__name__}.{name} is {kind!r}: a field is a native type, e.g. u64 or array[u8, 16]")
        size, field_align = (1, 1) if kind is bool else (kind.size, kind.align)
        offset = -(-offset // field_align) * field_align
        fields[name] = Field(name, kind, offset, special.get(name, memory))
        offset += size
        align = max(align, field_align)
    if stray := set(special) - set(fields):
        raise TypeError(f"{cls.__name__} has no field {min(stray)!r}")
    size = -(-offset // align) * align
    made = NativeType(cls.__name__, (), {
        "fields": fields, "size": size, "align": align, "ir": f"[{size} x i8]", "__doc__": cls.__doc__,
        "__module__": cls.__module__, "view": classmethod(_view), "has_registers": REGISTERS in special.values()})
    made.ctype = _ctype(made, fields, size)  # type: ignore[attr-defined]
    return made


def _view(cls: Any, addr: int) -> Any:
    return cls.ctype.from_address(addr)


def _ctype(made: Any, fields: dict[str, Field], size: int) -> type[ctypes.Structure]:
    layout: list[tuple[str, Any]] = []
    at = 0
    for field in fields.values():
        if field.offset > at:
            layout.append((f"_pad{at}", ctypes.c_uint8 * (field.offset - at)))
        layout.append((field.name, _ctypes_of(field.type)))
        at = field.offset + (1 if field.type is bool else field.type.size)
    if size > at:
        layout.append((f"_pad{at}", ctypes.c_uint8 * (size - at)))
    return type(made.__name__ + "View", (ctypes.Structure,), {"_pack_": 1, "_fields_": layout})


_INTS = {(s, g): getattr(ctypes, f"c_{'int' if g else 'uint'}{s * 8}") for s in (1, 2, 4, 8) for g in (False, True)}


def _ctypes_of(kind: Any) -> Any:
    if kind is bool:
        return ctypes.c_bool
    if isinstance(kind, _ArrayType):
        return _ctypes_of(kind.element) * kind.count
    if hasattr(kind, "fields"):
        return kind.ctype
    if kind is f80 or issubclass(kind, Vec) or kind.size == 16:
        return ctypes.c_uint8 * kind.size
    if issubclass(kind, Ptr):
        return ctypes.c_uint64
    if issubclass(kind, _Float):
        return ctypes.c_float if kind.size == 4 else ctypes.c_double
    assert issubclass(kind, _Int)
    return _INTS[kind.size, kind.signed]
