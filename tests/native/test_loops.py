"""Loops: while, range over every kind of bound, break and continue, and loops unrolled over compile-time data."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pellucid.native import i8, i32, i64, native, static, u8, u32, u64
from tests.native.harness import Const, Unit, few, integers

unit = Unit()


@native
def countdown(n: u8) -> u64:
    t: u64 = 0
    while n:
        n -= 1
        if n == 3:
            continue
        if n == 200:
            break
        t = t * 3 + u64(n)
    return t


@native
def forever(n: u64) -> u64:
    i: u64 = 0
    while True:
        i += 1
        if i * i > n & 0xFFFF:
            return i


@native
def forever_break(n: u64) -> u64:
    i: u64 = 0
    while True:
        if i >= n & 15:
            break
        i += 1
        while True:
            if i & 1:
                break
            i += 1
    return i


@native
def never(n: u64) -> u64:
    while False:
        n += 1
    while n > 5 and False:
        n += 1
    return n


@native
def ranges(n: u8, m: u8):
    a: u64 = 0
    for i in range(n):
        if i == 2:
            continue
        if i == 9:
            break
        a = a * 2 + u64(i)
    b: u64 = 0
    for i in range(m, n):
        b += u64(i) + 1
    c: u64 = 0
    for i in range(m, n, 7):
        c = c * 5 + u64(i)
    d: u64 = 0
    for i in range(n, 255, 100):
        d = d * 5 + u64(i)
    e: u64 = 0
    for i in range(10):
        e += i * i - 5
    for i in range(2, 12, 3):
        e = e * 3 + i
    for i in range(0):  # noqa: B007
        e += 1000
    return a, b, c, d, e


@native
def signed_range(n: i8, m: i8) -> i64:
    t: i64 = 0
    for i in range(n, m, 50):
        t = t * 3 + i64(i)
    for i in range(-3, i32(m)):
        t += i64(i)
    return t


@native
def range_leaves(n: u64) -> u64:
    i: u64 = 99
    for i in range(n & 3):  # noqa: B007
        pass
    return i


@native
def range_in_branch(n: u64, c: bool) -> u64:
    i: u64 = 42
    if c:
        for i in range(n & 3):  # noqa: B007
            pass
    return i


@native
def range_bound_once(n: u64) -> u64:
    k = n & 7
    t: u64 = 0
    for i in range(k):
        k += 1
        t += i
        i = u64(100)
        t += i
    return t + k


@native
def two_types(n: u32) -> u64:
    t: u64 = 0
    for i in range(4):
        t += i
    for i in range(n & 3):
        t += u64(i) + 1
    return t


@native
def nested(n: u64, m: u64) -> u64:
    t: u64 = 0
    for i in range(n & 7):
        for j in range(m & 7):
            if j == 5:
                break
            if i == j:
                continue
            t = t * 7 + i * j
        t += 1
    return t


# --- unrolled loops ------------------------------------------------------------------------------------


@native
def unrolled(a: u64) -> u64:
    t: u64 = 0
    for k in static((1, 2, 3)):
        t = t * 10 + a * k
    for name, k in static((("x", 5), ("y", 7))):
        if name == "y":
            t += a ^ k
    for k in (2, 4):
        t += k
    for k in static([]):  # noqa: B007
        t += 1000
    for k, v in static({"p": 1, "q": 2}.items()) if False else static([(3, 4)]):
        t += k * v
    return t


@native
def unrolled_leaves(a: u64) -> u64:
    t: u64 = 0
    for k in static(range(5)):
        if a == k:
            continue
        if a == k + 10:
            break
        t = t * 2 + 1
        for j in static((1, 2)):
            if a == 20:
                break
            t += j
    return t


@native
def unrolled_returns(a: u64, W) -> u64:
    for k in static((1, 2, 4)):
        if k == W:
            return a * k
    return a


@native  # noqa: RET503
def unrolled_always_returns(a: u64, W) -> u64:
    for k in static((1, 2, 4)):
        if a == k:
            return u64(50)
        if k == W:
            return a + k


@native
def static_names_in_loops(a: u64) -> u64:
    t: u64 = 0
    for k in static((1, 2)):
        t += k
    for i in range(a & 3):  # noqa: B007
        for k in static((5, 6)):
            t = t * 3 + k
        step = 10
        t += step
        step = 20
        t += step
    while t & 1:
        for k in static((7,)):
            t += k
    return t


small = st.one_of(st.integers(0, 25), st.integers(0, (1 << 64) - 1))
CASES = [
    (unit.add(forever, u64), 1), (unit.add(forever_break, u64), 1), (unit.add(never, u64), 1),
    (unit.add(range_leaves, u64), 1), (unit.add(range_bound_once, u64), 1), (unit.add(nested, u64, u64), 2),
    (unit.add(unrolled, u64), 1), (unit.add(unrolled_leaves, u64), 1), (unit.add(static_names_in_loops, u64), 1),
    *((unit.add(unrolled_returns, u64, Const(w)), 1) for w in (1, 4, 8)),
    *((unit.add(unrolled_always_returns, u64, Const(w)), 1) for w in (1, 4))]
IN_BRANCH, COUNTDOWN = unit.add(range_in_branch, u64, bool), unit.add(countdown, u8)
RANGES, SIGNED_RANGE = unit.add(ranges, u8, u8), unit.add(signed_range, i8, i8)
TWO_TYPES = unit.add(two_types, u32)


@few
@given(st.data())
def test_loops_of_a_word(data: Any) -> None:
    a, b = data.draw(small), data.draw(small)
    for compiled, count in CASES:
        compiled.both(*(a, b)[:count])
    IN_BRANCH.both(a, data.draw(st.booleans()))


@few
@given(integers(u8), integers(u8), integers(i8), integers(i8), integers(u32))
def test_loops(n: Any, m: Any, i: Any, j: Any, k: Any) -> None:
    COUNTDOWN.both(n)
    RANGES.both(n, m)
    SIGNED_RANGE.both(i, j)
    TWO_TYPES.both(k)


def test_a_range_whose_step_passes_the_end_of_its_type_ends() -> None:
    assert SIGNED_RANGE.both(i8(100), i8(127)) == i64(100 + sum(range(-3, 127)))
    assert RANGES.both(u8(200), u8(0))[3] == 200
