"""The local APIC's timer: one-shot, periodic and TSC-deadline (Intel SDM vol. 3, 11.5.4).

The timer's input is a bus clock of 1 GHz, as KVM's: one count is `divide` nanoseconds. Nothing ticks; the next expiry
is a deadline on the VM's clock, and the current count is computed from it. The counter is never reset by a change
between one-shot and periodic mode, and a change to or from TSC-deadline mode disarms (as KVM, and as the manual
allows).

The clock's callback runs on the timer thread and may come late, early or after a cancel; under the lock the deadline
alone decides, so stale callbacks do nothing.
"""

from collections.abc import Callable

from pellucid.kvm.clock import Clock
from pellucid.kvm.irqchip.apicdef import (
    LVT_TIMER_MODE,
    LVT_TIMER_PERIODIC,
    LVT_TIMER_TSC_DEADLINE,
    IrqchipLock,
    Notify,
)

MIN_PERIOD_NS = 200_000
"""Shortest period served, KVM's min_timer_period_us: a guest must not be able to keep the host busy with ticks."""

MAX_ARM_NS = 3600 * 10**9
"""Longest sleep asked of the clock: a TSC deadline may lie centuries ahead; the callback then arms again."""


def divide_of(configuration: int) -> int:
    """The divisor that divide-configuration bits 3, 1 and 0 select: 1 to 128."""
    value = (configuration & 3) | (configuration & 8) >> 1
    return 1 << ((value + 1) & 7)


class LapicTimer:
    """Timer of one local APIC. Every method is called with the irqchip lock held.

    `tsc_to_ns(tsc)` gives the clock's time at which the guest's time-stamp counter reads `tsc`; `expired` is called
    with the lock held at each expiry.
    """

    __slots__ = (
        "_clock",
        "_deadline_ns",
        "_expired",
        "_lock",
        "_now_ns",
        "_timer",
        "_tsc_to_ns",
        "divide",
        "divide_configuration",
        "initial_count",
        "mode",
        "tsc_deadline",
    )

    def __init__(self, clock: Clock, lock: IrqchipLock, tsc_to_ns: Callable[[int], int], expired: Notify) -> None:
        self._clock = clock
        self._now_ns = clock.now_ns
        self._lock = lock
        self._tsc_to_ns = tsc_to_ns
        self._expired = expired
        self._timer = clock.timer(self._fire)
        self._deadline_ns: int | None = None
        self.mode = 0
        """The timer-mode bits of the timer's LVT entry, in place: 0, LVT_TIMER_PERIODIC or LVT_TIMER_TSC_DEADLINE."""
        self.initial_count = 0
        self.divide_configuration = 0
        self.divide = divide_of(0)
        self.tsc_deadline = 0
        """IA32_TSC_DEADLINE: the TSC value awaited; 0 when disarmed or not in TSC-deadline mode."""

    def reset(self) -> None:
        """As after INIT: disarmed, one-shot, divide by 2."""
        self._disarm()
        self.mode = 0
        self.initial_count = 0
        self.divide_configuration = 0
        self.divide = divide_of(0)

    def set_mode(self, bits: int) -> None:
        """Take over the mode bits of a written LVT entry."""
        bits &= LVT_TIMER_MODE
        if bits == self.mode:
            return
        self.poll()
        if LVT_TIMER_TSC_DEADLINE in (bits, self.mode):
            self._disarm()
            self.initial_count = 0
        self.mode = bits

    def set_initial_count(self, count: int) -> None:
        """Write TMICT: start counting down from `count`; 0 stops. Ignored in TSC-deadline mode."""
        if self.mode & LVT_TIMER_TSC_DEADLINE:
            return
        self.initial_count = count
        if not count:
            self._disarm()
            return
        period = self._period_ns() if self.mode & LVT_TIMER_PERIODIC else count * self.divide
        self._arm(self._now_ns() + period)

    def set_divide_configuration(self, value: int) -> None:
        """Write TDCR; the counts left of a running countdown keep their number and change their length."""
        self.poll()
        old = self.divide
        self.divide_configuration = value & 0xB
        self.divide = divide_of(value)
        if self._deadline_ns is not None and not self.mode & LVT_TIMER_TSC_DEADLINE and old != self.divide:
            now = self._now_ns()
            self._arm(now + max(0, self._deadline_ns - now) * self.divide // old)

    def current_count(self) -> int:
        """Read TMCCT."""
        self.poll()
        if self._deadline_ns is None or self.mode & LVT_TIMER_TSC_DEADLINE:
            return 0
        left = max(0, self._deadline_ns - self._now_ns())  # time goes on behind `poll`
        return min(left // self.divide, self.initial_count)

    def set_tsc_deadline(self, tsc: int) -> None:
        """Write IA32_TSC_DEADLINE: expire when the TSC reaches `tsc`; 0 disarms. Ignored in the other modes."""
        if not self.mode & LVT_TIMER_TSC_DEADLINE:
            return
        self.tsc_deadline = tsc
        if not tsc:
            self._disarm()
            return
        deadline = self._tsc_to_ns(tsc)
        now = self._now_ns()
        if deadline <= now:
            self._disarm()
            self._expired()
        else:
            self._deadline_ns = deadline
            self._timer.arm(deadline if deadline - now < MAX_ARM_NS else now + MAX_ARM_NS)

    def tsc_changed(self) -> None:
        """The guest's TSC was written or rescaled: its deadline falls at another time now."""
        if self.tsc_deadline:
            self.set_tsc_deadline(self.tsc_deadline)

    def restore(self, initial_count: int, current_count: int) -> None:
        """Go on from saved TMICT and TMCCT (mode and divide are set already)."""
        self._disarm()
        self.initial_count = initial_count
        if self.mode & LVT_TIMER_TSC_DEADLINE or not initial_count:
            self.initial_count = 0
            return
        counts = min(current_count, initial_count)
        if not counts and self.mode & LVT_TIMER_PERIODIC:
            counts = initial_count
        if counts:
            self._arm(self._now_ns() + counts * self.divide)

    def poll(self) -> None:
        """Expire now if the deadline has passed and the timer thread has not come yet, so that reads agree."""
        deadline = self._deadline_ns
        if deadline is not None:
            now = self._now_ns()
            if now >= deadline:
                self._expire(now, deadline)

    def close(self) -> None:
        """Disarm for good, the vCPU being destroyed."""
        self._disarm()

    def _period_ns(self) -> int:
        return max(self.initial_count * self.divide, MIN_PERIOD_NS)

    def _arm(self, deadline_ns: int) -> None:
        self._deadline_ns = deadline_ns
        self._timer.arm(min(deadline_ns, self._now_ns() + MAX_ARM_NS))

    def _disarm(self) -> None:
        self.tsc_deadline = 0
        if self._deadline_ns is not None:
            self._deadline_ns = None
            self._timer.cancel()

    def _fire(self) -> None:
        with self._lock:
            deadline = self._deadline_ns
            if deadline is None:
                return
            now = self._now_ns()
            if now < deadline:
                self._arm(deadline)
            else:
                self._expire(now, deadline)

    def _expire(self, now: int, deadline: int) -> None:
        if self.mode & LVT_TIMER_PERIODIC:
            # Periods slept through are skipped: their interrupts would have merged in the IRR anyhow.
            period = self._period_ns()
            self._arm(deadline + (1 + (now - deadline) // period) * period)
        else:
            self._deadline_ns = None
            self.tsc_deadline = 0
        self._expired()
