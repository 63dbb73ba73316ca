"""Intrinsics on the bits of integers and on the lanes of vectors, and choice."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Any

from pellucid.native import arith
from pellucid.native.operation import Lowering, intrinsic, static_kind, typed
from pellucid.native.types import Ptr, Vec, f80, is_literal, literal, u64, vec
from pellucid.native.values import Const, Val, ir_type, is_float, is_int, is_ptr, is_vec, name_of


def _lane(kind: Any) -> Any:
    return kind.element if is_vec(kind) else kind


def _integers(f: Lowering, a: Val) -> Val:
    """An operand that is an integer or a vector of integers."""
    if not is_int(_lane(a.type)):
        f.fail(f"an integer is needed, not {name_of(a.type)}; convert it: u64(...)")
    return a


def _scalar(f: Lowering, a: Val) -> Val:
    if not is_int(a.type):
        f.fail(f"an integer is needed, not {name_of(a.type)}; take the lanes one by one" if is_vec(a.type) else
               f"an integer is needed, not {name_of(a.type)}; convert it: u64(...)")
    return a


def _suffix(kind: Any) -> str:
    if is_vec(kind):
        return f"v{kind.count}{_suffix(kind.element)}"
    return str({"float": "f32", "double": "f64", "x86_fp80": "f80"}.get(kind.ir, kind.ir))


def _lanewise(value: Any, fn: Callable[[Any], Any]) -> Any:
    return type(value)([fn(x) for x in value.lanes]) if isinstance(value, Vec) else fn(value)


# --- one integer ---------------------------------------------------------------------------------------


def _unary_llvm(name: str, tail: str = "") -> Callable[..., Val]:
    def lowering(f: Lowering, a: Any) -> Val:
        value = _integers(f, typed(f, a))
        t = ir_type(value.type)
        return f.emit(value.type, f"call {t} @llvm.{name}.{_suffix(value.type)}({t} {value.ir}{tail})")

    return lowering


@intrinsic(_unary_llvm("ctlz", ", i1 0"))
def clz(a: Any) -> Any:
    """Leading zero bits; the width for 0."""
    return _lanewise(a, lambda x: type(x)(x.bits - x.pattern.bit_length()))


@intrinsic(_unary_llvm("cttz", ", i1 0"))
def ctz(a: Any) -> Any:
    """Trailing zero bits; the width for 0."""
    return _lanewise(a, lambda x: type(x)((x.pattern & -x.pattern).bit_length() - 1 if x.pattern else x.bits))


@intrinsic(_unary_llvm("ctpop"))
def popcount(a: Any) -> Any:
    """Set bits."""
    return _lanewise(a, lambda x: type(x)(x.pattern.bit_count()))


def _bswap(f: Lowering, a: Any) -> Val:
    value = _integers(f, typed(f, a))
    return value if _lane(value.type).bits == 8 else _unary_llvm("bswap")(f, value)


@intrinsic(_bswap)
def bswap(a: Any) -> Any:
    """Bytes in the other order."""
    return _lanewise(a, lambda x: type(x)(int.from_bytes(x.pattern.to_bytes(x.size, "little"), "big")))


def _rotate(name: str) -> Callable[..., Val]:
    def lowering(f: Lowering, a: Any, n: Any) -> Val:
        a = _scalar(f, typed(f, a))
        if isinstance(n, Const) and isinstance(n.value, int):
            count = Val(a.type, str(int(n.value) % a.type.bits))
        else:
            count = arith.resize(f, _scalar(f, typed(f, n)), a.type)
        t = ir_type(a.type)
        return f.emit(a.type, f"call {t} @llvm.{name}.{t}({t} {a.ir}, {t} {a.ir}, {t} {count.ir})")

    return lowering


@intrinsic(_rotate("fshl"))
def rotl(a: Any, n: Any) -> Any:
    """Rotate left by n modulo the width."""
    n = int(n) % a.bits
    return type(a)(a.pattern << n | a.pattern >> (a.bits - n))


@intrinsic(_rotate("fshr"))
def rotr(a: Any, n: Any) -> Any:
    """Rotate right by n modulo the width."""
    n = int(n) % a.bits
    return type(a)(a.pattern >> n | a.pattern << (a.bits - n))


# --- two values of one type ----------------------------------------------------------------------------


def _pair(f: Lowering, a: Any, b: Any) -> tuple[Val, Val]:
    """Two operands of one type, a literal with the type of the other."""
    kind = a.type if isinstance(a, Val) else b.type if isinstance(b, Val) else typed(f, a).type
    return f.materialize(a, kind), f.materialize(b, kind)


def _same(a: Any, b: Any) -> tuple[Any, Any]:
    """The same for plain Python."""
    if isinstance(a, Vec) or isinstance(b, Vec):
        kind = type(a) if isinstance(a, Vec) else type(b)
        return kind.operand(a), kind.operand(b)
    if is_literal(a) and is_literal(b):
        raise TypeError(f"the literal {a!r} has no type here: write u64({a!r})")
    kind = type(b) if is_literal(a) else type(a)
    return literal(kind, a), literal(kind, b)


def _lanes2(a: Any, b: Any, fn: Callable[[Any, Any], Any]) -> Any:
    a, b = _same(a, b)
    return type(a)([fn(x, y) for x, y in zip(a.lanes, b.lanes, strict=True)]) if isinstance(a, Vec) else fn(a, b)


def _signed_divide(op: str) -> Callable[..., Val]:
    def lowering(f: Lowering, a: Any, b: Any) -> Val:
        a, b = _pair(f, a, b)
        if not is_int(a.type) or not a.type.signed:
            f.fail(f"{op} divides signed integers, not {name_of(a.type)}; use // and % for unsigned ones")
        return arith.divide(f, op, a, b)

    return lowering


def _signed_pair(a: Any, b: Any) -> tuple[Any, Any]:
    a, b = _same(a, b)
    if not getattr(a, "signed", False):
        raise TypeError(f"sdiv and srem divide signed integers, not {type(a).__name__}: use // and % for unsigned ones")
    return a, b


@intrinsic(_signed_divide("sdiv"))
def sdiv(a: Any, b: Any) -> Any:
    """Signed quotient towards zero; by 0 it is 0, and the most negative value over -1 wraps."""
    a, b = _signed_pair(a, b)
    if b == 0:
        return type(a)(0)
    quotient = abs(int(a)) // abs(int(b))
    return type(a)(quotient if (a < 0) == (b < 0) else -quotient)


@intrinsic(_signed_divide("srem"))
def srem(a: Any, b: Any) -> Any:
    """Signed remainder with the dividend's sign; by 0 it is 0."""
    a, b = _signed_pair(a, b)
    if b == 0:
        return type(a)(0)
    remainder = abs(int(a)) % abs(int(b))
    return type(a)(-remainder if a < 0 else remainder)


def _two_llvm(signed: str, unsigned: str) -> Callable[..., Val]:
    def lowering(f: Lowering, a: Any, b: Any) -> Val:
        a, b = _pair(f, a, b)
        t, name = ir_type(a.type), signed if _lane(_integers(f, a).type).signed else unsigned
        return f.emit(a.type, f"call {t} @llvm.{name}.{_suffix(a.type)}({t} {a.ir}, {t} {b.ir})")

    return lowering


@intrinsic(_two_llvm("smin", "umin"))
def minimum(a: Any, b: Any) -> Any:
    """The smaller integer, lane by lane for vectors."""
    return _lanes2(a, b, min)


@intrinsic(_two_llvm("smax", "umax"))
def maximum(a: Any, b: Any) -> Any:
    """The larger integer, lane by lane for vectors."""
    return _lanes2(a, b, max)


def _clamp(kind: Any, value: int) -> Any:
    low, high = (-(1 << kind.bits - 1), (1 << kind.bits - 1) - 1) if kind.signed else (0, (1 << kind.bits) - 1)
    return kind(min(max(value, low), high))


@intrinsic(_two_llvm("sadd.sat", "uadd.sat"))
def add_sat(a: Any, b: Any) -> Any:
    """Sum that stops at the type's ends."""
    return _lanes2(a, b, lambda x, y: _clamp(type(x), int(x) + int(y)))


@intrinsic(_two_llvm("ssub.sat", "usub.sat"))
def sub_sat(a: Any, b: Any) -> Any:
    """Difference that stops at the type's ends."""
    return _lanes2(a, b, lambda x, y: _clamp(type(x), int(x) - int(y)))


# --- choice and reinterpretation -----------------------------------------------------------------------


def _select(f: Lowering, condition: Any, a: Any, b: Any) -> Any:
    if isinstance(condition, Const):
        return a if condition.value else b
    a, b = _pair(f, a, b)
    if not is_vec(condition.type):
        condition = arith.truth(f, condition)
    elif condition.type.element is not bool or not is_vec(a.type) or a.type.count != condition.type.count:
        f.fail(f"select by {name_of(condition.type)} of {name_of(a.type)}; "
               "the condition is a comparison of as many lanes")
    kind = ir_type(condition.type)
    return f.emit(a.type, f"select {kind} {condition.ir}, {ir_type(a.type)} {a.ir}, {ir_type(b.type)} {b.ir}")


@intrinsic(_select)
def select(condition: Any, a: Any, b: Any) -> Any:
    """a where the condition (a bool, or a vector of bools) holds, else b; both are computed."""
    if not (is_literal(a) and is_literal(b)):
        a, b = _same(a, b)
    if isinstance(condition, Vec):
        return type(a)([x if c else y for c, x, y in zip(condition.lanes, a.lanes, b.lanes, strict=True)])
    return a if condition else b


def _bitcast(f: Lowering, kind: Any, a: Any) -> Val:
    to, a = static_kind(f, kind), typed(f, a)
    if a.type is to or ir_type(a.type) == ir_type(to):
        return Val(to, a.ir)
    reason = _no_bitcast(a.type, to)
    if reason:
        f.fail(reason)
    if is_ptr(a.type) or is_ptr(to):
        return arith.convert(f, a, to)
    return f.emit(to, f"bitcast {ir_type(a.type)} {a.ir} to {ir_type(to)}")


def _no_bitcast(source: Any, to: Any) -> str:
    """Why bits of one type are not the other's, or nothing."""
    for kind in (source, to):
        if kind is bool or _lane(kind) is bool:
            return "a bool has no bits of its own; use u64(b), or movemask for a vector of bools"
        if kind is f80:
            return "the 80 bits of f80 are no integer's; store it and load its bytes"
    if getattr(source, "size", 0) != getattr(to, "size", 0):
        return f"{name_of(source)} and {name_of(to)} differ in size; convert instead: {name_of(to)}(...)"
    if (is_ptr(source) or is_ptr(to)) and not all(is_ptr(k) or is_int(k) for k in (source, to)):
        return "a pointer is reinterpreted as u64 only; write u64(p)"
    return ""


@intrinsic(_bitcast)
def bitcast(kind: Any, a: Any) -> Any:
    """The same bits as another type of the same size."""
    if type(a) is kind:
        return a
    reason = _no_bitcast(type(a), kind)
    if reason:
        raise TypeError(reason)
    if isinstance(a, Ptr) or issubclass(kind, Ptr):
        return kind(a)
    buffer = ctypes.create_string_buffer(kind.size)
    address = ctypes.addressof(buffer)
    type(a).write(address, a)
    return kind.read(address)


# --- vectors -------------------------------------------------------------------------------------------


def _vector(f: Lowering, v: Any) -> Val:
    value = typed(f, v)
    if not is_vec(value.type):
        f.fail(f"a vector is needed, not {name_of(value.type)}")
    return value


def _shuffle(f: Lowering, a: Any, b: Any, lanes: Any) -> Val:
    a, b = _vector(f, a), f.materialize(b, _vector(f, a).type)
    total = 2 * a.type.count
    if not isinstance(lanes, Const) or not all(isinstance(i, int) and 0 <= int(i) < total for i in lanes.value):
        f.fail(f"the lanes of a shuffle are literals from 0 to {total - 1}: those of a, then those of b")
    kind = vec[a.type.element, len(lanes.value)]
    mask = ", ".join(f"i32 {int(i)}" for i in lanes.value)
    t = ir_type(a.type)
    return f.emit(kind, f"shufflevector {t} {a.ir}, {t} {b.ir}, <{len(lanes.value)} x i32> <{mask}>")


@intrinsic(_shuffle)
def shuffle(a: Any, b: Any, lanes: Any) -> Any:
    """The named lanes (compile-time numbers) of a followed by b."""
    both = a.lanes + type(a).operand(b).lanes
    if not all(0 <= i < len(both) for i in lanes):
        raise TypeError(f"the lanes of a shuffle are literals from 0 to {len(both) - 1}")
    return vec[a.element, len(lanes)]([both[i] for i in lanes])


def _insert(f: Lowering, v: Any, lane: Any, x: Any) -> Val:
    v = _vector(f, v)
    x = f.materialize(x, v.type.element)
    text = f"insertelement {ir_type(v.type)} {v.ir}, {ir_type(x.type)} {x.ir}, i32 {f.lane(v.type, lane)}"
    return f.emit(v.type, text)


@intrinsic(_insert)
def insert(v: Any, lane: Any, x: Any) -> Any:
    """The vector with one lane replaced."""
    n, x = v.lane(lane), literal(v.element, x)
    return type(v)([x if i == n else y for i, y in enumerate(v.lanes)])


def _movemask(f: Lowering, v: Any) -> Val:
    if not isinstance(v, Val) or not is_vec(v.type) or v.type.element is not bool:
        f.fail("movemask takes a vector of bools: a comparison's result")
    count = v.type.count
    if count > 64:
        f.fail(f"movemask gives a u64, {count} lanes are too many; shuffle out a part")
    bits = f.emit(u64, f"bitcast {ir_type(v.type)} {v.ir} to i{count}")
    return bits if count == 64 else f.emit(u64, f"zext i{count} {bits.ir} to i64")


@intrinsic(_movemask)
def movemask(v: Any) -> Any:
    """Bit i of the u64 result is lane i of a vector of bools."""
    if not isinstance(v, Vec) or v.element is not bool or v.count > 64:
        raise TypeError("movemask takes a vector of at most 64 bools: a comparison's result")
    return u64(sum(1 << i for i, x in enumerate(v.lanes) if x))


def _sqrt(f: Lowering, a: Any) -> Val:
    a = typed(f, a)
    if not is_float(_lane(a.type)):
        f.fail(f"sqrt is of floats, not {name_of(a.type)}; convert it: f64(...)")
    t = ir_type(a.type)
    return f.emit(a.type, f"call {t} @llvm.sqrt.{_suffix(a.type)}({t} {a.ir})")


def _root(x: Any) -> Any:
    if isinstance(x, f80):
        from pellucid.native.stub import f80_sqrt

        return f80.from_bytes(f80_sqrt(x.raw))
    return type(x)(math.sqrt(x) if x >= 0 else x if math.isnan(x) else math.nan)


@intrinsic(_sqrt)
def sqrt(a: Any) -> Any:
    """Square root; NaN for a negative value."""
    return _lanewise(a, _root)
