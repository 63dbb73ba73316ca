"""How long a halt looks for an event before its thread sleeps, and on which of the host's CPUs it does so."""

import ctypes
import os
from collections.abc import Iterator
from typing import Any

import pytest

from pellucid.cpu.host import host_cpu, leave_cpu
from pellucid.cpu.posted import SHORT_NS, UNWATCHED, learn_from_sleep
from pellucid.native import native, ptr, struct, u32, u64
from pellucid.native.layout import Struct
from tests.native.harness import Unit

LONGEST, LATE = 800, SHORT_NS
unit = Unit()


@struct
class Halts(Struct):
    halt_poll: u64
    halt_longest: u64
    halts_unwatched: u32
    waker_cpu: u32
    left_cpu: u32


@native
def learn(s: ptr[Halts], slept: u64) -> None:
    learn_from_sleep(s, slept)


@native
def where() -> u32:
    return host_cpu()


@native
def leave(cpu: u32) -> None:
    leave_cpu(cpu)


LEARN = unit.add(learn, ptr[Halts], u64)
WHERE = unit.add(where)
LEAVE = unit.add(leave, u32)


@pytest.fixture
def cpus() -> Iterator[set[int]]:
    """The CPUs that this thread may use, and may again afterwards."""
    before = os.sched_getaffinity(0)
    yield before
    os.sched_setaffinity(0, before)


@pytest.fixture
def halts() -> Any:
    memory = ctypes.create_string_buffer(Halts.size)
    view = Halts.view(ctypes.addressof(memory))
    view.halt_longest, view.memory = LONGEST, memory
    return view


def learned(halts: Any, slept: int) -> int:
    LEARN(ctypes.addressof(halts.memory), slept)
    return int(halts.halt_poll)


def test_looks_grow_with_short_sleeps_and_end_with_a_long_one(halts: Any) -> None:
    assert [learned(halts, 1) for _ in range(4)] == [100, 200, 400, 800]
    assert learned(halts, LATE) == 0 and halts.halts_unwatched == 0


def test_a_look_in_vain_for_one_on_another_cpu_ends_them_for_a_while(halts: Any, cpus: set[int]) -> None:
    halts.halt_poll, halts.waker_cpu = LONGEST, max(cpus) + 1
    assert learned(halts, 1) == 0 and halts.halts_unwatched == UNWATCHED
    assert {learned(halts, 1) for _ in range(UNWATCHED)} == {0} and halts.halts_unwatched == 0
    assert learned(halts, 1) == LONGEST // 8


def test_a_look_in_vain_for_one_on_the_same_cpu_leaves_that_once(halts: Any, cpus: set[int]) -> None:
    here = min(cpus)
    os.sched_setaffinity(0, {here})     # so that it stays
    halts.halt_poll, halts.waker_cpu = LONGEST, here
    assert learned(halts, 1) == LONGEST and halts.left_cpu == 1 and halts.halts_unwatched == 0
    assert os.sched_getaffinity(0) == {here}
    assert learned(halts, 1) == 0 and halts.left_cpu == 0 and halts.halts_unwatched == UNWATCHED


def test_leaving_a_cpu_keeps_what_the_thread_may_use(cpus: set[int]) -> None:
    seen = set()
    for _ in range(50):
        LEAVE(here := WHERE())
        assert os.sched_getaffinity(0) == cpus and here in cpus
        seen.add(WHERE() == here)
    assert len(cpus) == 1 or False in seen
    LEAVE(100_000)
    assert os.sched_getaffinity(0) == cpus
