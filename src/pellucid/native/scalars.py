"""Scalar types of native code, which are also the values of its plain-Python execution.

An operation takes two values of one type; Python's own int or float, a literal, takes the type of the other
side when it fits. Integers wrap; shifts by the width or more give 0 (sign fill for signed >>), x // 0 and
x % 0 are 0, exactly as compiled code has it.
"""

from __future__ import annotations

import ctypes
import math
import operator
import struct as _struct
from collections.abc import Callable
from typing import Any, ClassVar


class NativeType(type):
    """Metaclass of every native type: `size` and `align` in bytes, `ir` the LLVM spelling."""

    size: int
    align: int
    ir: str


def is_literal(value: Any) -> bool:
    """Whether a value is Python's own number, which has no native type yet (an enum member is one too)."""
    return isinstance(value, (int, float)) and not isinstance(value, (_Int, _Float))


def literal(kind: Any, value: Any) -> Any:
    """`value` where a `kind` is needed: a literal that fits takes the type; another type is an error."""
    if type(value) is kind:
        return value
    if kind is bool:
        raise TypeError(f"{value!r} where bool is needed: compare it")
    if not (is_literal(value) or isinstance(value, (list, tuple))):
        raise TypeError(f"{type(value).__name__} where {kind.__name__} is needed: convert it")
    if issubclass(kind, _Int):
        return int.__new__(kind, wrap(_fitting(kind, value), kind.bits, kind.signed))
    return kind(value)


def _fitting(kind: type[_Int], value: Any) -> int:
    """A literal as the compiler accepts it: anything whose bits fit, signed or not."""
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is not a {kind.__name__}")
    if not -(1 << (kind.bits - 1)) <= value < 1 << kind.bits:
        raise TypeError(f"{int(value)} does not fit {kind.__name__}")
    return int(value)


def wrap(value: int, bits: int, signed: bool) -> int:
    """`value` reduced to `bits` bits, read as two's complement when `signed`."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if signed and value >> (bits - 1) else value


class _Int(int, metaclass=NativeType):
    bits: ClassVar[int]
    signed: ClassVar[bool]
    size: ClassVar[int]
    align: ClassVar[int]
    ir: ClassVar[str]
    __slots__ = ()

    def __new__(cls, value: Any = 0) -> Any:
        if not isinstance(value, int):
            value = _saturate(value, cls) if isinstance(value, (float, f80)) else int(value)
        return int.__new__(cls, wrap(int(value), cls.bits, cls.signed))

    @classmethod
    def read(cls, addr: int) -> Any:
        return int.__new__(cls, int.from_bytes(ctypes.string_at(addr, cls.size), "little", signed=cls.signed))

    @classmethod
    def write(cls, addr: int, value: Any) -> None:
        raw = (int(value) & ((1 << cls.bits) - 1)).to_bytes(cls.size, "little")
        ctypes.memmove(addr, raw, cls.size)

    @property
    def pattern(self) -> int:
        """The bits as an unsigned number."""
        return int(self) & ((1 << self.bits) - 1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({int(self):#x})"

    def __invert__(self) -> Any:
        return type(self)(~int(self))

    def __neg__(self) -> Any:
        return type(self)(-int(self))

    def __pos__(self) -> Any:
        return self

    def __lshift__(self, n: Any) -> Any:
        n = _count(n)
        return type(self)(int(self) << n if 0 <= n < self.bits else 0)

    def __rshift__(self, n: Any) -> Any:
        n = _count(n)
        return type(self)(int(self) >> n if 0 <= n < self.bits else (-1 if int(self) < 0 else 0))

    def __rlshift__(self, other: Any) -> Any:
        raise TypeError("a shifted literal has no type: write u64(1) << n")

    def __rrshift__(self, other: Any) -> Any:
        raise TypeError("a shifted literal has no type: write u64(x) >> n")

    def _not_an_operation(self, other: Any, modulus: Any = None) -> Any:
        raise TypeError(f"this is not an operation on {type(self).__name__}: use // or sdiv to divide, << for powers")

    __truediv__ = __rtruediv__ = __pow__ = __rpow__ = __divmod__ = __rdivmod__ = _not_an_operation


def _count(n: Any) -> int:
    if not isinstance(n, int):
        raise TypeError(f"a shift count is an integer, not {type(n).__name__}")
    return int(n)


def _saturate(value: Any, to: type[_Int]) -> int:
    """Towards zero, stopping at the ends of the type; NaN gives 0."""
    low, high = (-(1 << (to.bits - 1)), (1 << (to.bits - 1)) - 1) if to.signed else (0, (1 << to.bits) - 1)
    if isinstance(value, f80):
        return 0 if value.is_nan else min(max(value.truncated(), low), high)
    return 0 if math.isnan(value) else high if value >= high else low if value <= low else int(value)


def _operand(self: _Int, other: Any) -> int | None:
    """The other side of an operator as a number, or None where it is not this module's business."""
    kind = type(self)
    if type(other) is kind:
        return int(other)
    if isinstance(other, (_Int, bool, float, f80)):
        raise TypeError(f"{kind.__name__} and {type(other).__name__} do not mix: convert one of them")
    if isinstance(other, int):
        return wrap(_fitting(kind, other), kind.bits, kind.signed)
    return None


def _binary(name: str, fn: Callable[[int, int], int]) -> None:
    def forward(self: Any, other: Any) -> Any:
        right = _operand(self, other)
        return NotImplemented if right is None else type(self)(fn(int(self), right))

    def reflected(self: Any, other: Any) -> Any:
        left = _operand(self, other)
        return NotImplemented if left is None else type(self)(fn(left, int(self)))

    setattr(_Int, f"__{name}__", forward)
    setattr(_Int, f"__r{name}__", reflected)


def _quotient(name: str, fn: Callable[[int, int], int]) -> None:
    def total(a: int, b: int) -> int:
        return fn(a, b) if b else 0

    _binary(name, total)
    for spelling in (f"__{name}__", f"__r{name}__"):
        unsigned = getattr(_Int, spelling)

        def checked(self: Any, other: Any, unsigned: Any = unsigned) -> Any:
            if self.signed:
                raise TypeError("// and % round differently on signed values in C and Python: use sdiv or srem")
            return unsigned(self, other)

        setattr(_Int, spelling, checked)


for _name in ("add", "sub", "mul", "xor"):
    _binary(_name, getattr(operator, _name))
_binary("and", operator.and_)
_binary("or", operator.or_)
_quotient("floordiv", operator.floordiv)
_quotient("mod", operator.mod)


def _compare(name: str) -> None:
    fn = getattr(operator, name)

    def method(self: Any, other: Any) -> Any:
        right = _operand(self, other)
        return NotImplemented if right is None else fn(int(self), right)

    setattr(_Int, f"__{name}__", method)


for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    _compare(_name)
_Int.__hash__ = int.__hash__  # type: ignore[method-assign]


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
    """A NaN keeps the very bits it was read with: Python's own float would quiet a signalling one."""

    size: ClassVar[int]
    align: ClassVar[int]
    ir: ClassVar[str]
    code: ClassVar[str]
    __slots__ = ()

    def __new__(cls, value: Any = 0.0) -> Any:
        if type(value) is cls:
            return value
        if isinstance(value, f80):
            return cls.from_bytes(value.narrowed(cls.ir, cls.size))
        if isinstance(value, int) and cls.size == 4:
            value = _odd(int(value))
        return cls._rounded(float(value))

    @classmethod
    def _rounded(cls, value: float) -> Any:
        if cls.code == "<f":
            try:
                value = _struct.unpack("<f", _struct.pack("<f", value))[0]
            except OverflowError:
                value = math.copysign(math.inf, value)
        return float.__new__(cls, value)

    @classmethod
    def from_bytes(cls, raw: bytes) -> Any:
        made = float.__new__(cls, _struct.unpack(cls.code, raw)[0])
        if math.isnan(made):
            made.raw = raw  # type: ignore[attr-defined]
        return made

    @classmethod
    def read(cls, addr: int) -> Any:
        return cls.from_bytes(ctypes.string_at(addr, cls.size))

    @classmethod
    def write(cls, addr: int, value: Any) -> None:
        ctypes.memmove(addr, value.encoded, cls.size)

    @property
    def encoded(self) -> bytes:
        """The value as it stands in memory."""
        return getattr(self, "raw", None) or _struct.pack(self.code, self)

    def __neg__(self) -> Any:
        raw = self.encoded
        return self.from_bytes(raw[:-1] + bytes([raw[-1] ^ 0x80]))

    def __pos__(self) -> Any:
        return self

    def __bool__(self) -> bool:
        raise TypeError(f"{type(self).__name__} is not a condition: compare it")

    def _not_an_operation(self, other: Any, modulus: Any = None) -> Any:
        raise TypeError(f"this is not an operation on {type(self).__name__}")

    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __pow__ = __rpow__ = _not_an_operation
    __divmod__ = __rdivmod__ = _not_an_operation


def _odd(value: int) -> float:
    """An integer as a double rounded to odd, from which one more rounding to float is exact."""
    excess = abs(value).bit_length() - 53
    if excess <= 0:
        return float(value)
    kept = abs(value) >> excess
    kept |= kept << excess != abs(value)
    return math.copysign(float(kept << excess), value)


def _float_operand(self: _Float, other: Any) -> float | None:
    kind = type(self)
    if type(other) is kind:
        return float(other)
    if isinstance(other, (_Int, _Float, bool, f80)):
        raise TypeError(f"{kind.__name__} and {type(other).__name__} do not mix: convert one of them")
    return float(kind(other)) if isinstance(other, (int, float)) else None


def _divide(a: float, b: float) -> float:
    if b != 0:
        return a / b
    if a == 0 or math.isnan(a):
        return -math.nan
    return math.copysign(math.inf, a) * math.copysign(1.0, b)


def _float_binary(name: str, fn: Callable[[float, float], float]) -> None:
    def forward(self: Any, other: Any) -> Any:
        right = _float_operand(self, other)
        return NotImplemented if right is None else type(self)(fn(float(self), right))

    def reflected(self: Any, other: Any) -> Any:
        left = _float_operand(self, other)
        return NotImplemented if left is None else type(self)(fn(left, float(self)))

    setattr(_Float, f"__{name}__", forward)
    setattr(_Float, f"__r{name}__", reflected)


def _float_compare(name: str) -> None:
    fn = getattr(operator, name)

    def method(self: Any, other: Any) -> Any:
        right = _float_operand(self, other)
        return NotImplemented if right is None else fn(float(self), right)

    setattr(_Float, f"__{name}__", method)


for _name in ("add", "sub", "mul"):
    _float_binary(_name, getattr(operator, _name))
_float_binary("truediv", _divide)
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    _float_compare(_name)
_Float.__hash__ = float.__hash__  # type: ignore[method-assign]

f32: Any = NativeType("f32", (_Float,), {"size": 4, "align": 4, "ir": "float", "code": "<f", "__slots__": ("raw",),
                                         "__module__": __name__})
f64: Any = NativeType("f64", (_Float,), {"size": 8, "align": 8, "ir": "double", "code": "<d", "__slots__": ("raw",),
                                         "__module__": __name__})


class f80(metaclass=NativeType):
    """The x87 extended format: 64-bit significand with explicit integer bit, 15-bit exponent, sign.

    Plain Python has no such arithmetic, so it keeps the ten bytes and computes through the host's own unit
    (`stub.f80_binary`), which is exact by definition.
    """

    size = 16
    align = 16
    ir = "x86_fp80"
    __slots__ = ("raw",)

    def __init__(self, value: Any = 0.0) -> None:
        if isinstance(value, f80):
            self.raw: bytes = value.raw
        elif isinstance(value, int):
            self.raw = _f80_from_int(int(value))
        else:
            self.raw = _f80_from_double(float(value), getattr(value, "encoded", b""))

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

    @property
    def parts(self) -> tuple[bool, int, int]:
        """Sign, biased exponent, significand."""
        high = int.from_bytes(self.raw[8:], "little")
        return bool(high >> 15), high & 0x7FFF, int.from_bytes(self.raw[:8], "little")

    @property
    def is_nan(self) -> bool:
        """NaN, or one of the encodings that the x87 calls unsupported (integer bit clear, SDM vol. 1, 8.2.2)."""
        _, exponent, significand = self.parts
        return bool(exponent and not significand >> 63 or exponent == 0x7FFF and significand != 1 << 63)

    def _scaled(self) -> int:
        """The value times 2**16446, an integer that orders as the value does; infinity stands above all."""
        sign, exponent, significand = self.parts
        magnitude = significand << max(exponent, 1)
        return -magnitude if sign else magnitude

    def truncated(self) -> int:
        """The integer towards zero of a number that is not NaN."""
        sign, exponent, significand = self.parts
        shift = max(exponent, 1) - 16446
        magnitude = significand << shift if shift >= 0 else significand >> -shift
        return -magnitude if sign else magnitude

    def narrowed(self, ir: str, size: int) -> bytes:
        """The bytes of this value rounded once to `float` or `double` by the host."""
        from pellucid.native.stub import f80_narrow

        return f80_narrow(ir, self.raw)[:size]

    def _other(self, other: Any) -> f80:
        if isinstance(other, (_Int, _Float, bool)) or not isinstance(other, (f80, int, float)):
            raise TypeError(f"f80 and {type(other).__name__} do not mix: convert one of them")
        return other if isinstance(other, f80) else f80(other)

    def __pos__(self) -> f80:
        return self

    def __neg__(self) -> f80:
        return f80.from_bytes(self.raw[:9] + bytes([self.raw[9] ^ 0x80]))

    def __float__(self) -> float:
        return float(_struct.unpack("<d", self.narrowed("double", 8))[0])

    def __bool__(self) -> bool:
        raise TypeError("f80 is not a condition: compare it")

    def __hash__(self) -> int:
        return hash(self.raw)

    def __repr__(self) -> str:
        return f"f80({float(self)!r})"


def _f80_binary(name: str, op: str) -> None:
    def compute(a: f80, b: f80) -> f80:
        from pellucid.native.stub import f80_binary

        return f80.from_bytes(f80_binary(op, a.raw, b.raw))

    setattr(f80, f"__{name}__", lambda self, other: compute(self, self._other(other)))
    setattr(f80, f"__r{name}__", lambda self, other: compute(self._other(other), self))


def _f80_compare(name: str) -> None:
    fn = getattr(operator, name)

    def method(self: f80, other: Any) -> bool:
        other = self._other(other)
        if self.is_nan or other.is_nan:
            return name == "ne"
        return bool(fn(self._scaled(), other._scaled()))

    setattr(f80, f"__{name}__", method)


for _name, _op in (("add", "fadd"), ("sub", "fsub"), ("mul", "fmul"), ("truediv", "fdiv")):
    _f80_binary(_name, _op)
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    _f80_compare(_name)


def _f80_from_int(value: int) -> bytes:
    sign, magnitude = value < 0, abs(value)
    if not magnitude:
        return bytes(10)
    top = magnitude.bit_length()
    excess = top - 64
    if excess > 0:
        kept, rest, half = magnitude >> excess, magnitude & ((1 << excess) - 1), 1 << (excess - 1)
        kept += rest > half or (rest == half and kept & 1)
        top += kept >> 64
        significand = kept if not kept >> 64 else 1 << 63
    else:
        significand = magnitude << -excess
    return significand.to_bytes(8, "little") + (sign << 15 | (16383 + top - 1)).to_bytes(2, "little")


def _f80_from_double(value: float, raw: bytes) -> bytes:
    sign = math.copysign(1.0, value) < 0
    if math.isnan(value):
        raw = raw or _struct.pack("<d", value)
        bits, width = int.from_bytes(raw, "little"), 23 if len(raw) == 4 else 52
        significand = 1 << 63 | 1 << 62 | (bits & ((1 << width) - 1)) << (63 - width)
        return significand.to_bytes(8, "little") + (raw[-1] >> 7 << 15 | 0x7FFF).to_bytes(2, "little")
    if math.isinf(value):
        return (1 << 63).to_bytes(8, "little") + (sign << 15 | 0x7FFF).to_bytes(2, "little")
    if value == 0.0:
        return bytes(8) + (sign << 15).to_bytes(2, "little")
    mantissa, exponent = math.frexp(abs(value))
    return int(math.ldexp(mantissa, 64)).to_bytes(8, "little") + (sign << 15 | exponent + 16382).to_bytes(2, "little")
