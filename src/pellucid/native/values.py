"""What an expression of native code evaluates to while it is being compiled."""

from __future__ import annotations

from typing import Any

from pellucid.native.types import NativeType, Ptr, Vec, _Float, _Int, f80
from pellucid.records import dataclass


@dataclass(frozen=True, slots=True)
class Const:
    """Known at compile time: any Python object (a literal, a type, a function, a table)."""

    value: Any


@dataclass(frozen=True, slots=True)
class Val:
    """Known at run time: its native type, its LLVM name or literal, and the class of memory that a pointer reaches."""

    type: Any
    ir: str
    memory: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """A location in memory: element type, address and class; what `p[i]` and `p.field` are before the load."""

    type: Any
    ir: str
    memory: str = ""


@dataclass(frozen=True, slots=True)
class Variable:
    """A local with a run-time value: its type and its stack slot."""

    type: Any
    slot: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """A name whose value depends on the way that led here; reading it fails with this reason."""

    reason: str


Binding = Const | Val | Variable | Unknown

VOID = Val(None, "void")


def is_int(kind: Any) -> bool:
    return isinstance(kind, NativeType) and issubclass(kind, _Int)


def is_float(kind: Any) -> bool:
    return isinstance(kind, NativeType) and (kind is f80 or issubclass(kind, _Float))


def is_ptr(kind: Any) -> bool:
    return isinstance(kind, NativeType) and issubclass(kind, Ptr)


def is_vec(kind: Any) -> bool:
    return isinstance(kind, NativeType) and issubclass(kind, Vec)


def is_struct(kind: Any) -> bool:
    return hasattr(kind, "fields")


def ir_type(kind: Any) -> str:
    """LLVM's spelling of a value of this type in a register."""
    if kind is None:
        return "void"
    return "i1" if kind is bool else str(kind.ir)


def name_of(kind: Any) -> str:
    return "nothing" if kind is None else str(getattr(kind, "__name__", kind))
