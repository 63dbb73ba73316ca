"""The time that interrupt chips and devices are given: two protocols, no implementation.

A chip never asks the host for the time. It gets a `Clock` through its constructor, so that the same chip runs on the
host's monotonic clock, on a clock that stops with the guest, and on a hand-cranked one in a test. The clocks that tick
are in `pellucid.runtime.clock`.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from pellucid.records import dataclass

NS = 10**9
MAX_HZ = 1 << 34
"""Frequencies of clock values are below this."""


class Timer(Protocol):
    """A one-shot alarm of one `Clock`. A periodic chip arms it again from its callback."""

    def arm(self, deadline_ns: int) -> None:
        """Call back once when the clock reads `deadline_ns` or more; replaces a deadline set before.

        A deadline in the past is legal and calls back as soon as the timer thread gets to it, never from inside `arm`.
        """
        ...

    def cancel(self) -> None:
        """Forget the deadline. A callback that has already begun on the timer thread is not waited for."""
        ...


class Clock(Protocol):
    """Nanoseconds since an arbitrary start, never going back."""

    def now_ns(self) -> int:
        """The time now, in nanoseconds."""
        ...

    def timer(self, callback: Callable[[], None]) -> Timer:
        """A new, unarmed timer. `callback` runs on the clock's timer thread, holding no lock."""
        ...


@dataclass(frozen=True, slots=True)
class InstructionTime:
    """A guest's time that is that of its instructions, 2**shift ns each.

    sleep: a halt lasts as long on the host as in the guest; else none. auto: the shift follows the host's clock.
    align: the guest waits where it is ahead of the host's clock, and it is said where it is late.
    """

    shift: int = 0
    sleep: bool = True
    auto: bool = False
    align: bool = False


class CountedClock(Clock, Protocol):
    """A clock that a vCPU steps as it executes instructions."""

    def follow(self, read: Callable[[], int], nearer: Callable[[], None]) -> None:
        """`read` gives the exact time on the vCPU's thread; `nearer` is called where the earliest deadline changes."""
        ...

    def next_deadline(self) -> int | None:
        """When the next timer is due; None when none is armed."""
        ...

    def real_ns(self) -> int:
        """How long the guest has not been stopped, by the host's clock."""
        ...

    def step_to(self, time_ns: int) -> int:
        """Let time go on to `time_ns`, and call the timers that fall due, on the calling thread; the time then."""
        ...


@runtime_checkable
class HostTimed(Protocol):
    """A clock that goes with the host's monotonic clock, while it goes."""

    def follow_host(self, changed: Callable[[int | None], None]) -> None:
        """`changed` hears, now and at every change, how many ns this clock is ahead of the host's; None: it stands.

        It hears that the clock stands before the time is taken at which it does. It must not call the clock.
        """
        ...


@dataclass(frozen=True, slots=True)
class ClockValue:
    """What a device's counter reads as a function of the clock's time: `hz` ticks a second from `base` on."""

    hz: int
    mask: int
    base: int = 0
    shift: int = 0
    """Of a counter's upper half: how many bits it lies above."""

    def __post_init__(self) -> None:
        if not 0 < self.hz < MAX_HZ:
            raise ValueError(f"a counter of {self.hz} Hz")

    def at(self, now_ns: int) -> int:
        """The value at a time."""
        return (now_ns * self.hz // NS + self.base & self.mask) >> self.shift
