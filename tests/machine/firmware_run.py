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
    machines: list[Machine] = []
    ended = threading.Event()
    failures: list[BaseException] = []
    real = boards.BOARDS[board]

    def build(machine: Machine, serials: list[Chardev | None]) -> None:
        real.build(machine, serials)
        machines.append(machine)

    def watch() -> None:
        # The time counts from the board on: before it, the processor may have to be compiled.
        while not machines:
            if ended.wait(0.05):
                return
        end = time.monotonic() + seconds
        while time.monotonic() < end and until not in output.read_bytes() and not ended.wait(0.05):
            pass
        try:
            with machines[0].loop.bql:
                then(machines[0])
        except BaseException as error:
            failures.append(error)
        finally:
            machines[0].system.requests.shutdown(ShutdownCause.HOST_UI)

    boards.BOARDS[board] = boards.Board(board, real.description, build, real.has_firmware)
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        serials = (CharBackend(CharBackendKind.FILE, path=output),)
        run_machine(
            MachineConfig(board=board, serials=serials, memory_size=memory_size, drives=drives, default_drives=False)
        )
    finally:
        ended.set()
        boards.BOARDS[board] = real
        watcher.join()
    if failures:
        raise failures[0]
    return output.read_bytes()
