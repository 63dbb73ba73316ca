"""Integer arithmetic of every width, compiled and as plain Python, against each other and against the arithmetic
of whole numbers."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.native import (
    add_sat, bswap, clz, ctz, i8, i16, i32, i64, i128, maximum, minimum, native, popcount, rotl, rotr, sdiv, select,
    srem, sub_sat, u8, u16, u32, u64, u128)
from tests.native.harness import Const, Unit, few, integers

UNSIGNED, SIGNED = (u8, u16, u32, u64, u128), (i8, i16, i32, i64, i128)
ALL = UNSIGNED + SIGNED
unit = Unit()


@native
def arithmetic(a, b):
    return a + b, a - b, a * b, a & b, a | b, a ^ b, ~a, -a, +a


@native
def with_literals(a):
    return a + 1, 1 + a, a - 100, 100 - a, a * 7, a & 15, a | 64, a ^ -1, a + 127, a == 5, 5 <= a, a != -1


@native
def comparisons(a, b):
    return a == b, a != b, a < b, a <= b, a > b, a >= b, bool(a), not a


@native
def unsigned_quotient(a, b):
    return a // b, a % b, a // 10, a % 7, 100 // b


@native
def signed_quotient(a, b):
    return sdiv(a, b), srem(a, b), sdiv(a, -1), srem(a, -1), sdiv(a, 0), srem(100, b)


@native
def shifts(a, n):
    return a << n, a >> n


@native
def literal_shifts(a, W):
    return a << 0, a >> 0, a << 3, a >> 3, a << W - 1, a >> W - 1, a << W, a >> W, a << 200, a >> 1000


@native
def bits(a, n):
    return clz(a), ctz(a), popcount(a), bswap(a), rotl(a, n), rotr(a, n), rotl(a, 3), rotr(a, 200)


@native
def ends(a, b):
    return (minimum(a, b), maximum(a, b), add_sat(a, b), sub_sat(a, b), minimum(a, 100), maximum(3, a), add_sat(a, 127),
            sub_sat(1, a), select(a < b, a, b), select(a, b, 1))


@native
def conversions(a):
    return u8(a), u16(a), u32(a), u64(a), u128(a), i8(a), i16(a), i32(a), i64(a), i128(a)


@native
def in_place(a, b):
    t = a
    t += b
    t ^= a
    t *= 3
    t |= 1
    t <<= 2
    t >>= 1
    t -= b
    t &= a
    return t


def per_type(fn: Any, kinds: tuple[Any, ...], *more: Any) -> dict[Any, Any]:
    return {kind: unit.add(fn, *[kind] * fn.fn.__code__.co_argcount, *more) for kind in kinds}


ARITHMETIC = per_type(arithmetic, ALL)
LITERALS = per_type(with_literals, ALL)
COMPARISONS = per_type(comparisons, ALL)
UNSIGNED_QUOTIENT = per_type(unsigned_quotient, UNSIGNED)
SIGNED_QUOTIENT = per_type(signed_quotient, SIGNED)
SHIFTS = {(kind, count): unit.add(shifts, kind, count) for kind in ALL for count in (u8, i8, u64, u128, kind, bool)}
BITS = {(kind, count): unit.add(bits, kind, count) for kind in ALL for count in (u8, i16, u64)}
ENDS = per_type(ends, ALL)
CONVERSIONS = per_type(conversions, (*ALL, bool))
IN_PLACE = per_type(in_place, ALL)


def number(kind: Any, value: int) -> int:
    """What two's complement of this width makes of a whole number."""
    value &= (1 << kind.bits) - 1
    return value - (1 << kind.bits) if kind.signed and value >> kind.bits - 1 else value


@pytest.mark.parametrize("kind", ALL, ids=lambda k: k.__name__)
@few
@given(data=st.data())
def test_arithmetic_wraps(kind: Any, data: Any) -> None:
    a, b = data.draw(integers(kind)), data.draw(integers(kind))
    x, y = int(a), int(b)
    expected = [x + y, x - y, x * y, x & y, x | y, x ^ y, ~x, -x, x]
    assert [int(r) for r in ARITHMETIC[kind].both(a, b)] == [number(kind, e) for e in expected]
    LITERALS[kind].both(a)
    IN_PLACE[kind].both(a, b)


@pytest.mark.parametrize("kind", ALL, ids=lambda k: k.__name__)
@few
@given(data=st.data())
def test_comparisons_are_those_of_numbers(kind: Any, data: Any) -> None:
    a, b = data.draw(integers(kind)), data.draw(integers(kind))
    x, y = int(a), int(b)
    assert COMPARISONS[kind].both(a, b) == (x == y, x != y, x < y, x <= y, x > y, x >= y, x != 0, x == 0)


@pytest.mark.parametrize("kind", UNSIGNED, ids=lambda k: k.__name__)
@few
@given(data=st.data())
def test_unsigned_division_is_total(kind: Any, data: Any) -> None:
    a, b = data.draw(integers(kind)), data.draw(integers(kind))
    x, y = int(a), int(b)
    found = [int(r) for r in UNSIGNED_QUOTIENT[kind].both(a, b)]
    assert found == [x // y if y else 0, x % y if y else 0, x // 10, x % 7, 100 // y if y else 0]


@pytest.mark.parametrize("kind", SIGNED, ids=lambda k: k.__name__)
@few
@given(data=st.data())
def test_signed_division_truncates_and_is_total(kind: Any, data: Any) -> None:
    a, b = data.draw(integers(kind)), data.draw(integers(kind))
    x, y = int(a), int(b)
    q = abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1) if y else 0
    found = [int(r) for r in SIGNED_QUOTIENT[kind].both(a, b)]
    assert found[:5] == [number(kind, q), x - q * y if y else 0, number(kind, -x), 0, 0]


@pytest.mark.parametrize("kind", SIGNED, ids=lambda k: k.__name__)
def test_signed_division_at_its_ends(kind: Any) -> None:
    low = kind(-(1 << kind.bits - 1))
    assert SIGNED_QUOTIENT[kind].both(low, kind(-1))[:2] == (low, kind(0))
    assert SIGNED_QUOTIENT[kind].both(low, kind(0))[:2] == (kind(0), kind(0))
    assert SIGNED_QUOTIENT[kind].both(kind(-7), kind(2))[:2] == (kind(-3), kind(-1))


@pytest.mark.parametrize("kind", ALL, ids=lambda k: k.__name__)
@few
@given(data=st.data())
def test_shifts_by_any_count(kind: Any, data: Any) -> None:
    a = data.draw(integers(kind))
    count = data.draw(st.sampled_from((u8, i8, u64, u128, kind, bool)))
    near = st.sampled_from([n for n in (0, 1, kind.bits - 1, kind.bits, kind.bits + 1, 256, -1) if count is not bool])
    n = data.draw(st.booleans() if count is bool else st.one_of(integers(count), near.map(count)))
    x, c = int(a), int(n)
    inside = 0 <= c < kind.bits
    left = number(kind, x << c) if inside else 0
    right = x >> c if inside else -1 if x < 0 else 0
    assert SHIFTS[kind, count].both(a, n) == (kind(left), kind(right))


LITERAL_SHIFTS = {kind: unit.add(literal_shifts, kind, Const(kind.bits)) for kind in ALL}


@pytest.mark.parametrize("kind", ALL, ids=lambda k: k.__name__)
@few
@given(data=st.data())
def test_shifts_by_a_literal(kind: Any, data: Any) -> None:
    a = data.draw(integers(kind))
    found = LITERAL_SHIFTS[kind].both(a)
    sign = kind(-1 if a < 0 else 0)
    assert found[0] == found[1] == a
    assert found[6:] == (kind(0), sign, kind(0), sign)


@pytest.mark.parametrize("kind", ALL, ids=lambda k: k.__name__)
@few
@given(data=st.data())
def test_bits_and_ends(kind: Any, data: Any) -> None:
    a, b = data.draw(integers(kind)), data.draw(integers(kind))
    count = data.draw(st.sampled_from((u8, i16, u64)))
    text = format(int(a) & ((1 << kind.bits) - 1), f"0{kind.bits}b")
    leading, trailing, ones, *_ = BITS[kind, count].both(a, data.draw(integers(count)))
    assert int(u128(leading)) == len(text) - len(text.lstrip("0"))
    assert int(u128(trailing)) == len(text) - len(text.rstrip("0"))
    assert number(u8, int(ones)) == text.count("1")
    ENDS[kind].both(a, b)


@pytest.mark.parametrize("kind", (*ALL, bool), ids=lambda k: k.__name__)
@few
@given(data=st.data())
def test_conversions_truncate_and_extend_by_the_source(kind: Any, data: Any) -> None:
    a = data.draw(st.booleans() if kind is bool else integers(kind))
    found = CONVERSIONS[kind].both(a)
    assert [int(r) for r in found] == [number(to, int(a)) for to in ALL]
