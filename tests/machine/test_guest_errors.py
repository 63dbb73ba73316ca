"""A guest that programs nonsense gets what the hardware gives, and `-d guest_errors` says who it was and where."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from pellucid.machine.devices.pci_testdev import PciTestdev
from pellucid.machine.dma import ScatterList
from pellucid.machine.log import LOG_ITEMS
from pellucid.machine.machine import Machine
from tests.machine.pc_machine import inl_config, outl_config, pc_machine

FIRST, SECOND = 4 << 3, 5 << 3
COMMAND, BAR0, BAR1 = 0x04, 0x10, 0x14
IO, MEMORY, MASTER = 1, 2, 4


@pytest.fixture
def machine(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Machine]:
    name = "pellucid.memory.invalid"
    assert name in LOG_ITEMS["guest_errors"].loggers
    with pc_machine(tmp_path) as built, caplog.at_level(logging.DEBUG, name):
        for slot in (4, 5):
            assert built.pci is not None
            built.pci.add(slot, 0, PciTestdev(0))
        caplog.clear()
        yield built


def place(machine: Machine, devfn: int, memory: int = 0, port: int = 0) -> None:
    outl_config(machine, devfn, BAR0, memory)
    outl_config(machine, devfn, BAR1, port)
    outl_config(machine, devfn, COMMAND, IO | MEMORY, 2)


def test_bars_over_each_other(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    place(machine, FIRST, memory=0xE000_0000, port=0xC000)
    assert caplog.messages == []
    place(machine, SECOND, memory=0xE000_0000, port=0xC000)
    assert caplog.messages == [
        "pci-testdev at 05.0: BAR 0, memory 0xe0000000 to 0xe0000fff, overlaps 'pci-testdev-mmio'",
        "pci-testdev at 05.0: BAR 1, port 0xc000 to 0xc0ff, overlaps 'pci-testdev-portio'",
    ]
    assert machine.memory.find(0xE000_0000) is not None


def test_a_bar_over_ram_loses(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    machine.memory.write(0x10_0000, 4, 0xCAFE)
    place(machine, FIRST, memory=0x10_0000)
    (said,) = caplog.messages
    assert said == "pci-testdev at 04.0: BAR 0, memory 0x100000 to 0x100fff, overlaps 'pc.ram'"
    assert machine.memory.read(0x10_0000, 4) == 0xCAFE


def test_a_bar_over_a_chip(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    place(machine, FIRST, memory=0xFED0_0000, port=0x100)
    text = " ".join(caplog.messages)
    assert "BAR 0, memory 0xfed00000 to 0xfed00fff, overlaps 'hpet'" in text
    assert "BAR 1, port 0x100 to 0x1ff, overlaps 'ide'" in text


def test_nothing_is_said_where_nobody_listens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pc_machine(tmp_path) as built:
        assert built.pci is not None
        built.pci.add(4, 0, PciTestdev(0))
        place(built, FIRST, memory=0x10_0000)
    assert caplog.messages == []


def test_accesses_that_no_device_takes(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    assert machine.memory.read(0xFED0_0001, 4) == 0  # the HPET, between two of its registers
    assert "'hpet'+0x1: invalid read of 1 bytes: sizes 4 to 4 only" in caplog.messages
    assert machine.memory.read(0xD000_0000, 4) == 0 and machine.ports.read(0x5678, 2) == 0xFFFF
    assert "memory 0xd0000000: read of 4 bytes, nothing is there" in caplog.messages
    assert "port 0x5678: read of 2 bytes, nothing is there" in caplog.messages
    machine.memory.write(0xFFFF_FFF0, 1, 0x55)
    assert any("0xfffffff0: write of 1 bytes, read-only" in said for said in caplog.messages)


def test_dma_to_nowhere(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    ide = next(device for device in machine.devices if device.kind == "piix3-ide")
    space = ide.dma  # type: ignore[attr-defined]
    assert inl_config(machine, 1 << 3 | 1, COMMAND, 2) & MASTER == 0
    ScatterList(space, [(0x1000, 16)], 16, to_memory=False)
    assert caplog.messages == ["piix3-ide 0x1000: read of 16 bytes, nothing is there"]
    caplog.clear()
    outl_config(machine, 1 << 3 | 1, COMMAND, MASTER, 2)
    into = ScatterList(space, [(0xD000_0000, 32)], 32, to_memory=True)
    into.fill(bytes(32))
    assert caplog.messages == ["piix3-ide 0xd0000000: write of 32 bytes, nothing is there"]
