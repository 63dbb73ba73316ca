"""A machine in a process: started, listened to, typed at, and ended."""

import os
import pty
import select
import shlex
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

from pellucid.cli.bench.machines import host_tsc_khz

HANG_SECONDS = 240.0
"""After so long without a byte, a machine hangs; a first run compiles the processor within this time too."""
OTHER = os.environ.get("PELLUCID_TEST_MACHINE")
OURS = OTHER is None
APPEND = "console=ttyS0 quiet" + ("" if OURS else f" tsc_early_khz={host_tsc_khz()}")
"""The kernel's command line; on a busy host QEMU's guest may not find the frequency out by itself, and stop."""


def command(*options: str | Path) -> list[str]:
    """The words that start a machine with these options."""
    start = [sys.executable, "-m", "pellucid.cli", "run"] if OTHER is None else shlex.split(OTHER)
    return [*start, *map(str, options)]


def environment() -> dict[str, str]:
    """Ours, with the packages that this process has found."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "TERM": "dumb"}


def run(*options: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run a machine to its end with no terminal and no input."""
    return subprocess.run(
        command(*options),
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=HANG_SECONDS,
        check=False,
    )


class Terminal:
    """A machine on a terminal of its own; a context manager that ends it. `text`: all output, less carriage returns."""

    def __init__(self, *options: str | Path) -> None:
        self._master, self._slave = pty.openpty()
        self.mode = termios.tcgetattr(self._slave)
        self.process = subprocess.Popen(
            command(*options),
            env=environment(),
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            start_new_session=True,
        )
        self.text = ""
        self._seen = 0

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is None:
                self.process.send_signal(number)
                try:
                    self.process.wait(20)
                except subprocess.TimeoutExpired:
                    continue
        os.close(self._master)
        os.close(self._slave)

    @property
    def mode_now(self) -> list[object]:
        """The terminal's settings."""
        return termios.tcgetattr(self._slave)

    def send(self, text: str) -> None:
        """Type."""
        os.write(self._master, text.encode())

    def expect(self, wanted: str) -> str:
        """Wait until `wanted` appears behind what was expected before; the text between. Fails when it cannot come."""
        while (at := self.text.find(wanted, self._seen)) < 0:
            if not self._read():
                raise AssertionError(f"{wanted!r} did not come; there was: {self.text[self._seen :]!r}")
        before = self.text[self._seen : at]
        self._seen = at + len(wanted)
        return before

    def wait(self) -> int:
        """Read to the end; the exit status."""
        limit = time.monotonic() + HANG_SECONDS
        while self.process.poll() is None:
            if time.monotonic() > limit:
                raise AssertionError(f"the machine did not end; there was: {self.text[self._seen :]!r}")
            self._read(0.1)
        while self._read(0):
            pass
        return self.process.returncode

    def _read(self, seconds: float | None = None) -> bool:
        """Take what is there, waiting for it; False when nothing came."""
        limit = time.monotonic() + (HANG_SECONDS if seconds is None else seconds)
        while True:
            ended = self.process.poll() is not None
            if select.select([self._master], [], [], 0.05)[0]:
                # We hold the other end too, so there is no end of file and no error.
                self.text += os.read(self._master, 1 << 16).decode(errors="replace").replace("\r", "")
                return True
            if ended or time.monotonic() >= limit:
                return False
