"""Operations that Python has no sign for: memory, atomics, control and the host's own instructions.

Each has a plain-Python body and a lowering to LLVM; those on bits and lanes stand in `bits`.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from pellucid.native import arith
from pellucid.native.aliasing import FOREIGN, REGISTERS, tag
from pellucid.native.bits import (
    add_sat, bitcast, bswap, clz, ctz, insert, maximum, minimum, movemask, popcount, rotl, rotr, sdiv, select, shuffle,
    sqrt, srem, sub_sat)
from pellucid.native.operation import Intrinsic, Lowering, intrinsic, pointer, static_kind, typed
from pellucid.native.permute import permute
from pellucid.native.types import (
    _PtrType, array, element_size, f32, f64, f80, literal, ptr, size_of, u8, u64, uint)
from pellucid.native.values import VOID, Const, Val, ir_type, is_float, is_int, is_struct, is_vec, name_of

# --- memory --------------------------------------------------------------------------------------------


def _pointee(kind: Any) -> Any:
    """What a pointer to a place of this type points to: an array's first element."""
    return ptr[kind.element if isinstance(kind, type(array)) else kind]


def _ref(f: Lowering, base: Any, which: Any) -> Val:
    base = pointer(f, base)
    kind = base.type.target
    if isinstance(which, Const) and isinstance(which.value, str):
        field = kind.fields.get(which.value) if is_struct(kind) else None
        if field is None:
            f.fail(f"{name_of(kind)} has no field {which.value!r}")
        place = f.emit(None, f"getelementptr i8, ptr {base.ir}, i64 {field.offset}")
        return Val(_pointee(field.type), place.ir, f.reached(field.memory or base.memory))
    place = f.emit(None, f"getelementptr [{f.size_of(kind)} x i8], ptr {base.ir}, i64 {f.index(which)}")
    return Val(_pointee(kind), place.ir, base.memory)


@intrinsic(_ref)
def ref(base: Any, which: Any) -> Any:
    """The address of a field, ref(p, "x"), or of an element, ref(p, i)."""
    kind = type(base).target
    if not isinstance(which, str):
        return _pointee(kind)(int(base) + int(which) * size_of(kind))
    field = kind.fields[which]
    return _pointee(field.type)(int(base) + field.offset)


def _at(f: Lowering, base: Any, offset: Any, kind: Any) -> Val:
    base = pointer(f, base)
    place = f.emit(None, f"getelementptr i8, ptr {base.ir}, i64 {f.index(offset)}")
    memory = f.reached(REGISTERS) if getattr(base.type.target, "has_registers", False) else base.memory
    return Val(ptr[static_kind(f, kind)], place.ir, memory)


@intrinsic(_at)
def at(base: Any, offset: Any, kind: Any) -> Any:
    """The address `offset` bytes past `base`, as a pointer to `kind`."""
    return ptr[kind](int(base) + int(offset))


def _foreign(f: Lowering, p: Any) -> Val:
    p = pointer(f, p)
    return Val(p.type, p.ir, FOREIGN)


@intrinsic(_foreign)
def foreign(p: Any) -> Any:
    """The pointer, which reaches no struct that is `own` or has registers: see `aliasing`."""
    return p


def _local(f: Lowering, kind: Any) -> Val:
    kind = static_kind(f, kind)
    slot, size = f.fresh(), size_of(kind)
    f.slots.append(f"  %l{slot} = alloca [{size} x i8], align 16")
    f.effect(f"call void @llvm.memset.p0.i64(ptr %l{slot}, i8 0, i64 {size}, i1 0)")
    return Val(_pointee(kind), f"%l{slot}")


class _Frames(threading.local):
    """Memory of plain Python's `local`: it lives as long as the native function that asked for it, and a while more."""

    def __init__(self) -> None:
        self.depth = 0
        self.live: list[Any] = []
        self.dead: deque[Any] = deque(maxlen=256)

    def enter(self) -> int:
        """A native function begins; what `leave` gets."""
        self.depth += 1
        return len(self.live)

    def leave(self, mark: int) -> None:
        """It ends."""
        self.depth -= 1
        self.dead += self.live[mark:]
        del self.live[mark:]


frames = _Frames()


@intrinsic(_local)
def local(kind: Any) -> Any:
    """The address of stack memory for a `kind` (a struct or an array), zeroed here, valid until the function ends."""
    buffer = ctypes.create_string_buffer(size_of(kind) + 16)
    (frames.live if frames.depth else frames.dead).append(buffer)
    return _pointee(kind)(ctypes.addressof(buffer) + 15 & ~15)


def _memcpy(f: Lowering, to: Any, source: Any, n: Any) -> Val:
    to, source, count = pointer(f, to), pointer(f, source), f.materialize(n, u64)
    f.effect(f"call void @llvm.memcpy.p0.p0.i64(ptr {to.ir}, ptr {source.ir}, i64 {count.ir}, i1 0)")
    return VOID


@intrinsic(_memcpy)
def memcpy(to: Any, source: Any, n: Any) -> None:
    """Copy `n` bytes between places that do not overlap."""
    ctypes.memmove(int(to), int(source), int(literal(u64, n)))


def _memset(f: Lowering, to: Any, byte: Any, n: Any) -> Val:
    to, value, count = pointer(f, to), f.materialize(byte, u8), f.materialize(n, u64)
    f.effect(f"call void @llvm.memset.p0.i64(ptr {to.ir}, i8 {value.ir}, i64 {count.ir}, i1 0)")
    return VOID


@intrinsic(_memset)
def memset(to: Any, byte: Any, n: Any) -> None:
    """Fill `n` bytes."""
    ctypes.memset(int(to), int(literal(u8, byte)), int(literal(u64, n)))


# --- memory that other threads change: each access happens once, in program order among its kind -------


def _volatile_load(f: Lowering, p: Any) -> Val:
    p = pointer(f, p)
    kind = p.type.target
    return f.emit(kind, f"load volatile {ir_type(kind)}, ptr {p.ir}, align 1{tag(p.memory)}")


@intrinsic(_volatile_load)
def volatile_load(p: Any) -> Any:
    """The value at `p`, which another thread may have changed."""
    return p[0]


def _volatile_store(f: Lowering, p: Any, value: Any) -> Val:
    p = pointer(f, p)
    kind = p.type.target
    f.effect(f"store volatile {ir_type(kind)} {f.materialize(value, kind).ir}, ptr {p.ir}, align 1{tag(p.memory)}")
    return VOID


@intrinsic(_volatile_store)
def volatile_store(p: Any, value: Any) -> None:
    """Store to `p`, which another thread may read."""
    p[0] = value


# --- atomics (sequentially consistent; plain Python has no other thread that could see a difference) ----


def _atomic(f: Lowering, p: Any) -> tuple[Val, Any, str]:
    """The pointer, its integer target, and LLVM's words for the end of an atomic access."""
    p = pointer(f, p)
    kind = p.type.target
    if not is_int(kind):
        f.fail(f"an atomic access is to an integer, not {name_of(kind)}; use ptr[u64](...)")
    return p, kind, f"seq_cst, align {kind.size}"


def _atomic_load(f: Lowering, p: Any) -> Val:
    p, t, order = _atomic(f, p)
    return f.emit(t, f"load atomic {t.ir}, ptr {p.ir} {order}")


@intrinsic(_atomic_load)
def atomic_load(p: Any) -> Any:
    """The value at `p`, as one access."""
    return p[0]


def _atomic_store(f: Lowering, p: Any, value: Any) -> Val:
    p, t, order = _atomic(f, p)
    f.effect(f"store atomic {t.ir} {f.materialize(value, t).ir}, ptr {p.ir} {order}")
    return VOID


@intrinsic(_atomic_store)
def atomic_store(p: Any, value: Any) -> None:
    """Store to `p` as one access, ordered with every other."""
    p[0] = value


def _rmw(op: str) -> Callable[..., Val]:
    def lowering(f: Lowering, p: Any, value: Any) -> Val:
        p, t, order = _atomic(f, p)
        text = f"atomicrmw {op} ptr {p.ir}, {t.ir} {f.materialize(value, t).ir} {order}"
        return f.emit(t, text)

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


def _cas(f: Lowering, p: Any, old: Any, new: Any) -> Val:
    p, t, order = _atomic(f, p)
    a, b = f.materialize(old, t), f.materialize(new, t)
    pair = f.emit(None, f"cmpxchg ptr {p.ir}, {t.ir} {a.ir}, {t.ir} {b.ir} seq_cst {order}")
    return f.emit(bool, f"extractvalue {{ {t.ir}, i1 }} {pair.ir}, 1")


@intrinsic(_cas)
def cas(p: Any, old: Any, new: Any) -> bool:
    """Store `new` where `old` stands; whether it did."""
    if p[0] != old:
        return False
    p[0] = new
    return True


def _fence(f: Lowering) -> Val:
    f.effect("fence seq_cst")
    return VOID


@intrinsic(_fence)
def fence() -> None:
    """Order every access before with every access after."""


# --- control and machine -------------------------------------------------------------------------------


def _expect(wanted: int) -> Callable[..., Any]:
    def lowering(f: Lowering, c: Any) -> Any:
        if isinstance(c, Const):
            return Const(bool(c.value))
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


def _is_constant(f: Lowering, x: Any) -> Any:
    if isinstance(x, Const):
        return Const(True)
    if not is_int(x.type):
        f.fail("is_constant takes an integer")
    kind = ir_type(x.type)
    return f.emit(bool, f"call i1 @llvm.is.constant.{kind}({kind} {x.ir})")


@intrinsic(_is_constant)
def is_constant(x: Any) -> bool:
    """Whether the compiler has found out the value; False in plain Python."""
    return False


def _static(f: Lowering, items: Any) -> Any:
    if not isinstance(items, Const):
        f.fail("static takes compile-time data; this is a run-time value")
    return items


@intrinsic(_static)
def static(items: Any) -> Any:
    """Compile-time data to unroll a `for` over."""
    return items


class TailCall(Exception):
    """How plain Python shows `tail`: the driver goes on at `target` with `args`."""

    def __init__(self, target: int, *args: Any) -> None:
        super().__init__(target)
        self.target, self.args_ = target, args


def _handler(f: Lowering, target: Any) -> str:
    """A handler's address as LLVM calls it."""
    return str(f.emit(None, f"inttoptr i64 {f.materialize(target, u64).ir} to ptr").ir)


def _tail(f: Lowering, target: Any, a: Any, b: Any) -> Val:
    if not f.instance.fn.tail:
        f.fail("tail is for handlers; decorate the function with @native(tail=True)")
    a, b, fn = pointer(f, a), pointer(f, b), _handler(f, target)
    f.body.append(f"  musttail call tailcc void {fn}(ptr {a.ir}, ptr {b.ir})")
    f.body.append("  ret void")
    f.terminated = True
    return VOID


@intrinsic(_tail)
def tail(target: Any, a: Any, b: Any) -> None:
    """Go on at the handler at address `target`; nothing of this function remains on the stack."""
    raise TailCall(int(target), a, b)


def _invoke(f: Lowering, target: Any, a: Any, b: Any) -> Val:
    a, b, fn = pointer(f, a), pointer(f, b), _handler(f, target)
    f.effect(f"call tailcc void {fn}(ptr {a.ir}, ptr {b.ir})")
    return VOID


@intrinsic(_invoke)
def invoke(target: Any, a: Any, b: Any) -> None:
    """Call the handler at address `target`, and those it tail-calls, until one returns."""
    raise TypeError("invoke runs compiled handlers; plain Python drives ops through the reference executor")


def _rdtsc(f: Lowering) -> Val:
    return f.emit(u64, "call i64 @llvm.readcyclecounter()")


@intrinsic(_rdtsc)
def rdtsc() -> Any:
    """The host's cycle counter."""
    from pellucid.native.stub import host_rdtsc

    return u64(host_rdtsc())


def _monotonic_ns(f: Lowering) -> Val:
    f.instance.declares.add("declare dso_local i32 @clock_gettime(i32, ptr)")
    place = f"%l{f.fresh()}"
    f.slots.append(f"  {place} = alloca [2 x i64], align 16")
    f.effect(f"call i32 @clock_gettime(i32 {time.CLOCK_MONOTONIC}, ptr {place})")
    seconds = f.emit(u64, f"load i64, ptr {place}")
    rest = f.emit(None, f"getelementptr i8, ptr {place}, i64 8")
    nanoseconds = f.emit(u64, f"load i64, ptr {rest.ir}")
    whole = f.emit(u64, f"mul i64 {seconds.ir}, 1000000000")
    return f.emit(u64, f"add i64 {whole.ir}, {nanoseconds.ir}")


@intrinsic(_monotonic_ns)
def monotonic_ns() -> Any:
    """The host's monotonic clock in nanoseconds: `time.monotonic_ns()`. Takes the C library's clock_gettime."""
    return u64(time.monotonic_ns())


def asm_text(kind: Any, template: str, constraints: str, passed: str) -> str:
    """LLVM's call of one host instruction; one without ~{memory} keeps its order among them only."""
    quoted = template.replace("\\", "\\5C").replace('"', "\\22").replace("\n", "\\0A")
    touched = "" if "~{memory}" in constraints else " nounwind memory(inaccessiblemem: readwrite)"
    return f'call {ir_type(kind)} asm sideeffect "{quoted}", "{constraints}"({passed}){touched}'


def _asm(f: Lowering, kind: Any, template: Any, constraints: Any, *args: Any) -> Val:
    if not all(isinstance(c, Const) for c in (kind, template, constraints)):
        f.fail("asm takes its result type, template and constraints as literals")
    values = [typed(f, a) for a in args]
    passed = ", ".join(f"{ir_type(a.type)} {a.ir}" for a in values)
    text = asm_text(kind.value, template.value, constraints.value, passed)
    if kind.value is None:
        f.effect(text)
        return VOID
    return f.emit(kind.value, text)


@intrinsic(_asm)
def asm(kind: Any, template: str, constraints: str, *args: Any) -> Any:
    """One host instruction (AT&T spelling, LLVM constraints) with a result of type `kind` or None. One that reads or
    writes memory has ~{memory} among its constraints.

    For what only the host's own unit does exactly: float arithmetic under its control word. Plain Python
    runs the same instruction through a compiled stub.
    """
    from pellucid.native.stub import run_asm

    return run_asm(kind, template, constraints, args)


__all__ = ["Intrinsic", "TailCall", "_PtrType", "add_sat", "asm", "at", "atomic_add", "atomic_and", "atomic_load",
           "atomic_or", "atomic_store", "atomic_xchg", "bitcast", "bswap", "cas", "clz", "ctz", "element_size", "f32",
           "f64", "f80", "fence", "foreign", "insert", "invoke", "is_constant", "is_float", "is_int", "is_vec",
           "likely", "local", "maximum", "memcpy", "memset", "minimum", "monotonic_ns", "movemask", "permute",
           "popcount", "rdtsc", "ref", "rotl", "rotr", "sdiv", "select", "shuffle", "sqrt", "srem", "static", "sub_sat",
           "tail", "uint", "unlikely", "volatile_load", "volatile_store"]
