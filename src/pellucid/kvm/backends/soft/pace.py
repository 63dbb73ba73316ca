"""vCPUs whose instructions are the guest's clock: they execute in turn, up to the next deadline, and step the clock.

One vCPU has the turn; the others' threads sleep. It keeps it for `SLICE` instructions, or until it halts or waits with
PAUSE, and then gives it to the next in order that has something to do. All that the guest sees happens on the thread
that has the turn, between two instructions that are the same in every run: timers' callbacks too. Where nobody has
anything to do, the clock goes to the next deadline, at once or when the host's clock has gone as far.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pellucid.kvm.backends.soft.rate import Rate
from pellucid.kvm.clock import CountedClock
from pellucid.kvm.pmu import FARTHEST

if TYPE_CHECKING:
    from pellucid.kvm.backends.soft.vcpu import SoftVcpu

SLICE = 100_000
"""Instructions of a turn: some ten times what handing it on costs."""
NS = 10**9


class Turns:
    """Who has the turn, and how long an instruction lasts. With `sleep` a halt takes as long on the host as it is."""

    def __init__(self, clock: CountedClock, rate: Rate, *, sleep: bool) -> None:
        self.clock, self.rate, self.sleep = clock, rate, sleep
        self.paces: list[Pace] = []
        self.slice_end = 0
        clock.follow(lambda: self.holder.now_ns(), lambda: self.holder.vcpu.look_again())

    def add(self, vcpu: SoftVcpu) -> Pace:
        """A vCPU that executes in turn from now on; the first one has the turn."""
        pace = Pace(vcpu, self)
        self.paces.append(pace)
        if len(self.paces) == 1:
            self.holder = pace
        return pace

    def new_slice(self, now: int) -> None:
        """Somebody's turn begins."""
        self.slice_end = now + (SLICE << self.rate.shift)


class Pace:
    """One vCPU's part in that. What it offers is for the vCPU's own thread, but for `stir`."""

    def __init__(self, vcpu: SoftVcpu, turns: Turns) -> None:
        self.vcpu, self._turns = vcpu, turns
        state = vcpu.state
        vcpu.processor.count_instructions(True)
        state.clock_on, state.clock_shift, state.clock_end = 1, turns.rate.shift, turns.clock.now_ns()

    def now_ns(self) -> int:
        """The time behind the instructions that have retired; with the turn, outside native code."""
        state = self.vcpu.state
        return int(state.clock_end - (state.budget << state.clock_shift))

    def advance(self, limit: int = FARTHEST) -> None:
        """Before the vCPU executes on: wait for its turn, let happen what is due, grant instructions up to the next,
        and at most `limit`.

        Returns without the turn where the vCPU is kicked, which is then to leave its loop.
        """
        turns = self._turns
        while self._wait_for_turn():
            now = self.now_ns()
            turns.clock.step_to(now)
            if len(turns.paces) == 1 or now < turns.slice_end or not self.vcpu.between_instructions:
                self._grant(now, limit)
                return
            turns.new_slice(now)
            self._hand_on()

    def _wait_for_turn(self) -> bool:
        """Whether it came; else there was a kick."""
        vcpu, turns = self.vcpu, self._turns
        while turns.holder is not self:
            if vcpu.is_kicked:
                return False
            vcpu.wait_for_wake(None)
            vcpu.forget_wake()
        return True

    def _grant(self, now: int, limit: int) -> None:
        turns, state = self._turns, self.vcpu.state
        state.clock_shift = turns.rate.adapt(self.vcpu, now)
        stretch = turns.rate.stretch
        ends = [turns.clock.next_deadline(), turns.slice_end if len(turns.paces) > 1 else None,
                None if stretch is None else now + stretch]
        nearest = min((end for end in ends if end is not None), default=None)
        budget = limit if nearest is None else min(limit, -(-max(nearest - now, 0) >> state.clock_shift))
        self.vcpu.processor.grant(budget)
        state.clock_end = now + (budget << state.clock_shift)

    def _hand_on(self) -> bool:
        """Give the turn to the next vCPU that has something to do; False where no other has."""
        turns = self._turns
        at, now = turns.paces.index(self), self.now_ns()
        for other in (*turns.paces[at + 1:], *turns.paces[:at]):
            if other.vcpu.has_work:
                other._take_over(now)
                return True
        return False

    def _take_over(self, now: int) -> None:
        state = self.vcpu.state
        state.clock_shift = self._turns.rate.shift
        state.clock_end = now + (state.budget << state.clock_shift)
        self._turns.new_slice(now)
        self._turns.holder = self
        self.vcpu.wake()

    def relax(self) -> None:
        """It waits for another with PAUSE."""
        self._hand_on()

    def idle(self) -> None:
        """The vCPU has nothing to do now: another's turn, or else go to the next deadline, or wait for the outside."""
        if self._hand_on():
            return
        now, deadline = self.now_ns(), self._turns.clock.next_deadline()
        if deadline is None:
            self.vcpu.wait_for_wake(None)
            return
        then = max(now, deadline)
        if self._turns.sleep:
            began = time.monotonic_ns()
            if self.vcpu.wait_for_wake((then - now) / NS):
                then = min(then, now + time.monotonic_ns() - began)
        self.vcpu.state.clock_end += then - now

    def stir(self) -> None:
        """Something is asked of this vCPU: whoever has the turn, and nothing to do with it, is to look. Any thread."""
        self._turns.holder.vcpu.wake()
