"""The types of native code, which are also the values of its plain-Python execution.

A type is a class; calling it converts, as a C cast does: `u8(x)` truncates, `u64(i32(-1))` extends by the
sign of its source. Integers wrap; an operation on two different integer types is an error in both worlds
(write the conversion), while Python's own int, a literal, takes the type of the other side.

    u8 u16 u32 u64 u128  i8 i16 i32 i64 i128      integers
    bool                                          Python's own
    f32 f64 f80                                   floats (f80 is the x87's 80-bit format)
    ptr[T]                                        an address of T; p[i] and, for a struct, p.field load and store
    vec[T, n]                                     n lanes of T, operated on lane by lane
    array[T, n]                                   only inside a struct: n elements in place

Scalars are in `scalars`; here are the types made of them.
"""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Callable
from typing import Any, ClassVar

from pellucid.native.scalars import (
    NativeType, _Float, _Int, f32, f64, f80, i8, i16, i32, i64, i128, is_literal, literal, sint, u8, u16, u32, u64,
    u128, uint, wrap)

__all__ = ["NativeType", "Ptr", "Vec", "_ArrayType", "_Float", "_Int", "_PtrType", "address_of", "array",
           "element_size", "f32", "f64", "f80", "i8", "i16", "i32", "i64", "i128", "is_literal", "literal", "load",
           "ptr", "sint", "size_of", "store", "u8", "u16", "u32", "u64", "u128", "uint", "vec", "wrap"]

_ADDRESS_MASK = (1 << 64) - 1


def size_of(kind: Any) -> int:
    """Bytes of a value in memory; a bool takes one."""
    return 1 if kind is bool else int(kind.size)


element_size = size_of


class _PtrType(NativeType):
    """Metaclass of pointers. What a pointer type knows stands here, not in the class, and a struct's fields are
    properties of its pointer type: a struct may have fields named `size` or `target`."""

    _made: ClassVar[dict[Any, Any]] = {}
    size = property(lambda cls: 8)
    align = property(lambda cls: 8)
    ir = property(lambda cls: "ptr")
    target = property(lambda cls: cls._target)
    read = property(lambda cls: lambda addr: cls(u64.read(addr)))
    write = property(lambda cls: lambda addr, value: u64.write(addr, address_of(value)))

    def __getitem__(cls, target: Any) -> Any:
        if target not in _PtrType._made:
            name = f"ptr[{getattr(target, '__name__', target)}]"
            fields = {f.name: _field_property(f) for f in getattr(target, "fields", {}).values()}
            _PtrType._made[target] = _PtrType(name, (Ptr,), {**fields, "_target": target, "__slots__": ()})
        return _PtrType._made[target]


def _field_property(field: Any) -> property:
    return property(lambda self: load(field.type, address_of(self) + field.offset),
                    lambda self, value: store(field.type, address_of(self) + field.offset, value))


class Ptr(metaclass=_PtrType):
    """An address of `target`. Plain Python reads and writes the very bytes that native code does."""

    _target: ClassVar[Any] = None
    __slots__ = ("_address",)

    def __init__(self, addr: Any = 0) -> None:
        _set_address(self, (address_of(addr) if isinstance(addr, Ptr) else int(addr)) & _ADDRESS_MASK)

    @property
    def addr(self) -> int:
        """The address as a Python int (unless the struct has a field of this name: then int(pointer))."""
        return address_of(self)

    def __int__(self) -> int:
        return address_of(self)

    def __getitem__(self, i: Any) -> Any:
        target = type(self)._target
        return load(target, address_of(self) + int(i) * size_of(target))

    def __setitem__(self, i: Any, value: Any) -> None:
        target = type(self)._target
        store(target, address_of(self) + int(i) * size_of(target), value)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{type(self).__name__} has no field {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in getattr(type(self)._target, "fields", {}):
            raise AttributeError(f"{type(self).__name__} has no field {name!r}")
        object.__setattr__(self, name, value)

    def __hash__(self) -> int:
        return hash(address_of(self))

    def __bool__(self) -> bool:
        return address_of(self) != 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({address_of(self):#x})"


_slot: Any = Ptr.__dict__["_address"]
address_of: Callable[[Any], int] = _slot.__get__
_set_address: Callable[[Any, int], None] = _slot.__set__


def _pointer_compare(name: str) -> None:
    fn = getattr(operator, name)

    def method(self: Any, other: Any) -> Any:
        if type(other) is type(self):
            return fn(address_of(self), address_of(other))
        if isinstance(other, Ptr) or is_literal(other) and other != 0 or isinstance(other, (_Int, _Float)):
            raise TypeError(f"{type(self).__name__} and {type(other).__name__} do not mix: convert one of them")
        return fn(address_of(self), 0) if is_literal(other) else NotImplemented

    setattr(Ptr, f"__{name}__", method)


for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    _pointer_compare(_name)

ptr: Any = Ptr


def load(kind: Any, addr: int) -> Any:
    """The value of type `kind` at `addr`; an array or a struct in place gives its address."""
    if isinstance(kind, _ArrayType):
        return ptr[kind.element](addr)
    if hasattr(kind, "fields"):
        return ptr[kind](addr)
    if kind is bool:
        return bool(ctypes.string_at(addr & _ADDRESS_MASK, 1)[0])
    return kind.read(addr & _ADDRESS_MASK)


def store(kind: Any, addr: int, value: Any) -> None:
    """Write `value` as `kind` at `addr`; a literal takes the type, another type is an error."""
    if isinstance(kind, _ArrayType) or hasattr(kind, "fields"):
        raise TypeError(f"{kind.__name__} is not assigned as a whole: assign its parts or memcpy")
    value = literal(kind, value)
    if kind is bool:
        ctypes.memmove(addr & _ADDRESS_MASK, bytes([value]), 1)
    else:
        kind.write(addr & _ADDRESS_MASK, value)


class _ArrayType(NativeType):
    _made: ClassVar[dict[Any, Any]] = {}
    element: Any
    count: int

    def __getitem__(cls, key: Any) -> Any:
        if key not in _ArrayType._made:
            element, count = key
            name = f"array[{element.__name__}, {count}]"
            _ArrayType._made[key] = _ArrayType(name, (), {
                "element": element, "count": count, "size": size_of(element) * count,
                "align": getattr(element, "align", 1), "ir": f"[{size_of(element) * count} x i8]"})
        return _ArrayType._made[key]


array: Any = _ArrayType("array", (), {"element": None, "count": 0, "size": 0, "align": 1, "ir": ""})


class _VecType(NativeType):
    _made: ClassVar[dict[Any, Any]] = {}
    element: Any
    count: int

    def __getitem__(cls, key: Any) -> Any:
        if key not in _VecType._made:
            element, count = key
            size = max(size_of(element) * count, 1)
            name = f"vec[{element.__name__}, {count}]"
            ir = f"<{count} x {'i1' if element is bool else element.ir}>"
            _VecType._made[key] = _VecType(name, (Vec,), {
                "element": element, "count": count, "size": size, "align": size, "ir": ir, "__slots__": ()})
        return _VecType._made[key]


class Vec(metaclass=_VecType):
    """Lanes in plain Python: a tuple with lane-wise operators."""

    element: ClassVar[Any] = None
    count: ClassVar[int] = 0
    size: ClassVar[int] = 0
    __slots__ = ("lanes",)

    def __init__(self, lanes: Any = 0) -> None:
        if isinstance(lanes, (int, float, f80)):
            lanes = (lanes,) * self.count
        elif isinstance(lanes, Vec):
            lanes = lanes.lanes
        self.lanes: tuple[Any, ...] = tuple(self.element(x) for x in lanes)
        if len(self.lanes) != self.count:
            raise TypeError(f"{type(self).__name__} takes {self.count} lanes, not {len(self.lanes)}")

    @classmethod
    def read(cls, addr: int) -> Any:
        return cls([cls.element.read(addr + i * cls.element.size) for i in range(cls.count)])

    @classmethod
    def write(cls, addr: int, value: Any) -> None:
        for i, x in enumerate(value.lanes):
            cls.element.write(addr + i * cls.element.size, x)

    @classmethod
    def lane(cls, i: Any) -> int:
        """The number of a lane: a run-time number counts modulo the lanes, a literal must name one."""
        if is_literal(i) and not 0 <= i < cls.count:
            raise TypeError(f"{cls.__name__} has no lane {i}")
        return int(i.pattern if isinstance(i, _Int) else i) % cls.count

    @classmethod
    def operand(cls, other: Any) -> Any:
        """The other side of an operator: the same type, or a literal for every lane."""
        if type(other) is cls:
            return other
        if is_literal(other) or isinstance(other, (list, tuple)):
            lanes = other if isinstance(other, (list, tuple)) else [other] * cls.count
            return cls([literal(cls.element, x) for x in lanes])
        raise TypeError(f"{cls.__name__} and {type(other).__name__} do not mix: convert one of them")

    def __getitem__(self, i: Any) -> Any:
        return self.lanes[self.lane(i)]

    def __hash__(self) -> int:
        return hash(self.lanes)

    def __bool__(self) -> bool:
        raise TypeError("a vector is not a condition: use movemask")

    def _zip(self, other: Any, fn: Any, element: Any = None) -> Any:
        other = self.operand(other)
        return vec[element or self.element, self.count](
            [fn(a, b) for a, b in zip(self.lanes, other.lanes, strict=True)])

    def __invert__(self) -> Any:
        if self.element is bool:
            return type(self)([not a for a in self.lanes])
        return type(self)([~a for a in self.lanes])

    def __neg__(self) -> Any:
        return type(self)([-a for a in self.lanes])

    def __pos__(self) -> Any:
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self.lanes)})"


def _vec_operator(name: str, element: Any = None, *, reflects: bool = False) -> None:
    fn = getattr(operator, name if name not in ("and", "or") else name + "_")
    setattr(Vec, f"__{name}__", lambda self, other: self._zip(other, fn, element))
    if reflects:
        setattr(Vec, f"__r{name}__", lambda self, other: self._zip(other, lambda a, b: fn(b, a)))


for _name in ("add", "sub", "mul", "and", "or", "xor", "truediv"):
    _vec_operator(_name, reflects=True)
for _name in ("lshift", "rshift"):
    _vec_operator(_name)
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    _vec_operator(_name, bool)

vec: Any = Vec
