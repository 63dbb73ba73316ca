"""f32, f64 and f80: arithmetic, comparison, conversion, compiled against plain Python and against exact rationals."""

import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.native import (
    bitcast, f32, f64, f80, i8, i16, i32, i64, i128, native, select, sqrt, u8, u16, u32, u64, u128)
from tests.native.harness import Const, Unit, few, floats, integers

FLOATS = (f32, f64, f80)
INTEGERS = (u8, u16, u32, u64, i8, i16, i32, i64)
unit = Unit()


@native
def arithmetic(a, b):
    return a + b, a - b, a * b, a / b, -a, +a, sqrt(a)


@native
def with_literals(a):
    return a + 1, 1 - a, a * 0.1, 1.5 / a, a + 0.1, a == 0.1, a < 2, a >= 0.1


@native
def comparisons(a, b):
    return a == b, a != b, a < b, a <= b, a > b, a >= b, select(a < b, a, b)


@native
def among_floats(a):
    return f32(a), f64(a), f80(a)


@native
def to_integers(a):
    return u8(a), u16(a), u32(a), u64(a), i8(a), i16(a), i32(a), i64(a)


@native
def from_integer(a):
    return f32(a), f64(a), f80(a)


@native
def as_bits(a, T):
    return bitcast(T, a)


ARITHMETIC = {kind: unit.add(arithmetic, kind, kind) for kind in FLOATS}
LITERALS = {kind: unit.add(with_literals, kind) for kind in FLOATS}
COMPARISONS = {kind: unit.add(comparisons, kind, kind) for kind in FLOATS}
AMONG = {kind: unit.add(among_floats, kind) for kind in FLOATS}
TO_INTEGERS = {kind: unit.add(to_integers, kind) for kind in FLOATS}
FROM_INTEGER = {kind: unit.add(from_integer, kind) for kind in INTEGERS}
BITS = {(a, b): unit.add(as_bits, a, Const(b))
        for x, y in ((f32, u32), (f64, u64), (f64, i64)) for a, b in ((x, y), (y, x))}


def exact(value: Any) -> Fraction | None:
    """The number that a finite float of any type stands for."""
    if isinstance(value, f80):
        sign, exponent, significand = value.parts
        if value.is_nan or exponent == 0x7FFF:
            return None
        return (-1 if sign else 1) * significand * Fraction(2) ** (max(exponent, 1) - 16446)
    return Fraction(float(value)) if math.isfinite(value) else None


@pytest.mark.parametrize("kind", FLOATS, ids=lambda k: k.__name__)
@few
@given(data=st.data())
def test_arithmetic_agrees(kind: Any, data: Any) -> None:
    a, b = data.draw(floats(kind)), data.draw(floats(kind))
    ARITHMETIC[kind].both(a, b)
    LITERALS[kind].both(a)


@pytest.mark.parametrize("kind", FLOATS, ids=lambda k: k.__name__)
@few
@given(data=st.data())
def test_comparisons_are_those_of_numbers(kind: Any, data: Any) -> None:
    a, b = data.draw(floats(kind)), data.draw(floats(kind))
    b = data.draw(st.sampled_from((a, b)))
    found = COMPARISONS[kind].both(a, b)
    x, y = exact(a), exact(b)
    if x is not None and y is not None:
        assert found[:6] == (x == y, x != y, x < y, x <= y, x > y, x >= y)


@pytest.mark.parametrize("kind", FLOATS, ids=lambda k: k.__name__)
@few
@given(data=st.data())
def test_conversion_to_integers_saturates(kind: Any, data: Any) -> None:
    a = data.draw(floats(kind))
    found, x = TO_INTEGERS[kind].both(a), exact(a)
    if x is not None:
        for value in found:
            low, high = ends(type(value))
            assert int(value) == min(max(math.trunc(x), low), high)


def ends(kind: Any) -> tuple[int, int]:
    return (-(1 << kind.bits - 1), (1 << kind.bits - 1) - 1) if kind.signed else (0, (1 << kind.bits) - 1)


def nearest(x: Fraction, bits: int) -> Fraction:
    """A number well inside the exponent range, rounded to `bits` significant bits, ties to even."""
    if x == 0:
        return x
    scale = Fraction(2) ** (math.floor(math.log2(abs(x))) - bits + 2)
    for step in (scale / 4, scale / 2, scale, scale * 2):
        if abs(x) / step < 1 << bits:
            return round(x / step) * step
    raise AssertionError(x)


@pytest.mark.parametrize("kind", INTEGERS, ids=lambda k: k.__name__)
@few
@given(data=st.data())
def test_conversion_from_integers_rounds_once(kind: Any, data: Any) -> None:
    a = data.draw(integers(kind))
    for value, bits in zip(FROM_INTEGER[kind].both(a), (24, 53, 64), strict=True):
        assert exact(value) == nearest(Fraction(int(a)), bits)


@pytest.mark.parametrize("kind", FLOATS, ids=lambda k: k.__name__)
@few
@given(data=st.data())
def test_conversions_among_floats_round_once(kind: Any, data: Any) -> None:
    AMONG[kind].both(data.draw(floats(kind)))


@few
@given(data=st.data())
def test_bits_survive_a_bitcast(data: Any) -> None:
    source, to = data.draw(st.sampled_from(sorted(BITS, key=str)))
    value = data.draw(floats(source) if source in FLOATS else integers(source))
    found = BITS[source, to].both(value)
    assert raw(found) == raw(value)


def raw(value: Any) -> bytes:
    if hasattr(value, "encoded"):
        return bytes(value.encoded)
    return int(value).to_bytes(value.size, "little", signed=value.signed)


@pytest.mark.parametrize("wide", [u128, i128], ids=lambda k: k.__name__)
@few
@given(data=st.data())
def test_wide_integers_become_floats_in_plain_python(wide: Any, data: Any) -> None:
    """Compiled code refuses these (test_errors); plain Python rounds once all the same."""
    a = data.draw(integers(wide))
    assert exact(f80(a)) == nearest(Fraction(int(a)), 64)
    assert exact(f64(a)) == nearest(Fraction(int(a)), 53)


def test_f80_has_64_bits_of_significand() -> None:
    one, tiny = f80(1), f80(2.0 ** -63)
    total, *_ = ARITHMETIC[f80].both(one, tiny)
    assert total.parts == (False, 16383, (1 << 63) + 1)
    assert total != one and total > one and float(total) == 1.0


def test_f80_unsupported_encodings_are_nan() -> None:
    unnormal = f80.from_bytes((1 << 62).to_bytes(8, "little") + (16383).to_bytes(2, "little"))
    assert unnormal.is_nan and unnormal != unnormal and not unnormal < 1
    COMPARISONS[f80].both(unnormal, f80(1))
    TO_INTEGERS[f80].both(unnormal)


def test_a_signalling_nan_keeps_its_bits_until_it_is_computed_with() -> None:
    signalling = f32.from_bytes(bytes.fromhex("010080ff"))
    assert BITS[f32, u32].both(signalling) == 0xFF80_0001
    assert BITS[u32, f32].both(u32(0x7F80_0001)).encoded == bytes.fromhex("0100807f")
    assert (-signalling).encoded == bytes.fromhex("0100807f")


def test_plain_floats_do_not_mix() -> None:
    for operation in (lambda: f32(1) + f64(1), lambda: f64(1) + u64(1), lambda: u64(1) + 1.0, lambda: f80(1) + f64(1),
                      lambda: f32(1) < f64(1), lambda: f64(1) // 2.0, lambda: f64(1) ** 2, lambda: bool(f64(1))):
        with pytest.raises(TypeError):
            operation()
