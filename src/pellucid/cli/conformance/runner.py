"""Running entries: each is one process of the emulator, several at a time; what it printed and how it ended is kept.

The test's exit code c comes as the status (c << 1) | 1 through the debug-exit port; 77 is the suite's status for "all
of it skipped": its tests exit with 38 then.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from pellucid.cli.conformance.entries import Entry, words
from pellucid.records import dataclass

PASS, FAIL, SKIP, TIMEOUT, ERROR, BEYOND = "pass", "fail", "skip", "timeout", "error", "beyond"
ALL_SKIPPED = 77
SHOWN = 200
COMMON = (
    "--no-reboot -nodefaults -global kvm-pit.lost_tick_policy=discard -device pc-testdev "
    "-device isa-debug-exit,iobase=0xf4,iosize=0x4 -display none -serial stdio -device pci-testdev -machine accel=tcg"
).split()
KVM_ONLY = {"-enable-kvm"}
"""Words of an entry that ask for the host's KVM: the accelerator is what is tested here."""


@dataclass(frozen=True)
class Result:
    """`outcome` is one of the words above; `line`: the first that says what went wrong, or the summary."""

    name: str
    outcome: str
    seconds: float = 0.0
    line: str = ""


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


def run_all(plan: Plan, done: Callable[[Result], None]) -> list[Result]:
    """Every entry's result, in the suite's order; `done` hears of each as it ends."""
    results: dict[str, Result] = {}
    with ThreadPoolExecutor(plan.jobs) as pool:
        futures = [pool.submit(_run, plan, entry) for entry in plan.entries]
        try:
            for future in as_completed(futures):
                result = future.result()
                results[result.name] = result
                done(result)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [results[entry.name] for entry in plan.entries]


def command(plan: Plan, entry: Entry) -> list[str]:
    """What starts an entry, as the suite's x86/run would."""
    line = [*plan.emulator, *COMMON, "-kernel", str(plan.suite / "x86" / entry.file), "-smp", entry.smp]
    line += ["-append", " ".join(words(entry.test_args))] if entry.test_args else []
    return line + [word for word in words(entry.params) if word not in KVM_ONLY]


def _run(plan: Plan, entry: Entry) -> Result:
    if entry.arch and entry.arch != plan.arch:
        return Result(entry.name, BEYOND, line=f"of the {entry.arch} build")
    if entry.beyond and not plan.everything:
        return Result(entry.name, BEYOND, line=entry.beyond)
    if not (plan.suite / "x86" / entry.file).is_file():
        return Result(entry.name, ERROR, line=f"{entry.file} is not built")
    begun = time.monotonic()
    raw, errors, status = execute(plan, entry)
    seconds = time.monotonic() - begun
    text = (raw + errors).decode(errors="replace").replace("\r", "")
    if plan.logs is not None:
        (plan.logs / f"{entry.name}.log").write_text(text)
    # An emulator that refuses its options ends with 1, too; only a guest that ran has printed something.
    word = outcome(status) if raw or status is None else ERROR
    return Result(entry.name, word, round(seconds, 2), telling_line(text, word))


def execute(plan: Plan, entry: Entry) -> tuple[bytes, bytes, int | None]:
    """What an entry printed to its two streams, and how it ended: its status, None after a time-out."""
    process = subprocess.Popen(command(plan, entry), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip
    try:
        raw, errors = process.communicate(timeout=entry.timeout * plan.stretch)
        return raw, errors, process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raw, errors = process.communicate()
        return raw, errors, None


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
