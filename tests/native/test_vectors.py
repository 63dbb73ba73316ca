"""Vectors: each operation on lanes, compiled against plain Python, and plain Python's lanes against the scalars."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.native import (
    add_sat, bitcast, bswap, clz, ctz, f32, f64, i8, i16, i32, i64, insert, maximum, minimum, movemask, native,
    permute, popcount, select, shuffle, sqrt, sub_sat, u8, u16, u32, u64, u128, vec)
from tests.native.harness import Const, Unit, few, values

INTEGER = (vec[u8, 16], vec[i8, 8], vec[u16, 8], vec[i16, 4], vec[u32, 4], vec[i32, 8], vec[u64, 2], vec[i64, 4],
           vec[u16, 3])
PERMUTABLE = (vec[u8, 8], vec[u8, 16], vec[u8, 32], vec[u16, 3], vec[u16, 4], vec[u16, 8], vec[u32, 2], vec[u32, 4],
              vec[u32, 8], vec[u64, 2], vec[u64, 4], vec[i32, 4])
FLOAT = (vec[f32, 4], vec[f64, 2])
ALL = INTEGER + FLOAT
unit = Unit()


@native
def arithmetic(a, b):
    return a + b, a - b, a * b, -a, +a, a + 1, 2 - a, a * 3


@native
def bits(a, b):
    return a & b, a | b, a ^ b, ~a, a & 15, clz(a), ctz(a), popcount(a), bswap(a)


@native
def shifts(a, n):
    return a << n, a >> n, a << 1, a >> 3


@native
def ends(a, b):
    return minimum(a, b), maximum(a, b), add_sat(a, b), sub_sat(a, b), add_sat(a, 100), minimum(5, a)


@native
def floating(a, b):
    return a / b, 1.0 / a, sqrt(a), a * 0.5


@native
def comparisons(a, b):
    less = a < b
    return (movemask(a == b), movemask(a != b), movemask(less), movemask(a <= b), movemask(a > b), movemask(a >= b),
            movemask(a == 0), select(less, a, b), select(~less, a, 1), movemask(less & (a > 1)),
            movemask(less ^ (a != b)), movemask(less | (b == 1)))


@native
def lanes(a, i, N):
    first = a[0]
    last = a[N - 1]
    return a[i], insert(a, i, first), insert(a, N - 1, 1), insert(a, 0, last)


@native
def shuffles(a, b, N):
    return (shuffle(a, a, [N - 1 - i for i in range(N)]), shuffle(a, b, [0, N]),
            shuffle(a, b, [i // 2 + (i % 2) * N for i in range(2 * N)]), shuffle(a, 7, (N, 0)))


@native
def permuted(a, numbers):
    return permute(a, numbers), permute(a, 3)


@native
def made(x, y, V):
    return V(x), V([x, y, y, x, x, x, y, y]), V([3, x, 3, y, 1, 2, 3, 4]), V(9), V([1, 2, 3, 4, 5, 6, 7, 8])


@native
def convert(a, V):
    return V(a)


@native
def reinterpret(a):
    return (bitcast(u128, a), bitcast(vec[u8, 16], a), bitcast(vec[i16, 8], a), bitcast(vec[u32, 4], a),
            bitcast(vec[u64, 2], a), bitcast(vec[f32, 4], a), bitcast(vec[f64, 2], a))


@native
def masks(a, b):
    c = a > b
    return vec[u8, 8](c), vec[i32, 8](c), vec[f32, 8](c), movemask(vec[bool, 8](a)), movemask(vec[bool, 8](True))


@native
def wide_mask(a):
    return movemask(a == 7), movemask(shuffle(a, a, [1]) != 0)


def each(fn: Any, kinds: Any) -> dict[Any, Any]:
    return {kind: unit.add(fn, *[kind] * fn.fn.__code__.co_argcount) for kind in kinds}


ARITHMETIC, COMPARISONS = each(arithmetic, ALL), each(comparisons, ALL)
BITS, SHIFTS, ENDS = each(bits, INTEGER), each(shifts, INTEGER), each(ends, INTEGER)
FLOATING = each(floating, FLOAT)
LANES = {(v, i): unit.add(lanes, v, i, Const(v.count)) for v in ALL for i in (u8, i32, u64)}
SHUFFLES = {v: unit.add(shuffles, v, v, Const(v.count)) for v in ALL}
PERMUTED = {v: unit.add(permuted, v, v) for v in PERMUTABLE}
MADE = {e: unit.add(made, e, e, Const(vec[e, 8])) for e in (u8, i16, u32, i64, f32, f64)}
CONVERT = {(a, b): unit.add(convert, vec[a, 4], Const(vec[b, 4]))
           for a in (u8, i8, u16, i32, u64, f32, f64) for b in (u8, i16, u32, i64, f32, f64, bool)
           if a is not b and b is not bool and not (a in (f32, f64) and b not in (f32, f64))}
REINTERPRET = {v: unit.add(reinterpret, v) for v in (vec[u8, 16], vec[i32, 4], vec[f64, 2])}
MASKS = unit.add(masks, vec[i16, 8], vec[i16, 8])
WIDE_MASK = unit.add(wide_mask, vec[u8, 64])


def name(kind: Any) -> str:
    return str(kind.__name__)


@pytest.mark.parametrize("kind", ALL, ids=name)
@few
@given(data=st.data())
def test_arithmetic_and_comparison(kind: Any, data: Any) -> None:
    a, b = data.draw(values(kind)), data.draw(values(kind))
    total, *_ = ARITHMETIC[kind].both(a, b)
    assert [repr(x) for x in total.lanes] == [repr(x + y) for x, y in zip(a.lanes, b.lanes, strict=True)]
    equal, *_ = COMPARISONS[kind].both(a, b)
    assert equal == sum(1 << i for i, (x, y) in enumerate(zip(a.lanes, b.lanes, strict=True)) if x == y)


@pytest.mark.parametrize("kind", INTEGER, ids=name)
@few
@given(data=st.data())
def test_bits_shifts_and_saturation(kind: Any, data: Any) -> None:
    a, b = data.draw(values(kind)), data.draw(values(kind))
    BITS[kind].both(a, b)
    ENDS[kind].both(a, b)
    SHIFTS[kind].both(a, data.draw(st.sampled_from((b, kind(kind.element.bits), kind(kind.element.bits - 1), kind(3)))))


@pytest.mark.parametrize("kind", FLOAT, ids=name)
@few
@given(data=st.data())
def test_floating(kind: Any, data: Any) -> None:
    FLOATING[kind].both(data.draw(values(kind)), data.draw(values(kind)))


@pytest.mark.parametrize("kind", ALL, ids=name)
@few
@given(data=st.data())
def test_lanes_and_shuffles(kind: Any, data: Any) -> None:
    """A run-time lane number counts modulo the lanes, so no number reaches outside the vector."""
    a, b = data.draw(values(kind)), data.draw(values(kind))
    index = data.draw(st.sampled_from((u8, i32, u64)))
    i = data.draw(values(index))
    found, *_ = LANES[kind, index].both(a, i)
    assert repr(found) == repr(a.lanes[(int(i) & ((1 << index.bits) - 1)) % kind.count])
    SHUFFLES[kind].both(a, b)


@pytest.mark.parametrize("kind", PERMUTABLE, ids=name)
@few
@given(data=st.data())
def test_permute(kind: Any, data: Any) -> None:
    """Numbers count modulo the lanes, whatever instruction the host has for them."""
    a, numbers = data.draw(values(kind)), data.draw(values(kind))
    found, same = PERMUTED[kind].both(a, numbers)
    mask = (1 << kind.element.bits) - 1
    assert repr(list(found.lanes)) == repr([a.lanes[(int(n) & mask) % kind.count] for n in numbers.lanes])
    assert repr(list(same.lanes)) == repr([a.lanes[3 % kind.count]] * kind.count)


@few
@given(data=st.data())
def test_vectors_are_made_of_scalars(data: Any) -> None:
    element = data.draw(st.sampled_from(list(MADE)))
    MADE[element].both(data.draw(values(element)), data.draw(values(element)))


@few
@given(data=st.data())
def test_lane_conversions(data: Any) -> None:
    source, to = data.draw(st.sampled_from(list(CONVERT)))
    a = data.draw(values(vec[source, 4]))
    found = CONVERT[source, to].both(a)
    assert [repr(x) for x in found.lanes] == [repr(to(x)) for x in a.lanes]


@few
@given(data=st.data())
def test_bitcast_and_masks(data: Any) -> None:
    kind = data.draw(st.sampled_from(list(REINTERPRET)))
    REINTERPRET[kind].both(data.draw(values(kind)))
    MASKS.both(data.draw(values(vec[i16, 8])), data.draw(values(vec[i16, 8])))
    WIDE_MASK.both(vec[u8, 64](data.draw(st.lists(st.sampled_from((0, 7, 255)), min_size=64, max_size=64))))


def test_plain_vectors_do_not_mix() -> None:
    a = vec[u8, 4](1)
    for operation in (lambda: a + vec[u8, 8](1), lambda: a + vec[i8, 4](1), lambda: a + u8(1), lambda: a + 300,
                      lambda: bool(a), lambda: a[4], lambda: a[-1], lambda: shuffle(a, a, [8]),
                      lambda: insert(a, 0, u16(1)),
                      lambda: vec[u8, 4]([1, 2]), lambda: movemask(a), lambda: bitcast(u64, a), lambda: a / a):
        with pytest.raises(TypeError):
            operation()
