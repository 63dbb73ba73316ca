"""High precision event timers (IA-PC HPET specification 1.0a): one 64-bit counter of 10 ns, three comparators.

Nothing counts. The counter is the guest's time; a comparator is a host timer at the time when the counter will equal
it. A periodic comparator moves on by whole periods, so a host that comes late sends one interrupt, not many, and it is
looked at every 50 us at the soonest: a guest that asks for an interrupt each 10 ns keeps nobody busy.

In legacy replacement, timer 0 drives ISA interrupt 0 and timer 1 interrupt 8, and the PIT and the RTC, whose they are,
are held back: `set_legacy` tells whoever owns the PIT, and the RTC's line goes through `rtc_line`.
"""

import struct
from collections.abc import Callable, Mapping

from pellucid.kvm.clock import Clock, ClockValue
from pellucid.machine.device import Device, Region, State
from pellucid.machine.irq import IrqLine
from pellucid.machine.state import BOOL, U64, Memory
from pellucid.memory import AccessSizes, ClockRegister, MemoryRegion

TIMERS = 3
PERIOD_NS = 10
COUNTER_HZ = 100_000_000
COUNTER = 0xF0
PERIOD_FS = 10_000_000
CAPABILITIES = PERIOD_FS << 32 | 0x8086_8000 | 0x2000 | (TIMERS - 1) << 8 | 0x01
"""Vendor, legacy replacement, 64-bit counter, number of timers, revision."""
ENABLE, LEGACY = 0x1, 0x2
LEVEL, INTERRUPT_ENABLE, PERIODIC, PERIODIC_CAPABLE, SIZE_64 = 0x02, 0x04, 0x08, 0x10, 0x20
SET_VALUE, MODE_32, ROUTE = 0x40, 0x100, 0x3E00
CONFIG_WRITABLE = LEVEL | INTERRUPT_ENABLE | PERIODIC | SET_VALUE | MODE_32 | ROUTE
SHORTEST_LOOK_NS = 50_000
LONGEST_TICKS = 1 << 56
MASK_32, MASK_64 = 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF


class Words:
    """A few unsigned 64-bit numbers in a device's saved bytes."""

    def __init__(self, memory: bytearray) -> None:
        self._memory = memory

    def __getitem__(self, index: int) -> int:
        return int(struct.unpack_from("<Q", self._memory, 8 * index)[0])

    def __setitem__(self, index: int, value: int) -> None:
        struct.pack_into("<Q", self._memory, 8 * index, value & MASK_64)


class Hpet(Device):
    """`lines` are interrupt lines by global number: 0 and 8 for legacy replacement, and those that timers may choose.

    `routes` has a bit for each of the latter.
    """

    kind = "hpet"
    regions = (Region("hpet", 0x400, valid=AccessSizes(4, 4), impl=AccessSizes(4, 4)),)

    general = State(U64, 0, doc="general configuration: bit 0 counts, bit 1 legacy replacement")
    status = State(U64, 0, doc="one bit for each level-triggered timer whose interrupt is active")
    base = State(U64, 0, doc="counter minus ticks of the clock while counting; the counter itself while not")
    configs = State(Memory(8 * TIMERS), bytes(8 * TIMERS))
    comparators = State(Memory(8 * TIMERS), b"\xff" * 8 * TIMERS)
    periods = State(Memory(8 * TIMERS), bytes(8 * TIMERS))
    rtc_level = State(BOOL, False, survives_reset=True, doc="what the RTC asks of interrupt 8")

    def __init__(
        self,
        clock: Clock,
        lines: Mapping[int, IrqLine],
        set_legacy: Callable[[bool], None] | None = None,
        routes: int = 0x04,
    ) -> None:
        self._clock, self._lines, self._set_legacy, self._routes = clock, lines, set_legacy, routes
        self._node: MemoryRegion | None = None
        self._due = [clock.timer(lambda number=number: self._fired(number)) for number in range(TIMERS)]  # type: ignore[misc]
        super().__init__()

    def reset(self) -> None:
        was_legacy = bool(self.general & LEGACY)
        super().reset()
        for timer in self._due:
            timer.cancel()
        self._show_counter()
        for number in self._lines:
            if number != 8:
                self._lines[number].set(False)
        self._legacy_changed(was_legacy)

    def after_load(self) -> None:
        self._legacy_changed(not self.general & LEGACY)
        self._show_counter()
        self._rearm()

    # The counter.

    def counter(self) -> int:
        """The main counter now."""
        ticks = self._clock.now_ns() // PERIOD_NS if self.general & ENABLE else 0
        return (ticks + self.base) & MASK_64

    def _set_counter(self, value: int) -> None:
        ticks = self._clock.now_ns() // PERIOD_NS if self.general & ENABLE else 0
        self.base = (value - ticks) & MASK_64
        self._show_counter()

    def region_made(self, index: int, region: MemoryRegion) -> None:
        self._node = region
        self._show_counter()

    def _show_counter(self) -> None:
        """While the counter counts it is a function of the clock, which the hypervisor may read itself."""
        if self._node is not None:
            halves = range(2) if self.general & ENABLE else ()
            self._node.set_clock_registers(tuple(
                ClockRegister(COUNTER + 4 * half, 4, ClockValue(COUNTER_HZ, MASK_64, self.base, 32 * half))
                for half in halves
            ))

    # Registers.

    def region_read(self, region: int, offset: int, size: int) -> int:
        value = self._register(offset & ~7)
        return value >> (32 if offset & 4 else 0) & MASK_32

    def _register(self, offset: int) -> int:
        if offset == 0x00:
            return CAPABILITIES
        if offset == 0x10:
            return self.general
        if offset == 0x20:
            return self.status
        if offset == 0xF0:
            return self.counter()
        number, which = divmod(offset - 0x100, 0x20)
        if 0 <= number < TIMERS and which == 0x00:
            return self._routes << 32 | Words(self.configs)[number] | PERIODIC_CAPABLE | SIZE_64
        if 0 <= number < TIMERS and which == 0x08:
            return Words(self.comparators)[number]
        return 0

    def region_write(self, region: int, offset: int, size: int, value: int) -> None:
        shift = 32 if offset & 4 else 0
        at = offset & ~7
        if at == 0x10 and not shift:
            self._write_general(value)
        elif at == 0x20 and not shift:
            self._write_status(value)
        elif at == 0xF0:
            self._set_counter(self.counter() & ~(MASK_32 << shift) | value << shift)
            self._rearm()
        elif at >= 0x100:
            number, which = divmod(at - 0x100, 0x20)
            if number < TIMERS and which == 0x00 and not shift:
                self._write_config(number, value)
            elif number < TIMERS and which == 0x08:
                self._write_comparator(number, shift, value)

    def _write_general(self, value: int) -> None:
        now, before = self.counter(), self.general
        self.general = value & (ENABLE | LEGACY)
        self._set_counter(now)
        self._legacy_changed(bool(before & LEGACY))
        if not self.general & ENABLE:
            for number in range(TIMERS):
                self._drive_level(number)
        self._rearm()

    def _write_status(self, value: int) -> None:
        cleared = self.status & value
        self.status &= ~value
        for number in range(TIMERS):
            if cleared >> number & 1:
                self._drive_level(number)

    def _write_config(self, number: int, value: int) -> None:
        old = Words(self.configs)[number]
        if self.status >> number & 1 and not (value & LEVEL and value & INTERRUPT_ENABLE):
            self.status &= ~(1 << number)
            self._drive_level(number)
        if (value ^ old) & ROUTE and self.status >> number & 1:
            self._line(number, False)
        Words(self.configs)[number] = value & CONFIG_WRITABLE
        if value & MODE_32:
            for words in (Words(self.comparators), Words(self.periods)):
                words[number] = words[number] & MASK_32
        self._drive_level(number)
        self._rearm()

    def _write_comparator(self, number: int, shift: int, value: int) -> None:
        config = Words(self.configs)[number]
        if config & MODE_32 and shift:
            return
        comparators, periods = Words(self.comparators), Words(self.periods)
        if not config & PERIODIC or config & SET_VALUE:
            comparators[number] = comparators[number] & ~(MASK_32 << shift) | value << shift
        if config & PERIODIC:
            periods[number] = periods[number] & ~(MASK_32 << shift) | value << shift
        Words(self.configs)[number] = config & ~SET_VALUE
        self._rearm()

    # Timers.

    def _mask(self, number: int) -> int:
        return MASK_32 if Words(self.configs)[number] & MODE_32 else MASK_64

    def _rearm(self) -> None:
        for number in range(TIMERS):
            self._arm(number, 0)

    def _arm(self, number: int, soonest_ns: int) -> None:
        config = Words(self.configs)[number]
        if not (self.general & ENABLE and config & INTERRUPT_ENABLE):
            self._due[number].cancel()
            return
        mask = self._mask(number)
        ticks = (Words(self.comparators)[number] - self.counter()) & mask or mask + 1
        if ticks > LONGEST_TICKS:
            # Already past: 64 bits of 10 ns come round in 5800 years.
            self._due[number].cancel()
            return
        now = self._clock.now_ns()
        # The counter moves where the time is a multiple of its period.
        self._due[number].arm(max((now // PERIOD_NS + ticks) * PERIOD_NS, now + soonest_ns))

    def _fired(self, number: int) -> None:
        config = Words(self.configs)[number]
        if not (self.general & ENABLE and config & INTERRUPT_ENABLE):
            return
        if config & PERIODIC and (period := Words(self.periods)[number] & self._mask(number)):
            mask, comparators = self._mask(number), Words(self.comparators)
            behind = (self.counter() - comparators[number]) & mask
            comparators[number] = (comparators[number] + (behind // period + 1) * period) & mask
        if config & LEVEL:
            self.status |= 1 << number
            self._drive_level(number)
        else:
            self._line(number, True)
            self._line(number, False)
        self._arm(number, SHORTEST_LOOK_NS)

    def _drive_level(self, number: int) -> None:
        if Words(self.configs)[number] & LEVEL or not self.status >> number & 1:
            self._line(number, bool(self.status >> number & 1 and self.general & ENABLE))

    def _line(self, number: int, level: bool) -> None:
        if self.general & LEGACY and number < 2:
            route = 8 * number
        else:
            route = (Words(self.configs)[number] & ROUTE) >> 9
            if not self._routes >> route & 1:
                return
        if route in self._lines:
            self._lines[route].set(level)

    # Legacy replacement.

    def rtc_line(self) -> "RtcLine":
        """Interrupt 8 as the RTC is to see it."""
        return RtcLine(self)

    def set_rtc(self, level: bool) -> None:
        """The RTC's interrupt, which legacy replacement holds back."""
        self.rtc_level = level
        if not self.general & LEGACY:
            self._lines[8].set(level)

    def _legacy_changed(self, before: bool) -> None:
        now = bool(self.general & LEGACY)
        if now == before:
            return
        self._lines[8].set(False if now else self.rtc_level)
        if self._set_legacy is not None:
            self._set_legacy(now)


class RtcLine:
    """The wire from the RTC to the HPET."""

    def __init__(self, hpet: Hpet) -> None:
        self._hpet = hpet

    def set(self, level: bool) -> None:
        self._hpet.set_rtc(level)

    def pulse(self) -> None:
        self._hpet.set_rtc(True)
        self._hpet.set_rtc(False)
