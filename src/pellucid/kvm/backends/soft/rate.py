"""How long an instruction lasts by the instruction clock, and how that clock keeps up with the host's."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING

from pellucid.kvm.clock import CountedClock, InstructionTime

if TYPE_CHECKING:
    from pellucid.kvm.backends.soft.vcpu import SoftVcpu

_log = logging.getLogger("pellucid.kvm.icount")

NS = 10**9
FIRST_SHIFT, MAX_SHIFT = 3, 10
"""shift=auto begins with 125 million instructions a second."""
LOOK_NS, WOBBLE_NS = NS // 10, NS // 10
"""How often shift=auto compares the two clocks, and the difference that it lets be."""
ALIGN_NS, AHEAD_NS = 10**6, 3 * 10**6
"""align=on: how often it compares, and how far ahead the guest may be before it waits."""
WARN_AGAIN_NS, MOST_WARNINGS, LESS_LATE = 2 * NS, 100, 1.5


class Rate:
    """2**shift ns an instruction: fixed, or adapted so that guest and host stay together (`auto`).

    With `align` the guest waits where it is ahead of the host, and a warning says where it is late.
    """

    def __init__(self, clock: CountedClock, asked: InstructionTime) -> None:
        self._clock, self._auto, self._align = clock, asked.auto, asked.align
        self.shift = FIRST_SHIFT if asked.auto else asked.shift
        self.stretch = LOOK_NS if asked.auto else ALIGN_NS if asked.align else None
        """Guest time after which `adapt` wants to be asked again; None: never."""
        self._began: tuple[int, int] | None = None
        self._next_look = self._last_ahead = 0
        self._warnings = self._threshold = self._warned_at = 0

    def adapt(self, vcpu: SoftVcpu, now: int) -> int:
        """The shift from `now` on; with `align` it may take a while. On the thread of the vCPU that has the turn."""
        if self.stretch is not None and now >= self._next_look:
            self._next_look = now + self.stretch
            real = self._clock.real_ns()
            guest_began, real_began = self._began = self._began or (now, real)
            ahead = (now - guest_began) - (real - real_began)
            if self._auto:
                self._adjust(ahead)
            else:
                self._keep_together(vcpu, ahead)
        return self.shift

    def _adjust(self, ahead: int) -> None:
        """One step where the difference is more than a wobble and grows, or does not shrink fast enough."""
        if ahead > 0 and self._last_ahead + WOBBLE_NS < ahead * 2 and self.shift > 0:
            self.shift -= 1
        elif ahead < 0 and self._last_ahead - WOBBLE_NS > ahead * 2 and self.shift < MAX_SHIFT:
            self.shift += 1
        self._last_ahead = ahead

    def _keep_together(self, vcpu: SoftVcpu, ahead: int) -> None:
        if ahead > AHEAD_NS:
            vcpu.wait_for_wake(ahead / NS)
        late, moment = -ahead / NS, time.monotonic_ns()
        moved = late > self._threshold or late < self._threshold - LESS_LATE
        if moved and self._warnings < MOST_WARNINGS and moment - self._warned_at > WARN_AGAIN_NS:
            self._threshold = max(0, math.trunc(late) + 1)
            self._warnings, self._warned_at = self._warnings + 1, moment
            if late > 0:
                _log.warning("The guest is now late by %.1f to %.1f seconds", self._threshold - 1, self._threshold)
