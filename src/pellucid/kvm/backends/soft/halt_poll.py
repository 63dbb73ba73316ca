"""How long a halted vCPU looks for an interrupt before its thread sleeps: as long as it has been worth it.

To put a thread to sleep and wake it takes some 50 us; processors that wait for each other's interrupts halt for less.
A halt that would have ended within the longest poll makes the next one look longer, one that lasted makes it sleep at
once (KVM's halt_poll_ns; Documentation/virt/kvm/halt-polling.rst).
"""

from typing import Any

NS = 10**9
LONGEST_NS, FIRST_NS = 100_000, 10_000
GROWTH = 2


class HaltPoll:
    """Of one vCPU, whose `state` has the ticks that native code obeys. On its thread, once enabled."""

    def __init__(self, state: Any) -> None:
        self._state = state
        self._tsc_hz = 0
        self.ns = 0
        """How long the next halt looks."""

    def enable(self, tsc_hz: int) -> None:
        """There are processors that may wake it; a host's TSC of `tsc_hz` says how long a poll lasts."""
        self._tsc_hz = tsc_hz

    def slept(self, ns: int) -> None:
        """A halt has ended that slept for `ns` after its poll."""
        if not self._tsc_hz:
            return
        halted = self.ns + ns
        if halted > LONGEST_NS:
            self.ns = 0
        elif self.ns < LONGEST_NS:
            self.ns = min(max(self.ns * GROWTH, FIRST_NS), LONGEST_NS)
        self._state.halt_poll = self.ns * self._tsc_hz // NS
