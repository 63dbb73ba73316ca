"""Plain-Python execution: the compiler's meaning where Python's own would be another, and Python's own elsewhere."""

import ctypes
import enum
import traceback
from typing import Any

import pytest

from pellucid.native import (
    NativeException, array, f32, f64, i8, i32, local, maximum, native, popcount, ptr, rotl, sdiv, select, struct, u8,
    u16, u32, u64, vec)
from tests.native.harness import Unit

unit = Unit()


class Bits(enum.IntFlag):
    LOW = 1
    HIGH = 0x80


class Stop(NativeException):
    pass


@native
def constants(a: u8) -> u8:
    t = a | Bits.HIGH
    t = t & ~Bits.LOW
    t ^= Bits.HIGH | Bits.LOW
    return t + Bits.LOW


@native(inline=False)
def sums(n: u64) -> u64:
    """Recursive, and rewritten: its own name must stay the global one."""
    t: u64 = 0
    if n > 0:
        t = sums(n - 1) + n
    return t


def maker(step: Any) -> Any:
    @native
    def counts(a: u64) -> u64:
        t: u8 = 250
        for i in range(a):
            t += step
            if t > 3 and i > 0:
                t -= 1
        return u64(t)

    return counts


@native
def breaks(a: u64) -> u64:
    t: u64 = 0
    for i in range(a):
        t += i

    return t + u32(1)


CONSTANTS, SUMS, COUNTS = unit.add(constants, u8), unit.add(sums, u64), unit.add(maker(3), u64)


def test_constants_of_an_enum() -> None:
    assert CONSTANTS.both(5) == 6


def test_recursion_and_closures() -> None:
    assert SUMS.both(10) == 55
    assert COUNTS.both(20) == maker(3)(20) and maker(4)(1) == 254


def test_lines_stay_those_of_the_source() -> None:
    first = breaks.fn.__code__.co_firstlineno
    with pytest.raises(TypeError) as caught:
        breaks(2)
    frame = traceback.extract_tb(caught.value.__traceback__)
    here = next(f for f in frame if f.name == "breaks")
    assert here.filename == __file__ and here.lineno == first + 6 and here.line == "return t + u32(1)"


def test_a_function_that_means_the_same_is_run_as_it_is() -> None:
    assert constants.plain is not constants.fn   # t is bound more than once

    @native
    def same(a: u64) -> u64:
        return a + 1

    assert same.plain is same.fn


def test_mixing_is_an_error_in_plain_python_too() -> None:
    a, b = u8(1), u16(1)
    for operation in (lambda: a + b, lambda: a < b, lambda: a == b, lambda: a & True, lambda: a + 1.0, lambda: a + 256,
                      lambda: 256 - a, lambda: a == 1.0, lambda: 1 << a, lambda: a / 2, lambda: a ** 2, lambda: 2 / a,
                      lambda: a << 1.5, lambda: i8(1) // 2, lambda: 5 % i8(1), lambda: divmod(a, 2),
                      lambda: maximum(a, b), lambda: select(True, a, b), lambda: sdiv(a, a), lambda: rotl(1.5, 1),
                      lambda: maximum(1, 2), lambda: popcount(5)):
        with pytest.raises((TypeError, AttributeError)):
            operation()


def test_literals_take_the_type_of_the_other_side() -> None:
    for value in (u8(200) + 100, 44 - u8(0), u8(44) * 1, maximum(3, u8(44)), select(True, 44, u8(1)), u8(300)):
        assert type(value) is u8 and value == 44
    assert i8(-1) == 255 and i8(-1) < 0 and not i8(5) < 200   # 200 is -56 as an i8
    assert u8(255) == -1 and f32(0.1) == 0.1 and f32(0.1) != f32(0.5)


def test_conversions() -> None:
    assert u8(f64(300.7)) == 255 and u8(f64("nan")) == 0 and i8(-300.0) == -128 and u64(i32(-1)) == (1 << 64) - 1
    assert u64(ptr[u8](5)) == 5 and u64() == 0 and u8("7") == 7
    assert repr(u16(255)) == "u16(0xff)" and repr(vec[u8, 2](1)) == "vec[u8, 2]([u8(0x1), u8(0x1)])"


def test_an_exception_goes_through_rewritten_functions() -> None:
    @native
    def raises(a: u64) -> u64:
        n: u64 = a
        if n:
            raise Stop
        return n

    assert raises(0) == 0
    with pytest.raises(Stop):
        raises(1)


def test_fields_of_a_struct_are_native_types() -> None:
    for kind in (int, "u65", vec[bool, 4], None):
        with pytest.raises((TypeError, NameError)):
            struct(type("Bad", (), {"__annotations__": {"x": kind}, "__module__": __name__}))


def test_local_outside_a_native_function() -> None:
    places = [local(array[u64, 4]) for _ in range(100)]
    places[0][0] = 5
    assert places[0][0] == 5 and int(places[0]) % 16 == 0
    assert len({int(p) for p in places}) == 100
    assert ctypes.c_uint64.from_address(int(places[0])).value == 5
