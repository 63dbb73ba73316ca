"""Runs a board with Debian's SeaBIOS until its serial console says something."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from pellucid.block import DriveOptions
from pellucid.machine import board as boards
from pellucid.machine.chardev import Chardev
from pellucid.machine.config import CharBackend, CharBackendKind, MachineConfig
from pellucid.machine.machine import Machine
from pellucid.machine.run import run_machine
from pellucid.runtime import ShutdownCause


def run_firmware(
    folder: Path,
    until: bytes,
    seconds: float,
    *,
    board: str = "pc",
    memory_size: int = 128 << 20,
    drives: tuple[DriveOptions, ...] = (),
    then: Callable[[Machine], None] = lambda machine: None,
) -> bytes:
    """A board with these drives only: the serial output, when it has `until` in it or the time is over.

    Before the end, `then(machine)`, locked.
    """
    output = folder / "serial"
    watch = Watch(output, until, seconds, then)
    real = boards.BOARDS[board]

    def build(machine: Machine, serials: list[Chardev | None]) -> None:
        real.build(machine, serials)
        watch.machines.append(machine)

    boards.BOARDS[board] = boards.Board(board, real.description, build, real.has_firmware)
    watch.start()
    try:
        serials = (CharBackend(CharBackendKind.FILE, path=output),)
        run_machine(
            MachineConfig(board=board, serials=serials, memory_size=memory_size, drives=drives, default_drives=False)
        )
    finally:
        watch.ended.set()
        boards.BOARDS[board] = real
        watch.join()
    if watch.failures:
        raise watch.failures[0]
    return output.read_bytes()


class Watch(threading.Thread):
    """Ends the machine that is put into `machines` when its output has `until` in it, or the time is over."""

    def __init__(self, output: Path, until: bytes, seconds: float, then: Callable[[Machine], None]) -> None:
        super().__init__()
        self.output, self.until, self.seconds, self.then = output, until, seconds, then
        self.machines: list[Machine] = []
        self.ended = threading.Event()
        self.failures: list[BaseException] = []

    def run(self) -> None:
        # The time counts from the board on: before it, the processor may have to be compiled.
        while not self.machines:
            if self.ended.wait(0.05):
                return
        machine, end = self.machines[0], time.monotonic() + self.seconds
        while time.monotonic() < end and self.until not in self.output.read_bytes() and not self.ended.wait(0.05):
            pass
        try:
            with machine.loop.bql:
                self.then(machine)
        except BaseException as error:
            self.failures.append(error)
        finally:
            machine.system.requests.shutdown(ShutdownCause.HOST_UI)
