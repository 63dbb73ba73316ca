"""Operations that Python has no sign for. Each has a plain-Python body and a lowering to LLVM."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from pellucid.native import arith
from pellucid.native.types import Vec, _PtrType, array, element_size, f32, f64, f80, ptr, u64, uint, vec
from pellucid.native.values import VOID, Const, Val, ir_type, is_float, is_int, is_ptr, is_vec, name_of


class Intrinsic:
    """A named operation: called from Python it runs `python`; compiled, `lowering(function, *values)`."""

    def __init__(self, python: Callable[..., Any], lowering: Callable[..., Any]) -> None:
        self.python, self.lowering = python, lowering
        self.__name__, self.__doc__ = python.__name__, python.__doc__

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self.python(*args, **named)

    def lower(self, f: Any, *args: Any, **named: Any) -> Any:
        return self.lowering(f, *args, **named)


def intrinsic(lowering: Callable[..., Any]) -> Callable[[Callable[..., Any]], Intrinsic]:
    return lambda python: Intrinsic(python, lowering)


# --- memory --------------------------------------------------------------------------------------------


def _ref(f: Any, base: Any, which: Any) -> Val:
    if isinstance(which, Const) and isinstance(which.value, str):
        field = base.type.target.fields.get(which.value)
        if field is None:
            f.fail(f"{name_of(base.type.target)} has no field {which.value!r}")
        kind, offset = field.type, str(field.offset)
        place = f.emit(None, f"getelementptr i8, ptr {base.ir}, i64 {offset}")
    else:
        kind = base.type.target
        place = f.emit(None, f"getelementptr [{kind.size} x i8], ptr {base.ir}, i64 {f._index(which)}")
    return Val(ptr[kind.element if isinstance(kind, type(array)) else kind], place.ir)


@intrinsic(_ref)
def ref(base: Any, which: Any) -> Any:
    """The address of a field, ref(p, "x"), or of an element, ref(p, i)."""
    if not isinstance(which, str):
        return type(base)(base.addr + int(which) * type(base).target.size)
    field = type(base).target.fields[which]
    kind = field.type
    return ptr[kind.element if isinstance(kind, type(array)) else kind](base.addr + field.offset)


def _at(f: Any, base: Any, offset: Any, kind: Const) -> Val:
    if not is_ptr(base.type):
        f.fail(f"at takes a pointer, not {name_of(base.type)}")
    place = f.emit(None, f"getelementptr i8, ptr {base.ir}, i64 {f._index(offset)}")
    return Val(ptr[kind.value], place.ir)


@intrinsic(_at)
def at(base: Any, offset: Any, kind: Any) -> Any:
    """The address `offset` bytes past `base`, as a pointer to `kind`."""
    return ptr[kind](base.addr + int(offset))


def _local(f: Any, kind: Const) -> Val:
    slot = f.fresh()
    f.slots.append(f"  %l{slot} = alloca [{kind.value.size} x i8], align 16")
    target = kind.value.element if isinstance(kind.value, type(array)) else kind.value
    return Val(ptr[target], f"%l{slot}")


_keep: list[Any] = []


@intrinsic(_local)
def local(kind: Any) -> Any:
    """The address of fresh stack memory for a `kind` (a struct or an array), valid until the function ends."""
    buffer = ctypes.create_string_buffer(kind.size + 16)
    _keep.append(buffer)
    if len(_keep) > 64:
        del _keep[0]
    return ptr[kind.element if isinstance(kind, type(array)) else kind](ctypes.addressof(buffer) + 15 & ~15)


def _memcpy(f: Any, to: Val, source: Val, n: Any) -> Val:
    count = f.materialize(n, u64)
    f.effect(f"call void @llvm.memcpy.p0.p0.i64(ptr {to.ir}, ptr {source.ir}, i64 {count.ir}, i1 0)")
    return VOID


@intrinsic(_memcpy)
def memcpy(to: Any, source: Any, n: Any) -> None:
    """Copy `n` bytes between places that do not overlap."""
    ctypes.memmove(to.addr, source.addr, int(n))


def _memset(f: Any, to: Val, byte: Any, n: Any) -> Val:
    value, count = f.materialize(byte, uint(1)), f.materialize(n, u64)
    f.effect(f"call void @llvm.memset.p0.i64(ptr {to.ir}, i8 {value.ir}, i64 {count.ir}, i1 0)")
    return VOID


@intrinsic(_memset)
def memset(to: Any, byte: Any, n: Any) -> None:
    """Fill `n` bytes."""
    ctypes.memset(to.addr, int(byte), int(n))


# --- atomics (sequentially consistent; plain Python has no other thread that could see a difference) ----


def _atomic_load(f: Any, p: Val) -> Val:
    t = p.type.target
    return f.emit(t, f"load atomic {ir_type(t)}, ptr {p.ir} seq_cst, align {t.size}")  # type: ignore[no-any-return]


@intrinsic(_atomic_load)
def atomic_load(p: Any) -> Any:
    """The value at `p`, as one access."""
    return p[0]


def _atomic_store(f: Any, p: Val, value: Any) -> Val:
    t = p.type.target
    f.effect(f"store atomic {ir_type(t)} {f.materialize(value, t).ir}, ptr {p.ir} seq_cst, align {t.size}")
    return VOID


@intrinsic(_atomic_store)
def atomic_store(p: Any, value: Any) -> None:
    """Store to `p` as one access, ordered with every other."""
    p[0] = value


def _rmw(op: str) -> Callable[..., Val]:
    def lowering(f: Any, p: Val, value: Any) -> Val:
        t = p.type.target
        text = f"atomicrmw {op} ptr {p.ir}, {t.ir} {f.materialize(value, t).ir} seq_cst, align {t.size}"
        return f.emit(t, text)  # type: ignore[no-any-return]

    return lowering


@intrinsic(_rmw("xchg"))
def atomic_xchg(p: Any, value: Any) -> Any:
    """Store and give the old value."""
    old = p[0]
    p[0] = value
    return old


@intrinsic(_rmw("add"))
def atomic_add(p: Any, value: Any) -> Any:
    """Add and give the old value."""
    old = p[0]
    p[0] = old + value
    return old


@intrinsic(_rmw("or"))
def atomic_or(p: Any, value: Any) -> Any:
    """Set bits and give the old value."""
    old = p[0]
    p[0] = old | value
    return old


@intrinsic(_rmw("and"))
def atomic_and(p: Any, value: Any) -> Any:
    """Clear bits and give the old value."""
    old = p[0]
    p[0] = old & value
    return old


def _cas(f: Any, p: Val, old: Any, new: Any) -> Val:
    t = p.type.target
    a, b = f.materialize(old, t), f.materialize(new, t)
    pair = f.emit(None, f"cmpxchg ptr {p.ir}, {t.ir} {a.ir}, {t.ir} {b.ir} seq_cst seq_cst, align {t.size}")
    return f.emit(bool, f"extractvalue {{ {t.ir}, i1 }} {pair.ir}, 1")  # type: ignore[no-any-return]


@intrinsic(_cas)
def cas(p: Any, old: Any, new: Any) -> bool:
    """Store `new` where `old` stands; whether it did."""
    if p[0] != old:
        return False
    p[0] = new
    return True


def _fence(f: Any) -> Val:
    f.effect("fence seq_cst")
    return VOID


@intrinsic(_fence)
def fence() -> None:
    """Order every access before with every access after."""


# --- integers ------------------------------------------------------------------------------------------


def _unary_llvm(name: str, tail: str = "") -> Callable[..., Val]:
    def lowering(f: Any, a: Val) -> Val:
        t = ir_type(a.type)
        return f.emit(a.type, f"call {t} @llvm.{name}.{_suffix(a.type)}({t} {a.ir}{tail})")  # type: ignore[no-any-return]

    return lowering


def _suffix(kind: Any) -> str:
    if is_vec(kind):
        return f"v{kind.count}{_suffix(kind.element)}"
    return {"float": "f32", "double": "f64", "x86_fp80": "f80"}.get(kind.ir, kind.ir)


def _lanewise(value: Any, fn: Callable[[Any], Any]) -> Any:
    return type(value)([fn(x) for x in value.lanes]) if isinstance(value, Vec) else fn(value)


@intrinsic(_unary_llvm("ctlz", ", i1 0"))
def clz(a: Any) -> Any:
    """Leading zero bits; the width for 0."""
    return _lanewise(a, lambda x: type(x)(x.bits - int(x).bit_length()))


@intrinsic(_unary_llvm("cttz", ", i1 0"))
def ctz(a: Any) -> Any:
    """Trailing zero bits; the width for 0."""
    return _lanewise(a, lambda x: type(x)((int(x) & -int(x)).bit_length() - 1 if x else x.bits))


@intrinsic(_unary_llvm("ctpop"))
def popcount(a: Any) -> Any:
    """Set bits."""
    return _lanewise(a, lambda x: type(x)(int(x).bit_count()))


@intrinsic(_unary_llvm("bswap"))
def bswap(a: Any) -> Any:
    """Bytes in the other order."""
    return type(a)(int.from_bytes(int(a).to_bytes(a.size, "little"), "big"))


def _rotate(name: str) -> Callable[..., Val]:
    def lowering(f: Any, a: Val, n: Any) -> Val:
        count = Val(a.type, str(n.value % a.type.bits)) if isinstance(n, Const) else arith.resize(f, n, a.type)
        t = ir_type(a.type)
        return f.emit(a.type, f"call {t} @llvm.{name}.{t}({t} {a.ir}, {t} {a.ir}, {t} {count.ir})")  # type: ignore[no-any-return]

    return lowering


@intrinsic(_rotate("fshl"))
def rotl(a: Any, n: Any) -> Any:
    """Rotate left by n modulo the width."""
    n = int(n) % a.bits
    return type(a)(int(a) << n | int(a) >> (a.bits - n))


@intrinsic(_rotate("fshr"))
def rotr(a: Any, n: Any) -> Any:
    """Rotate right by n modulo the width."""
    n = int(n) % a.bits
    return type(a)(int(a) >> n | int(a) << (a.bits - n))


def _pair(f: Any, a: Any, b: Any) -> tuple[Val, Val]:
    kind = a.type if isinstance(a, Val) else b.type
    return f.materialize(a, kind), f.materialize(b, kind)


def _signed_divide(op: str) -> Callable[..., Val]:
    return lambda f, a, b: arith.divide(f, op, *_pair(f, a, b))


@intrinsic(_signed_divide("sdiv"))
def sdiv(a: Any, b: Any) -> Any:
    """Signed quotient towards zero; by 0 it is 0, and the most negative value over -1 wraps."""
    if not b:
        return type(a)(0)
    quotient = abs(int(a)) // abs(int(b))
    return type(a)(quotient if (a < 0) == (b < 0) else -quotient)


@intrinsic(_signed_divide("srem"))
def srem(a: Any, b: Any) -> Any:
    """Signed remainder with the dividend's sign; by 0 it is 0."""
    if not b:
        return type(a)(0)
    remainder = abs(int(a)) % abs(int(b))
    return type(a)(-remainder if a < 0 else remainder)


def _two_llvm(signed: str, unsigned: str) -> Callable[..., Val]:
    def lowering(f: Any, a: Any, b: Any) -> Val:
        a, b = _pair(f, a, b)
        lane = a.type.element if is_vec(a.type) else a.type
        t, name = ir_type(a.type), signed if lane.signed else unsigned
        return f.emit(a.type, f"call {t} @llvm.{name}.{_suffix(a.type)}({t} {a.ir}, {t} {b.ir})")  # type: ignore[no-any-return]

    return lowering


def _lanes2(a: Any, b: Any, fn: Callable[[Any, Any], Any]) -> Any:
    return type(a)([fn(x, y) for x, y in zip(a.lanes, b.lanes)]) if isinstance(a, Vec) else fn(a, type(a)(b))


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


# --- choice, bits, vectors -----------------------------------------------------------------------------


def _select(f: Any, condition: Any, a: Any, b: Any) -> Any:
    if isinstance(condition, Const):
        return a if condition.value else b
    a, b = _pair(f, a, b)
    kind = ir_type(condition.type)
    return f.emit(a.type, f"select {kind} {condition.ir}, {ir_type(a.type)} {a.ir}, {ir_type(b.type)} {b.ir}")


@intrinsic(_select)
def select(condition: Any, a: Any, b: Any) -> Any:
    """a where the condition (a bool, or a vector of bools) holds, else b; both are computed."""
    if isinstance(condition, Vec):
        return type(a)([x if c else y for c, x, y in zip(condition.lanes, a.lanes, type(a)(b).lanes)])
    return a if condition else b


def _bitcast(f: Any, kind: Const, a: Val) -> Val:
    to = kind.value
    if a.type is to or ir_type(a.type) == ir_type(to):
        return Val(to, a.ir)
    return f.emit(to, f"bitcast {ir_type(a.type)} {a.ir} to {ir_type(to)}")  # type: ignore[no-any-return]


@intrinsic(_bitcast)
def bitcast(kind: Any, a: Any) -> Any:
    """The same bits as another type of the same size."""
    buffer = ctypes.create_string_buffer(64)
    address = ctypes.addressof(buffer)
    type(a).write(address, a)
    return kind.read(address)


def _shuffle(f: Any, a: Val, b: Val, lanes: Const) -> Val:
    kind = vec[a.type.element, len(lanes.value)]
    mask = ", ".join(f"i32 {i}" for i in lanes.value)
    t = ir_type(a.type)
    return f.emit(kind, f"shufflevector {t} {a.ir}, {t} {b.ir}, <{len(lanes.value)} x i32> <{mask}>")  # type: ignore[no-any-return]


@intrinsic(_shuffle)
def shuffle(a: Any, b: Any, lanes: Any) -> Any:
    """The named lanes (compile-time numbers) of a followed by b."""
    both = a.lanes + b.lanes
    return vec[a.element, len(lanes)]([both[i] for i in lanes])


def _insert(f: Any, v: Val, lane: Any, x: Any) -> Val:
    x = f.materialize(x, v.type.element)
    return f.emit(v.type, f"insertelement {ir_type(v.type)} {v.ir}, {ir_type(x.type)} {x.ir}, i32 {f._lane(lane)}")  # type: ignore[no-any-return]


@intrinsic(_insert)
def insert(v: Any, lane: Any, x: Any) -> Any:
    """The vector with one lane replaced."""
    return type(v)([x if i == lane else y for i, y in enumerate(v.lanes)])


def _movemask(f: Any, v: Val) -> Val:
    if not is_vec(v.type) or v.type.element is not bool:
        f.fail("movemask takes a vector of bools: a comparison's result")
    bits = f.emit(None, f"bitcast {ir_type(v.type)} {v.ir} to i{v.type.count}")
    return f.emit(u64, f"zext i{v.type.count} {bits.ir} to i64")  # type: ignore[no-any-return]


@intrinsic(_movemask)
def movemask(v: Any) -> Any:
    """Bit i of the u64 result is lane i of a vector of bools."""
    return u64(sum(1 << i for i, x in enumerate(v.lanes) if x))


def _expect(wanted: int) -> Callable[..., Any]:
    def lowering(f: Any, c: Any) -> Any:
        if isinstance(c, Const):
            return c
        c = arith.truth(f, c)
        return f.emit(bool, f"call i1 @llvm.expect.i1(i1 {c.ir}, i1 {wanted})")

    return lowering


@intrinsic(_expect(1))
def likely(c: Any) -> bool:
    """The condition, with the hint that it holds."""
    return bool(c)


@intrinsic(_expect(0))
def unlikely(c: Any) -> bool:
    """The condition, with the hint that it does not hold."""
    return bool(c)


def _static(f: Any, items: Any) -> Any:
    return items


@intrinsic(_static)
def static(items: Any) -> Any:
    """Compile-time data to unroll a `for` over."""
    return items


# --- control and machine -------------------------------------------------------------------------------


class TailCall(Exception):
    """How plain Python shows `tail`: the driver goes on at `target` with `args`."""

    def __init__(self, target: int, *args: Any) -> None:
        super().__init__(target)
        self.target, self.args_ = target, args


def _tail(f: Any, target: Val, a: Val, b: Val) -> Val:
    if not f.instance.fn.tail:
        f.fail("tail is for handlers; decorate the function with @native(tail=True)")
    fn = f.emit(None, f"inttoptr i64 {f.materialize(target, u64).ir} to ptr")
    f.body.append(f"  musttail call tailcc void {fn.ir}(ptr {a.ir}, ptr {b.ir})")
    f.body.append("  ret void")
    f.terminated = True
    return VOID


@intrinsic(_tail)
def tail(target: Any, a: Any, b: Any) -> None:
    """Go on at the handler at address `target`; nothing of this function remains on the stack."""
    raise TailCall(int(target), a, b)


def _invoke(f: Any, target: Val, a: Val, b: Val) -> Val:
    fn = f.emit(None, f"inttoptr i64 {f.materialize(target, u64).ir} to ptr")
    f.effect(f"call tailcc void {fn.ir}(ptr {a.ir}, ptr {b.ir})")
    return VOID


@intrinsic(_invoke)
def invoke(target: Any, a: Any, b: Any) -> None:
    """Call the handler at address `target`, and those it tail-calls, until one returns."""
    raise TypeError("invoke runs compiled handlers; plain Python drives ops through the reference executor")


def _rdtsc(f: Any) -> Val:
    return f.emit(u64, "call i64 @llvm.readcyclecounter()")  # type: ignore[no-any-return]


@intrinsic(_rdtsc)
def rdtsc() -> Any:
    """The host's cycle counter."""
    from pellucid.native.stub import host_rdtsc

    return u64(host_rdtsc())


def _asm(f: Any, kind: Const, template: Const, constraints: Const, *args: Any) -> Val:
    result = ir_type(kind.value)
    passed = ", ".join(f"{ir_type(a.type)} {a.ir}" for a in args)
    text = f'call {result} asm sideeffect "{template.value}", "{constraints.value}"({passed})'.replace("\n", "\\0A")
    if kind.value is None:
        f.effect(text)
        return VOID
    return f.emit(kind.value, text)  # type: ignore[no-any-return]


@intrinsic(_asm)
def asm(kind: Any, template: str, constraints: str, *args: Any) -> Any:
    """One host instruction (AT&T spelling, LLVM constraints) with a result of type `kind` or None.

    For what only the host's own unit does exactly: float arithmetic under its control word. Plain Python
    runs the same instruction through a compiled stub.
    """
    from pellucid.native.stub import run_asm

    return run_asm(kind, template, constraints, args)


def _sqrt(f: Any, a: Val) -> Val:
    t = ir_type(a.type)
    return f.emit(a.type, f"call {t} @llvm.sqrt.{_suffix(a.type)}({t} {a.ir})")  # type: ignore[no-any-return]


@intrinsic(_sqrt)
def sqrt(a: Any) -> Any:
    """Square root; NaN for a negative value."""
    return _lanewise(a, lambda x: type(x)(float(x) ** 0.5 if x >= 0 else float("nan")))


__all__ = ["Intrinsic", "TailCall", "add_sat", "asm", "at", "atomic_add", "atomic_and", "atomic_load", "atomic_or",
           "atomic_store", "atomic_xchg", "bitcast", "bswap", "cas", "clz", "ctz", "fence", "insert", "invoke", "likely",
           "local", "maximum", "memcpy", "memset", "minimum", "movemask", "popcount", "rdtsc", "ref", "rotl", "rotr",
           "sdiv", "select", "shuffle", "sqrt", "srem", "static", "sub_sat", "tail", "unlikely",
           "element_size", "f32", "f64", "f80", "is_float", "is_int", "_PtrType"]
