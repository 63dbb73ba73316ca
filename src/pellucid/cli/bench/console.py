"""Running one machine and listening to its console: every line with the time it came, and the memory it took.

Times are the host's, from the moment the process was asked for. Lines come from a pipe, a few of them a millisecond at
most, so a line's time is good to about a millisecond.
"""

import os
import re
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import IO

from pellucid.errors import PellucidError
from pellucid.records import dataclass, field

END_LIMIT = 30.0
"""Seconds that a machine has for ending after its last line, or after SIGTERM."""


class GuestError(PellucidError):
    """A machine that did not do what it was started for: which one, and its last words."""


class GuestHung(GuestError):
    """No line came for too long."""


@dataclass(frozen=True)
class Line:
    """A line of the console without its end; `at` in seconds since the start."""

    at: float
    text: str


@dataclass(frozen=True)
class Memory:
    """Bytes: `peak` resident ever (VmHWM), `guest` of those now resident that are mapped memfds, the guest's RAM."""

    peak: int
    guest: int


@dataclass
class Session:
    """A running machine. `silence`: seconds without a line after which it counts as hung."""

    name: str
    process: "subprocess.Popen[bytes]"
    errors: IO[bytes]
    begun: float
    silence: float
    log: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[Line]:
        """The lines as they come, to the end of the output. Raises GuestHung."""
        assert self.process.stdout is not None
        output = self.process.stdout.fileno()
        rest = b""
        while True:
            if not select.select([output], [], [], self.silence)[0]:
                raise GuestHung(self.complaint(f"printed nothing for {self.silence:.0f} s"))
            chunk = os.read(output, 1 << 16)
            now = time.monotonic() - self.begun
            *whole, rest = (rest + chunk).split(b"\n")
            for text in (*whole, rest) if not chunk else whole:
                line = Line(now, text.decode(errors="replace").rstrip("\r"))
                self.log.append(line.text)
                yield line
            if not chunk:
                return

    def memory(self) -> Memory | None:
        """What it takes by now; None where that cannot be read (it has just ended)."""
        folder = Path("/proc") / str(self.process.pid)
        try:
            peak = re.search(r"^VmHWM:\s*(\d+) kB", (folder / "status").read_text(), re.MULTILINE)
            guest = memfd_resident((folder / "smaps").read_text())
        except OSError:
            return None
        return Memory(int(peak[1]) << 10, guest) if peak else None

    def wait(self) -> int:
        """Its exit status, when it ends by itself. Raises GuestHung."""
        try:
            return self.process.wait(END_LIMIT)
        except subprocess.TimeoutExpired:
            raise GuestHung(self.complaint("did not end after its guest's power-off")) from None

    def complaint(self, what: str) -> str:
        """One line: who, what, and the last line that was printed."""
        last = next((line for line in reversed(self.log + self.error_lines()) if line.strip()), "none")
        return f"{self.name} {what}; its last line: {last.strip()}"

    def error_lines(self) -> list[str]:
        """What it has written to standard error by now."""
        # pread(2): the child writes at the same file offset, which therefore must stay.
        return os.pread(self.errors.fileno(), 1 << 20, 0).decode(errors="replace").splitlines()

    def end(self) -> None:
        """End the process if it still runs."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is not None:
                break
            self.process.send_signal(number)
            try:
                self.process.wait(END_LIMIT)
            except subprocess.TimeoutExpired:
                continue
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextmanager
def session(
    name: str, command: Sequence[str], environment: Mapping[str, str], silence: float, logs: Path | None = None
) -> Iterator[Session]:
    """Start `command` and end it whatever happens; its console and standard error go to a file in `logs` at the end."""
    with tempfile.TemporaryFile() as errors:
        begun = time.monotonic()
        process = subprocess.Popen(
            command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
        )
        run = Session(name, process, errors, begun, silence)
        try:
            yield run
        finally:
            run.end()
            if logs is not None:
                _keep(logs, name, run.log + run.error_lines())


def memfd_resident(smaps: str) -> int:
    """Resident bytes of the memfd mappings in a process's smaps (proc(5))."""
    total, counted = 0, False
    for line in smaps.splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            counted = "/memfd:" in line
        elif counted and line.startswith("Rss:"):
            total += int(line.split()[1]) << 10
    return total


def _keep(folder: Path, name: str, log: Sequence[str]) -> None:
    stem = re.sub(r"\W+", "-", name)
    free = next(number for number in count(1) if not (folder / f"{stem}-{number}.log").exists())
    (folder / f"{stem}-{free}.log").write_text("\n".join(log) + "\n")
