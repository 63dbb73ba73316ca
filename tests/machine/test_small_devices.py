"""i8042, port 0x92, debug console, ACPI event device, fw_cfg."""

import struct

import pytest

from pellucid.errors import UserError
from pellucid.machine.chardev.base import MemoryChardev
from pellucid.machine.devices.acpi_ged import AcpiGed
from pellucid.machine.devices.debugcon import DebugCon
from pellucid.machine.devices.fw_cfg import FwCfg
from pellucid.machine.devices.i8042 import I8042
from pellucid.machine.devices.port92 import Port92
from pellucid.memory import AddressSpace, MemoryRegion, RamBlock
from tests.machine.helpers import Counter, Wire, round_trip


class Controller:
    def __init__(self) -> None:
        self.reset, self.a20 = Counter(), Counter()
        self.chip = I8042(self.reset, self.a20)

    def command(self, value: int) -> None:
        self.chip.region_write(1, 0, 1, value)

    def status(self) -> int:
        return self.chip.region_read(1, 0, 1)

    def data(self) -> int:
        return self.chip.read(0, 1)


def test_i8042_reset_pulse() -> None:
    controller = Controller()
    controller.command(0xFF)
    controller.command(0xF1)
    assert not controller.reset.calls
    controller.command(0xFE)
    controller.command(0xF0)
    assert len(controller.reset.calls) == 2


def test_i8042_self_tests() -> None:
    controller = Controller()
    for command, answer in ((0xAA, 0x55), (0xAB, 0x00), (0xA9, 0x00)):
        controller.command(command)
        assert controller.status() & 0x01
        assert controller.data() == answer
        assert not controller.status() & 0x01
    assert controller.status() & 0x04, "the system flag stands after the self test"


def test_i8042_command_byte_and_enables() -> None:
    controller = Controller()
    controller.command(0x60)
    assert controller.status() & 0x08
    controller.chip.write(0, 1, 0x47)
    assert not controller.status() & 0x08
    controller.command(0xAD)
    controller.command(0xA7)
    controller.command(0x20)
    assert controller.data() == 0x77
    controller.command(0xAE)
    controller.command(0xA8)
    controller.command(0x20)
    assert controller.data() == 0x47


def test_i8042_a20_and_reset_through_the_output_port() -> None:
    controller = Controller()
    controller.command(0xD1)
    controller.chip.write(0, 1, 0xDD)
    controller.command(0xD1)
    controller.chip.write(0, 1, 0xDF)
    controller.command(0xDD)
    controller.command(0xDF)
    assert controller.a20.calls == [(False,), (True,), (False,), (True,)]
    controller.command(0xD0)
    assert controller.data() == 0xDF
    assert not controller.reset.calls
    controller.command(0xD1)
    controller.chip.write(0, 1, 0xDE)
    assert len(controller.reset.calls) == 1


def test_i8042_has_no_keyboard() -> None:
    controller = Controller()
    controller.chip.write(0, 1, 0xED)
    assert controller.status() & 0x41 == 0x41
    assert controller.data() == 0xFE
    controller.command(0xAA)
    assert not controller.status() & 0x40


def test_port92() -> None:
    reset, a20 = Counter(), Counter()
    port = Port92(reset, a20)
    assert port.read(0, 1) == 0x00
    port.write(0, 1, 0x02)
    port.write(0, 1, 0x02)
    port.write(0, 1, 0x00)
    port.write(0, 1, 0x02)
    assert a20.calls == [(True,), (True,), (False,), (True,)] and not reset.calls
    port.write(0, 1, 0x03)
    assert len(reset.calls) == 1 and port.read(0, 1) == 0x02


def test_debugcon() -> None:
    out = MemoryChardev()
    console = DebugCon(out)
    assert console.read(0, 1) == 0xE9
    for byte in b"SeaBIOS":
        console.write(0, 1, byte)
    assert out.output == b"SeaBIOS"


class Ged:
    def __init__(self) -> None:
        self.irq, self.off, self.reset = Wire(), Counter(), Counter()
        self.chip = AcpiGed(self.irq, self.off, self.reset)


def test_ged_power_button() -> None:
    ged = Ged()
    ged.chip.press_power_button()
    assert ged.irq.edges == 1 and not ged.irq.level
    assert ged.chip.read(0, 4) == 0x02
    assert ged.chip.read(0, 4) == 0
    ged.chip.write(0, 4, 0xFFFF_FFFF)
    assert ged.chip.read(0, 4) == 0


def test_ged_sleep_and_reset_registers() -> None:
    ged = Ged()
    for value in (0x14, 0x20, 0x3C, 0x24):
        ged.chip.region_write(1, 0, 1, value)
    for value in (0x00, 0x41, 0xFF):
        ged.chip.region_write(1, 2, 1, value)
    assert not ged.off.calls and not ged.reset.calls
    ged.chip.region_write(1, 0, 1, 0x34)
    ged.chip.region_write(1, 2, 1, 0x42)
    assert len(ged.off.calls) == 1 and len(ged.reset.calls) == 1
    assert [ged.chip.region_read(1, offset, 1) for offset in range(3)] == [0, 0, 0]
    fresh = Ged()
    ged.chip.press_power_button()
    round_trip(ged.chip, fresh.chip)
    assert fresh.chip.read(0, 4) == 0x02


class Firmware:
    """A fw_cfg device with 64 KiB of memory at 0 for its transfers, reached through the memory floor."""

    def __init__(self) -> None:
        self.block = RamBlock("ram", 0x10000)
        root = MemoryRegion.new_container("system")
        root.add_subregion(0, MemoryRegion.new_ram("ram", self.block))
        self.memory = AddressSpace("memory", root)
        self.device = FwCfg(self.memory)
        ports = MemoryRegion.new_container("io", 0x10000)
        for index, base in enumerate((0x510, 0x514)):
            ports.add_subregion(base, self.device.regions[index].memory_region(self.device.ops(index)))
        self.ports = AddressSpace("I/O", ports)

    def read(self, key: int, size: int) -> bytes:
        self.ports.write(0x510, 2, key)
        return bytes(self.ports.read(0x511, 1) for _ in range(size))

    def dma(self, control: int, length: int, address: int, *, block: int = 0x100) -> int:
        self.memory.write_bytes(block, struct.pack(">IIQ", control, length, address))
        self.ports.write(0x514, 4, int.from_bytes((block >> 32).to_bytes(4, "big"), "little"))
        self.ports.write(0x518, 4, int.from_bytes((block & 0xFFFF_FFFF).to_bytes(4, "big"), "little"))
        return int.from_bytes(self.memory.read_bytes(block, 4), "big")


def test_fw_cfg_signature_and_directory() -> None:
    firmware = Firmware()
    assert firmware.read(0, 6) == b"QEMU\0\0"
    assert firmware.read(1, 4) == b"\3\0\0\0"
    firmware.device.add_file("etc/one", b"first")
    firmware.device.add_file("etc/two", b"second!")
    firmware.device.add_file("etc/one", b"changed")
    directory = firmware.read(0x19, 4 + 2 * 64)
    assert directory[:4] == b"\0\0\0\2"
    size, key, _, name = struct.unpack_from(">IHH56s", directory, 4 + 64)
    assert (size, key, name.rstrip(b"\0")) == (7, 0x21, b"etc/two")
    assert firmware.read(0x20, 7) == b"changed"
    with pytest.raises(UserError, match="1 to 55 bytes"):
        firmware.device.add_file("x" * 56, b"")


def test_fw_cfg_reads_past_the_end_and_of_nothing_are_zero() -> None:
    firmware = Firmware()
    firmware.device.add_item(7, b"ab")
    assert firmware.read(7, 4) == b"ab\0\0"
    assert firmware.read(0x1234, 2) == b"\0\0"
    firmware.ports.write(0x510, 1, 7)  # not a selection: that takes a word
    assert firmware.ports.read(0x511, 1) == 0


def test_fw_cfg_dma() -> None:
    firmware = Firmware()
    firmware.device.add_item(9, bytes(range(1, 201)))
    dma_signature = firmware.ports.read(0x514, 4) | firmware.ports.read(0x518, 4) << 32
    assert dma_signature.to_bytes(8, "little") == b"QEMU CFG"
    assert firmware.dma(9 << 16 | 0x0A, 100, 0x1000) == 0
    assert firmware.memory.read_bytes(0x1000, 101) == bytes(range(1, 101)) + b"\0"
    assert firmware.dma(0x04, 50, 0) == 0
    assert firmware.dma(0x02, 4, 0x2000) == 0
    assert firmware.memory.read_bytes(0x2000, 4) == bytes(range(151, 155))
    assert firmware.dma(0x10, 4, 0x2000) == 1, "nothing can be written"
    assert firmware.dma(9 << 16 | 0x0A, 0xFFFF_FFFF, 0xF000) == 1, "runs into nowhere"
    assert firmware.memory.read_bytes(0xF000, 4) == bytes(range(1, 5))


def test_fw_cfg_control_block_outside_memory_does_nothing() -> None:
    firmware = Firmware()
    before = bytes(firmware.block.view)
    firmware.ports.write(0x514, 4, 0xFFFF_FFFF)
    firmware.ports.write(0x518, 4, 0xFFFF_FFFF)
    assert bytes(firmware.block.view) == before
