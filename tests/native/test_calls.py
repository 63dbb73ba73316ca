"""Calls: specialization, defaults, keywords, spread arguments, tuples of results, function arguments, recursion."""

import ctypes
import enum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.native import NativeException, i64, is_constant, native, ptr, static, struct, u8, u32, u64, uint
from pellucid.native.code import Code
from pellucid.native.image import build
from pellucid.native.linker import lay_out
from pellucid.native.program import Program, out_of_line
from pellucid.native.target import compile_object
from pellucid.records import dataclass
from tests.native.harness import Const, Unit, few

unit = Unit()


class Mode(enum.IntEnum):
    ADD = 1
    XOR = 2


@dataclass(frozen=True, slots=True)
class Form:
    width: int
    name: str


@struct
class Cell:
    value: u64


def plain_helper(width: int) -> int:
    """Plain Python: only at compile time."""
    return (1 << width * 8) - 1


@native
def masked(a, W):
    return u64(uint(W)(a)) & plain_helper(W)


@native(inline=False)
def outlined(a: u64, b: u64 = 5) -> u64:
    return a * 3 + b


@native
def defaults(a, W=2, scale=1):
    return masked(a, W) * scale


@native
def combine(a, b, mode):
    if mode == Mode.ADD:
        return a + b
    return a ^ b


@native
def two(a, b):
    return a + b, a < b


@native
def apply(fn, a, form):
    if form.name == "one":
        return fn(a, form.width)
    return fn(fn(a, form.width), 1)


@native
def calls(a: u64, b: u64):
    t = outlined(a) + outlined(a, b) + outlined(b=b, a=7) + outlined(*(a, b)) + outlined(*(a, 2)) + outlined(1, 2)
    t += defaults(a) + defaults(a, 1) + defaults(a, scale=3) + defaults(a, scale=2, W=4)
    t += combine(a, b, Mode.ADD) + combine(a, b, mode=Mode.XOR)
    s, less = two(a, b)
    q, _ = two(u8(a), u8(b))
    t += apply(masked, a, Form(2, "one")) + apply(masked, b, Form(4, "two"))
    for form in static((Form(1, "one"), Form(8, "two"))):
        t = t * 3 + apply(masked, t, form)
    return t, s, less, q


@native
def fibonacci(n: u64) -> u64:
    if n < 2:
        return n
    return fibonacci(n - 1) + fibonacci(n - 2)


@native(inline=False)
def is_even(n: u64) -> bool:
    return True if n == 0 else is_odd(n - 1)


@native(inline=False)
def is_odd(n: u64) -> bool:
    return False if n == 0 else is_even(n - 1)


class Stop(NativeException):
    pass


@native(inline=False)
def ping(n: u64, limit: u64) -> u64:
    if n == 0:
        return u64(1)
    return pong(n - 1, limit) + 1


@native(inline=False)
def pong(n: u64, limit: u64) -> u64:
    """The raise stands after the call that closes the circle."""
    t = ping(n >> 1, limit) if n != 0 else u64(0)
    if n > limit:
        raise Stop
    return t + n


@native
def ping_caught(n: u64, limit: u64) -> u64:
    try:
        return ping(n, limit)
    except Stop:
        return u64(1000)


@native(inline=False)
def nothing(p: ptr[Cell]) -> None:
    p.value += 1


@native
def returns_nothing(p):
    p.value += 2
    return nothing(p)


@native
def passes_pointer(p: ptr[Cell]) -> u64:
    nothing(p)
    returns_nothing(p)
    return p.value


@native
def typed_constants(a: u64) -> u64:
    return a + ONE * 2 + (ONE << 3) + u64(SIGNED)


ONE, SIGNED = u64(1), i64(-1)
CALLS, FIBONACCI = unit.add(calls, u64, u64), unit.add(fibonacci, u64)
EVEN, PING = unit.add(is_even, u64), unit.add(ping_caught, u64, u64)
PINGS, POINTER = unit.add(ping, u64, u64), unit.add(passes_pointer, ptr[Cell])
TYPED = unit.add(typed_constants, u64)
word = st.integers(0, (1 << 64) - 1)


@few
@given(word, word)
def test_calls(a: int, b: int) -> None:
    CALLS.both(a, b)
    TYPED.both(a)


@few
@given(st.integers(0, 60), st.integers(0, 60))
def test_recursion_and_raises_around_a_circle(n: int, limit: int) -> None:
    FIBONACCI.both(n % 12)
    EVEN.both(n)
    PING.both(n, limit)
    PINGS.both(n, limit)


def test_a_result_of_nothing() -> None:
    cell = ctypes.c_uint64(5)
    assert POINTER(ptr[Cell](ctypes.addressof(cell))) == 9
    assert passes_pointer(ptr[Cell](ctypes.addressof(cell))) == 13


@native(inline=False)
def known(a: u64) -> u64:
    if is_constant(a):
        return u64(1)
    return u64(2)


@native
def asks_twice(a: u64) -> u64:
    return known(u64(5)) * 10 + known(a)


def test_a_program_may_inline_what_is_out_of_line_elsewhere() -> None:
    """What the compiler knows is known there alone; and plain Python knows nothing."""
    assert asks_twice(u64(3)) == 22
    assert len(out_of_line([Program().request(asks_twice, (u64,))])) == 1
    program = Program(inlined=(known,))
    root = program.request(asks_twice, (u64,))
    assert out_of_line([root], program.inlined) == []
    library = Code(lay_out([compile_object(program.module([root]))]))
    assert ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64)(library[root.symbol])(3) == 12


def test_each_specialization_is_compiled_once() -> None:
    program = Program()
    first = program.request(masked, (u64, Const(2)))
    assert program.request(masked, (u64, Const(2))) is first
    others = [program.request(masked, (u64, Const(1))), program.request(masked, (u32, Const(2)))]
    assert len({first.symbol, *(o.symbol for o in others)}) == 3
    assert program.request(combine, (u64, u64, Const(True))) is not program.request(combine, (u64, u64, Const(1)))


def test_a_failed_specialization_leaves_nothing_behind() -> None:
    from pellucid.native import NativeError

    program = Program()
    for _ in range(2):
        with pytest.raises(NativeError, match="do not mix"):
            program.request(combine, (u64, u32, Const(1)))


def test_plain_calls_check_and_convert_as_compiled_ones() -> None:
    assert outlined(1) == 8 and type(outlined(1)) is u64
    assert outlined(b=1, a=u64(2)) == 7
    for call in (lambda: outlined(u32(1)), lambda: outlined(), lambda: outlined(1, 2, 3), lambda: outlined(1, c=2),
                 lambda: outlined(1 << 64), lambda: is_even(1.5)):
        with pytest.raises(TypeError):
            call()


def test_repr_and_metadata() -> None:
    assert repr(masked).startswith("<native tests.native.test_calls.masked")
    assert outlined.__doc__ is None and pong.__doc__ is not None and outlined.__name__ == "outlined"


def test_a_plain_function_from_a_prompt_has_no_source() -> None:
    from pellucid.native import NativeError

    space: dict[str, Any] = {}
    exec(compile("from pellucid.native import native\n@native\ndef f(a): return a", "<prompt>", "exec"), space)
    with pytest.raises(NativeError, match=r"<prompt>:2:.*define it in a file"):
        space["f"](u64(1))


def test_deep_chains_of_calls_compile() -> None:
    """A hundred functions, each called by the next."""

    def step(inner: Any) -> Any:
        @native
        def grows(a: u64) -> u64:
            return inner(a) + 1 if inner is not None else a

        return grows

    fn: Any = None
    for _ in range(100):
        fn = step(fn)
    assert fn(u64(1)) == 100
    names, layout = build({"chain": (fn, (u64,))})
    assert list(names) == ["chain"] and not layout.imports
