"""Structs, pointers, arrays, local memory, block moves, atomics: the bytes that both executions leave are the same."""

import ctypes
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.native import (
    array, at, atomic_add, atomic_and, atomic_load, atomic_or, atomic_store, atomic_xchg, cas, f32, f64, f80, fence, i8,
    i16, i32, i64, i128, local, memcpy, memset, native, ptr, ref, struct, u8, u16, u32, u64, u128, vec)
from tests.native.harness import Unit, few

unit = Unit()


@struct
class Inner:
    """A struct inside another."""

    a: u8
    b: u32


@struct
class Every:
    """A field of every type; `size`, `target`, `addr`, `read` and `align` are also words of the compiler's own."""

    size: u8
    target: u64
    addr: i16
    read: u32
    align: i64
    flag: bool
    wide: u128
    swide: i128
    small: i8
    word: u16
    middle: i32
    single: f32
    double: f64
    extended: f80
    lanes: vec[u16, 8]
    inner: Inner
    numbers: array[u32, 5]
    flags: array[bool, 3]
    inners: array[Inner, 3]
    rows: array[array[u16, 3], 2]
    next: ptr[Inner]


@native
def fields(p: ptr[Every], x: u64):
    p.size = u8(x)
    p.target += x
    p.addr = i16(x) - 1
    p.read ^= 0xFFFF
    p.align = -p.align
    p.flag = x > 7
    p.wide = p.wide * 3 + u128(x)
    p.swide = i128(p.wide) >> 3
    p.small = -1
    p.word <<= 3
    p.middle = i32(p.single)
    p.single = f32(p.double)
    p.double = f64(p.extended) + 1
    p.extended = p.extended * 2
    p.lanes = p.lanes + 1
    return p.size, p.target, p.addr, p.flag, p.lanes, p.extended


@native
def elements(p: ptr[Every], i: u8, x: u32):
    k = i % 3
    p.numbers[k] = x
    p.numbers[k + 1] += p.numbers[k]
    p.flags[k] = not p.flags[k]
    p.inner.b = u32(p.inner.a) + x
    p.inners[k].a = u8(x)
    q = ref(p.inners, k)
    q.b += 5
    r = ref(p, "inner")
    r.a += 1
    p.rows[1][k] = u16(x)
    p.rows[k & 1][0] += 7
    row = ref(p, "rows")
    row[0][1] = 9
    numbers = ref(p, "numbers")
    numbers[4] = numbers[0] ^ 1
    flags = ref(p, "flags")
    flags[0] = True
    return p.numbers[k], p.flags[k], q.b, p.rows[1][2], flags[1]


@native
def pointers(p: ptr[Every], i: i8):
    q = ptr[u8](p)
    w = at(p, 4, u32)
    before = w[0]
    w[1] = before + 1
    q[i & 15] = 0xA5
    p.next = ref(p.inners, 2)
    p.next.b = 77
    chased = p.next
    same = chased == ref(p.inners, 2)
    past = ref(q, 40)
    back = ref(past, i)
    offset = u64(at(q, i, u64)) - u64(q)
    p.next = 0
    null = p.next
    return (before, same, chased != ref(p.inners, 1), u64(back) - u64(q), offset, null == 0, not null, bool(chased),
            ptr[u8](u64(q) + 1)[0], q < past, u32(u64(null)), i64(u64(past)) - i64(u64(q)))


@native
def scratch(x: u64, n: u8):
    a = local(array[u32, 4])
    s = local(Inner)
    start = a[3] + u32(s.a)
    a[n & 3] = u32(x)
    s.b = a[0] + a[1]
    s.a = n
    t = fill(s, 3) + fill(s, 4)
    one = local(u64)
    one[0] = x
    one[0] += 1
    return start, a[2], s.b, s.a, t, one[0]


@native(inline=False)
def fill(s: ptr[Inner], n: u32) -> u64:
    mine = local(array[u64, 2])
    mine[n & 1] = u64(s.b) * u64(n)
    return mine[0] + mine[1] * 3


@native
def blocks(p: ptr[u8], n: u8):
    memset(p, n, u64(n & 7))
    memset(ref(p, 8), 0xEE, 4)
    memcpy(ref(p, 32), p, u64(n & 31))
    memcpy(at(p, 70, u64), ptr[u64](p), 8)


@native
def atomics(p: ptr[u64], x: u64, y: u64):
    a = atomic_load(p)
    atomic_store(p, x)
    b = atomic_xchg(p, y)
    c = atomic_add(p, 3)
    d = atomic_or(p, 0xF0)
    e = atomic_and(p, x)
    done = cas(p, e & x, 5)
    again = cas(p, 5, y)
    never = cas(p, y + 1, 0)
    fence()
    q = ptr[u8](p)
    f = atomic_add(ref(q, 3), 200)
    g = atomic_xchg(at(p, 4, u16), -1)
    h = atomic_add(at(p, 8, i32), -5)
    return a, b, c, d, e, done, again, never, f, g, h, atomic_load(p)


@native
def wide_cas(p: ptr[u128], old: u128, new: u128):
    return cas(p, old, new), p[0]


FIELDS, ELEMENTS = unit.add(fields, ptr[Every], u64), unit.add(elements, ptr[Every], u8, u32)
POINTERS, SCRATCH = unit.add(pointers, ptr[Every], i8), unit.add(scratch, u64, u8)
BLOCKS, ATOMICS = unit.add(blocks, ptr[u8], u8), unit.add(atomics, ptr[u64], u64, u64)
WIDE_CAS = unit.add(wide_cas, ptr[u128], u128, u128)
SPAN = -(-Every.size // 64) * 64 + 64


class Memory:
    """Aligned bytes that both executions see at one address, one after the other."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.buffer = ctypes.create_string_buffer(len(raw) + 64)
        self.address = ctypes.addressof(self.buffer) + 63 & ~63

    def run(self, fn: Any) -> tuple[Any, bytes]:
        ctypes.memmove(self.address, self.raw, len(self.raw))
        result = fn()
        return result, ctypes.string_at(self.address, len(self.raw))


def same_bytes(compiled: Any, raw: bytes, *args: Any) -> tuple[Any, bytes]:
    memory = Memory(raw)
    pointer = compiled.params[0](memory.address)
    plain = memory.run(lambda: compiled.fn(*compiled.complete((pointer, *args))))
    found = memory.run(lambda: compiled(pointer, *args))
    assert repr(plain[0]) == repr(found[0])
    assert plain[1] == found[1]
    return found


@few
@given(st.binary(min_size=SPAN, max_size=SPAN), st.integers(0, (1 << 64) - 1))
def test_fields_of_every_type(raw: bytes, x: int) -> None:
    clean = bytearray(raw)
    clean[Every.fields["flag"].offset] &= 1   # a C bool is 0 or 1
    same_bytes(FIELDS, bytes(clean), x)


@few
@given(st.binary(min_size=SPAN, max_size=SPAN), st.integers(0, 255), st.integers(0, (1 << 32) - 1))
def test_arrays_and_structs_in_place(raw: bytes, i: int, x: int) -> None:
    same_bytes(ELEMENTS, raw, i, x)


@few
@given(st.binary(min_size=SPAN, max_size=SPAN), st.integers(-128, 127))
def test_pointers(raw: bytes, i: int) -> None:
    same_bytes(POINTERS, raw, i)


@few
@given(st.integers(0, (1 << 64) - 1), st.integers(0, 255))
def test_local_memory_is_fresh_and_zero(x: int, n: int) -> None:
    assert SCRATCH.both(x, n)[0] == 0


@few
@given(st.binary(min_size=96, max_size=96), st.integers(0, 255))
def test_block_moves(raw: bytes, n: int) -> None:
    same_bytes(BLOCKS, raw, n)


@few
@given(st.binary(min_size=16, max_size=16), st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1))
def test_atomics(raw: bytes, x: int, y: int) -> None:
    same_bytes(ATOMICS, raw, x, y)


@few
@given(st.integers(0, (1 << 128) - 1), st.integers(0, (1 << 128) - 1), st.booleans())
def test_cas_of_sixteen_bytes(now: int, new: int, hit: bool) -> None:
    (done, value), raw = same_bytes(WIDE_CAS, now.to_bytes(16, "little"), now if hit else now ^ 1, new)
    assert done is hit and int.from_bytes(raw, "little") == value == (new if hit else now)


def test_layout_is_that_of_c() -> None:
    assert (Inner.size, Inner.align, Inner.fields["b"].offset) == (8, 4, 4)
    offsets = {name: field.offset for name, field in Every.fields.items()}
    assert offsets["target"] == 8 and offsets["addr"] == 16 and offsets["read"] == 20 and offsets["align"] == 24
    assert offsets["wide"] % 16 == offsets["extended"] % 16 == offsets["lanes"] % 16 == 0
    assert Every.fields["rows"].type.size == 12 and Every.fields["flags"].type.size == 3
    assert ptr[Every].size == 8 and ptr[Every].align == 8 and ptr[Every].target is Every and ptr[Every].ir == "ptr"


def test_view_shows_the_same_bytes() -> None:
    memory = Memory(bytes(SPAN))
    pointer, view = ptr[Every](memory.address), Every.view(memory.address)
    pointer.target, pointer.numbers[2], pointer.flag, pointer.inner.b = 5, 9, True, 11
    pointer.single, pointer.addr = 1.5, -2
    assert (view.target, list(view.numbers), view.flag, view.inner.b) == (5, [0, 0, 9, 0, 0], True, 11)
    assert (view.single, view.addr) == (1.5, -2)
    view.align = -7
    assert pointer.align == i64(-7)


def test_plain_stores_are_checked_as_compiled_ones_are() -> None:
    memory = Memory(bytes(SPAN))
    pointer = ptr[Every](memory.address)

    def store(name: str, value: Any) -> None:
        setattr(pointer, name, value)

    for name, value in (("target", u32(1)), ("size", 256), ("size", 1.5), ("flag", 1), ("absent", 1), ("inner", 0),
                        ("numbers", 0), ("next", ptr[Every](0)), ("single", f64(1))):
        with pytest.raises((TypeError, AttributeError)):
            store(name, value)
    with pytest.raises(TypeError):
        pointer == ptr[Inner](0)  # noqa: B015
    with pytest.raises(AttributeError):
        _ = pointer.absent


def test_plain_addresses_wrap_at_64_bits() -> None:
    assert int(ref(ptr[u64](8), u64(-1))) == 0
    assert int(ptr[u8](-1)) == (1 << 64) - 1
    assert int(at(ptr[u8](4), -8, u8)) == (1 << 64) - 4


def test_plain_local_memory_outlives_many_calls() -> None:
    """A function that holds one address while it makes more than any fixed number of others."""

    @native
    def many(n: u64) -> u64:
        first = local(array[u64, 1])
        first[0] = 1234
        for i in range(n):
            other = local(array[u64, 1])
            other[0] = i
            fill(ptr[Inner](other), 3)
        return first[0]

    assert many(u64(600)) == 1234
