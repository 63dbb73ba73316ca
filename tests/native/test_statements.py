"""Choice, names and assignment: compiled against plain Python, on values that take every way through them."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pellucid.native import likely, native, select, static, u8, u64, uint, unlikely
from pellucid.native.program import Program
from tests.native.harness import Const, Unit, few

unit = Unit()
LIMIT = 5


# --- choice --------------------------------------------------------------------------------------------


@native
def choices(a: u64, b: u64) -> u64:
    """A docstring is no statement."""
    pass  # noqa: PIE790
    if a < b:
        t = a
    elif a == b:
        t = u64(7)
    else:
        t = b
    if not (a == 0 or b == 0) and (a & 1 or b > 3):
        t += 100
    if a:
        t += 1
    if likely(a > 5):
        t += 2
    if unlikely(b > 5):
        t += 4
    return t


@native
def early(a: u64) -> u64:
    if a > 10:
        return a
    if a > 5:
        if a == 7:
            return u64(70)
        return u64(60)
    else:
        return a + 1


@native
def truths(a: u64, b: bool):
    c = a and b
    d = a or b
    e = a == 3 and True
    f = a == 3 or False
    g = False and a == 1
    h = b and a > 1 and a < 9
    return c, d, e, f, not c, g or h, (a > 1) == b, (a > 1) != b, (a > 1) & b, (a > 1) | b, (a > 1) ^ b


@native
def picks(a: u64, c: bool) -> u64:
    t = a if c else u64(3)
    w = 5 if c else a
    n: u64 = 1 if c else 2
    n = 7 if a == 7 else 8 if a == 8 else n
    flag = True if a == 1 else False
    z: u8 = 4 if c else 200
    return t + w * 3 + n + (u64(1) if flag else u64(0)) + u64(z) + select(c, a, 9)


@native
def comprehensions(a: u64, N):
    table = [k * k for k in range(N) if k % 2 == 0]
    total = sum(k + 1 for k in range(N))
    t: u64 = 0
    for k in static(table):
        t = t * 3 + k

    p, q, r = (a, a + 1, a * 2)
    first = table[1:][0] if len(table) > 1 else 0
    return t + total + first, p + q * r, u64(len(f"{N:03d}{'ab'!r}"))


# --- names ---------------------------------------------------------------------------------------------


@native
def assignments(a: u64, b: u64):
    c = d = a
    c, d = d + 1, c + 2
    a, b = b, a
    (e, f), g = (a, b), 3
    e += 1
    s: u8 = 250
    s += 10
    n: u64 = 0
    n -= 1
    n = 5
    n = n - 6
    k = 5
    k += 1
    k <<= 2
    return c, d, a - b, e, f + g, s, n, a * k


@native
def keeps_its_type(a: u64) -> u64:
    t = a
    t = 0
    t = t - 1
    if a > 5:
        t = 3
    u = t >> 60
    return u  # noqa: RET504


@native
def constants_in_branches(a: u64) -> u64:
    if a > 5:
        n = 3
        t = a * n
        n = 4
        t += n
    else:
        n = 9
        t = a + n
    if a == 1:
        m = 5
    else:
        m = 5
    return t * m


@native
def ways_that_end(a: u64) -> u64:
    n = 1
    if a > 100:
        n = 2
        return a * n
    while a > 50:
        n = 7
        return a - n
    return a + n


@native
def kinds(a: u64, W) -> u64:
    T = uint(W)
    if W == 8:
        r = T(a)
    elif W in (1, 2):
        r = u64(T(a))
    else:
        q = T(a) + 1
        r = u64(q)
    mask = (1 << W * 8) - 1 if W < 8 else 0xFFFF_FFFF_FFFF_FFFF
    if a is None:
        r = u64(0)
    return r & mask


@native
def hides(a: u64) -> u64:
    LIMIT = a & 3
    return LIMIT + 1


small = st.one_of(st.integers(0, 25), st.integers(0, (1 << 64) - 1))
CASES = [
    (unit.add(choices, u64, u64), 2), (unit.add(early, u64), 1), (unit.add(assignments, u64, u64), 2),
    (unit.add(keeps_its_type, u64), 1), (unit.add(constants_in_branches, u64), 1), (unit.add(ways_that_end, u64), 1),
    (unit.add(hides, u64), 1), *((unit.add(kinds, u64, Const(w)), 1) for w in (1, 2, 4, 8)),
    *((unit.add(comprehensions, u64, Const(n)), 1) for n in (0, 5))]
TRUTHS, PICKS = unit.add(truths, u64, bool), unit.add(picks, u64, bool)


@few
@given(st.data())
def test_statements(data: Any) -> None:
    a, b = data.draw(small), data.draw(small)
    for compiled, count in CASES:
        compiled.both(*(a, b)[:count])


@few
@given(small, st.booleans())
def test_conditions(a: int, c: bool) -> None:
    TRUTHS.both(a, c)
    PICKS.both(a, c)


def test_plain_python_keeps_declared_types() -> None:
    """What Python alone would get wrong: see native.plain."""
    *_, s, n, _ = assignments(u64(1), u64(2))
    assert (type(s), s, type(n), n) == (u8, 4, u64, (1 << 64) - 1)
    assert keeps_its_type(u64(1)) == 15
    assert truths(u64(2), True)[0] is True


def test_comptime_branches_compile_one_side() -> None:
    """The other side may be wrong for this specialization, as T(a) + u64 would be for one byte."""
    text = "\n".join(Program().request(kinds, (u64, Const(8))).lines)
    assert "trunc" not in text and "br i1" not in text
