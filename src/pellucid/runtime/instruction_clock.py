"""The guest's time by the instructions that it has executed (`-icount`)."""

import threading
from collections.abc import Callable

from pellucid.runtime.clock import SteppedClock, VirtualClock


class InstructionClock(SteppedClock):
    """A guest's clock that its vCPUs step: `follow` says who reads it exactly, and who hears of a nearer deadline.

    The vCPU's thread reads it to the instruction; every other thread sees the time of the vCPU's last entry.
    """

    def __init__(self) -> None:
        super().__init__("instruction-clock")
        self._read: Callable[[], int] | None = None
        self._nearer: Callable[[], None] | None = None
        self._stepper = 0
        self._real = VirtualClock()
        self._real.start()

    def start(self) -> None:
        """The guest goes on: so does its part of the host's time."""
        self._real.start()

    def stop(self) -> None:
        """The guest is stopped."""
        self._real.stop()

    def close(self) -> None:
        self._real.close()
        super().close()

    def real_ns(self) -> int:
        """How long the guest has not been stopped, by the host's clock."""
        return self._real.now_ns()

    def follow(self, read: Callable[[], int], nearer: Callable[[], None]) -> None:
        """`read` gives the exact time on the vCPU's thread; `nearer` is called where the earliest deadline changes."""
        self._read, self._nearer = read, nearer

    def now_ns(self) -> int:
        if self._read is not None and threading.get_ident() == self._stepper:
            return self._read()
        return self._state[1]

    def step_to(self, time_ns: int) -> int:
        """As `SteppedClock.step_to`, by the thread whose reads are exact from then on, other than in the callbacks."""
        self._stepper = 0
        try:
            return super().step_to(time_ns)
        finally:
            self._stepper = threading.get_ident()

    def _set_timer_fd(self) -> None:
        if self._nearer is not None:
            self._nearer()
