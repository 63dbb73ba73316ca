"""PCI without a board: configuration accesses, BARs where a guest puts them, bridges, interrupts; hostile guests."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.machine.device import Device
from pellucid.machine.pci import (
    Bar,
    BarKind,
    ConfigMechanism1,
    ConfigRegister,
    Ecam,
    Msi,
    MsiX,
    PciBus,
    PciFunction,
    PciSpaces,
    StandardPciBridge,
    swizzle,
)
from pellucid.machine.pci.msi import PowerManagement
from pellucid.machine.state import StateError
from pellucid.memory import AddressSpace, MemoryRegion, RamBlock
from tests.machine.helpers import Counter

RAM = RamBlock("pci-test", 0x10_0000)
COMMAND, STATUS, BAR0, BAR1, BAR2 = 0x04, 0x06, 0x10, 0x14, 0x18


class Scratch:
    """Registers that hold what is written, and say which device they are."""

    def __init__(self, tag: int) -> None:
        self.tag = tag

    def read(self, offset: int, size: int) -> int:
        return self.tag & ((1 << 8 * size) - 1)

    def write(self, offset: int, size: int, value: int) -> None:
        self.tag = value


class Card(PciFunction):
    """A function with one BAR of each kind and every capability."""

    kind = "test-card"
    vendor_id, device_id, class_code, interrupt_pin = 0x1234, 0x5678, 0xFF0000, 1
    vendor_bytes_writable = False

    control = ConfigRegister(0x40, 4, reset=0xA5, writable=0xFFFF_FF00, write_clears=0x80)

    def __init__(self, tag: int = 0x11) -> None:
        super().__init__()
        self.written = Counter()
        self.memory_bar = Bar(0, MemoryRegion.new_io("card-mem", 0x1000, Scratch(tag)))
        self.io_bar = Bar(1, MemoryRegion.new_io("card-io", 0x20, Scratch(tag + 1)), BarKind.IO)
        big = MemoryRegion.new_container("card-big", 0x1_0000)
        self.big_bar = Bar(2, big, BarKind.MEMORY_64, prefetchable=True)
        for bar in (self.memory_bar, self.io_bar, self.big_bar):
            self.add_bar(bar)
        PowerManagement(self, 0x50)
        self.msi = Msi(self, 0x60, 4)
        self.msix = MsiX(self, 0x80, 3, self.big_bar)

    @control.after_write
    def _control_written(self) -> None:
        self.written(self.control)


class Rig:
    """A root bus with cards at 1.0 and 2.0, RAM in the first MiB, and both ways to configuration space."""

    def __init__(self) -> None:
        self.messages, self.pins = Counter(), Counter()
        system = MemoryRegion.new_container("system")
        pci, io = MemoryRegion.new_container("pci"), MemoryRegion.new_container("io", 0x1_0000)
        system.add_subregion(0, MemoryRegion.new_ram("ram", RAM))
        system.add_subregion_overlap(0, pci, -1)
        self.memory, self.ports = AddressSpace("memory", system), AddressSpace("I/O", io)
        self.bus = PciBus("pci.0", PciSpaces(pci, io, system, self.messages), self.pins)
        self.cards = [Card(0x11), Card(0x22)]
        for slot, card in enumerate(self.cards, 1):
            self.bus.add(slot, 0, card)
        self.ecam = Ecam(self.bus)
        self.mechanism = ConfigMechanism1(self.bus)

    def card(self, offset: int, value: int, size: int = 4, slot: int = 1) -> None:
        self.bus.config_write(0, slot << 3, offset, size, value)

    def get(self, offset: int, size: int = 4, slot: int = 1) -> int:
        return self.bus.config_read(0, slot << 3, offset, size)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_identity_and_masks(rig: Rig) -> None:
    assert rig.get(0) == 0x5678_1234 and rig.get(8) >> 8 == 0xFF0000
    rig.card(0, 0xFFFF_FFFF)
    assert rig.get(0) == 0x5678_1234
    rig.card(0x40, 0x1234_5680)
    assert rig.get(0x40) == 0x1234_5625  # the low byte is read-only, but for bit 7, which a 1 clears
    assert rig.cards[0].written.calls == [(0x1234_5625,)]


def test_bytes_and_misaligned_accesses_go_through_the_same_masks(rig: Rig) -> None:
    rig.card(0x41, 0xAB, 1)
    rig.card(0x42, 0xCDEF, 2)
    assert rig.get(0x40) == 0xCDEF_ABA5
    assert rig.get(0x41, 2) == 0xEFAB
    rig.bus.config_write(0, 1 << 3, 0xFE, 4, 0xFFFF_FFFF)  # passes the end: nobody answers
    assert rig.bus.config_read(0, 1 << 3, 0xFE, 4) == 0xFFFF_FFFF


def test_empty_slots_read_all_ones(rig: Rig) -> None:
    assert rig.get(0, slot=5) == 0xFFFF_FFFF and rig.bus.config_read(7, 0, 0, 2) == 0xFFFF
    rig.card(0, 1, slot=5)


@pytest.mark.parametrize(("offset", "answer"), [(BAR0, 0xFFFF_F000), (BAR1, 0xFFFF_FFE1), (BAR2, 0xFFFF_000C)])
def test_sizing(rig: Rig, offset: int, answer: int) -> None:
    rig.card(offset, 0xFFFF_FFFF)
    assert rig.get(offset) == answer


def test_a_bar_is_seen_where_it_is_put_while_it_is_enabled(rig: Rig) -> None:
    rig.card(BAR0, 0xE000_0000)
    rig.card(BAR1, 0xC000)
    assert rig.memory.find(0xE000_0000) is None
    rig.card(COMMAND, 0x3, 2)
    assert rig.memory.read(0xE000_0000, 1) == 0x11 and rig.ports.read(0xC000, 1) == 0x12
    rig.card(BAR0, 0xE100_0000)
    assert rig.memory.find(0xE000_0000) is None and rig.memory.read(0xE100_0000, 1) == 0x11
    rig.card(COMMAND, 0x1, 2)
    assert rig.memory.find(0xE100_0000) is None and rig.ports.read(0xC000, 1) == 0x12
    rig.cards[0].reset()
    assert rig.ports.find(0xC000) is None and rig.get(BAR1) == 1


def test_a_64_bit_bar_goes_above_4_gib(rig: Rig) -> None:
    rig.card(COMMAND, 0x2, 2)
    rig.card(BAR2, 0x8000_0000)
    rig.card(BAR2 + 4, 0x12)
    assert rig.cards[0].big_bar.address == 0x12_8000_0000
    rig.memory.write(0x12_8000_0000, 4, 0xFEE0_0000)
    assert rig.memory.read(0x12_8000_0000, 4) == 0xFEE0_0000


@pytest.mark.parametrize("value", [0, 0xFFFF_F000, 0xFFFF_FFFF])
def test_addresses_that_make_no_sense_decode_nothing(rig: Rig, value: int) -> None:
    rig.card(COMMAND, 0x7, 2)
    rig.card(BAR0, value)
    rig.card(BAR1, value)
    assert rig.cards[0].memory_bar.address is None and rig.cards[0].io_bar.address is None


def test_a_bar_over_ram_loses(rig: Rig) -> None:
    rig.memory.write(0x8000, 4, 0xCAFE)
    rig.card(BAR0, 0x8000)
    rig.card(COMMAND, 0x2, 2)
    assert rig.memory.read(0x8000, 4) == 0xCAFE


def test_of_two_bars_at_one_place_the_last_put_there_wins_and_neither_is_lost(rig: Rig) -> None:
    for slot in (1, 2):
        rig.card(BAR0, 0xE000_0000, slot=slot)
        rig.card(COMMAND, 0x2, 2, slot=slot)
    assert rig.memory.read(0xE000_0000, 1) == 0x22
    rig.card(COMMAND, 0, 2, slot=2)
    assert rig.memory.read(0xE000_0000, 1) == 0x11


def test_bars_must_be_powers_of_two() -> None:
    with pytest.raises(ValueError, match="power of two"):
        Bar(0, MemoryRegion.new_container("odd", 0x300))


def test_dma_needs_bus_mastering(rig: Rig) -> None:
    rig.memory.write(0x100, 4, 0x1234)
    assert rig.cards[0].dma.read(0x100, 4) == 0
    rig.card(COMMAND, 0x4, 2)
    assert rig.cards[0].dma.read(0x100, 4) == 0x1234


def test_mechanism_1(rig: Rig) -> None:
    idx, data = rig.mechanism.ops(0), rig.mechanism.ops(1)
    idx.write(0, 4, 0x8000_0840)
    data.write(1, 1, 0x77)
    assert data.read(0, 4) == 0x77A5 and data.read(1, 2) == 0x77
    idx.write(0, 2, 0xFFFF)  # only doublewords reach the address register
    assert idx.read(0, 4) == 0x8000_0840
    idx.write(0, 4, 0x0000_0840)
    assert data.read(0, 4) == 0xFFFF_FFFF


def test_ecam(rig: Rig) -> None:
    window = rig.ecam.ops()
    assert window.read(1 << 15, 4) == 0x5678_1234
    window.write((1 << 15) + 0x42, 2, 0xBEEF)
    assert rig.get(0x40) == 0xBEEF_00A5
    assert window.read((1 << 15) + 0x100, 4) == 0xFFFF_FFFF and window.read(200 << 20, 4) == 0xFFFF_FFFF


def test_interrupt_pin(rig: Rig) -> None:
    card = rig.cards[0]
    card.set_intx(True)
    assert rig.pins.calls == [(1, 0, True)] and rig.get(STATUS, 2) & 8
    rig.card(COMMAND, 0x400, 2)
    assert rig.pins.calls[-1] == (1, 0, False) and rig.get(STATUS, 2) & 8
    rig.card(COMMAND, 0, 2)
    card.reset()
    assert rig.pins.calls[-2:] == [(1, 0, True), (1, 0, False)]
    assert [swizzle(slot, 0) for slot in range(5)] == [0, 1, 2, 3, 0]


def test_capability_list(rig: Rig) -> None:
    assert rig.get(STATUS, 2) & 0x10
    found, at = [], rig.get(0x34, 1)
    while at:
        found.append(rig.get(at, 1))
        at = rig.get(at + 1, 1)
    assert found == [0x11, 0x05, 0x01]  # the newest first


def test_msi(rig: Rig) -> None:
    card = rig.cards[0]
    rig.card(COMMAND, 0x4, 2)
    rig.card(0x64, 0xFEE0_1000)
    rig.card(0x6C, 0x41, 2)
    card.msi.notify(0)
    assert rig.messages.calls == []
    rig.card(0x62, 0x0011, 2)  # enable, two vectors
    card.msi.notify(1)
    card.msi.notify(2)  # shares with vector 0
    assert rig.messages.calls == [(0xFEE0_1000, 0x41), (0xFEE0_1000, 0x40)]
    rig.card(0x70, 0x1)
    card.msi.notify(0)
    assert len(rig.messages.calls) == 2 and rig.get(0x74) == 1
    rig.card(0x70, 0)
    assert rig.messages.calls[-1] == (0xFEE0_1000, 0x40) and rig.get(0x74) == 0


def test_msix(rig: Rig) -> None:
    card = rig.cards[0]
    rig.card(COMMAND, 0x6, 2)
    rig.card(BAR2, 0x9000_0000)
    rig.memory.write(0x9000_0010, 8, 0xFEE0_2000)
    rig.memory.write(0x9000_0018, 4, 0x55)
    rig.card(0x82, 0x8000, 2)
    card.msix.notify(1)
    assert rig.messages.calls == [] and rig.memory.read(0x9000_0030, 8) == 2
    rig.memory.write(0x9000_001C, 4, 0)
    assert rig.messages.calls == [(0xFEE0_2000, 0x55)] and rig.memory.read(0x9000_0030, 8) == 0
    rig.memory.write(0x9000_0030, 8, 0xFF)
    assert rig.memory.read(0x9000_0030, 8) == 0
    card.msix.notify(3)


def bridged(rig: Rig) -> tuple[StandardPciBridge, Card]:
    bridge, card = StandardPciBridge(), Card(0x33)
    rig.bus.add(3, 0, bridge)
    behind = bridge.secondary()
    assert behind is not None
    behind.add(2, 0, card)
    rig.card(0x18, 0x0001_0100, slot=3)
    return bridge, card


def test_a_bridge_shows_what_lies_in_its_windows(rig: Rig) -> None:
    _, card = bridged(rig)
    assert rig.bus.config_read(1, 2 << 3, 0, 4) == 0x5678_1234
    rig.bus.config_write(1, 2 << 3, BAR0, 4, 0xE010_0000)
    rig.bus.config_write(1, 2 << 3, BAR1, 4, 0xC000)
    rig.bus.config_write(1, 2 << 3, COMMAND, 2, 3)
    rig.card(0x20, 0xE010_E010, slot=3)
    rig.card(0x1C, 0xC0C0, 2, slot=3)
    assert rig.memory.find(0xE010_0000) is None
    rig.card(COMMAND, 0x3, 2, slot=3)
    assert rig.memory.read(0xE010_0000, 1) == 0x33 and rig.ports.read(0xC000, 1) == 0x34
    rig.card(0x20, 0xE010_E020, slot=3)  # limit below base
    assert rig.memory.find(0xE010_0000) is None
    rig.card(0x3E, 0x40, 2, slot=3)  # secondary bus reset
    assert card.command == 0


def test_interrupts_behind_a_bridge_share_its_pins(rig: Rig) -> None:
    bridge, card = bridged(rig)
    other = Card(0x44)
    behind = bridge.secondary()
    assert behind is not None
    behind.add(6, 0, other)
    for level in (True, False):
        card.set_intx(level)
        other.set_intx(level)
    assert rig.pins.calls == [(3, 2, True), (3, 2, False)]


def test_bus_numbers_in_a_circle_lead_nowhere(rig: Rig) -> None:
    bridge, _ = bridged(rig)
    behind = bridge.secondary()
    assert behind is not None
    behind.add(1, 0, inner := StandardPciBridge())
    behind.config_write(0, 1 << 3, 0x18, 4, 0x00FF_0101)
    rig.card(0x18, 0x00FF_0100, slot=3)
    assert rig.bus.config_read(9, 0, 0, 4) == 0xFFFF_FFFF
    assert inner.secondary() is not None


def test_state_round_trip_and_bad_streams(rig: Rig) -> None:
    rig.card(BAR0, 0xE000_0000)
    rig.card(COMMAND, 0x2, 2)
    saved = rig.cards[0].save()
    rig.cards[1].load(saved)
    assert rig.cards[1].save() == saved and rig.cards[1].memory_bar.address == 0xE000_0000
    rig.cards[1].load({**saved, "config": b"\xff" * 256})
    assert rig.get(0, slot=2) == 0x5678_1234
    with pytest.raises(StateError):
        rig.cards[1].load({**saved, "config": b"short"})


accesses = st.lists(
    st.tuples(
        st.sampled_from("rwwwmei"),
        st.integers(0, 2),
        st.integers(0, 0x11F),
        st.sampled_from([1, 2, 4]),
        st.one_of(st.integers(0, 0xFFFF_FFFF), st.sampled_from([0xFFFF_FFFF, 0x8000, 0xE000_0000, 6, 7])),
    ),
    max_size=40,
)


@settings(max_examples=80)
@given(accesses)
def test_random_configuration_accesses(steps: list[tuple[str, int, int, int, int]]) -> None:
    rig = Rig()
    bridge, inner = bridged(rig)
    idx, data, window = rig.mechanism.ops(0), rig.mechanism.ops(1), rig.ecam.ops()
    for kind, bus, at, size, value in steps:
        if kind == "r":
            rig.bus.config_read(bus, value & 0xFF, at, size)
        elif kind == "w":
            rig.bus.config_write(bus, (1 + value % 3) << 3, at, size, value)
        elif kind == "m":
            idx.write(0, 4, value | 1 << 31)
            data.write(at & 3, size, value)
        elif kind == "e":
            window.write(bus << 20 | (value & 0x1F) << 15 | at, size, value)
        else:
            inner.set_intx(bool(value & 1))
            inner.msi.notify(at)
            inner.msix.notify(1)
    devices: list[Device] = [*rig.cards, bridge, inner]
    for device in devices:
        saved = device.save()
        device.reset()
        device.load(saved)
        assert device.save() == saved
        device.reset()
    assert rig.memory.find(0xE000_0000) is None
