"""`edu`: registers, factorial, DMA in both directions, interrupts by pin and by message."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.machine.devices.edu import BUFFER, BUFFER_SIZE, DMA_DELAY_NS, Edu, factorial
from pellucid.machine.pci import PciBus, PciSpaces
from pellucid.memory import MemoryRegion, RamBlock
from tests.machine.helpers import HandClock, round_trip

SOURCE, DESTINATION, COUNT, COMMAND = 0x80, 0x88, 0x90, 0x98
MASTER = 4


class Bench:
    """The function alone on a bus, with 64 KiB of RAM."""

    def __init__(self) -> None:
        self.ram, self.clock = RamBlock("edu-test", 0x1_0000), HandClock()
        memory = MemoryRegion.new_container("system")
        memory.add_subregion(0, MemoryRegion.new_ram("ram", self.ram))
        self.messages: list[tuple[int, int]] = []
        self.pins: list[tuple[int, bool]] = []
        spaces = PciSpaces(
            MemoryRegion.new_container("pci"), MemoryRegion.new_container("io", 0x1_0000), memory,
            lambda address, data: self.messages.append((address, data)),
        )  # fmt: skip
        self.bus = PciBus("pcie.0", spaces, lambda slot, pin, level: self.pins.append((pin, level)), express=True)
        self.edu = Edu(self.clock)
        self.bus.add(1, 0, self.edu)
        self.edu.config_write(4, 2, MASTER | 2)

    def write(self, offset: int, value: int, size: int = 4) -> None:
        self.edu.region_write(0, offset, size, value)

    def read(self, offset: int, size: int = 4) -> int:
        return self.edu.region_read(0, offset, size) & (1 << 8 * size) - 1

    def dma(self, source: int, destination: int, count: int, command: int) -> None:
        for offset, value in ((SOURCE, source), (DESTINATION, destination), (COUNT, count), (COMMAND, command)):
            self.write(offset, value, 8)


def test_registers() -> None:
    bench = Bench()
    assert bench.read(0) == 0x0100_00ED and bench.read(0, 8) == (1 << 64) - 1, "below 0x80 four bytes at a time"
    bench.write(4, 0x1234_5678)
    assert bench.read(4) == 0xEDCB_A987
    bench.write(0x20, 0xFFFF_FFFF)
    assert bench.read(0x20) == 0x80
    assert bench.read(0x0C) == 0xFFFF_FFFF
    assert bench.edu.config_read(0, 4) == 0x11E8_1234 and bench.edu.config_read(8, 4) == 0x00FF_0010


@pytest.mark.parametrize("n", [0, 1, 5, 12, 13, 33, 34, 0xFFFF_FFFF])
def test_factorial(n: int) -> None:
    assert factorial(n) == (math.factorial(n) & 0xFFFF_FFFF if n < 100 else 0)


def test_factorial_interrupts_when_it_is_asked_to() -> None:
    bench = Bench()
    bench.write(8, 4)
    assert bench.read(8) == 24 and bench.pins == []
    bench.write(0x20, 0x80)
    bench.write(8, 5)
    assert bench.read(8) == 120 and bench.read(0x24) == 1 and bench.pins == [(0, True)]
    bench.write(0x64, 1)
    assert bench.read(0x24) == 0 and bench.pins == [(0, True), (0, False)]


def test_interrupt_by_message() -> None:
    bench = Bench()
    at = bench.edu.config_read(0x34, 1)
    bench.edu.config_write(at + 4, 4, 0xFEE0_1000)
    bench.edu.config_write(at + 12, 2, 0x41)
    bench.edu.config_write(at + 2, 2, 1)
    bench.write(0x60, 0xF0)
    assert bench.messages == [(0xFEE0_1000, 0x41)] and bench.pins == [] and bench.read(0x24) == 0xF0


def test_dma_there_and_back() -> None:
    bench = Bench()
    bench.ram.view[:8] = b"pellucid"
    bench.dma(0, BUFFER + 16, 8, 1)
    assert bench.read(COMMAND) & 1, "under way"
    bench.write(COUNT, 99)
    assert bench.read(COUNT) == 8, "registers are locked meanwhile"
    bench.clock.advance(DMA_DELAY_NS)
    assert not bench.read(COMMAND) & 1 and bench.read(0x24) == 0
    bench.dma(BUFFER + 16, 0x1000, 8, 1 | 2 | 4)
    bench.clock.advance(DMA_DELAY_NS)
    assert bytes(bench.ram.view[0x1000:0x1008]) == b"pellucid" and bench.read(0x24) == 0x100
    round_trip(bench.edu, Bench().edu)


def test_dma_outside_its_buffer_does_nothing() -> None:
    bench = Bench()
    bench.ram.view[:4] = b"same"
    for count, inside in ((BUFFER_SIZE + 1, BUFFER), (1, BUFFER - 1), (2, BUFFER + BUFFER_SIZE - 1), (1 << 63, BUFFER)):
        bench.dma(inside, 0, count, 3)
        bench.clock.advance(DMA_DELAY_NS)
        assert not bench.read(COMMAND) & 1 and bytes(bench.ram.view[:4]) == b"same"


def test_addresses_are_cut_to_the_mask() -> None:
    bench = Bench()
    bench.dma(BUFFER, 1 << 28 | 0x2000, 4, 3)
    bench.ram.view[0x2000:0x2004] = b"full"
    bench.clock.advance(DMA_DELAY_NS)
    assert bytes(bench.ram.view[0x2000:0x2004]) == bytes(4)


def test_a_reset_ends_what_is_under_way() -> None:
    bench = Bench()
    bench.ram.view[:4] = b"kept"
    bench.dma(BUFFER, 0, 4, 3)
    bench.edu.reset()
    bench.clock.advance(DMA_DELAY_NS)
    assert bytes(bench.ram.view[:4]) == b"kept" and bench.read(COMMAND) == 0


OFFSETS = (0, 4, 8, 0x20, 0x24, 0x60, 0x64, SOURCE, DESTINATION, COUNT, COMMAND, 0x9C, 0xF_FFF8)
numbers = st.one_of(
    st.integers(0, 15), st.integers(BUFFER - 2, BUFFER + BUFFER_SIZE + 2), st.integers(0, (1 << 64) - 1)
)  # fmt: skip


@settings(max_examples=100)
@given(st.lists(st.tuples(st.sampled_from("rwwwt"), st.sampled_from(OFFSETS), st.sampled_from([4, 8]), numbers)))
def test_random_accesses(steps: list[tuple[str, int, int, int]]) -> None:
    bench = Bench()
    for kind, offset, size, value in steps:
        if kind == "t":
            bench.clock.advance(DMA_DELAY_NS)
        elif kind == "w":
            bench.write(offset, value & (1 << 8 * size) - 1, size)
        else:
            bench.read(offset, size)
    assert len(bench.edu.buffer) == BUFFER_SIZE
    round_trip(bench.edu, Bench().edu)
    bench.edu.reset()
