"""A vCPU whose instructions are the guest's clock: it executes up to the next deadline, and then steps the clock.

Timers call back on the vCPU's thread between two instructions, always the same two. A halted vCPU has nothing to
execute: the clock goes to the next deadline, at once or when the host's clock has gone as far.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pellucid.kvm.clock import CountedClock

if TYPE_CHECKING:
    from pellucid.kvm.backends.soft.vcpu import SoftVcpu

FARTHEST = 1 << 31
"""Instructions that are executed at a stretch where no deadline is near."""
NS = 10**9


class Pace:
    """An instruction takes 2**shift ns. With `sleep` a halt takes as long on the host as in the guest."""

    def __init__(self, vcpu: SoftVcpu, clock: CountedClock, shift: int, *, sleep: bool) -> None:
        self._vcpu, self._clock, self._shift, self._sleep = vcpu, clock, shift, sleep
        state = vcpu.state
        vcpu.processor.count_instructions(True)
        state.clock_on, state.clock_shift, state.clock_end = 1, shift, clock.now_ns()
        clock.follow(self.now_ns, vcpu.look_again)

    def now_ns(self) -> int:
        """The time behind the instructions that have retired; on the vCPU's thread, outside native code."""
        state = self._vcpu.state
        return int(state.clock_end - (state.budget << self._shift))

    def advance(self) -> None:
        """Before the vCPU executes on: let happen what is due, and grant instructions up to what comes next."""
        now = self.now_ns()
        self._clock.step_to(now)
        deadline = self._clock.next_deadline()
        budget = FARTHEST if deadline is None else min(FARTHEST, -(-(deadline - now) >> self._shift))
        self._vcpu.processor.grant(budget)
        self._vcpu.state.clock_end = now + (budget << self._shift)

    def idle(self) -> None:
        """The vCPU is halted and nothing wakes it now: go to the next deadline, or wait for the outside world."""
        now, deadline = self.now_ns(), self._clock.next_deadline()
        if deadline is None:
            self._vcpu.wait_for_wake(None)
            return
        then = max(now, deadline)
        if self._sleep:
            began = time.monotonic_ns()
            if self._vcpu.wait_for_wake((then - now) / NS):
                then = min(then, now + time.monotonic_ns() - began)
        self._vcpu.state.clock_end += then - now
