"""Operators: from two typed values to LLVM instructions, with the subset's total definitions.

Shifts by the width or more give 0 (sign fill for signed >>), a division by zero gives 0: native code has no
undefined behaviour that a guest could reach.
"""

from __future__ import annotations

import ast
from typing import Any, NoReturn, Protocol

from pellucid.native.types import i128, u64, u128, vec
from pellucid.native.values import Val, ir_type, is_float, is_int, is_ptr, is_vec, name_of


class Emitter(Protocol):
    """What the operators need of the function being compiled."""

    def emit(self, kind: Any, text: str) -> Val: ...
    def fail(self, message: str) -> NoReturn: ...


_PLAIN = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.BitAnd: "and", ast.BitOr: "or", ast.BitXor: "xor"}
_FLOAT = {ast.Add: "fadd", ast.Sub: "fsub", ast.Mult: "fmul", ast.Div: "fdiv"}
_COMPARE = {ast.Eq: "eq", ast.NotEq: "ne", ast.Lt: "lt", ast.LtE: "le", ast.Gt: "gt", ast.GtE: "ge"}


def binary(f: Emitter, op: ast.operator, a: Val, b: Val) -> Val:
    """`a op b` for operands of one type; a shift's count may have another."""
    kind = type(op)
    lane = a.type.element if is_vec(a.type) else a.type
    if kind in (ast.LShift, ast.RShift) and is_int(lane):
        return shift(f, kind is ast.LShift, a, b)
    if a.type is not b.type:
        f.fail(f"{name_of(a.type)} and {name_of(b.type)} do not mix; convert one of them, e.g. {name_of(a.type)}(...)")
    if lane is bool and kind in (ast.BitAnd, ast.BitOr, ast.BitXor):
        return f.emit(a.type, f"{_PLAIN[kind]} {ir_type(a.type)} {a.ir}, {b.ir}")
    if is_int(lane):
        if kind in _PLAIN:
            return f.emit(a.type, f"{_PLAIN[kind]} {ir_type(a.type)} {a.ir}, {b.ir}")
        if kind in (ast.FloorDiv, ast.Mod) and not is_vec(a.type):
            if lane.signed:
                f.fail("// and % round differently on signed values in C and Python; use sdiv(a, b) or srem(a, b)")
            return divide(f, "udiv" if kind is ast.FloorDiv else "urem", a, b)
        f.fail(f"{_sign(op)} is not an operation on {name_of(a.type)}; use // for integers")
    if is_float(lane) and kind in _FLOAT:
        return f.emit(a.type, f"{_FLOAT[kind]} {ir_type(a.type)} {a.ir}, {b.ir}")
    return f.fail(f"{_sign(op)} is not an operation on {name_of(a.type)}{_remedy(lane)}")


def divide(f: Emitter, op: str, a: Val, b: Val) -> Val:
    """Division that is total: x / 0 and x % 0 are 0, and the most negative value over -1 wraps."""
    t = ir_type(a.type)
    zero = f.emit(bool, f"icmp eq {t} {b.ir}, 0")
    safe = f.emit(b.type, f"select i1 {zero.ir}, {t} 1, {t} {b.ir}")
    if op in ("sdiv", "srem"):
        minus = f.emit(bool, f"icmp eq {t} {b.ir}, -1")
        safe = f.emit(b.type, f"select i1 {minus.ir}, {t} 1, {t} {safe.ir}")
        quotient = f.emit(a.type, f"{op} {t} {a.ir}, {safe.ir}")
        negated = f.emit(a.type, f"sub {t} 0, {a.ir}") if op == "sdiv" else Val(a.type, "0")
        quotient = f.emit(a.type, f"select i1 {minus.ir}, {t} {negated.ir}, {t} {quotient.ir}")
    else:
        quotient = f.emit(a.type, f"{op} {t} {a.ir}, {safe.ir}")
    return f.emit(a.type, f"select i1 {zero.ir}, {t} 0, {t} {quotient.ir}")


def shift(f: Emitter, left: bool, a: Val, n: Val) -> Val:
    """a << n or a >> n; n has any integer type; by the width or more: 0, or the sign for signed >>."""
    op = "shl" if left else "ashr" if (a.type.element if is_vec(a.type) else a.type).signed else "lshr"
    if is_vec(a.type):
        return _shift_lanes(f, op, a, n)
    if not is_int(n.type) and n.type is not bool:
        f.fail(f"a shift count is an integer, not {name_of(n.type)}")
    bits, t = a.type.bits, ir_type(a.type)
    if n.ir.lstrip("-").isdigit():
        count = int(n.ir) & 0xFFFFFFFFFFFFFFFF
        if count < bits:
            return f.emit(a.type, f"{op} {t} {a.ir}, {count}")
        return f.emit(a.type, f"ashr {t} {a.ir}, {bits - 1}") if op == "ashr" else Val(a.type, "0")
    wide = n.type is not bool and n.type.bits > bits
    if not wide:
        n = resize(f, n, a.type)
    inside = f.emit(bool, f"icmp ult {ir_type(n.type)} {n.ir}, {bits}")
    return _guarded(f, op, a, resize(f, n, a.type), inside)


def _shift_lanes(f: Emitter, op: str, a: Val, n: Val) -> Val:
    if n.type is not a.type:
        f.fail(f"shift count {name_of(n.type)} does not fit {name_of(a.type)}; make it the same vector type")
    mask = vec[bool, a.type.count]
    inside = f.emit(mask, f"icmp ult {ir_type(a.type)} {n.ir}, {splat(a.type, a.type.element.bits)}")
    return _guarded(f, op, a, n, inside)


def _guarded(f: Emitter, op: str, a: Val, n: Val, inside: Val) -> Val:
    """The shift where the count is inside the width, else the limit; LLVM leaves the rest undefined."""
    t, mask = ir_type(a.type), ir_type(inside.type)
    bits = a.type.element.bits if is_vec(a.type) else a.type.bits
    if op == "ashr":
        clamped = f.emit(a.type, f"select {mask} {inside.ir}, {t} {n.ir}, {t} {splat(a.type, bits - 1)}")
        return f.emit(a.type, f"ashr {t} {a.ir}, {clamped.ir}")
    safe = f.emit(a.type, f"select {mask} {inside.ir}, {t} {n.ir}, {t} {splat(a.type, 0)}")
    shifted = f.emit(a.type, f"{op} {t} {a.ir}, {safe.ir}")
    return f.emit(a.type, f"select {mask} {inside.ir}, {t} {shifted.ir}, {t} {splat(a.type, 0)}")


def splat(kind: Any, value: int) -> str:
    """The literal `value` in every lane (or alone)."""
    if not is_vec(kind):
        return str(value)
    if value == 0:
        return "zeroinitializer"
    lane = "i1" if kind.element is bool else kind.element.ir
    return "<" + ", ".join(f"{lane} {value}" for _ in range(kind.count)) + ">"


def check_comparison(f: Emitter, op: ast.cmpop) -> None:
    """`in` and `is` are for compile-time values."""
    if type(op) not in _COMPARE:
        f.fail(f"{_sign(op)} is not in the subset for run-time values; compare with == != < <= > >=")


def compare(f: Emitter, op: ast.cmpop, a: Val, b: Val) -> Val:
    """`a op b`: a bool, or a vector of bools. Float comparisons are false on NaN, `!=` true."""
    if a.type is not b.type:
        f.fail(f"{name_of(a.type)} and {name_of(b.type)} do not mix; convert one of them, e.g. {name_of(a.type)}(...)")
    word = _COMPARE[type(op)]
    lane = a.type.element if is_vec(a.type) else a.type
    result = vec[bool, a.type.count] if is_vec(a.type) else bool
    t = ir_type(a.type)
    if is_float(lane):
        code = ("u" if word == "ne" else "o") + word
        return f.emit(result, f"fcmp {code} {t} {a.ir}, {b.ir}")
    if word not in ("eq", "ne"):
        word = ("s" if is_int(lane) and lane.signed else "u") + word
    return f.emit(result, f"icmp {word} {t} {a.ir}, {b.ir}")


def resize(f: Emitter, a: Val, to: Any) -> Val:
    """Integer to integer: truncate, or extend by the sign of the source."""
    if a.type is to:
        return a
    source = 1 if a.type is bool else a.type.bits
    if a.ir.lstrip("-").isdigit():
        return Val(to, str(int(to(int(a.ir)))))
    if source == to.bits:
        return Val(to, a.ir)
    op = "trunc" if source > to.bits else "sext" if a.type is not bool and a.type.signed else "zext"
    return f.emit(to, f"{op} {ir_type(a.type)} {a.ir} to {ir_type(to)}")


def convert(f: Emitter, a: Val, to: Any) -> Val:
    """T(x) for run-time x: integers resize, floats round, pointers retype, vectors lane by lane."""
    if a.type is to:
        return a
    if is_vec(to) or is_vec(a.type):
        return _convert_vector(f, a, to)
    if to is bool:
        return truth(f, a)
    if is_int(to) and (is_int(a.type) or a.type is bool):
        return resize(f, a, to)
    if is_int(to) and is_ptr(a.type):
        return resize(f, f.emit(u64, f"ptrtoint ptr {a.ir} to i64"), to)
    if is_ptr(to) and is_ptr(a.type):
        return Val(to, a.ir)
    if is_ptr(to) and is_int(a.type):
        wide = resize(f, a, u64)
        return f.emit(to, f"inttoptr i64 {wide.ir} to ptr")
    if {to, a.type} & {u128, i128} and (is_float(to) or is_float(a.type)):
        f.fail(f"{name_of(a.type)} does not convert to {name_of(to)} on the host; go through u64 or i64")
    if is_float(to) and is_int(a.type):
        return f.emit(to, f"{'si' if a.type.signed else 'ui'}tofp {a.type.ir} {a.ir} to {to.ir}")
    if is_int(to) and is_float(a.type):
        name = f"llvm.fpto{'si' if to.signed else 'ui'}.sat.{to.ir}.{_mangle(a.type)}"
        return f.emit(to, f"call {to.ir} @{name}({a.type.ir} {a.ir})")
    if is_float(to) and is_float(a.type):
        op = "fpext" if to.size > a.type.size else "fptrunc"
        return f.emit(to, f"{op} {a.type.ir} {a.ir} to {to.ir}")
    return f.fail(f"{name_of(a.type)} does not convert to {name_of(to)}; bitcast(T, x) reinterprets bits")


def _convert_vector(f: Emitter, a: Val, to: Any) -> Val:
    if is_vec(to) and not is_vec(a.type):
        lane = convert(f, a, to.element)
        undef = f.emit(to, f"insertelement {to.ir} poison, {ir_type(to.element)} {lane.ir}, i32 0")
        return f.emit(to, f"shufflevector {to.ir} {undef.ir}, {to.ir} poison, <{to.count} x i32> zeroinitializer")
    if not is_vec(to) or to.count != a.type.count:
        return f.fail(f"{name_of(a.type)} does not convert to {name_of(to)}; "
                      "the lane counts differ (bitcast reinterprets)")
    source, target = a.type.element, to.element
    if is_float(source) and is_float(target):
        op = "fpext" if target.size > source.size else "fptrunc"
    elif is_float(target):
        op = "sitofp" if source is not bool and source.signed else "uitofp"
    elif is_float(source):
        f.fail("vector float to integer is not total in LLVM; convert lane by lane")
    elif target is bool:
        return f.emit(to, f"icmp ne {a.type.ir} {a.ir}, zeroinitializer")
    elif source is not bool and source.bits == target.bits:
        return Val(to, a.ir)
    else:
        shrink = source is not bool and source.bits > target.bits
        op = "trunc" if shrink else "sext" if source is not bool and source.signed else "zext"
    return f.emit(to, f"{op} {a.type.ir} {a.ir} to {to.ir}")


def truth(f: Emitter, a: Val) -> Val:
    """A value as a condition: bool, integer != 0, pointer != null."""
    if a.type is bool:
        return a
    if is_int(a.type):
        return f.emit(bool, f"icmp ne {a.type.ir} {a.ir}, 0")
    if is_ptr(a.type):
        return f.emit(bool, f"icmp ne ptr {a.ir}, null")
    return f.fail(f"{name_of(a.type)} is not a condition; compare it"
                  + ("; movemask joins lanes" if is_vec(a.type) else ""))


def negate(f: Emitter, a: Val) -> Val:
    lane = a.type.element if is_vec(a.type) else a.type
    if is_float(lane):
        return f.emit(a.type, f"fneg {ir_type(a.type)} {a.ir}")
    if is_int(lane):
        return f.emit(a.type, f"sub {ir_type(a.type)} {splat(a.type, 0)}, {a.ir}")
    return f.fail(f"- is not an operation on {name_of(a.type)}{_remedy(lane)}")


def invert(f: Emitter, a: Val) -> Val:
    lane = a.type.element if is_vec(a.type) else a.type
    if not (is_int(lane) or (is_vec(a.type) and lane is bool)):
        f.fail(f"~ is not an operation on {name_of(a.type)}; use not for conditions")
    return f.emit(a.type, f"xor {ir_type(a.type)} {a.ir}, {splat(a.type, -1)}")


def _mangle(kind: Any) -> str:
    return {"float": "f32", "double": "f64", "x86_fp80": "f80"}[kind.ir]


def _remedy(lane: Any) -> str:
    """What to write instead, for an operand that has no arithmetic."""
    if is_ptr(lane):
        return "; use ref(p, i), at(p, offset, T) or u64(p)"
    return "; use and, or, not, or convert it: u64(...)" if lane is bool else ""


def _sign(op: ast.AST) -> str:
    signs = {ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%", ast.Pow: "**", ast.MatMult: "@", ast.In: "in",
             ast.NotIn: "not in", ast.Is: "is", ast.IsNot: "is not", ast.Add: "+", ast.Sub: "-", ast.Mult: "*",
             ast.LShift: "<<", ast.RShift: ">>", ast.BitAnd: "&", ast.BitOr: "|", ast.BitXor: "^"}
    return signs.get(type(op), type(op).__name__)
