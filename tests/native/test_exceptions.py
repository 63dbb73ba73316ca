"""Exceptions: raised and caught across calls, in loops, nested, raised again, and through recursion."""

from hypothesis import given
from hypothesis import strategies as st

from pellucid.native import NativeException, native, u8, u64
from tests.native.harness import Unit, few

unit = Unit()


class Stop(NativeException):
    pass


class Deeper(Stop):
    pass


@native(inline=False)
def risky(a: u64) -> u64:
    if a == 3:
        raise Stop
    if a == 4:
        raise Deeper()
    return a * 2


@native
def inlined_risky(a: u64) -> None:
    if a == 5:
        raise Stop


@native(inline=False)
def passes_on(a: u64) -> u64:
    t = risky(a)
    inlined_risky(a)
    if a == 6:
        raise Stop
    return t + 1


@native
def catches(a: u64) -> u64:
    t: u64 = 1
    try:
        t += passes_on(a)
        t += 10
    except Stop:
        t += 100
    return t


@native
def catches_in_loop(a: u64) -> u64:
    t: u64 = 0
    for i in range(8):
        try:
            if i == a:
                continue
            if i == a + 4:
                break
            t = t * 3 + risky(i)
        except Stop:
            t += 1000
            if a == 0:
                break
            continue
        t += 1
    return t


@native
def both_sides_return(a: u64) -> u64:
    try:
        return passes_on(a)
    except Stop:
        return u64(555)


@native
def raises_again(a: u64) -> u64:
    t: u64 = 0
    try:
        try:
            t += risky(a)
        except Stop:
            t += 7
            if a == 4:
                raise
            if a == 3:
                raise Stop  # noqa: B904
    except Stop:
        t += 70
    return t


@native
def raise_and_catch_here(a: u64) -> u64:
    try:
        if a & 1:
            raise Deeper
        t = a
    except (Stop, Deeper):
        t = u64(1000)
    return t


@native
def raises_in_conditions(a: u64) -> u64:
    t: u64 = 0
    try:
        while risky(t) < a & 15 and risky(a + t) != 5:
            t += 1
        for i in range(risky(t)):
            t += risky(i + a) if i > 1 else u64(1)
        if risky(t) > 3 or risky(a) > 9:
            t += 100
    except Stop:
        t += 1000
    return t


@native
def catches_nothing(a: u64) -> u64:
    try:
        a += 1
    except Stop:
        a = 0
    return a


@native(inline=False)
def always_raises(a: u64) -> None:
    raise Stop


@native
def after_always(a: u64) -> u64:
    try:
        always_raises(a)
    except Stop:
        return a + 1
    return u64(0)


@native(inline=False)
def flag_result(a: u64) -> bool:
    if a == 9:
        raise Stop
    return a > 4


@native(inline=False)
def pair_result(a: u64):
    if a == 9:
        raise Stop
    return a + 1, u8(a) + 1


@native
def raised_results(a: u64) -> u64:
    f = flag_result(a)
    p, q = pair_result(a)
    return p + u64(q) + u64(f)


@native(inline=False)
def sinks(n: u64) -> u64:
    if n == 0:
        raise Stop
    if n & 1:
        return n
    return sinks(n >> 1) + 1


@native
def state_at_the_raise(a: u64) -> u64:
    n = 1
    t: u64 = 0
    try:
        t = a * n
        t += risky(a)
        t += 50
    except Stop:
        t += 3
    return t + n


small = st.one_of(st.integers(0, 25), st.integers(0, (1 << 64) - 1))
CASES = [unit.add(fn, u64) for fn in (
    risky, passes_on, catches, catches_in_loop, both_sides_return, raises_again, raise_and_catch_here,
    raises_in_conditions, catches_nothing, always_raises, after_always, raised_results, sinks, state_at_the_raise)]


@few
@given(small)
def test_exceptions(a: int) -> None:
    for compiled in CASES:
        compiled.both(a)
