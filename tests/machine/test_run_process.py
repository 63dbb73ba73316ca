"""A whole process on a terminal of its own: how it ends, what it leaves behind."""

import os
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.machine.kernels import bzimage

PROGRAM = """
import sys
from pathlib import Path
from pellucid.kvm.api import IoExit, MmioExit
from pellucid.machine.config import STDIO_WITH_MONITOR, MachineConfig
from pellucid.machine.run import run_machine
from tests.machine.fake_hypervisor import FakeHypervisor

config = MachineConfig(kernel=Path(sys.argv[1]), serials=(STDIO_WITH_MONITOR,))
script = [IoExit(0x3F8, 1, True, byte) for byte in b"login: "]
if sys.argv[2] == "poweroff":
    script.append(MmioExit(0xFEA00200, 1, True, 0x34))
hypervisor = FakeHypervisor(script)
sys.exit(run_machine(config, lambda machine, chardev: None, lambda config, clock: (hypervisor, lambda apic_id: [])))
"""
ROOT = Path(__file__).parent.parent.parent


def _default_signals() -> None:
    """A signal that the tests' own parent ignores (nohup) would stay ignored in the machine's process."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


class Terminal:
    """A process whose standard streams are a new terminal, and our end of it."""

    def __init__(self, folder: Path, how: str) -> None:
        kernel = folder / "vmlinuz"
        kernel.write_bytes(bzimage())
        self.master, self.slave = os.openpty()
        self.before = termios.tcgetattr(self.slave)
        self.shown = b""
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, kernel, how],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
            preexec_fn=_default_signals,
        )

    def wait_for(self, text: bytes) -> None:
        while text not in self.shown:
            assert select.select([self.master], [], [], 60)[0], f"only {self.shown!r} was shown"
            self.shown += os.read(self.master, 4096)

    def raw(self) -> bool:
        return not termios.tcgetattr(self.slave)[3] & termios.ECHO

    def ended(self) -> int:
        status = self.process.wait(60)
        assert termios.tcgetattr(self.slave) == self.before, "the terminal is as it was"
        return status

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    made = Terminal(tmp_path, "halt")
    yield made
    made.close()


def test_ctrl_a_x_quits(terminal: Terminal) -> None:
    terminal.wait_for(b"login: ")
    assert terminal.raw()
    os.write(terminal.master, b"\x03\x01h")
    terminal.wait_for(b"C-a x")
    os.write(terminal.master, b"\x01x")
    assert terminal.ended() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_end_it_in_order(terminal: Terminal, number: signal.Signals) -> None:
    terminal.wait_for(b"login: ")
    terminal.process.send_signal(number)
    terminal.wait_for(f"terminating on signal {number.value} ({number.name})".encode())
    assert terminal.ended() == 0


def test_being_stopped_gives_the_terminal_back_for_the_while(terminal: Terminal) -> None:
    terminal.wait_for(b"login: ")
    terminal.process.send_signal(signal.SIGTSTP)
    os.waitpid(terminal.process.pid, os.WUNTRACED)
    assert not terminal.raw()
    terminal.process.send_signal(signal.SIGCONT)
    os.write(terminal.master, b"\x01h")
    terminal.wait_for(b"C-a x")
    assert terminal.raw()
    os.write(terminal.master, b"\x01x")
    assert terminal.ended() == 0


def test_power_off_ends_it(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, "poweroff")
    terminal.wait_for(b"login: ")
    assert terminal.ended() == 0
    terminal.close()
