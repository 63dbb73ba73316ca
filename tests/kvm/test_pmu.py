"""The performance-monitoring unit's registers, with what happens on the processor made up."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from pellucid.kvm.errors import MsrAccessError
from pellucid.kvm.pmu import (
    FARTHEST,
    FULL_WIDTH_WRITE,
    IA32_A_PMC,
    IA32_FIXED_CTR,
    IA32_FIXED_CTR_CTRL,
    IA32_PERF_GLOBAL_CTRL,
    IA32_PERF_GLOBAL_OVF_CTRL,
    IA32_PERF_GLOBAL_STATUS,
    IA32_PERFEVTSEL,
    IA32_PMC,
    PMU_MSRS,
    RDPMC_FIXED,
    VALUE,
    Pmu,
)

USR, OS, EDGE, INT, EN, INV = 1 << 16, 1 << 17, 1 << 18, 1 << 20, 1 << 22, 1 << 23
INSTRUCTIONS, BRANCHES, CYCLES, TICKS = 0xC0, 0xC4, 0x3C, 0x13C
KERNEL, USER = 0, 1


class World:
    """A Meter whose guest does what the test says."""

    def __init__(self) -> None:
        self.happened = [0] * 31
        self.level, self.freezes = KERNEL, False
        self.on = self.leave_at_level = False
        self.interrupts = 0
        self.alarms: list[int] = []

    def tally(self) -> list[int]:
        return list(self.happened)

    def measure(self, on: bool, *, leave_at_level: bool) -> None:
        self.on, self.leave_at_level = on, leave_at_level

    def interrupt(self) -> None:
        self.interrupts += 1

    def alarm(self, ticks: int) -> None:
        self.alarms.append(ticks)

    def execute(self, instructions: int, branches: int = 0, ticks: int = 0, runs: int = 0, level: int = KERNEL) -> None:
        for kind, count in enumerate((instructions, branches, ticks, runs)):
            self.happened[5 * level + kind] += count

    def enter(self, level: int, times: int = 1) -> None:
        self.happened[5 * level + 4] += times


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def pmu(world: World) -> Iterator[Pmu]:
    made = Pmu(world)
    made.show(8, 3)
    made.set_capabilities(FULL_WIDTH_WRITE)
    yield made


def select(pmu: Pmu, n: int, bits: int) -> None:
    pmu.write(IA32_PERFEVTSEL[n], bits | EN)


def count(pmu: Pmu, n: int = 0) -> int:
    value = pmu.read(IA32_PMC[n])
    assert value == pmu.read_counter(n)
    return value


def test_events_by_level(pmu: Pmu, world: World) -> None:
    for n, bits in enumerate((OS | INSTRUCTIONS, USR | INSTRUCTIONS, OS | USR | BRANCHES, OS | CYCLES, USR | TICKS,
                              OS | USR | 0xC5, INSTRUCTIONS, OS | 0x1C0)):
        select(pmu, n, bits)
    world.execute(100, 20, 1000)
    world.execute(7, 3, 50, level=USER)
    assert [count(pmu, n) for n in range(8)] == [100, 7, 23, 100, 50, 0, 0, 0]


def test_fixed_counters(pmu: Pmu, world: World) -> None:
    pmu.write(IA32_FIXED_CTR_CTRL, 0x213)
    pmu.write(IA32_PERF_GLOBAL_CTRL, 7 << 32)
    world.execute(100, 20, 1000)
    world.execute(7, 3, 50, level=USER)
    assert [pmu.read(index) for index in IA32_FIXED_CTR] == [107, 100, 50]
    assert [pmu.read_counter(RDPMC_FIXED | n) for n in range(3)] == [107, 100, 50]


def test_nothing_is_measured_unless_a_counter_is_enabled_twice(pmu: Pmu, world: World) -> None:
    assert pmu.read(IA32_PERF_GLOBAL_CTRL) == 0xFF and not world.on
    select(pmu, 2, OS | INSTRUCTIONS)
    assert world.on
    pmu.write(IA32_PERF_GLOBAL_CTRL, 0xFB)
    assert not world.on
    world.execute(5)
    assert count(pmu, 2) == 0
    pmu.write(IA32_PERF_GLOBAL_CTRL, 4)
    assert world.on
    world.execute(5)
    pmu.write(IA32_PERFEVTSEL[2], OS | INSTRUCTIONS)
    world.execute(5)
    assert not world.on and count(pmu, 2) == 5


def test_transactions(world: World) -> None:
    """IN_TX counts inside only; IN_TXCP, of counter 2, leaves out what was undone."""
    pmu = Pmu(world)
    pmu.show(8, 3, transactions=True)
    in_tx, checkpointed = 1 << 32, 1 << 33
    for n, bits in enumerate((0, in_tx, checkpointed, 0, 0)):
        select(pmu, n, OS | INSTRUCTIONS | bits)
    select(pmu, 3, OS | USR | BRANCHES | in_tx)
    for level, count_ in enumerate((100, 200, 10, 20, 1, 2)):
        world.execute(count_, count_, 0, level=level)
    assert [count(pmu, n) for n in range(4)] == [111, 11, 110, 33]
    select(pmu, 2, OS | INSTRUCTIONS | in_tx | checkpointed)
    world.execute(5, level=4)
    world.execute(6, level=2)
    assert count(pmu, 2) == 116
    for n, bits in ((1, checkpointed), (2, 1 << 34)):
        with pytest.raises(MsrAccessError):
            select(pmu, n, bits)
    pmu.show(8, 3)
    with pytest.raises(MsrAccessError):
        select(pmu, 2, in_tx)


def test_counter_masks(pmu: Pmu, world: World) -> None:
    """One instruction retires in a cycle, so none has two events."""
    for n, bits in enumerate((0, 1 << 24, 2 << 24, 1 << 24 | INV, 2 << 24 | INV)):
        select(pmu, n, OS | BRANCHES | bits)
    select(pmu, 5, OS | INSTRUCTIONS | 1 << 24 | INV)
    world.execute(100, 20)
    assert [count(pmu, n) for n in range(6)] == [20, 20, 0, 80, 100, 0]


def test_writes_of_32_bits_are_extended_and_whole_ones_checked(pmu: Pmu) -> None:
    for value, read in ((0x1_8000_0001, 0xFFFF_8000_0001), (0x7FFF_FFFF, 0x7FFF_FFFF), (1 << 47, 0)):
        pmu.write(IA32_PMC[3], value)
        assert count(pmu, 3) == read
    pmu.write(IA32_A_PMC[3], 0x1234_5678_9ABC)
    assert count(pmu, 3) == pmu.read(IA32_A_PMC[3]) == 0x1234_5678_9ABC
    for index in (IA32_A_PMC[3], IA32_FIXED_CTR[0]):
        with pytest.raises(MsrAccessError):
            pmu.write(index, 1 << 48)
    pmu.set_capabilities(0)
    with pytest.raises(MsrAccessError):
        pmu.read(IA32_A_PMC[3])


@pytest.mark.parametrize(("index", "value"), [
    (IA32_PERFEVTSEL[0], 1 << 21), (IA32_PERFEVTSEL[0], 1 << 32), (IA32_FIXED_CTR_CTRL, 4),
    (IA32_FIXED_CTR_CTRL, 1 << 12), (IA32_PERF_GLOBAL_CTRL, 1 << 8), (IA32_PERF_GLOBAL_CTRL, 1 << 35),
    (IA32_PERF_GLOBAL_OVF_CTRL, 1 << 9), (IA32_PERF_GLOBAL_STATUS, 0)])
def test_reserved_bits(pmu: Pmu, index: int, value: int) -> None:
    with pytest.raises(MsrAccessError):
        pmu.write(index, value)


def test_rdpmc_of_what_is_not_there(pmu: Pmu) -> None:
    for number in (8, 64, 3 | RDPMC_FIXED, 1 << 31, 1 << 31 | RDPMC_FIXED, 0xFFFF_FFFF):
        with pytest.raises(MsrAccessError):
            pmu.read_counter(number)


def test_fewer_counters_and_none(pmu: Pmu) -> None:
    pmu.show(4, 0)
    assert pmu.read(IA32_PERF_GLOBAL_CTRL) == 0xF and pmu.read(IA32_PMC[3]) == 0
    for index in (IA32_PMC[4], IA32_PERFEVTSEL[4], IA32_FIXED_CTR[0]):
        with pytest.raises(MsrAccessError):
            pmu.read(index)
    pmu.show(0, 0)
    for index in sorted(PMU_MSRS):
        for access in (lambda index=index: pmu.read(index), lambda index=index: pmu.write(index, 0)):
            with pytest.raises(MsrAccessError):
                access()
    with pytest.raises(MsrAccessError):
        pmu.read_counter(0)


def test_overflow(pmu: Pmu, world: World) -> None:
    pmu.write(IA32_A_PMC[1], VALUE - 9)
    select(pmu, 1, OS | INSTRUCTIONS)
    assert pmu.update() == FARTHEST, "it need not interrupt"
    world.execute(9)
    assert pmu.read(IA32_PERF_GLOBAL_STATUS) == 0
    world.execute(1)
    assert pmu.read(IA32_PERF_GLOBAL_STATUS) == 2 and count(pmu, 1) == 0 and not world.interrupts
    pmu.write(IA32_PERF_GLOBAL_OVF_CTRL, 2)
    assert pmu.read(IA32_PERF_GLOBAL_STATUS) == pmu.read(IA32_PERF_GLOBAL_OVF_CTRL) == 0


def test_an_interrupt_is_due_behind_exactly_so_many_instructions(pmu: Pmu, world: World) -> None:
    pmu.write(IA32_A_PMC[0], VALUE - 9)
    select(pmu, 0, OS | USR | INT | INSTRUCTIONS)
    assert not world.leave_at_level
    assert pmu.update() == 10
    world.execute(4)
    assert pmu.update() == 6 and not world.interrupts
    world.execute(6)
    assert pmu.update() == FARTHEST and world.interrupts == 1, "the counter is as far from its end as it can be"
    assert pmu.update() == FARTHEST and world.interrupts == 1


def test_a_counter_of_one_level_is_near_in_that_level_only(pmu: Pmu, world: World) -> None:
    pmu.write(IA32_A_PMC[0], VALUE)
    select(pmu, 0, USR | INT | INSTRUCTIONS)
    assert world.leave_at_level and pmu.update() == FARTHEST
    world.level = USER
    assert pmu.update() == 1


def test_branches_come_no_sooner_than_instructions(pmu: Pmu, world: World) -> None:
    pmu.write(IA32_A_PMC[0], VALUE - 99)
    select(pmu, 0, OS | INT | BRANCHES)
    steps = 0
    while not world.interrupts:
        left = pmu.update()
        if not world.interrupts:
            assert left <= VALUE + 1 - count(pmu)
            before = world.happened[0]
            world.execute(left, (before + left) // 5 - before // 5)
            steps += 1
    assert world.happened[:2] == [500, 100] and steps < 40


def test_ticks_are_waited_for(pmu: Pmu, world: World) -> None:
    pmu.write(IA32_A_PMC[0], VALUE - 999)
    select(pmu, 0, OS | INT | TICKS)
    assert pmu.update() == FARTHEST and world.alarms == [1000]
    world.execute(10, 0, 400)
    assert pmu.update() == FARTHEST and world.alarms == [1000, 600]
    world.execute(10, 0, 700)
    pmu.update()
    assert world.interrupts == 1 and count(pmu) == 100


def test_freeze_on_interrupt(pmu: Pmu, world: World) -> None:
    world.freezes = True
    pmu.write(IA32_A_PMC[0], VALUE)
    select(pmu, 0, OS | INT | INSTRUCTIONS)
    select(pmu, 1, OS | INSTRUCTIONS)
    world.execute(1)
    pmu.update()
    world.execute(100)
    assert pmu.read(IA32_PERF_GLOBAL_CTRL) == 0 and not world.on
    assert (count(pmu, 0), count(pmu, 1), world.interrupts) == (0, 1, 1)


def test_edges_of_cycles(pmu: Pmu, world: World) -> None:
    """How often the processor began to execute at the level: it came from the other, or a halt ended, at CPL 0.
    With a mask of 2 the inverted condition always holds.
    """
    always, never = 2 << 24 | INV, 1 << 24 | INV
    for n, bits in enumerate((OS | CYCLES, USR | TICKS, OS | USR | INSTRUCTIONS, OS | 1 << 24 | INSTRUCTIONS,
                              OS | INSTRUCTIONS | never, USR | BRANCHES | always, OS | 2 << 24 | CYCLES)):
        select(pmu, n, EDGE | bits)
    world.execute(1000, 100, 5000, 90)
    world.enter(KERNEL, 5)
    world.enter(USER, 4)
    world.happened[-1] += 2
    assert [count(pmu, n) for n in range(7)] == [7, 4, 2, 7, 0, 4, 0]


def test_edges_of_branches(pmu: Pmu, world: World) -> None:
    for n, bits in enumerate((OS, OS | USR, OS | 1 << 24, OS | 2 << 24)):
        select(pmu, n, EDGE | BRANCHES | bits)
    world.execute(100, 20, 300, 15)
    world.execute(50, 9, 70, 8, level=USER)
    assert [count(pmu, n) for n in range(4)] == [15, 23, 15, 0]


def test_edges_that_are_not_built_stand_still_and_say_so(world: World, caplog: pytest.LogCaptureFixture) -> None:
    pmu = Pmu(world)
    pmu.show(8, 3, transactions=True)
    select(pmu, 0, OS | EDGE | 1 << 24 | INV | BRANCHES)
    select(pmu, 2, OS | EDGE | 1 << 32 | BRANCHES)
    world.execute(10, 10, 10, 10)
    world.execute(10, 10, 10, 10, level=2)
    assert count(pmu, 0) == count(pmu, 2) == 0
    assert "counter 0 stands still" in caplog.text and "counter 2 stands still" in caplog.text


def test_an_edge_of_cycles_that_interrupts_needs_no_budget(pmu: Pmu, world: World) -> None:
    pmu.write(IA32_A_PMC[0], VALUE)
    select(pmu, 0, OS | EDGE | INT | CYCLES)
    assert pmu.update() == FARTHEST and world.leave_at_level
    world.enter(KERNEL)
    pmu.update()
    assert world.interrupts == 1


def test_saved_and_restored(pmu: Pmu, world: World) -> None:
    pmu.write(IA32_A_PMC[2], 0x8000_0000_0000)
    select(pmu, 2, OS | INT | INSTRUCTIONS)
    pmu.write(IA32_FIXED_CTR_CTRL, 0xBBB)
    pmu.write(IA32_PERF_GLOBAL_CTRL, 7 << 32 | 4)
    world.execute(5)
    saved = {index: pmu.read(index) for index in sorted(PMU_MSRS - {IA32_PERF_GLOBAL_OVF_CTRL})}
    other = World()
    restored = Pmu(other)
    restored.show(8, 3)
    restored.set_capabilities(FULL_WIDTH_WRITE)
    for index, value in saved.items():
        restored.write(index, value, host_initiated=True)
    assert {index: restored.read(index) for index in saved} == saved
    other.execute(3)
    assert restored.read(IA32_PMC[2]) == 0x8000_0000_0008 and restored.read(IA32_FIXED_CTR[0]) == 8


def test_any_writes_leave_it_whole() -> None:
    """A guest writes what it likes: nothing but MsrAccessError comes of it, and every value fits its register."""
    chance = random.Random(4)
    world = World()
    pmu = Pmu(world)
    pmu.show(8, 3)
    pmu.set_capabilities(FULL_WIDTH_WRITE)
    for _ in range(6000):
        index = chance.choice(sorted(PMU_MSRS))
        value = chance.choice((0, 1, VALUE, VALUE + 1, chance.getrandbits(64), chance.getrandbits(32), 0x4300C0,
                               chance.getrandbits(23), 0x5300C4 | chance.getrandbits(8) << 24, 0xBBB, 7 << 32 | 0xFF,
                               0x57003C | chance.getrandbits(9) << 23))
        world.freezes, world.level = chance.random() < 0.1, chance.randrange(2)
        try:
            pmu.write(index, value, host_initiated=chance.random() < 0.2)
        except MsrAccessError:
            pass
        world.execute(chance.randrange(1 << chance.randrange(47)), level=chance.randrange(2))
        world.enter(chance.randrange(2), chance.randrange(3))
        assert 1 <= pmu.update() <= FARTHEST
        assert 0 <= pmu.read_counter(chance.randrange(8)) <= VALUE
        assert pmu.read(IA32_PERF_GLOBAL_STATUS) & ~(7 << 32 | 0xFF) == 0
        assert all(ticks > 0 for ticks in world.alarms)
        world.alarms.clear()
