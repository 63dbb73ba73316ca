"""Handlers that tail-call each other, run by `invoke`; host instructions by `asm`; the cycle counter."""

import ctypes
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.native import (
    NativeException, TailCall, asm, f32, f64, invoke, native, ptr, rdtsc, ref, struct, tail, u8, u16, u32, u64, vec)
from pellucid.native.image import Image, build, constant
from tests.native.harness import Unit, few, floats

unit = Unit()


class Stop(NativeException):
    pass


@struct
class Machine:
    """Two registers and a count of turns."""

    a: u64
    b: u64
    turns: u64
    failed: u32


@struct
class Op:
    handler: u64
    amount: u64


@native
def next_op(s, o):
    following = ref(o, 1)
    tail_to = following.handler
    return tail_to, following


@native(tail=True)
def add(s: ptr[Machine], o: ptr[Op]) -> None:
    s.a += o.amount
    target, following = next_op(s, o)
    tail(target, s, following)


@native(inline=False)
def doubled(x: u64) -> u64:
    if x > 1 << 40:
        raise Stop
    return x * 2


@native(tail=True)
def double(s: ptr[Machine], o: ptr[Op]) -> None:
    try:
        s.a = doubled(s.a)
    except Stop:
        s.failed = 1
        return
    tail(ref(o, 1).handler, s, ref(o, 1))


@native(tail=True)
def loop_back(s, o, W):
    """Back to the first op until `b` turns are done; `W` is a compile-time parameter."""
    s.turns += W
    if s.turns < s.b:
        first = ptr[Op](u64(o) - o.amount)
        tail(first.handler, s, first)


@native
def run(s: ptr[Machine], o: ptr[Op]) -> u64:
    invoke(o.handler, s, o)
    return s.a


@pytest.fixture(scope="module")
def image() -> Image:
    roots = {"add": (add, (ptr[Machine], ptr[Op])), "double": (double, (ptr[Machine], ptr[Op])),
             "loop": (loop_back, (ptr[Machine], ptr[Op], constant(1))), "run": (run, (ptr[Machine], ptr[Op]))}
    return Image(*build(roots))


def program(image: Image, turns: int) -> tuple[Any, Any, Any]:
    """a = 2 * (a + 3) - 2, so often."""
    memory = ctypes.create_string_buffer(Machine.size + 4 * Op.size)
    base = ctypes.addressof(memory)
    machine, ops = ptr[Machine](base), ptr[Op](base + Machine.size)
    for i, (name, amount) in enumerate((("add", 3), ("double", 0), ("add", -2), ("loop", 3 * Op.size))):
        at = ptr[Op](int(ref(ops, i)))
        at.handler, at.amount = image.address[name], amount
    machine.b = turns
    return memory, machine, ops


@pytest.mark.parametrize("turns", [1, 5, 30])
def test_a_chain_of_handlers(image: Image, turns: int) -> None:
    memory, machine, ops = program(image, turns)
    entry = image.function("run", ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64)
    expected = 0
    for _ in range(turns):
        expected = 2 * (expected + 3) - 2
    assert entry(int(machine), int(ops)) == expected
    assert machine.turns == turns and machine.failed == 0


def test_a_long_chain_needs_no_stack(image: Image) -> None:
    """Three million tail calls: as ordinary calls they would need a hundred megabytes of stack."""
    memory, machine, ops = program(image, 1_000_000)
    ptr[Op](int(ref(ops, 1))).handler = image.address["add"]
    entry = image.function("run", ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64)
    entry(int(machine), int(ops))
    assert machine.turns == 1_000_000 and machine.a == 1_000_000


def test_an_exception_caught_in_a_handler_ends_the_chain(image: Image) -> None:
    memory, machine, ops = program(image, 100)
    machine.a = 1 << 41
    image.function("run", ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64)(int(machine), int(ops))
    assert machine.failed == 1 and machine.turns == 0


def test_a_function_keeps_its_image_alive() -> None:
    entry = Image(*build({"run": (doubled_root, (u64,))})).function("run", ctypes.c_uint64, ctypes.c_uint64)
    assert entry(21) == 42


@native
def doubled_root(x: u64) -> u64:
    return x * 2


def test_plain_python_shows_a_tail_call(image: Image) -> None:
    memory, machine, ops = program(image, 1)
    with pytest.raises(TailCall) as caught:
        add(machine, ops)
    assert caught.value.target == image.address["double"]
    assert caught.value.args_ == (machine, ref(ops, 1)) and machine.a == 3
    with pytest.raises(TypeError, match="invoke runs compiled handlers"):
        run(machine, ops)


# --- host instructions ---------------------------------------------------------------------------------


@native
def instructions(a: u64, b: u64, n: u8):
    swapped = asm(u64, "bswap $0", "=r,0", a)
    total = asm(u64, "addq $2, $0", "=r,0,r,~{flags}", a, b)
    turned = asm(u64, "rolq %cl, $0", "=r,0,{cl},~{flags}", a, n)
    two = asm(u64, "leaq (,$1,2), $0\n\tnotq $0", "=r,r", a)
    small = asm(u16, "movw $1, $0", "=r,r", u16(b))
    constant_in = asm(u64, "movq $$77, $0", "=r")
    asm(None, "nop", "")
    return swapped, total, turned, two, small, constant_in


@native
def sse(a: f32, b: f32, c: f64):
    lanes = vec[f32, 4]([a, b, a, b])
    return (asm(f32, "addss $2, $0", "=x,0,x", a, b), asm(f64, "sqrtsd $1, $0", "=x,x", c),
            asm(vec[f32, 4], "mulps $2, $0", "=x,0,x", lanes, lanes))


@native
def memory(p: ptr[u64], x: u64) -> None:
    asm(None, "movq $1, ($0)", "r,r,~{memory}", p, x)


INSTRUCTIONS, SSE = unit.add(instructions, u64, u64, u8), unit.add(sse, f32, f32, f64)
MEMORY = unit.add(memory, ptr[u64], u64)


@few
@given(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1), st.integers(0, 255))
def test_host_instructions(a: int, b: int, n: int) -> None:
    found = INSTRUCTIONS.both(a, b, n)
    assert found[1] == (a + b) & (1 << 64) - 1 and found[5] == 77


@few
@given(floats(f32), floats(f32), floats(f64))
def test_host_floats(a: Any, b: Any, c: Any) -> None:
    SSE.both(a, b, c)


def test_host_stores() -> None:
    cell = ctypes.c_uint64(0)
    pointer = ptr[u64](ctypes.addressof(cell))
    MEMORY(pointer, 5)
    assert cell.value == 5
    memory(pointer, 6)
    assert cell.value == 6
    with pytest.raises(TypeError, match="native type"):
        asm(u64, "bswap $0", "=r,0", 5)


@native
def cycles() -> u64:
    first = rdtsc()
    return rdtsc() - first


CYCLES = unit.add(cycles)


def test_the_cycle_counter_goes_forward() -> None:
    assert CYCLES() < 1 << 60 and cycles() < 1 << 60


