"""Two guest CPUs against one: how much more work a second two copies of a loop do at once than one copy alone.

The guest has two CPUs and its kernel places the copies. Both CPUs have their code translated by an untimed run first.
Times are the host's, between lines of the console.
"""

import os
from pathlib import Path

from pellucid.cli.bench import workload
from pellucid.cli.bench.console import GuestError, session
from pellucid.cli.bench.loops import BY_NAME
from pellucid.cli.bench.machines import Emulator

LOOP = "integer"
LENGTH = 5
"""Times the iterations of the loop's own row: a copy works for a second or two, so that its start weighs little."""
COPIES = 3
"""Results that a guest prints: of one copy, and of two."""
SILENCE = 180.0
"""Seconds without a line: one loop says nothing while it runs."""


def measure_pair(emulator: Emulator, kernel: Path, initrd: Path, scale: float, logs: Path | None) -> float:
    """One boot with two CPUs: work per second of two copies over that of one, 2 where neither hinders the other.

    Raises GuestError when the guest does not do its part, or its copies compute different things.
    """
    append = workload.pair_command_line(BY_NAME[LOOP], scale * LENGTH)
    command = [*emulator.boots(kernel, initrd, append), "-smp", "2"]
    marks: dict[str, float] = {}
    results: list[int] = []
    silence = max(emulator.silence, SILENCE)
    with session(f"{emulator.name} two CPUs", command, emulator.environment, silence, logs) as run:
        for line in run.lines():
            if line.text in workload.PAIR_MARKS:
                marks[line.text] = line.at
            elif result := workload.finished(line.text):
                results.append(result.result)
        if len(marks) != len(workload.PAIR_MARKS) or len(results) != COPIES:
            raise GuestError(run.complaint("ended without its two loops"))
        if len(set(results)) != 1:
            raise GuestError(run.complaint(f"computed {', '.join(map(str, results))} of one loop on two CPUs"))
        if status := run.wait():
            raise GuestError(run.complaint(f"ended with status {status}"))
    one, two, end = (marks[mark] for mark in workload.PAIR_MARKS)
    return 2 * (two - one) / max(end - two, 1e-9)


def two_idle_cores() -> bool:
    """Whether this computer has two cores for us that had little else to do in the last minute."""
    return len(os.sched_getaffinity(0)) - os.getloadavg()[0] > 1.5
