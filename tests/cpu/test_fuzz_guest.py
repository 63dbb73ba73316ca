"""Random guests in every mode, in a process of their own with guards around its memory: see tests/cpu/fuzz.

By hand, for as long as one wants: python -m tests.cpu.fuzz --seconds 600 --seed N
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import random
from collections import Counter

import iced_x86 as iced
import pytest

from .fuzz.code import Coder
from .fuzz.guarded import GuardedArray
from .fuzz.parent import fuzz
from .fuzz.situation import MODES, situation

SEED = int(os.environ.get("PELLUCID_SEED", "0"))


@pytest.mark.parametrize(("kind", "cases"), [("step", 200), ("events", 300), ("blocks", 150), ("plain", 40),
                                             ("regions", 6)])
def test_random_guests(kind: str, cases: int) -> None:
    """Nothing crashes, hangs, grows or is lost, and all executors agree."""
    result = fuzz(SEED, 120.0, last=cases - 1, kind=kind)
    assert not result.problem, f"{result.problem}\n{result.output}"
    assert result.done == cases and "0 broken" in result.output


def test_a_crash_says_how_to_repeat_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PELLUCID_FUZZ_CRASH_AT", "3")
    result = fuzz(SEED, 60.0, last=9, kind="step")
    assert "ended with status -11 in case 3: python -m tests.cpu.fuzz --seed" in result.problem
    assert "code " in result.problem


def test_guards_hold() -> None:
    """In a child: the byte behind an array cannot be written."""
    array = GuardedArray(4096)
    ctypes.memset(array.address, 1, 4096)
    array.discard()
    assert ctypes.string_at(array.address, 4096) == bytes(4096)
    for outside in (array.address - 1, array.address + 4096):
        child = os.fork()
        if child == 0:
            faulthandler.disable()  # it would print what is meant to happen
            ctypes.memset(outside, 1, 1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -11


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_the_generator_reaches_nearly_every_encoding(bits: int) -> None:
    rng = random.Random(bits)
    coder = Coder(rng, bits, (0x20000,))
    seen = Counter(iced.Decoder(bits, coder.instruction()).decode().code for _ in range(8000))
    assert 0 not in seen and len(seen) > 1500


def test_situations_repeat_and_differ() -> None:
    names = {situation(f"x/{n}").name for n in range(150)}
    assert {name.split(",")[0] for name in names} == set(MODES) and len(names) >= 18
    assert situation("a").memory == situation("a").memory != situation("b").memory
