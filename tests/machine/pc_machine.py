"""A `pc` board on the scripted hypervisor, with a made-up firmware, for tests that need no processor."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pellucid.machine.board import BOARDS
from pellucid.machine.config import MachineConfig
from pellucid.machine.device import Device
from pellucid.machine.machine import Machine
from pellucid.runtime import BigLock, MainLoop, VirtualClock
from tests.machine.fake_hypervisor import FakeHypervisor

FIRMWARE_SIZE = 256 << 10
D = TypeVar("D", bound=Device)


def firmware(folder: Path) -> Path:
    """256 KiB, each paragraph numbered, so that a test sees which part of it is where."""
    path = folder / "bios.bin"
    path.write_bytes(b"".join(number.to_bytes(4, "little") * 4 for number in range(FIRMWARE_SIZE // 16)))
    return path


@contextmanager
def pc_machine(folder: Path, memory_size: int = 128 << 20, board: str = "pc", **changes: Any) -> Iterator[Machine]:
    """The board `pc` or `q35`, built and not started."""
    options = {"firmware": str(firmware(folder)), **changes.pop("board_options", {})}
    config = MachineConfig(board=board, board_options=options, memory_size=memory_size, serials=(), **changes)
    loop, clock = MainLoop(BigLock()), VirtualClock()
    machine = Machine(config, FakeHypervisor(), loop, clock, lambda text: None)
    try:
        with loop.bql:
            BOARDS[board].build(machine, [])
            yield machine
    finally:
        machine.close()
        loop.close()


def device(machine: Machine, kind: type[D]) -> D:
    """The board's device of that class."""
    return next(found for found in machine.devices if isinstance(found, kind))


def outl_config(machine: Machine, devfn: int, offset: int, value: int, size: int = 4) -> None:
    """Write configuration space of bus 0 through the ports."""
    machine.ports.write(0xCF8, 4, 0x8000_0000 | devfn << 8 | offset & 0xFC)
    machine.ports.write(0xCFC + (offset & 3), size, value)


def inl_config(machine: Machine, devfn: int, offset: int, size: int = 4) -> int:
    """Read it."""
    machine.ports.write(0xCF8, 4, 0x8000_0000 | devfn << 8 | offset & 0xFC)
    return machine.ports.read(0xCFC + (offset & 3), size)
