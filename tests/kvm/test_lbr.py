"""The registers of last-branch records: which there are, what they take, and how each format shows an entry."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from pellucid.cpu.lbr import INFO_ABORT, INFO_IN_TX, INFO_MISPRED
from pellucid.kvm.errors import MsrAccessError
from pellucid.kvm.lbr import (
    FORMATS,
    FROM_IP,
    INFO,
    LBR_MSRS,
    MSR_LASTBRANCH_TOS,
    MSR_LBR_SELECT,
    MSR_LER_FROM_LIP,
    MSR_LER_TO_LIP,
    TO_IP,
    U64,
    LastBranches,
)

KERNEL = 0xFFFF_8000_0000_1234


def canonical(address: int) -> bool:
    return address >> 47 in (0, U64 >> 47)


class World:
    """The registers over a made-up processor."""

    def __init__(self, number: int = 0) -> None:
        self.state = SimpleNamespace(lbr_from=[0] * 32, lbr_to=[0] * 32, lbr_info=[0] * 32, retired_end=70, budget=20)
        self.cycles: list[bool] = []
        self.lbr = LastBranches(self.state, canonical, self.cycles.append)
        self.lbr.show(number)
        self.cycles.clear()


def refuses(world: World, index: int, value: int, host_initiated: bool = False) -> bool:
    try:
        world.lbr.write(index, value, host_initiated)
    except MsrAccessError:
        return True
    return False


def exists(world: World, index: int) -> bool:
    try:
        world.lbr.read(index)
    except MsrAccessError:
        return False
    return True


def test_without_a_format_there_is_nothing() -> None:
    world = World()
    assert not world.lbr.present
    assert not any(exists(world, index) or not refuses(world, index, 0, True) for index in LBR_MSRS)
    world.lbr.switched(on=True)
    assert world.cycles == [False]


@pytest.mark.parametrize("number", FORMATS)
def test_which_registers_there_are(number: int) -> None:
    world, shown = World(number), FORMATS[number]
    there = {index for index in LBR_MSRS if exists(world, index)}
    entries = {*FROM_IP[:shown.depth], *TO_IP[:shown.depth], *(INFO[:shown.depth] if number in (5, 7) else ())}
    assert there == entries | {MSR_LBR_SELECT, MSR_LASTBRANCH_TOS, MSR_LER_FROM_LIP, MSR_LER_TO_LIP}
    assert all(world.lbr.read(index) == 0 for index in there)
    assert all(refuses(world, index, 0) for index in LBR_MSRS - there)
    assert (world.state.lbr_depth, world.state.lbr_linear) == (shown.depth, int(number > 5))


def test_how_an_entry_is_shown() -> None:
    info = INFO_MISPRED | INFO_IN_TX | INFO_ABORT | 0x1234
    shown = {}
    for number in FORMATS:
        world = World(number)
        world.state.lbr_from[3], world.state.lbr_to[3], world.state.lbr_info[3] = 0x4321, KERNEL, info
        shown[number] = [world.lbr.read(index[3]) for index in (FROM_IP, TO_IP, *((INFO,) if number in (5, 7) else ()))]
    assert shown == {
        3: [INFO_MISPRED | 0x4321, KERNEL], 4: [7 << 61 | 0x4321, KERNEL], 5: [0x4321, KERNEL, info],
        6: [INFO_MISPRED | 0x4321, 0x1234_8000_0000_1234], 7: [0x4321, KERNEL, INFO_MISPRED | 0x1234]}


@pytest.mark.parametrize("number", FORMATS)
def test_what_is_written_is_read(number: int) -> None:
    world, shown = World(number), FORMATS[number]
    last = shown.depth - 1
    for address in (0x7FFF_FFFF_FFFF, KERNEL):
        for flags in (0, shown.in_from):
            value = address & ~shown.in_from | flags
            world.lbr.write(FROM_IP[last], value)
            assert (world.lbr.read(FROM_IP[last]), world.state.lbr_from[last]) == (value, address)
        value = address & (1 << 48) - 1 | 0xABCD << 48 if shown.cycles_in_to else address
        world.lbr.write(TO_IP[last], value)
        assert (world.lbr.read(TO_IP[last]), world.state.lbr_to[last]) == (value, address)
    world.lbr.write(MSR_LASTBRANCH_TOS, last)
    world.lbr.write(MSR_LBR_SELECT, 0x1FF)
    assert (world.lbr.read(MSR_LASTBRANCH_TOS), world.lbr.read(MSR_LBR_SELECT)) == (last, 0x1FF)
    assert refuses(world, MSR_LBR_SELECT, 0x200) == (number == 3), "Sandy Bridge has no call stacks"


@pytest.mark.parametrize(("number", "index", "value"), [
    (3, FROM_IP[0], 1 << 62), (4, FROM_IP[0], 1 << 60), (5, FROM_IP[0], 1 << 63), (6, FROM_IP[0], 1 << 47),
    (7, TO_IP[0], 1 << 47), (5, INFO[0], 1 << 16), (7, INFO[0], 1 << 62), (4, MSR_LASTBRANCH_TOS, 16),
    (5, MSR_LASTBRANCH_TOS, 32), (5, MSR_LBR_SELECT, 1 << 10), (4, MSR_LER_FROM_LIP, 0), (4, MSR_LER_TO_LIP, 0)])
def test_reserved_bits(number: int, index: int, value: int) -> None:
    assert refuses(World(number), index, value)


def test_the_last_exception_record_is_only_read() -> None:
    world = World(4)
    world.lbr.write(MSR_LER_FROM_LIP, KERNEL, host_initiated=True)
    world.lbr.write(MSR_LER_TO_LIP, 5, host_initiated=True)
    assert (world.lbr.read(MSR_LER_FROM_LIP), world.lbr.read(MSR_LER_TO_LIP)) == (KERNEL, 5)
    assert refuses(world, MSR_LER_TO_LIP, 1 << 62, True)


@pytest.mark.parametrize("number", FORMATS)
def test_cycles_are_counted_for_those_who_are_told(number: int) -> None:
    world = World(number)
    world.lbr.switched(on=True)
    world.lbr.switched(on=False)
    assert world.cycles == [number >= 5, False] and world.state.lbr_clock == 50


def test_any_writes_leave_it_whole() -> None:
    """A guest writes what it likes, the format changes: nothing but MsrAccessError comes of it, the processor's index
    stays within its stack, and what the guest could write can be restored as it is read.
    """
    chance = random.Random(9)
    every = sorted(LBR_MSRS)
    world, number = World(4), 4
    for turn in range(8000):
        if turn % 500 == 0:
            number = chance.choice(sorted(FORMATS))
            world.lbr.show(number)
        value = chance.choice((0, 1, 15, 31, U64, KERNEL, chance.getrandbits(64), chance.getrandbits(47),
                               chance.getrandbits(10), 7 << 61 | chance.getrandbits(40), 1 << chance.randrange(64)))
        refuses(world, chance.choice(every), value, chance.random() < 0.2)
        world.lbr.switched(chance.random() < 0.5)
        assert 0 <= world.state.lbr_tos < world.state.lbr_depth <= 32 and world.state.lbr_select < 1 << 10
        if turn % 499 == 0:
            saved = {index: world.lbr.read(index) for index in every if exists(world, index)}
            other = World(number)
            for index, kept in saved.items():
                other.lbr.write(index, kept, host_initiated=True)
            assert {index: other.lbr.read(index) for index in saved} == saved
