"""One counter of the 8254 interval timer: what it counts, what its output shows, how it is read and written.

Data sheet: Intel 8254. Nothing ticks: a counter is the time at which its count was loaded, and everything observable is
computed from the time since. One clock pulse is 1/1193182 s.

    mode 0  OUT low until the count has run out            gate low: counting stops
    mode 1  OUT low for `count` pulses after a gate rise
    mode 2  OUT low for the last pulse of each period      gate low: OUT high, a rise starts a new period
    mode 3  OUT high for the first half of each period     the same
    mode 4  OUT low for one pulse when the count runs out  gate low: counting stops
    mode 5  the same, started by a gate rise

In modes 2 and 3 a count written while counting begins with the next period, in modes 1 and 5 with the next gate rise.
"""

from pellucid.kvm.errors import StateError
from pellucid.kvm.irqchip.state import PitChannelState

PIT_FREQUENCY = 1_193_182  # Hz
NOT_COUNTING = -1
"""As `load_time`: no count was written since the control word, or the gate's rise is awaited."""

FULL_COUNT = 0x10000

_LSB, _MSB, _WORD0, _WORD1 = 1, 2, 3, 4
_UNPROGRAMMED = 0xFF  # KVM's mode of a counter that had no control word yet
_GATE_STARTS = (1, 5)
_PERIODIC = (2, 3)


def ticks_in(ns: int) -> int:
    """Whole clock pulses in `ns` nanoseconds."""
    return ns * PIT_FREQUENCY // 10**9


def ns_for(ticks: int) -> int:
    """The nanoseconds after which `ticks` pulses have passed, rounded up."""
    return -(-ticks * 10**9 // PIT_FREQUENCY)


def _ns_within(ticks: int) -> int:
    """The whole nanoseconds that `ticks` pulses fill: a load time moved by it never makes the counter run late."""
    return ticks * 10**9 // PIT_FREQUENCY


class PitChannel:
    """A counter. Times are nanoseconds on the VM's clock, given by the caller."""

    __slots__ = (
        "bcd", "count", "count_latched", "gate", "latched_count", "load_time", "mode", "paused_at", "read_state",
        "running", "rw_mode", "status", "status_latched", "write_latch", "write_state",
    )  # fmt: skip

    def __init__(self, gate: bool) -> None:
        self.reset(gate)

    def reset(self, gate: bool) -> None:
        """As after power-up, with its gate at this level; the chip leaves the rest undefined."""
        self.count = self.running = FULL_COUNT
        self.load_time = NOT_COUNTING
        self.paused_at: int | None = None
        self.gate = gate
        self.mode = 3
        self.bcd = 0
        self.rw_mode = self.read_state = self.write_state = _WORD0
        self.write_latch = 0
        self.count_latched = self.latched_count = 0
        self.status_latched = self.status = 0

    # ---- what it shows

    @property
    def periodic(self) -> bool:
        """Modes 2 and 3."""
        return self.mode in _PERIODIC

    def elapsed(self, now: int) -> int:
        """Pulses counted since the count was loaded; 0 when it is not counting."""
        if self.load_time == NOT_COUNTING:
            return 0
        until = now if self.paused_at is None else self.paused_at
        return max(0, ticks_in(until - self.load_time))

    def settle(self, now: int) -> None:
        """In modes 2 and 3: begin with the count written last if the period it was written in is over."""
        if self.running != self.count and self.periodic and self.elapsed(now) >= self.running:
            self.load_time += _ns_within(self.running)
            self.running = self.count

    def out(self, now: int) -> bool:
        """The level of OUT."""
        if self.load_time == NOT_COUNTING:
            return self.mode != 0
        self.settle(now)
        elapsed = self.elapsed(now)
        if self.mode <= 1:
            return elapsed >= self.running
        if self.mode >= 4:
            return elapsed != self.running
        phase = elapsed % self.running
        return not self.gate or (phase < (self.running + 1) // 2 if self.mode == 3 else phase != self.running - 1)

    def value(self, now: int) -> int:
        """The counter as it reads, 16 bits, binary or BCD."""
        self.settle(now)
        elapsed = self.elapsed(now)
        if self.mode == 2:
            value = self.running - elapsed % self.running
        elif self.mode == 3:
            value = self.running - 2 * elapsed % self.running
        else:
            value = self.running - elapsed
        return _to_bcd(value % 10_000) if self.bcd else value & 0xFFFF

    def next_rise(self, now: int) -> int | None:
        """When OUT next rises by counting out, after `now`; None when it will not without being touched.

        The strobe of modes 4 and 5 counts as rising when it begins: half a microsecond is no matter.
        """
        if self.load_time == NOT_COUNTING or self.paused_at is not None:
            return None
        self.settle(now)
        elapsed = self.elapsed(now)
        if not self.periodic:
            return self.load_time + ns_for(self.running) if elapsed < self.running else None
        return self.load_time + ns_for((elapsed // self.running + 1) * self.running)

    # ---- programming

    def set_gate(self, gate: bool, now: int) -> None:
        """The level of the GATE input."""
        rising = gate and not self.gate
        falling = self.gate and not gate
        self.gate = gate
        if rising and self.mode in _GATE_STARTS:
            self._start(now)
        elif self.load_time == NOT_COUNTING or self.mode in _GATE_STARTS:
            return
        elif falling:
            self.settle(now)
            self.paused_at = now
        elif rising and self.periodic:
            self._start(now)
        elif rising and self.paused_at is not None:
            self.load_time += now - self.paused_at
            self.paused_at = None

    def _start(self, now: int) -> None:
        self.running = self.count
        self.load_time = now
        self.paused_at = now if not self.gate and self.mode not in _GATE_STARTS else None

    def set_control(self, rw_mode: int, mode: int, bcd: int) -> None:
        """A control word that programs this counter: counting stops until a count is written."""
        self.rw_mode = self.read_state = self.write_state = rw_mode
        self.mode = mode - 4 if mode > 5 else mode
        self.bcd = bcd
        self.load_time = NOT_COUNTING
        self.paused_at = None

    def latch_count(self, now: int) -> None:
        """Hold the count for reading, unless one is held already."""
        if not self.count_latched:
            self.latched_count = self.value(now)
            self.count_latched = self.rw_mode

    def latch_status(self, now: int) -> None:
        """Hold the status byte for reading, unless one is held already."""
        if not self.status_latched:
            out = self.out(now)
            null_count = self.load_time == NOT_COUNTING or self.running != self.count
            self.status = out << 7 | null_count << 6 | self.rw_mode << 4 | self.mode << 1 | self.bcd
            self.status_latched = 1

    def read(self, now: int) -> int:
        """IN from the counter's port: held status, held count, else the count as it runs."""
        if self.status_latched:
            self.status_latched = 0
            return self.status
        if self.count_latched:
            step, self.count_latched = self.count_latched, _MSB if self.count_latched == _WORD0 else 0
            return self.latched_count >> 8 if step == _MSB else self.latched_count & 0xFF
        value = self.value(now)
        step = self.read_state
        if step >= _WORD0:
            self.read_state = _WORD1 if step == _WORD0 else _WORD0
        return value >> 8 if step in (_MSB, _WORD1) else value & 0xFF

    def write(self, value: int, now: int) -> bool:
        """OUT to the counter's port; True when a whole count was loaded."""
        if self.write_state == _WORD0:
            self.write_latch = value
            self.write_state = _WORD1
            if self.mode == 0:
                self.load_time = NOT_COUNTING  # the first byte stops a running mode-0 count
                self.paused_at = None
            return False
        if self.write_state == _WORD1:
            self.write_state = _WORD0
            value = value << 8 | self.write_latch
        elif self.write_state == _MSB:
            value <<= 8
        self._load(value, now)
        return True

    def _load(self, value: int, now: int) -> None:
        counting = self.load_time != NOT_COUNTING
        if counting and self.periodic:
            self.settle(now)
            # Bring the load time to the present period, so that its end is where the new count begins.
            self.load_time += _ns_within(self.elapsed(now) // self.running * self.running)
        self.count = (_from_bcd(value) if self.bcd else value) or (10_000 if self.bcd else FULL_COUNT)
        if self.mode not in _GATE_STARTS and not (counting and self.periodic):
            self._start(now)

    # ---- saved state

    def get_state(self, now: int) -> PitChannelState:
        """KVM's structure. A count that waits for the next period is saved as if it had begun."""
        self.settle(now)
        load_time = self.load_time
        if self.paused_at is not None:
            load_time += now - self.paused_at
        return PitChannelState(
            count=self.count, latched_count=self.latched_count, count_latched=self.count_latched,
            status_latched=self.status_latched, status=self.status, read_state=self.read_state,
            write_state=self.write_state, write_latch=self.write_latch, rw_mode=self.rw_mode, mode=self.mode,
            bcd=self.bcd, gate=int(self.gate), count_load_time=load_time,
        )  # fmt: skip

    def set_state(self, state: PitChannelState, now: int) -> None:
        """Take over a checked structure (`check_state`)."""
        self.reset(bool(state.gate))
        self.count = self.running = state.count or FULL_COUNT
        self.latched_count, self.count_latched = state.latched_count, state.count_latched
        self.status_latched, self.status = state.status_latched, state.status
        self.write_latch, self.bcd = state.write_latch, state.bcd
        if state.mode == _UNPROGRAMMED:
            return
        self.mode = state.mode
        self.rw_mode = state.rw_mode or _WORD0
        self.read_state = state.read_state or self.rw_mode
        self.write_state = state.write_state or self.rw_mode
        self.load_time = NOT_COUNTING if state.count_load_time < 0 else min(state.count_load_time, now)
        if self.load_time != NOT_COUNTING and not self.gate and self.mode not in _GATE_STARTS:
            self.paused_at = now


def check_state(state: PitChannelState) -> None:
    """`StateError` for values no counter holds."""
    limits = {"count": FULL_COUNT, "count_latched": _WORD0, "status_latched": 1, "bcd": 1, "gate": 1}
    limits |= {"read_state": _WORD1, "write_state": _WORD1, "rw_mode": _WORD0}
    for name, limit in limits.items():
        if getattr(state, name) > limit:
            raise StateError(f"PitChannelState.{name}: {getattr(state, name)} is above {limit}")
    if state.mode > 5 and state.mode != _UNPROGRAMMED:
        raise StateError(f"PitChannelState.mode: there is no mode {state.mode}")


def _from_bcd(value: int) -> int:
    """Four decimal digits; a digit above 9, which the chip leaves undefined, counts as what it says."""
    return (value >> 12) * 1000 + (value >> 8 & 15) * 100 + (value >> 4 & 15) * 10 + (value & 15)


def _to_bcd(value: int) -> int:
    return value // 1000 << 12 | value // 100 % 10 << 8 | value // 10 % 10 << 4 | value % 10
