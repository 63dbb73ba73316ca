"""The PC's chips one by one: PIIX3, power management, HPET, 8237, keyboard controller; and random guests."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.machine.device import Device
from pellucid.machine.devices.acpi_pm import CONTROL, PM_TIMER_HZ, TIMER
from pellucid.machine.devices.dma8237 import Dma8237, Dma8237Wide
from pellucid.machine.devices.hpet import Hpet
from pellucid.machine.devices.keyboard_controller import TO_SET_1, KeyboardController
from pellucid.machine.devices.piix3 import Piix3
from pellucid.machine.devices.piix4_pm import APM, GPE, Piix4Pm
from pellucid.machine.devices.ps2 import Ps2Keyboard, Ps2Mouse
from pellucid.machine.devices.reset_control import ResetControl
from pellucid.machine.pci import PciBus, PciSpaces
from pellucid.memory import AddressSpace, MemoryRegion, RamBlock
from pellucid.runtime import WakeReason
from tests.machine.helpers import Counter, HandClock, Wire, round_trip

RAM = RamBlock("chips-test", 0x2_0000)
SECOND = 1_000_000_000


def bus() -> PciBus:
    root = MemoryRegion.new_container("root")
    return PciBus("pci.0", PciSpaces(root, MemoryRegion.new_container("io", 0x1_0000), root, Counter()), Counter())


# PIIX3


def test_shared_pirqs_hold_their_interrupt_until_the_last_lets_go() -> None:
    wires = [Wire() for _ in range(16)]
    chip = Piix3(wires)
    chip.config_write(0x60, 4, 0x0A0B_0A0B)
    chip.route(1, 0, True)  # PIRQA
    chip.route(3, 0, True)  # PIRQC, to interrupt 11 too
    assert wires[11].level and not wires[10].level
    chip.route(1, 0, False)
    assert wires[11].level
    chip.config_write(0x62, 1, 0x80)
    assert not wires[11].level
    chip.config_write(0x62, 1, 0x0A)
    assert wires[10].level
    chip.reset()
    assert not wires[10].level


@pytest.mark.parametrize("irq", [0, 1, 2, 8, 13])
def test_reserved_interrupts_cannot_be_routed_to(irq: int) -> None:
    wires = [Wire() for _ in range(16)]
    chip = Piix3(wires)
    chip.config_write(0x60, 1, irq)
    chip.route(1, 0, True)
    assert not any(wire.level for wire in wires)


def test_reset_control() -> None:
    asked = Counter()
    control = ResetControl(asked, "piix3-reset-control")
    control.write(0, 1, 0x02)
    assert control.read(0, 1) == 0x02 and asked.calls == []
    control.write(0, 1, 0x06)
    assert len(asked.calls) == 1


# PIIX4


class Power:
    def __init__(self) -> None:
        self.sci, self.clock, self.off, self.slept, self.smi = Wire(), HandClock(), Counter(), Counter(), Counter()
        self.io = MemoryRegion.new_container("io", 0x1_0000)
        self.ports = AddressSpace("I/O", self.io)
        self.chip = Piix4Pm(
            self.sci, self.clock, self.io, self.off, self.slept, self.smi, gpe_base=0xAFE0, apm_base=0xB2
        )
        bus().add(1, 3, self.chip)
        self.chip.config_write(0x40, 4, 0x601)
        self.chip.config_write(0x80, 1, 1)


def test_the_block_goes_where_the_guest_puts_it() -> None:
    power = Power()
    power.clock.advance(SECOND)
    assert power.ports.read(0x608, 4) == PM_TIMER_HZ
    assert power.ports.read(0x609, 1) == PM_TIMER_HZ >> 8 & 0xFF
    power.chip.config_write(0x40, 4, 0x1001)
    assert power.ports.find(0x608) is None and power.ports.read(0x1008, 4) == PM_TIMER_HZ
    power.chip.reset()
    assert power.ports.find(0x1008) is None


def test_pm_timer_wraps_at_24_bits_and_interrupts_when_its_top_bit_changes() -> None:
    power = Power()
    power.ports.write(0x602, 2, 1)
    power.ports.write(0x604, 2, 1)
    power.clock.advance(3 * SECOND)
    assert power.sci.edges == 1 and power.ports.read(0x600, 2) == 1
    power.ports.write(0x600, 2, 1)
    assert not power.sci.level
    power.clock.advance(2 * SECOND)
    assert power.sci.level and power.ports.read(0x608, 4) == 5 * PM_TIMER_HZ - (1 << 24)


def test_power_button_and_sleep() -> None:
    power = Power()
    power.chip.press_power_button()
    assert power.ports.read(0x600, 2) == 0, "nobody wanted to know"
    power.ports.write(0x602, 2, 0x100)
    power.chip.press_power_button()
    assert power.ports.read(0x600, 2) == 0x100 and not power.sci.level
    power.ports.write(0xB2, 1, Piix4Pm.acpi_enable)
    assert power.ports.read(0x604, 2) == 1 and power.sci.level
    power.ports.write(0x604, 2, 0x2001 | 1 << 10)
    assert len(power.slept.calls) == 1 and power.off.calls == []
    power.chip.wake(WakeReason.OTHER)
    assert power.ports.read(0x600, 2) & 0x8000
    power.ports.write(0x604, 2, 0x2001)
    assert len(power.off.calls) == 1 and power.ports.read(0x604, 2) == 1


def test_gpe() -> None:
    power = Power()
    power.ports.write(0x604, 2, 1)
    power.chip.gpe_status_low = 0x02
    power.ports.write(0xAFE2, 1, 0x02)
    assert power.sci.level
    power.ports.write(0xAFE0, 1, 0x02)
    assert not power.sci.level


# HPET


class Timers:
    def __init__(self) -> None:
        self.clock, self.legacy = HandClock(), Counter()
        self.lines = {0: Wire(), 2: Wire(), 8: Wire()}
        self.chip = Hpet(self.clock, self.lines, self.legacy)

    def set64(self, offset: int, value: int) -> None:
        self.chip.write(offset, 4, value & 0xFFFF_FFFF)
        self.chip.write(offset + 4, 4, value >> 32)

    def get64(self, offset: int) -> int:
        return self.chip.read(offset, 4) | self.chip.read(offset + 4, 4) << 32


def test_hpet_counts_while_enabled() -> None:
    timers = Timers()
    assert timers.get64(0) == 0x0098_9680_8086_A201
    timers.clock.advance(1000)
    assert timers.get64(0xF0) == 0
    timers.set64(0xF0, 1 << 40)
    timers.chip.write(0x10, 4, 1)
    timers.clock.advance(1000)
    assert timers.get64(0xF0) == (1 << 40) + 100
    timers.chip.write(0x10, 4, 0)
    timers.clock.advance(1000)
    assert timers.get64(0xF0) == (1 << 40) + 100


def test_hpet_one_shot() -> None:
    timers = Timers()
    timers.chip.write(0x100, 4, 0x04 | 2 << 9)
    timers.set64(0x108, 500)
    timers.chip.write(0x10, 4, 1)
    timers.clock.advance(4990)
    assert timers.lines[2].edges == 0
    timers.clock.advance(10)
    assert timers.lines[2].edges == 1
    timers.clock.advance(SECOND)
    assert timers.lines[2].edges == 1


def test_hpet_periodic_in_legacy_replacement() -> None:
    timers = Timers()
    timers.chip.write(0x100, 4, 0x04 | 0x08 | 0x40 | 0x100)
    timers.chip.write(0x108, 4, 100_000)
    timers.chip.write(0x108, 4, 100_000)
    timers.chip.write(0x10, 4, 3)
    timers.clock.advance(10_500_000)
    assert timers.lines[0].edges == 10 and timers.legacy.calls == [(True,)]
    rtc = timers.chip.rtc_line()
    rtc.set(True)
    assert not timers.lines[8].level
    timers.chip.write(0x10, 4, 1)
    assert timers.lines[8].level and timers.legacy.calls[-1] == (False,)


def test_hpet_level_triggered() -> None:
    timers = Timers()
    timers.chip.write(0x120, 4, 0x06 | 2 << 9)
    timers.set64(0x128, 10)
    timers.chip.write(0x10, 4, 1)
    timers.clock.advance(1000)
    assert timers.lines[2].level and timers.chip.read(0x20, 4) == 2
    timers.chip.write(0x20, 4, 2)
    assert not timers.lines[2].level


def test_the_shortest_period_keeps_nobody_busy() -> None:
    timers = Timers()
    timers.chip.write(0x100, 4, 0x04 | 0x08 | 0x40 | 0x100 | 2 << 9)
    timers.chip.write(0x108, 4, 1)
    timers.chip.write(0x108, 4, 1)
    timers.chip.write(0x10, 4, 1)
    timers.clock.advance(10_000_000)
    assert 1 < timers.lines[2].edges <= 201


# 8237


def dma(wide: bool = False) -> Dma8237:
    root = MemoryRegion.new_container("root")
    root.add_subregion(0, MemoryRegion.new_ram("ram", RAM))
    return (Dma8237Wide if wide else Dma8237)(AddressSpace("memory", root))


def program(chip: Dma8237, channel: int, mode: int, page: int, address: int, count: int) -> None:
    step = 1 << chip.shift
    chip.region_write(1, 5 * step, 1, 0)  # master clear
    chip.region_write(1, 3 * step, 1, mode | channel)
    chip.region_write(2, {2: 0, 3: 1, 1: 2}[channel], 1, page)
    for register, value in ((2 * channel, address), (2 * channel + 1, count)):
        chip.region_write(0, register * step, 1, value & 0xFF)
        chip.region_write(0, register * step, 1, value >> 8)
    chip.region_write(1, 2 * step, 1, channel)


def test_dma_moves_a_block_to_memory_and_stops() -> None:
    chip = dma()
    program(chip, 2, 0x44, 1, 0x100, 3)
    assert chip.left(2) == 4
    assert chip.to_memory(2, b"abcdef") == 4
    assert bytes(RAM.view[0x1_0100:0x1_0106]) == b"abcd\0\0"
    assert chip.region_read(1, 0, 1) == 0x04 and chip.region_read(1, 0, 1) == 0
    assert chip.to_memory(2, b"x") == 0  # masked by the terminal count


def test_dma_wraps_within_its_page_and_restarts() -> None:
    chip = dma()
    RAM.view[0:2] = b"BC"
    RAM.view[0xFFFF:0x1_0000] = b"A"
    program(chip, 1, 0x58, 0, 0xFFFF, 2)
    assert chip.from_memory(1, 3) == b"ABC"
    assert chip.from_memory(1, 1) == b"A"


def test_wide_dma_counts_words() -> None:
    chip = dma(wide=True)
    program(chip, 1, 0x44, 1, 0x80, 1)
    assert chip.to_memory(1, b"wxyz!") == 4
    assert bytes(RAM.view[0x100:0x104]) == b"wxyz"


# Keyboard controller


class Keys:
    def __init__(self) -> None:
        self.keyboard, self.mouse, self.irq1, self.irq12, self.reset = (
            Ps2Keyboard(),
            Ps2Mouse(),
            Wire(),
            Wire(),
            Counter(),
        )
        self.chip = KeyboardController(self.keyboard, self.mouse, self.irq1, self.irq12, self.reset)

    def drain(self) -> bytes:
        out = bytearray()
        while self.chip.region_read(1, 0, 1) & 1:
            out.append(self.chip.region_read(0, 0, 1))
        return bytes(out)

    def command(self, value: int, *data: int) -> bytes:
        self.chip.region_write(1, 0, 1, value)
        for byte in data:
            self.chip.region_write(0, 0, 1, byte)
        return self.drain()

    def to_keyboard(self, value: int) -> bytes:
        self.chip.region_write(0, 0, 1, value)
        return self.drain()


def test_controller_commands() -> None:
    keys = Keys()
    assert keys.command(0xAA) == b"\x55" and keys.command(0xAB) == b"\0" and keys.command(0xA9) == b"\0"
    assert keys.command(0x60, 0x45) == b"" and keys.command(0x20) == b"\x45"
    assert keys.command(0xD2, 0x77) == b"\x77"
    keys.command(0xFE)
    assert len(keys.reset.calls) == 1


def test_keyboard_commands() -> None:
    keys = Keys()
    assert keys.to_keyboard(0xFF) == b"\xfa\xaa" and keys.to_keyboard(0xF2) == b"\xfa\xab\x83"
    assert keys.to_keyboard(0xED) + keys.to_keyboard(7) == b"\xfa\xfa" and keys.keyboard.leds == 7
    assert keys.to_keyboard(0xF0) + keys.to_keyboard(0) == b"\xfa\xfa\x02"
    assert keys.to_keyboard(0x55) == b"\xfe"


def test_keys_are_translated_and_interrupt_one_by_one() -> None:
    keys = Keys()
    keys.command(0x60, 0x41)
    keys.keyboard.send(b"\x1c\xf0\x1c")  # A down and up, set 2
    keys.chip.changed()
    assert keys.irq1.level and keys.drain() == b"\x1e\x9e"
    assert keys.irq1.edges == 2 and not keys.irq1.level
    keys.command(0x60, 0x01)
    keys.keyboard.send(b"\xf0\x1c")
    keys.chip.changed()
    assert keys.drain() == b"\xf0\x1c" and len(TO_SET_1) == 0x84


def test_mouse() -> None:
    keys = Keys()
    assert keys.command(0xD4, 0xFF) == b"\xfa\xaa\0"
    for rate in (200, 100, 80):
        keys.command(0xD4, 0xF3)
        keys.command(0xD4, rate)
    assert keys.command(0xD4, 0xF2) == b"\xfa\x03"
    keys.command(0xD4, 0xF4)
    keys.mouse.move(300, -5, 1, buttons=1)
    keys.chip.changed()
    assert keys.irq12.level and keys.chip.region_read(1, 0, 1) & 0x20
    assert keys.drain() == b"\x29\xff\xfb\x01" + b"\x09\x2d\x00\x00"


def test_queues_are_bounded() -> None:
    keys = Keys()
    for _ in range(1000):
        keys.keyboard.send(b"\x1c")
        keys.mouse.enabled = True
        keys.mouse.move(10_000, 10_000)
    assert len(keys.keyboard.queue) <= 256 and len(keys.mouse.queue) <= 256


# All of them


def power_chip(clock: HandClock) -> Piix4Pm:
    io = MemoryRegion.new_container("io", 0x1_0000)
    return Piix4Pm(Wire(), clock, io, Counter(), Counter(), Counter(), gpe_base=0xAFE0, apm_base=0xB2)


MAKERS: dict[str, Callable[[HandClock], Device]] = {
    "hpet": lambda clock: Hpet(clock, {0: Wire(), 2: Wire(), 8: Wire()}),
    "dma": lambda _: dma(),
    "wide dma": lambda _: dma(wide=True),
    "keyboard controller": lambda _: KeyboardController(Ps2Keyboard(), Ps2Mouse(), Wire(), Wire(), Counter()),
    "power management": power_chip,
}
steps = st.lists(
    st.tuples(
        st.sampled_from("rwwwt"),
        st.integers(0, 4),
        st.integers(0, 0x14F),
        st.integers(0, 1 << 64) | st.integers(0, 255),
    ),
    max_size=60,
)


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=60)
@given(steps)
def test_random_accesses(name: str, steps: list[tuple[str, int, int, int]]) -> None:
    clock = HandClock()
    device = MAKERS[name](clock)
    for kind, index, offset, value in steps:
        index %= len(device.regions)
        region = device.regions[index]
        size = region.impl.min
        offset = offset % region.size & -size
        if kind == "r":
            assert 0 <= device.region_read(index, offset, size) < 1 << 8 * size
        elif kind == "w":
            device.region_write(index, offset, size, value & ((1 << 8 * size) - 1))
        else:
            clock.advance(value % (1 << 27))
    if isinstance(device, Dma8237):
        for channel in range(4):
            device.to_memory(channel, b"12345")
            device.from_memory(channel, 5)
    if name != "power management":  # loading looks at the time, which moves its status
        round_trip(device, MAKERS[name](HandClock(clock.now)))
    device.reset()


def test_power_management_offsets_are_those_of_its_regions() -> None:
    chip = power_chip(HandClock())
    assert [chip.regions[index].name for index in (CONTROL, TIMER, GPE, APM)] == [
        "acpi-cnt",
        "acpi-tmr",
        "acpi-gpe0",
        "apm-io",
    ]
