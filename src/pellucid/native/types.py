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
"""

from __future__ import annotations

import ctypes
import math
import struct as _struct
from typing import Any, ClassVar


class NativeType(type):
    """Metaclass of every native type: `size` and `align` in bytes, `ir` the LLVM spelling."""

    size: int
    align: int
    ir: str


class _Int(int, metaclass=NativeType):
    bits: ClassVar[int]
    signed: ClassVar[bool]
    size: ClassVar[int]
    align: ClassVar[int]
    ir: ClassVar[str]

    def __new__(cls, value: Any = 0) -> Any:
        if isinstance(value, Ptr):
            value = value.addr
        elif isinstance(value, (float, f80)):
            value = _saturate(float(value), cls)
        return int.__new__(cls, wrap(int(value), cls.bits, cls.signed))

    @classmethod
    def read(cls, addr: int) -> Any:
        return cls(int.from_bytes(ctypes.string_at(addr, cls.size), "little"))

    @classmethod
    def write(cls, addr: int, value: Any) -> None:
        raw = (int(value) & ((1 << cls.bits) - 1)).to_bytes(cls.size, "little")
        ctypes.memmove(addr, raw, cls.size)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({int(self):#x})"

    def __invert__(self) -> Any:
        return type(self)(~int(self))

    def __neg__(self) -> Any:
        return type(self)(-int(self))

    def __lshift__(self, n: Any) -> Any:
        n = int(n)
        return type(self)(int(self) << n if 0 <= n < self.bits else 0)

    def __rshift__(self, n: Any) -> Any:
        n = int(n)
        return type(self)(int(self) >> n if 0 <= n < self.bits else (-1 if self < 0 else 0))

    def __rlshift__(self, other: Any) -> Any:
        raise TypeError("a shifted literal has no type: write u64(1) << n")

    def __rrshift__(self, other: Any) -> Any:
        raise TypeError("a shifted literal has no type: write u64(x) >> n")

    def __truediv__(self, other: Any) -> Any:
        raise TypeError("/ is for floats: use // or sdiv")


def wrap(value: int, bits: int, signed: bool) -> int:
    """`value` reduced to `bits` bits, read as two's complement when `signed`."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if signed and value >> (bits - 1) else value


def _saturate(value: float, to: type[_Int]) -> int:
    low, high = (-(1 << (to.bits - 1)), (1 << (to.bits - 1)) - 1) if to.signed else (0, (1 << to.bits) - 1)
    return 0 if math.isnan(value) else high if value >= high else low if value <= low else int(value)


def _same(a: Any, b: Any) -> Any:
    """The type of `a op b`, or None when the two do not mix."""
    if type(b) is type(a) or type(b) is int:
        return type(a)
    if isinstance(b, (_Int, bool)):
        raise TypeError(f"{type(a).__name__} and {type(b).__name__} do not mix: convert one of them")
    return None


def _binary(name: str, fn: Any) -> None:
    def forward(self: Any, other: Any) -> Any:
        t = _same(self, other)
        return NotImplemented if t is None else t(fn(int(self), int(other)))

    def reflected(self: Any, other: Any) -> Any:
        t = _same(self, other)
        return NotImplemented if t is None else t(fn(int(other), int(self)))

    setattr(_Int, f"__{name}__", forward)
    setattr(_Int, f"__r{name}__", reflected)


_binary("add", lambda a, b: a + b)
_binary("sub", lambda a, b: a - b)
_binary("mul", lambda a, b: a * b)
_binary("and", lambda a, b: a & b)
_binary("or", lambda a, b: a | b)
_binary("xor", lambda a, b: a ^ b)
_binary("floordiv", lambda a, b: a // b if b else 0)
_binary("mod", lambda a, b: a % b if b else 0)


def _compare(name: str) -> None:
    base = getattr(int, f"__{name}__")

    def method(self: Any, other: Any) -> Any:
        if isinstance(other, int):
            _same(self, other)
        return base(self, other)

    setattr(_Int, f"__{name}__", method)


for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    _compare(_name)
setattr(_Int, "__hash__", int.__hash__)


def _make_int(bits: int, signed: bool) -> Any:
    name = f"{'i' if signed else 'u'}{bits}"
    size = bits // 8
    return NativeType(name, (_Int,), {"bits": bits, "signed": signed, "size": size, "align": min(size, 16),
                                      "ir": f"i{bits}", "__module__": __name__, "__slots__": ()})


u8, u16, u32, u64, u128 = (_make_int(b, False) for b in (8, 16, 32, 64, 128))
i8, i16, i32, i64, i128 = (_make_int(b, True) for b in (8, 16, 32, 64, 128))
_UNSIGNED = {t.size: t for t in (u8, u16, u32, u64, u128)}
_SIGNED = {t.size: t for t in (i8, i16, i32, i64, i128)}


def uint(size: int) -> Any:
    """The unsigned integer type of `size` bytes."""
    return _UNSIGNED[size]


def sint(size: int) -> Any:
    """The signed integer type of `size` bytes."""
    return _SIGNED[size]


class _Float(float, metaclass=NativeType):
    size: ClassVar[int]
    align: ClassVar[int]
    ir: ClassVar[str]
    code: ClassVar[str]

    def __new__(cls, value: Any = 0.0) -> Any:
        value = float(value)
        if cls.code == "<f":
            try:
                value = _struct.unpack("<f", _struct.pack("<f", value))[0]
            except OverflowError:
                value = math.copysign(math.inf, value)
        return float.__new__(cls, value)

    @classmethod
    def read(cls, addr: int) -> Any:
        return cls(_struct.unpack(cls.code, ctypes.string_at(addr, cls.size))[0])

    @classmethod
    def write(cls, addr: int, value: Any) -> None:
        ctypes.memmove(addr, _struct.pack(cls.code, value), cls.size)


def _float_binary(name: str) -> None:
    base = getattr(float, f"__{name}__")

    def method(self: Any, other: Any) -> Any:
        if type(other) not in (type(self), float, int):
            raise TypeError(f"{type(self).__name__} and {type(other).__name__} do not mix: convert one of them")
        try:
            return type(self)(base(self, float(other)))
        except ZeroDivisionError:
            if self == 0 or math.isnan(self):
                return type(self)(math.nan)
            return type(self)(math.copysign(math.inf, self) * math.copysign(1.0, float(other)))

    setattr(_Float, f"__{name}__", method)


for _name in ("add", "sub", "mul", "truediv", "radd", "rsub", "rmul"):
    _float_binary(_name)
setattr(_Float, "__neg__", lambda self: type(self)(-float(self)))

f32: Any = NativeType("f32", (_Float,), {"size": 4, "align": 4, "ir": "float", "code": "<f"})
f64: Any = NativeType("f64", (_Float,), {"size": 8, "align": 8, "ir": "double", "code": "<d"})


class f80(metaclass=NativeType):
    """The x87 extended format: 64-bit significand with explicit integer bit, 15-bit exponent, sign.

    Plain Python has no such arithmetic, so it keeps the ten bytes and computes through the host's own unit
    (`host.f80_binary`), which is exact by definition.
    """

    size = 16
    align = 16
    ir = "x86_fp80"
    __slots__ = ("raw",)

    def __init__(self, value: Any = 0.0) -> None:
        if isinstance(value, f80):
            self.raw: bytes = value.raw
        elif isinstance(value, int):
            self.raw = _f80_from_int(value)
        else:
            self.raw = _f80_from_double(float(value))

    @classmethod
    def from_bytes(cls, raw: bytes) -> f80:
        value = cls.__new__(cls)
        value.raw = bytes(raw[:10])
        return value

    @classmethod
    def read(cls, addr: int) -> f80:
        return cls.from_bytes(ctypes.string_at(addr, 10))

    @classmethod
    def write(cls, addr: int, value: f80) -> None:
        ctypes.memmove(addr, value.raw, 10)

    def _by_host(self, op: str, other: Any) -> f80:
        from pellucid.native.stub import f80_binary

        if not isinstance(other, f80):
            other = f80(other)
        return f80.from_bytes(f80_binary(op, self.raw, other.raw))

    def __add__(self, other: Any) -> f80:
        return self._by_host("fadd", other)

    def __sub__(self, other: Any) -> f80:
        return self._by_host("fsub", other)

    def __mul__(self, other: Any) -> f80:
        return self._by_host("fmul", other)

    def __truediv__(self, other: Any) -> f80:
        return self._by_host("fdiv", other)

    def __neg__(self) -> f80:
        return f80.from_bytes(self.raw[:9] + bytes([self.raw[9] ^ 0x80]))

    def __float__(self) -> float:
        significand, se = int.from_bytes(self.raw[:8], "little"), int.from_bytes(self.raw[8:], "little")
        sign, exponent = -1.0 if se >> 15 else 1.0, se & 0x7FFF
        if exponent == 0x7FFF:
            return sign * math.inf if not significand << 1 & (1 << 64) - 1 else math.nan
        try:
            return sign * math.ldexp(significand, exponent - 16383 - 63)
        except OverflowError:
            return sign * math.inf

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (f80, float, int)) and float(self) == float(other)

    def __lt__(self, other: Any) -> bool:
        return float(self) < float(other)

    def __gt__(self, other: Any) -> bool:
        return float(self) > float(other)

    def __hash__(self) -> int:
        return hash(self.raw)

    def __repr__(self) -> str:
        return f"f80({float(self)!r})"


def _f80_from_int(value: int) -> bytes:
    sign, magnitude = value < 0, abs(value)
    if not magnitude:
        return bytes(10)
    top = magnitude.bit_length()
    significand = magnitude << (64 - top) if top <= 64 else magnitude >> (top - 64)
    return significand.to_bytes(8, "little") + (sign << 15 | (16383 + top - 1)).to_bytes(2, "little")


def _f80_from_double(value: float) -> bytes:
    sign = math.copysign(1.0, value) < 0
    if math.isnan(value):
        bits = int.from_bytes(_struct.pack("<d", value), "little")
        significand = 1 << 63 | 1 << 62 | (bits & ((1 << 52) - 1)) << 11
        return significand.to_bytes(8, "little") + (sign << 15 | 0x7FFF).to_bytes(2, "little")
    if math.isinf(value):
        return (1 << 63).to_bytes(8, "little") + (sign << 15 | 0x7FFF).to_bytes(2, "little")
    if value == 0.0:
        return bytes(8) + (sign << 15).to_bytes(2, "little")
    mantissa, exponent = math.frexp(abs(value))
    return int(math.ldexp(mantissa, 64)).to_bytes(8, "little") + (sign << 15 | exponent + 16382).to_bytes(2, "little")


class _PtrType(NativeType):
    """What a pointer type knows stands here, not in the class: a struct may have fields named `size` or `target`."""

    _made: ClassVar[dict[Any, Any]] = {}
    _targets: ClassVar[dict[Any, Any]] = {}
    size = property(lambda cls: 8)
    align = property(lambda cls: 8)
    ir = property(lambda cls: "ptr")
    target = property(lambda cls: _PtrType._targets.get(cls))

    def __getitem__(cls, target: Any) -> Any:
        if target not in _PtrType._made:
            name = f"ptr[{getattr(target, '__name__', target)}]"
            made = _PtrType._made[target] = _PtrType(name, (Ptr,), {"__slots__": ()})
            _PtrType._targets[made] = target
        return _PtrType._made[target]


class Ptr(metaclass=_PtrType):
    """An address of `target`. Plain Python reads and writes the very bytes that native code does."""

    __slots__ = ("addr",)
    addr: int

    def __init__(self, addr: Any = 0) -> None:
        object.__setattr__(self, "addr", addr.addr if isinstance(addr, Ptr) else int(addr))

    @classmethod
    def read(cls, addr: int) -> Any:
        return cls(u64.read(addr))

    @classmethod
    def write(cls, addr: int, value: Any) -> None:
        u64.write(addr, value.addr)

    def __getitem__(self, i: Any) -> Any:
        target: Any = type(self).target
        return load(target, self.addr + int(i) * target.size)

    def __setitem__(self, i: Any, value: Any) -> None:
        target: Any = type(self).target
        store(target, self.addr + int(i) * target.size, value)

    def __getattr__(self, name: str) -> Any:
        field = getattr(type(self).target, "fields", {}).get(name)
        if field is None:
            raise AttributeError(f"{type(self).__name__} has no field {name!r}")
        return load(field.type, self.addr + field.offset)

    def __setattr__(self, name: str, value: Any) -> None:
        target: Any = type(self).target
        field = target.fields[name]
        store(field.type, self.addr + field.offset, value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ptr) and self.addr == other.addr

    def __hash__(self) -> int:
        return hash(self.addr)

    def __bool__(self) -> bool:
        return self.addr != 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.addr:#x})"


ptr: Any = Ptr


def load(kind: Any, addr: int) -> Any:
    """The value of type `kind` at `addr`; an array or a struct in place gives its address."""
    if isinstance(kind, _ArrayType):
        return ptr[kind.element](addr)
    if hasattr(kind, "fields"):
        return ptr[kind](addr)
    if kind is bool:
        return bool(ctypes.string_at(addr, 1)[0])
    return kind.read(addr)


def store(kind: Any, addr: int, value: Any) -> None:
    """Write `value` as `kind` at `addr`; a literal takes the type, another type is an error."""
    if kind is bool:
        ctypes.memmove(addr, bytes([bool(value)]), 1)
        return
    if type(value) is not kind:
        if type(value) not in (int, bool, float):
            raise TypeError(f"storing {type(value).__name__} where {kind.__name__} lives: convert it")
        value = kind(value)
    kind.write(addr, value)


class _ArrayType(NativeType):
    _made: ClassVar[dict[Any, Any]] = {}
    element: Any
    count: int

    def __getitem__(cls, key: Any) -> Any:
        if key not in _ArrayType._made:
            element, count = key
            name = f"array[{element.__name__}, {count}]"
            _ArrayType._made[key] = _ArrayType(name, (), {
                "element": element, "count": count, "size": element.size * count, "align": element.align,
                "ir": f"[{count} x {element.ir}]"})
        return _ArrayType._made[key]


array: Any = _ArrayType("array", (), {"element": None, "count": 0, "size": 0, "align": 1, "ir": ""})


class _VecType(NativeType):
    _made: ClassVar[dict[Any, Any]] = {}
    element: Any
    count: int

    def __getitem__(cls, key: Any) -> Any:
        if key not in _VecType._made:
            element, count = key
            size = max(element_size(element) * count, 1)
            name = f"vec[{element.__name__}, {count}]"
            ir = f"<{count} x {'i1' if element is bool else element.ir}>"
            _VecType._made[key] = _VecType(name, (Vec,), {
                "element": element, "count": count, "size": size, "align": size, "ir": ir, "__slots__": ()})
        return _VecType._made[key]


def element_size(element: Any) -> int:
    """Bytes of one vector lane or array element (a bool lane counts as one)."""
    return 1 if element is bool else int(element.size)


class Vec(metaclass=_VecType):
    """Lanes in plain Python: a tuple with lane-wise operators."""

    element: ClassVar[Any] = None
    count: ClassVar[int] = 0
    size: ClassVar[int] = 0
    __slots__ = ("lanes",)

    def __init__(self, lanes: Any = 0) -> None:
        if isinstance(lanes, (int, float)):
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

    def __getitem__(self, i: Any) -> Any:
        return self.lanes[int(i)]

    def __eq__(self, other: Any) -> Any:
        return self._zip(other, lambda a, b: a == b, bool)

    def __ne__(self, other: Any) -> Any:
        return self._zip(other, lambda a, b: a != b, bool)

    def __hash__(self) -> int:
        return hash(self.lanes)

    def _zip(self, other: Any, fn: Any, element: Any = None) -> Any:
        if not isinstance(other, Vec):
            other = type(self)(other)
        if type(other) is not type(self):
            raise TypeError(f"{type(self).__name__} and {type(other).__name__} do not mix: convert one of them")
        return vec[element or self.element, self.count]([fn(a, b) for a, b in zip(self.lanes, other.lanes)])

    def __invert__(self) -> Any:
        if self.element is bool:
            return type(self)([not a for a in self.lanes])
        return type(self)([~a for a in self.lanes])

    def __neg__(self) -> Any:
        return type(self)([-a for a in self.lanes])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self.lanes)})"


def _vec_operator(name: str, element: Any = None) -> None:
    import operator

    fn = getattr(operator, name if name not in ("and", "or") else name + "_")
    setattr(Vec, f"__{name}__", lambda self, other: self._zip(other, fn, element))


for _name in ("add", "sub", "mul", "and", "or", "xor", "lshift", "rshift", "truediv"):
    _vec_operator(_name)
for _name in ("lt", "le", "gt", "ge"):
    _vec_operator(_name, bool)

vec: Any = Vec
