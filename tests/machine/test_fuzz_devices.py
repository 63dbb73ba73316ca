"""Random accesses on every device: nothing raises, hangs or answers out of range, and state stays saveable."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.machine.chardev.base import MemoryChardev
from pellucid.machine.device import Device
from pellucid.machine.devices.acpi_ged import AcpiGed
from pellucid.machine.devices.debugcon import DebugCon
from pellucid.machine.devices.fw_cfg import FwCfg
from pellucid.machine.devices.i8042 import I8042
from pellucid.machine.devices.port92 import Port92
from pellucid.machine.devices.rtc import Rtc
from pellucid.machine.devices.serial import Serial
from pellucid.memory import AddressSpace, MemoryRegion, RamBlock
from tests.machine.helpers import Counter, HandClock, Wire

SMALL_RAM = RamBlock("fuzz", 0x4000)


def fw_cfg(_: HandClock) -> FwCfg:
    root = MemoryRegion.new_container("system")
    root.add_subregion(0, MemoryRegion.new_ram("ram", SMALL_RAM))
    return FwCfg(AddressSpace("memory", root))


MAKERS: dict[str, Callable[[HandClock], Device]] = {
    "serial": lambda clock: Serial(Wire(), MemoryChardev(capacity=256), clock),
    "rtc": lambda clock: Rtc(Wire(), clock, lambda: clock.now),
    "i8042": lambda _: I8042(Counter(), Counter()),
    "port92": lambda _: Port92(Counter(), Counter()),
    "debugcon": lambda _: DebugCon(MemoryChardev(capacity=16)),
    "ged": lambda _: AcpiGed(Wire(), Counter(), Counter()),
    "fw_cfg": fw_cfg,
}

values = st.one_of(st.integers(0, 0xFF), st.integers(0, 0xFFFF_FFFF_FFFF_FFFF), st.sampled_from([0, 0x80, 0x83, 0xFF]))
operations = st.lists(
    st.tuples(st.sampled_from("rrwwwt"), st.integers(0, 1), st.integers(0, 9), st.sampled_from([1, 2, 4, 8]), values),
    max_size=60,
)


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=60)
@given(operations)
def test_random_accesses(name: str, steps: list[tuple[str, int, int, int, int]]) -> None:
    clock = HandClock()
    device = MAKERS[name](clock)
    for kind, region, offset, size, value in steps:
        region %= len(device.regions)
        if kind == "r":
            assert 0 <= device.region_read(region, offset, size) < 1 << 8 * size
        elif kind == "w":
            device.region_write(region, offset, size, value)
        else:
            # Capped so that a periodic interrupt at its highest rate stays within the clock's patience.
            clock.advance(value % (1 << 28))
    saved = device.save()
    fresh = MAKERS[name](HandClock(clock.now))
    fresh.load(saved)
    if name != "rtc":  # loading looks at the time, which moves the clock chip's flags
        assert fresh.save() == saved
    device.reset()


def test_a_uart_fed_while_it_is_misprogrammed() -> None:
    clock = HandClock()
    line = MemoryChardev()
    uart = Serial(Wire(), line, clock)
    for value in range(256):
        for offset in range(1, 5):
            uart.write(offset, 1, value)
        line.feed(b"xyz")
        clock.advance(10**6)
        assert len(uart.receive_fifo) <= 16 and len(uart.transmit_fifo) <= 16
