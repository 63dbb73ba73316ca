"""`permute`: lanes chosen by run-time numbers, through the host's shuffle instructions where it has them.

This file and `target` are what a port to another host looks at. LLVM knows these intrinsics: with numbers that turn
out to be constant (an immediate, in a compiled region) they become plain shuffles. Without them each lane is taken
by itself, through memory.
"""

from __future__ import annotations

from typing import Any

from pellucid.native.operation import Lowering, intrinsic, typed
from pellucid.native.host import flags
from pellucid.native.types import u8, u16, u32, u64, vec
from pellucid.native.values import Val, ir_type, is_int, is_vec, name_of


def _constant(kind: Any, values: list[int]) -> str:
    return "<" + ", ".join(f"{ir_type(kind.element)} {value}" for value in values) + ">"


def _bits(f: Lowering, kind: Any, ir: str, v: Val) -> Val:
    return f.emit(kind, f"bitcast {ir_type(v.type)} {v.ir} to {ir}")


def _scaled(f: Lowering, numbers: Val, by: int, plus: list[int]) -> Val:
    """Every number modulo the lanes, times `by`, plus a constant."""
    kind = numbers.type
    t, n = ir_type(kind), kind.count
    low = f.emit(kind, f"and {t} {numbers.ir}, {_constant(kind, [n - 1] * n)}")
    many = f.emit(kind, f"mul {t} {low.ir}, {_constant(kind, [by] * n)}")
    return f.emit(kind, f"add {t} {many.ir}, {_constant(kind, plus)}")


def _bytes(f: Lowering, a: Val, numbers: Val) -> Val:
    """16 bytes by a byte shuffle; wider lanes as their bytes, side by side."""
    kind, size = a.type, a.type.element.size
    every = sum(size << 8 * i for i in range(size))
    first = sum(i << 8 * i for i in range(size))
    places = _scaled(f, numbers, every, [first] * kind.count)
    B = vec[u8, 16]
    left, right = _bits(f, B, "<16 x i8>", a), _bits(f, B, "<16 x i8>", places)
    r = f.emit(B, f"call <16 x i8> @llvm.x86.ssse3.pshuf.b.128(<16 x i8> {left.ir}, <16 x i8> {right.ir})")
    return _bits(f, kind, ir_type(kind), r)


def _doubles(f: Lowering, a: Val, numbers: Val) -> Val:
    """16 bytes as four f32 or two f64, of which AVX takes the numbers' lowest bits (of f64's: bit 1)."""
    kind = a.type
    t, ir, name = ir_type(kind), "<4 x float>", "ps"
    if kind.element.size == 8:
        ir, name = "<2 x double>", "pd"
        numbers = f.emit(kind, f"shl {t} {numbers.ir}, {_constant(kind, [1, 1])}")
    left = f.emit(kind, f"bitcast {t} {a.ir} to {ir}")
    r = f.emit(kind, f"call {ir} @llvm.x86.avx.vpermilvar.{name}({ir} {left.ir}, {t} {numbers.ir})")
    return f.emit(kind, f"bitcast {ir} {r.ir} to {t}")


def _twice(f: Lowering, a: Val) -> Val:
    """8 bytes as 16, so that a number modulo the lanes of either finds the same."""
    kind, t = a.type, ir_type(a.type)
    lanes = ", ".join(f"i32 {lane % kind.count}" for lane in range(2 * kind.count))
    return f.emit(vec[kind.element, 2 * kind.count], f"shufflevector {t} {a.ir}, {t} {a.ir}, "
                  f"<{2 * kind.count} x i32> <{lanes}>")


def _half(f: Lowering, a: Val) -> Val:
    kind, t = vec[a.type.element, a.type.count // 2], ir_type(a.type)
    lanes = ", ".join(f"i32 {lane}" for lane in range(kind.count))
    return f.emit(kind, f"shufflevector {t} {a.ir}, {t} {a.ir}, <{kind.count} x i32> <{lanes}>")


def _across(f: Lowering, a: Val, numbers: Val) -> Val:
    """32 bytes as eight u32."""
    kind, D = a.type, vec[u32, 8]
    if kind.element.size == 8:
        t = ir_type(kind)
        low = f.emit(kind, f"and {t} {numbers.ir}, {_constant(kind, [3] * 4)}")
        even, odd = (f.emit(kind, f"shl {t} {low.ir}, {_constant(kind, [by] * 4)}") for by in (1, 33))
        both = f.emit(kind, f"or {t} {even.ir}, {odd.ir}")
        numbers = f.emit(kind, f"or {t} {both.ir}, {_constant(kind, [1 << 32] * 4)}")
    left, right = _bits(f, D, "<8 x i32>", a), _bits(f, D, "<8 x i32>", numbers)
    r = f.emit(D, f"call <8 x i32> @llvm.x86.avx2.permd(<8 x i32> {left.ir}, <8 x i32> {right.ir})")
    return _bits(f, kind, ir_type(kind), r)


def _lane_by_lane(f: Lowering, a: Val, numbers: Val) -> Val:
    t, numbers_ir = ir_type(a.type), ir_type(numbers.type)
    r = Val(a.type, "poison")
    for lane in range(a.type.count):
        number = f.emit(numbers.type.element, f"extractelement {numbers_ir} {numbers.ir}, i32 {lane}")
        x = f.emit(a.type.element, f"extractelement {t} {a.ir}, i32 {f.lane(a.type, number)}")
        r = f.emit(a.type, f"insertelement {t} {r.ir}, {ir_type(a.type.element)} {x.ir}, i32 {lane}")
    return r


def _permute(f: Lowering, a: Any, numbers: Any) -> Val:
    host = flags()
    a = typed(f, a)
    if not is_vec(a.type) or not is_int(a.type.element):
        f.fail(f"a vector of integers is permuted, not {name_of(a.type)}")
    numbers = f.materialize(numbers, a.type)
    size, element = a.type.count * a.type.element.size, a.type.element
    if size == 16 and element in (u32, u64) and "avx" in host:
        return _doubles(f, a, numbers)
    if size == 16 and element in (u8, u16, u32, u64) and "ssse3" in host:
        return _bytes(f, a, numbers)
    if size == 8 and element in (u8, u16, u32) and "ssse3" in host:
        return _half(f, _bytes(f, _twice(f, a), _twice(f, numbers)))
    if size == 32 and element in (u32, u64) and "avx2" in host:
        return _across(f, a, numbers)
    return _lane_by_lane(f, a, numbers)


@intrinsic(_permute)
def permute(a: Any, numbers: Any) -> Any:
    """A vector whose lane n is the lane of a that numbers[n] says, modulo the lanes; both are of one integer type."""
    numbers = type(a).operand(numbers)
    return type(a)([a.lanes[type(a).lane(number)] for number in numbers.lanes])
