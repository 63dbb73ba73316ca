"""Running entries: each is one process of the emulator, several at a time (`schedule`); what it printed and how it
ended is kept. Time that the host withholds from it (`withheld`) does not count for its time-out, and one that fails
while much is withheld is run again.

The test's exit code c comes as the status (c << 1) | 1 through the debug-exit port; 77 is the suite's status for "all
of it skipped": its tests exit with 38 then.
"""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pellucid.cli.conformance.entries import Entry, words
from pellucid.cli.conformance.schedule import run_side_by_side
from pellucid.cli.conformance.withheld import LONGEST, Withheld
from pellucid.records import dataclass, replace

PASS, FAIL, SKIP, TIMEOUT, ERROR, BEYOND = "pass", "fail", "skip", "timeout", "error", "beyond"
ALL_SKIPPED = 77
SHOWN = 200
RUNS, SHARE = 3, 0.1
"""How often an entry is run that fails while the host withholds this share of its time: tests of timers rely on a guest
that looks at its clock within milliseconds, which no hypervisor can promise there.
"""
COMMON = (
    "--no-reboot -nodefaults -global kvm-pit.lost_tick_policy=discard -device pc-testdev "
    "-device isa-debug-exit,iobase=0xf4,iosize=0x4 -display none -serial stdio -device pci-testdev -machine accel=tcg"
).split()
KVM_ONLY = {"-enable-kvm"}
"""Words of an entry that ask for the host's KVM: the accelerator is what is tested here."""


@dataclass(frozen=True)
class Result:
    """`outcome` is one of the words above; `line`: the first that says what went wrong, or the summary. `withheld`: of
    the `seconds`, how many the host gave to others. All are of the last of `runs`.
    """

    name: str
    outcome: str
    seconds: float = 0.0
    withheld: float = 0.0
    line: str = ""
    runs: int = 1


@dataclass(frozen=True)
class Plan:
    """What to run on what. `stretch` multiplies every entry's time-out; `logs`: where outputs are kept."""

    suite: Path
    emulator: Sequence[str]
    entries: Sequence[Entry]
    arch: str
    everything: bool = False
    stretch: float = 1.0
    jobs: int = 1
    logs: Path | None = None


@dataclass(frozen=True)
class Execution:
    """What one run printed to its two streams, and how it ended: its status, None after a time-out."""

    output: bytes
    errors: bytes
    status: int | None
    seconds: float
    withheld: float


class Processes:
    """The emulators that run, for whoever has to end them."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._over = False

    def start(self, line: Sequence[str]) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   start_new_session=True)  # fmt: skip
        with self._lock:
            self._running.add(process)
            if self._over:
                _kill(process)
        return process

    def ended(self, process: subprocess.Popen[bytes]) -> None:
        with self._lock:
            self._running.remove(process)

    def kill(self) -> None:
        """End them all, and each that is started from here on."""
        with self._lock:
            self._over = True
            for process in self._running:
                _kill(process)


def run_all(plan: Plan, done: Callable[[Result], None]) -> list[Result]:
    """Every entry's result, in the suite's order; `done` hears of each as it ends."""
    processes = Processes()
    return run_side_by_side(plan.entries, lambda entry: entry.cpus, plan.jobs,
                            lambda entry: _run(plan, entry, processes), done, processes.kill)  # fmt: skip


def command(plan: Plan, entry: Entry) -> list[str]:
    """What starts an entry, as the suite's x86/run would."""
    line = [*plan.emulator, *COMMON, "-kernel", str(plan.suite / "x86" / entry.file), "-smp", entry.smp]
    line += ["-append", " ".join(words(entry.test_args))] if entry.test_args else []
    return line + [word for word in words(entry.params) if word not in KVM_ONLY]


def _run(plan: Plan, entry: Entry, processes: Processes) -> Result:
    if entry.arch and entry.arch != plan.arch:
        return Result(entry.name, BEYOND, line=f"of the {entry.arch} build")
    if entry.beyond and not plan.everything:
        return Result(entry.name, BEYOND, line=entry.beyond)
    if not (plan.suite / "x86" / entry.file).is_file():
        return Result(entry.name, ERROR, line=f"{entry.file} is not built")
    result = _run_once(plan, entry, processes)
    while result.outcome in (FAIL, TIMEOUT) and result.withheld >= SHARE * result.seconds and result.runs < RUNS:
        result = replace(_run_once(plan, entry, processes), runs=result.runs + 1)
    return result


def _run_once(plan: Plan, entry: Entry, processes: Processes) -> Result:
    run = execute(plan, entry, processes)
    text = (run.output + run.errors).decode(errors="replace").replace("\r", "")
    if plan.logs is not None:
        (plan.logs / f"{entry.name}.log").write_text(text)
    # An emulator that refuses its options ends with 1, too; only a guest that ran has printed something.
    word = outcome(run.status) if run.output or run.status is None else ERROR
    return Result(entry.name, word, round(run.seconds, 2), round(run.withheld, 2), telling_line(text, word))


def execute(plan: Plan, entry: Entry, processes: Processes | None = None) -> Execution:
    """Run one entry to its end or its time-out."""
    processes = processes or Processes()
    limit, begun = entry.timeout * plan.stretch, time.monotonic()
    process = processes.start(command(plan, entry))
    status: int | None = None
    try:
        with Withheld(process.pid) as withheld:
            while (left := min(limit + withheld.seconds, limit * LONGEST) - (time.monotonic() - begun)) > 0:
                try:
                    output, errors = process.communicate(timeout=left)
                    status = process.returncode
                    break
                except subprocess.TimeoutExpired:
                    pass  # once more, if something was withheld meanwhile
            else:
                _kill(process)
                output, errors = process.communicate()
    finally:
        processes.ended(process)
    return Execution(output, errors, status, time.monotonic() - begun, withheld.seconds)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def outcome(status: int | None) -> str:
    """What an exit status means; None for a time-out."""
    if status is None:
        return TIMEOUT
    if status < 0 or not status & 1:
        return ERROR  # a signal, or an end that is not the test's own
    return PASS if status == 1 else SKIP if status == ALL_SKIPPED else FAIL


def telling_line(text: str, word: str) -> str:
    """The first failure that the test printed; else its summary; else its last words."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    failed = next((line for line in lines if line.startswith(("FAIL", "Unhandled", "pellucid:", "qemu"))
                   and ": warning: " not in line or "assert failed" in line), None)  # fmt: skip
    summary = next((line for line in reversed(lines) if line.startswith("SUMMARY")), None)
    good = word in (PASS, SKIP)
    return ((summary if good else failed or summary) or (lines[-1] if lines else "printed nothing"))[:SHOWN]
