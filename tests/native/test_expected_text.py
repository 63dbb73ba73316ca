"""The LLVM text of small functions, word for word, so that a change of what the compiler emits is seen and meant.

After a change that is meant: PELLUCID_ACCEPT=1 python -m pytest tests/native/test_expected_text.py
"""

import os
from pathlib import Path
from typing import Any

import pytest

from pellucid.native import (
    NativeException, array, atomic_add, f64, i32, likely, local, native, popcount, ptr, ref, static, struct, tail, u8,
    u32, u64, uint, vec)
from pellucid.native.program import Program
from pellucid.native.target import compile_object
from tests.native.harness import Const

FOLDER = Path(__file__).parent / "expect"


class Stop(NativeException):
    pass


@struct
class Point:
    x: u32
    y: u64
    z: array[u8, 3]


@native
def arithmetic(a, b):
    return (a + b * 3) ^ ~a


@native
def shift(a, n):
    return a >> n


@native
def quotient(a, b):
    return a // b


@native
def branch(a: u64) -> u64:
    if likely(a > 5):
        a += 1
    else:
        a = 7
    return a


@native
def loop(n: u32) -> u64:
    t: u64 = 0
    for i in range(n):
        if i == 3:
            continue
        t += u64(i)
    return t


@native
def unrolled(a, W):
    T = uint(W)
    for k in static((1, 2)):
        if k == W:
            a += k
    return T(a)


@native
def fields(p: ptr[Point], i: u8) -> None:
    p.y = u64(p.x)
    ref(p, "z")[i] = 1


@native(inline=False)
def risky(a: u64) -> u64:
    if a == 0:
        raise Stop
    return a


@native
def catch(a: u64) -> u64:
    try:
        return risky(a)
    except Stop:
        return u64(1)


@native
def twice(a: u64):
    return a, popcount(a)


@native
def inlined(a: u64) -> u64:
    b, c = twice(a)
    return b + c


@native(tail=True)
def handler(s: ptr[Point], o: ptr[Point]) -> None:
    s.x += 1
    tail(o.y, s, o)


@native
def lanes(a: vec[i32, 4], x: f64) -> u64:
    return u64((a + 1)[2]) + u64(x)


@native
def scratch(p: ptr[u64]) -> u64:
    a = local(array[u64, 2])
    a[1] = atomic_add(p, 1)
    return a[0] + a[1]


CASES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "arithmetic": (arithmetic, (u32, u32)), "shift": (shift, (i32, u8)), "quotient": (quotient, (u64, u64)),
    "branch": (branch, (u64,)), "loop": (loop, (u32,)), "unrolled": (unrolled, (u64, Const(2))),
    "fields": (fields, (ptr[Point], u8)), "catch": (catch, (u64,)), "inlined": (inlined, (u64,)),
    "handler": (handler, (ptr[Point], ptr[Point])), "lanes": (lanes, (vec[i32, 4], f64)),
    "scratch": (scratch, (ptr[u64],))}


@pytest.mark.parametrize("name", CASES)
def test_text_is_the_expected_one(name: str) -> None:
    fn, params = CASES[name]
    program = Program()
    text = program.module([program.request(fn, params)])
    assert compile_object(text)
    path = FOLDER / f"{name}.ll"
    if os.environ.get("PELLUCID_ACCEPT"):
        path.write_text(text, encoding="utf-8")
    assert path.exists(), f"no {path.name} yet: see the top of this file"
    assert text == path.read_text(encoding="utf-8")


def test_every_expected_text_has_its_function() -> None:
    assert {p.stem for p in FOLDER.iterdir()} == set(CASES)


def test_text_is_the_same_every_time() -> None:
    """Compiled parts are found again by their text."""
    for fn, params in CASES.values():
        first, second = Program(), Program()
        assert first.module([first.request(fn, params)]) == second.module([second.request(fn, params)])
