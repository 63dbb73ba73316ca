"""Runs the `pc` board with a real firmware image until its serial console says something."""

import threading
import time
from pathlib import Path

from pellucid.machine import board
from pellucid.machine.boards.pc import build_pc
from pellucid.machine.chardev import Chardev
from pellucid.machine.config import CharBackend, CharBackendKind, MachineConfig
from pellucid.machine.machine import Machine
from pellucid.machine.run import run_machine
from pellucid.runtime import ShutdownCause


def run_firmware(folder: Path, until: bytes, seconds: float) -> bytes:
    """The serial output, when it has `until` in it or the time is over."""
    output = folder / "serial"
    machines: list[Machine] = []
    ended = threading.Event()

    def build(machine: Machine, serials: list[Chardev | None]) -> None:
        build_pc(machine, serials)
        machines.append(machine)

    def watch() -> None:
        # The time counts from the board on: before it, the processor may have to be compiled.
        while not machines:
            if ended.wait(0.05):
                return
        end = time.monotonic() + seconds
        while time.monotonic() < end and until not in output.read_bytes() and not ended.wait(0.05):
            pass
        machines[0].system.requests.shutdown(ShutdownCause.HOST_UI)

    board.BOARDS["pc-in-test"] = board.Board("pc-in-test", "the PC, watched", build)
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        serials = (CharBackend(CharBackendKind.FILE, path=output),)
        run_machine(MachineConfig(board="pc-in-test", serials=serials))
    finally:
        ended.set()
        del board.BOARDS["pc-in-test"]
        watcher.join()
    return output.read_bytes()
