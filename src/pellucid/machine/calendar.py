"""The calendar time that a guest's real-time clock starts from (`-rtc`)."""

import time
from collections.abc import Callable

from pellucid.machine.config import RtcConfig
from pellucid.runtime import SteppedClock, VirtualClock

SECOND = 1_000_000_000


def calendar(config: RtcConfig, clock: VirtualClock) -> Callable[[], int]:
    """A reader of nanoseconds since 1970.

    `clock` is the guest's; where it is moved by hand, the calendar is too, whatever the configuration says.
    """
    now = time.time_ns()
    if config.base == "utc":
        start = now
    elif config.base == "localtime":
        start = now + time.localtime(now // SECOND).tm_gmtoff * SECOND
    else:
        start = int(config.base) * SECOND
    if config.clock == "vm" or isinstance(clock, SteppedClock):
        began = clock.now_ns()
        return lambda: start + clock.now_ns() - began
    if config.clock == "rt":
        began = time.monotonic_ns()
        return lambda: start + time.monotonic_ns() - began
    offset = start - now
    return (lambda: time.time_ns() + offset) if offset else time.time_ns
