"""How long a vCPU spins with PAUSE before its thread lets others have the host's CPU (KVM's ple_window, which grows and
shrinks likewise).

Where every vCPU has a CPU of its own, to leave is to lose time: whom it waits for runs already. Where two share one,
each turn of a flag that goes to and fro between them costs as long as they spin. What a yield was good for tells which
it is.
"""

import os
import time

SHORTEST_NS, LONGEST_NS = 10_000, 100_000
USEFUL_NS = 5_000
"""A yield that takes longer has let somebody else run."""
NS = 10**9


class SpinWindow:
    """`ticks` of a TSC of `hz` that a loop may take."""

    def __init__(self, hz: int) -> None:
        self._hz, self.ns = hz, SHORTEST_NS

    @property
    def ticks(self) -> int:
        return self.ns * self._hz // NS

    def yield_cpu(self) -> None:
        """Let others run, and learn from it how long to spin from here on."""
        begun = time.perf_counter_ns()
        os.sched_yield()
        took = time.perf_counter_ns() - begun
        self.ns = SHORTEST_NS if took > USEFUL_NS else min(self.ns * 2, LONGEST_NS)
