"""Native functions run both ways: as plain Python, and compiled in this process behind a wrapper that takes any type.

The wrapper reads its arguments from memory and writes the results there, 64 bytes apart, so that 128-bit
integers, vectors and f80 pass without a calling convention of ctypes' own.
"""

import ctypes
import math
from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from pellucid.native import NativeException, NativeFunction, f32, f64, f80
from pellucid.native.code import Code
from pellucid.native.linker import lay_out
from pellucid.native.program import Instance, Program, out_of_line
from pellucid.native.target import compile_object
from pellucid.native.types import Vec, _Float, _Int, literal, load, store
from pellucid.native.values import Const, ir_type

STRIDE = 64
few = settings(max_examples=40, database=None)


class Unit:
    """Functions compiled together, at the first call of any of them."""

    def __init__(self) -> None:
        self.members: list[Compiled] = []
        self.library: Code | None = None
        self.failure: Exception | None = None

    def add(self, fn: NativeFunction, *params: Any) -> "Compiled":
        """`fn` for these parameter types (a `Const` for a compile-time parameter)."""
        self.members.append(Compiled(self, fn, params))
        return self.members[-1]

    def ready(self) -> None:
        """Compile, once; a failure is every member's."""
        if self.failure is not None:
            raise self.failure
        if self.library is None:
            try:
                self.build()
            except Exception as error:
                self.failure = error
                raise

    def build(self) -> None:
        program = Program()
        for member in self.members:
            member.instance = program.request(member.fn, member.params)
        roots = list(dict.fromkeys(m.instance for m in self.members))
        text = program.module([*roots, *(i for i in out_of_line(roots) if i not in roots)])
        text += "".join(_wrapper(i, f"run{n}") for n, i in enumerate(roots))
        self.library = Code(lay_out([compile_object(text)]))
        for member in self.members:
            address = self.library[f"run{roots.index(member.instance)}"]
            member.entry = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(address)


class Compiled:
    """One function, callable with the values that plain Python takes; a raise that leaves it raises here."""

    def __init__(self, unit: Unit, fn: NativeFunction, params: tuple[Any, ...]) -> None:
        self.unit, self.fn, self.params = unit, fn, params
        self.instance: Instance
        self.entry: Any = None

    def __call__(self, *args: Any) -> Any:
        self.unit.ready()
        kinds = self.instance.run_time
        assert len(args) == len(kinds)
        inside = ctypes.create_string_buffer(STRIDE * (len(kinds) + 1))
        for i, (kind, value) in enumerate(zip(kinds, args, strict=True)):
            store(kind, ctypes.addressof(inside) + STRIDE * i, literal(kind, value))
        results = self.instance.result if isinstance(self.instance.result, tuple) else (self.instance.result,)
        outside = ctypes.create_string_buffer(STRIDE * (len(results) + 1))
        self.entry(ctypes.addressof(outside), ctypes.addressof(inside))
        if outside.raw[0]:
            raise NativeException
        if self.instance.result is None:
            return None
        values = tuple(load(k, ctypes.addressof(outside) + STRIDE * (i + 1)) for i, k in enumerate(results))
        return values if isinstance(self.instance.result, tuple) else values[0]

    def both(self, *args: Any) -> Any:
        """The result, after asserting that plain Python gives the same, or raises as well."""
        def plain() -> Any:
            return self.fn(*self.complete(args))

        expected, found = _outcome(plain), _outcome(lambda: self(*args))
        assert alike(expected, found), f"{self.fn.__name__}{args}: plain {expected}, compiled {found}"
        return found

    def complete(self, args: tuple[Any, ...]) -> list[Any]:
        """The arguments with the compile-time ones in their places, each of its parameter's type."""
        rest = iter(args)
        return [p.value if isinstance(p, Const) else literal(p, next(rest)) for p in self.params]


def _outcome(run: Callable[[], Any]) -> Any:
    try:
        return run()
    except NativeException:
        return NativeException


def _memory_form(kind: Any) -> tuple[str, str]:
    """LLVM's type of a value in memory, and how a bool gets there."""
    return ("i8", "zext i1 {} to i8") if kind is bool else (ir_type(kind), "")


def _wrapper(instance: Instance, name: str) -> str:
    lines = [f"define void @{name}(ptr %out, ptr %in) {{"]
    for i, kind in enumerate(instance.run_time):
        lines += [f"  %p{i} = getelementptr i8, ptr %in, i64 {STRIDE * i}",
                  f"  %x{i} = load {_memory_form(kind)[0]}, ptr %p{i}, align 1"]
        if kind is bool:
            lines.append(f"  %b{i} = trunc i8 %x{i} to i1")
    passed = ", ".join(f"{ir_type(k)} %{'b' if k is bool else 'x'}{i}" for i, k in enumerate(instance.run_time))
    call = f'call {instance.convention}{instance.returns} @"{instance.symbol}"({passed})'
    lines.append(f"  {call}" if instance.returns == "void" else f"  %r = {call}")
    value, flag = "%r", ""
    if instance.raises and instance.result is not None:
        lines += [f"  %value = extractvalue {instance.returns} %r, 0",
                  f"  %flag = extractvalue {instance.returns} %r, 1"]
        value, flag = "%value", "%flag"
    elif instance.raises:
        flag = "%r"
    if flag:
        lines += [f"  %raised = zext i1 {flag} to i8", "  store i8 %raised, ptr %out"]
    one = () if instance.result is None else (instance.result,)
    results = instance.result if isinstance(instance.result, tuple) else one
    shape = "{ " + ", ".join(ir_type(k) for k in results) + " }"
    for i, kind in enumerate(results):
        part = value
        if isinstance(instance.result, tuple):
            lines.append(f"  %e{i} = extractvalue {shape} {value}, {i}")
            part = f"%e{i}"
        form, conversion = _memory_form(kind)
        if conversion:
            lines.append(f"  %c{i} = " + conversion.format(part))
            part = f"%c{i}"
        lines += [f"  %o{i} = getelementptr i8, ptr %out, i64 {STRIDE * (i + 1)}",
                  f"  store {form} {part}, ptr %o{i}, align 1"]
    return "\n".join([*lines, "  ret void", "}", ""])


def alike(a: Any, b: Any) -> bool:
    """Equal with equal types; any NaN is like any other (which operand's payload survives is the host's affair)."""
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(alike(x, y) for x, y in zip(a, b, strict=True))
    if type(a) is not type(b):
        return False
    if isinstance(a, f80):
        return a.raw == b.raw or a.is_nan and b.is_nan
    if isinstance(a, _Float):
        return a.encoded == b.encoded or math.isnan(a) and math.isnan(b)
    if isinstance(a, Vec):
        return alike(a.lanes, b.lanes)
    return bool(a == b)


def integers(kind: type[_Int]) -> st.SearchStrategy[Any]:
    """Values of an integer type, its ends and powers of two among them."""
    low = -(1 << (kind.bits - 1)) if kind.signed else 0
    high = low + (1 << kind.bits) - 1
    edges = {low, high, 0, 1, -1, low + 1, high - 1, *(1 << n for n in range(kind.bits)),
             *((1 << n) - 1 for n in range(kind.bits)), *(-1 << n for n in range(kind.bits))}
    return st.one_of(st.sampled_from(sorted(e for e in edges if low <= e <= high)), st.integers(low, high)).map(kind)


_F64_BITS = [0, 1 << 63, 0x3FF0 << 48, 0xBFF0 << 48, 1, (1 << 52) - 1, 1 << 52, 0x7FEF_FFFF_FFFF_FFFF, 0x7FF0 << 48,
             0xFFF0 << 48, 0x7FF8 << 48, 0x7FF0_0000_0000_0001, 0x43E0 << 48, 0xC3E0 << 48, 0x3FE0 << 48, 0x36A0 << 48]
_F32_BITS = [0, 1 << 31, 0x3F80_0000, 0xBF80_0000, 1, 0x7F_FFFF, 0x80_0000, 0x7F7F_FFFF, 0x7F80_0000, 0xFF80_0000,
             0x7FC0_0000, 0x7F80_0001, 0x4B00_0000, 0x5F00_0000]


def floats(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a float type: infinities, NaNs, denormals and ends among them."""
    if kind is f80:
        wide = st.builds(_extended, st.booleans(), st.integers(0, 0x7FFF), st.integers(0, (1 << 63) - 1))
        return st.one_of(floats(f64).map(f80), wide)
    size, edges = (8, _F64_BITS) if kind is f64 else (4, _F32_BITS)
    bits = st.one_of(st.sampled_from(edges), st.integers(0, (1 << 8 * size) - 1))
    small = st.integers(-1000, 1000).map(lambda n: kind(n) / kind(8))
    return st.one_of(small, bits.map(lambda b: kind.from_bytes(b.to_bytes(size, "little"))))


def _extended(sign: bool, exponent: int, fraction: int) -> f80:
    significand = fraction | (1 << 63 if exponent else 0)
    return f80.from_bytes(significand.to_bytes(8, "little") + (sign << 15 | exponent).to_bytes(2, "little"))


def _from_bytes(kind: Any, raw: bytes) -> Any:
    memory = ctypes.create_string_buffer(raw)
    return kind.read(ctypes.addressof(memory))


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Values of any scalar or vector type."""
    if kind is bool:
        return st.booleans()
    if issubclass(kind, Vec):
        pairs = st.tuples(values(kind.element), values(kind.element), st.integers(0, kind.count))
        return st.one_of(st.binary(min_size=kind.size, max_size=kind.size).map(lambda raw: _from_bytes(kind, raw)),
                         pairs.map(lambda p: kind([p[0]] * p[2] + [p[1]] * (kind.count - p[2]))))
    return floats(kind) if kind in (f32, f64, f80) else integers(kind)


__all__ = ["Const", "Unit", "alike", "few", "floats", "integers", "values"]
