"""How long the host has withheld its CPUs from a process: time in which it wanted to run and another process ran.

A test's time-out is meant for a computer of its own. On one that others use as well, a guest CPU stands in the queue of
a host CPU for a while, which is no fault of the emulator's, as a VM's stolen time is none of its kernel's.
"""

import os
import threading
import time
from pathlib import Path

TICK = 0.25
"""Seconds between two looks."""
LONGEST = 5.0
"""How many times its time-out an entry may take at most, however much was withheld from it."""
NS = 10**9


def usage(pid: int) -> dict[str, tuple[int, int]]:
    """By thread of a process: nanoseconds that it ran, and that it stood in a run queue (Linux's sched-stats). Empty
    where the host does not tell.
    """
    found: dict[str, tuple[int, int]] = {}
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            ran, waited, _ = Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()
            found[thread] = int(ran), int(waited)
    except (OSError, ValueError):
        pass  # a thread, or the process, has just ended
    return found


def withheld_between(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]], seconds: float,
                     cpus: int) -> float:  # fmt: skip
    """Seconds that others took, of the `seconds` that passed, from threads that wanted to run most of the time: the
    guest waits for those. A second is one, however many of them waited through it; and what threads of the process took
    from each other does not count.
    """
    both = [(after[thread], before[thread]) for thread in after.keys() & before.keys()]
    spent = [((new[0] - old[0]) / NS, (new[1] - old[1]) / NS) for new, old in both]
    waited = sum(wait for run, wait in spent if run + wait > seconds / 2)
    return max(0.0, min(waited, seconds, cpus * seconds - sum(run for run, _ in spent)))


class Withheld:
    """Adds up, on a thread of its own while it is entered, what is withheld from process `pid`: `seconds`."""

    def __init__(self, pid: int) -> None:
        self.pid, self.seconds = pid, 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="withheld", daemon=True)

    def __enter__(self) -> "Withheld":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        cpus = len(os.sched_getaffinity(0))
        before, then = usage(self.pid), time.monotonic()
        while not self._over.wait(TICK):
            after, now = usage(self.pid), time.monotonic()
            self.seconds += withheld_between(before, after, now - then, cpus)
            before, then = after, now
