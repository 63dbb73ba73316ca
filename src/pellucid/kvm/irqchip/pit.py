"""The 8254 interval timer of a PC: counter 0 drives gsi 0, counter 2 the speaker port 0x61.

Lost ticks are made up for as KVM does (reinjection): a tick that comes while the one before has not been acknowledged
is owed, and given when the guest's EOI arrives. The owner therefore registers `irq_acked` and `irq_mask_changed` with
the routing for gsi 0. Each tick is a pulse; who counts on edges sees the rise, and nothing stays asserted.
"""

from collections.abc import Callable

from pellucid.kvm.clock import Clock
from pellucid.kvm.irqchip.apicdef import IrqchipLock
from pellucid.kvm.irqchip.pit_channel import PitChannel, check_state, ns_for
from pellucid.kvm.irqchip.state import KVM_PIT_FLAGS_HPET_LEGACY, KVM_PIT_FLAGS_SPEAKER_DATA_ON, PitState

PIT_BASE = 0x40
PIT_SIZE = 4
SPEAKER_PORT = 0x61

MIN_PERIOD_NS = 200_000
"""Shortest period served: a guest must not be able to keep the host busy with ticks."""

MAX_OWED_TICKS = 1_000_000

_CONTROL = 3
_REFRESH_NS = 15_085  # half period of the memory-refresh toggle at port 0x61


class Pit:
    """The timer. `set_irq(level)` drives gsi 0 as the PIT's own source."""

    def __init__(self, clock: Clock, lock: IrqchipLock, set_irq: Callable[[bool], None]) -> None:
        self._clock = clock
        self._lock = lock
        self._set_irq = set_irq
        self._timer = clock.timer(self._fire)
        self._channels = (PitChannel(gate=True), PitChannel(gate=True), PitChannel(gate=False))
        self._speaker_data_on = False
        self._hpet_legacy = False
        self._next_tick: int | None = None
        self._reinject = True
        self._owed = 0
        self._irq_ack = True

    def set_reinject(self, reinject: bool) -> None:
        """Whether to make up for ticks that the guest was too slow for (KVM_REINJECT_CONTROL)."""
        with self._lock:
            self._reinject = reinject
            self._reset_reinject()

    def reset(self) -> None:
        """As after power-up."""
        with self._lock:
            for index, channel in enumerate(self._channels):
                channel.reset(gate=index != 2)
            self._speaker_data_on = False
            self._reset_reinject()
            self._schedule()

    # ---- ports

    def read(self, offset: int, size: int) -> int:
        """IN from ports 0x40 to 0x43; the control word is write-only and reads as 0."""
        if offset == _CONTROL:
            return 0
        with self._lock:
            return self._channels[offset].read(self._clock.now_ns())

    def write(self, offset: int, size: int, value: int) -> None:
        """OUT to ports 0x40 to 0x43; the low byte counts."""
        value &= 0xFF
        with self._lock:
            now = self._clock.now_ns()
            if offset == _CONTROL:
                self._control(value, now)
            elif self._channels[offset].write(value, now):
                if offset == 0:
                    self._reset_reinject()
                    self._schedule()
            elif offset == 0:
                self._schedule()

    def _control(self, value: int, now: int) -> None:
        select, rw_mode = value >> 6, value >> 4 & 3
        if select == 3:  # read-back command: bits 5 and 4 are active low
            for index, channel in enumerate(self._channels):
                if value >> index + 1 & 1:
                    if not value & 0x20:
                        channel.latch_count(now)
                    if not value & 0x10:
                        channel.latch_status(now)
        elif rw_mode == 0:
            self._channels[select].latch_count(now)
        else:
            self._channels[select].set_control(rw_mode, value >> 1 & 7, value & 1)
            if select == 0:
                self._schedule()

    def speaker_read(self, offset: int, size: int) -> int:
        """IN from port 0x61: gate 2, speaker data, refresh toggle, OUT 2 in bits 0, 1, 4, 5."""
        with self._lock:
            now = self._clock.now_ns()
            channel = self._channels[2]
            refresh = now // _REFRESH_NS & 1
            return int(channel.gate) | self._speaker_data_on << 1 | refresh << 4 | channel.out(now) << 5

    def speaker_write(self, offset: int, size: int, value: int) -> None:
        """OUT to port 0x61: bit 0 is the gate of counter 2, bit 1 lets its output to the speaker."""
        with self._lock:
            self._speaker_data_on = bool(value & 2)
            self._channels[2].set_gate(bool(value & 1), self._clock.now_ns())

    @property
    def speaker_on(self) -> bool:
        """Whether counter 2 is heard."""
        return self._speaker_data_on and self._channels[2].gate

    # ---- ticks of counter 0

    def _schedule(self) -> None:
        """Set the timer to the next tick. The lock is held."""
        now = self._clock.now_ns()
        self._next_tick = None if self._hpet_legacy else self._channels[0].next_rise(now)
        if self._next_tick is None:
            self._timer.cancel()
            return
        if self._channels[0].periodic and ns_for(self._channels[0].running) < MIN_PERIOD_NS:
            self._next_tick = max(self._next_tick, now + MIN_PERIOD_NS)
        self._timer.arm(self._next_tick)

    def _fire(self) -> None:
        with self._lock:
            due = self._next_tick
            if due is None:
                return
            now = self._clock.now_ns()
            if now < due:
                self._timer.arm(due)
                return
            ticks = 1
            if self._channels[0].periodic:
                period = max(ns_for(self._channels[0].running), MIN_PERIOD_NS)
                ticks += (now - due) // period
            self._schedule()
            self._tick(ticks)

    def _tick(self, ticks: int) -> None:
        if not self._reinject:
            self._pulse()
            return
        self._owed = min(self._owed + ticks, MAX_OWED_TICKS)
        if self._irq_ack:
            self._irq_ack = False
            self._pulse()

    def _pulse(self) -> None:
        self._set_irq(True)
        self._set_irq(False)

    def irq_acked(self) -> None:
        """The guest ended the interrupt of gsi 0: give the next tick that is owed. The lock is held."""
        if self._owed:
            self._owed -= 1
        if self._owed and self._reinject:
            self._irq_ack = False
            self._pulse()
        else:
            self._irq_ack = True

    def irq_mask_changed(self, masked: bool) -> None:
        """A pin of gsi 0 was masked or unmasked: ticks swallowed by the mask are not owed. The lock is held."""
        if not masked:
            self._reset_reinject()

    def _reset_reinject(self) -> None:
        self._owed = 0
        self._irq_ack = True

    # ---- saved state

    def get_state(self) -> PitState:
        """State as KVM_GET_PIT2 gives it."""
        with self._lock:
            now = self._clock.now_ns()
            flags = KVM_PIT_FLAGS_SPEAKER_DATA_ON if self._speaker_data_on else 0
            flags |= KVM_PIT_FLAGS_HPET_LEGACY if self._hpet_legacy else 0
            return PitState(channels=tuple(channel.get_state(now) for channel in self._channels), flags=flags)

    def set_state(self, state: PitState) -> None:
        """Take over saved state; `StateError`, and nothing changed, for values no 8254 holds."""
        for channel_state in state.channels:
            check_state(channel_state)
        with self._lock:
            now = self._clock.now_ns()
            for channel, channel_state in zip(self._channels, state.channels, strict=True):
                channel.set_state(channel_state, now)
            self._speaker_data_on = bool(state.flags & KVM_PIT_FLAGS_SPEAKER_DATA_ON)
            self._hpet_legacy = bool(state.flags & KVM_PIT_FLAGS_HPET_LEGACY)
            self._reset_reinject()
            self._schedule()
