"""MC146818 real-time clock and CMOS RAM (Motorola MC146818A data sheet; the PC's port 0x70/0x71 in front).

Time is not counted but computed: the registers are the wall clock plus an offset that changes when the guest sets
the time. The flags of register C are computed the same way, from the interval since they were last looked at, so a
timer is armed only while an interrupt is enabled that could come.

Time stands still while register B's SET bit is set or the divider of register A is held in reset; then the register
bytes themselves are the time.
"""

from collections.abc import Callable

from pellucid.kvm.clock import Clock
from pellucid.machine.device import Device, Region, Register, State
from pellucid.machine.devices.rtc_time import SECONDS_A_DAY, Format, civil_from_days, days_from_civil, next_alarm
from pellucid.machine.firmware import aml
from pellucid.machine.irq import IrqLine
from pellucid.machine.state import BOOL, Integer, Memory

SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM = 0, 1, 2, 3, 4, 5
DAY_OF_WEEK, DAY, MONTH, YEAR = 6, 7, 8, 9
REG_A, REG_B, REG_C, REG_D = 10, 11, 12, 13
CENTURY = 0x32
"""CMOS byte that holds the century, as the FADT may announce."""
TIME_REGISTERS = frozenset((SECONDS, MINUTES, HOURS, DAY_OF_WEEK, DAY, MONTH, YEAR, CENTURY))
ALARM_REGISTERS = frozenset((SECONDS_ALARM, MINUTES_ALARM, HOURS_ALARM))

A_UPDATE_IN_PROGRESS, A_DIVIDER, A_RATE = 0x80, 0x70, 0x0F
B_SET, B_PERIODIC, B_ALARM, B_UPDATE = 0x80, 0x40, 0x20, 0x10
B_BINARY, B_24_HOURS = 0x04, 0x02
C_IRQ, C_PERIODIC, C_ALARM, C_UPDATE = 0x80, 0x40, 0x20, 0x10
D_VALID = 0x80
ANY_VALUE = 0xC0
"""Alarm bytes from here up match every value."""

SECOND = 1_000_000_000
UPDATE_LASTS = 8 * SECOND // 32_768
"""Nanoseconds before each second during which the update-in-progress bit is set: 8 ticks of 32,768 Hz."""
TICKS_A_SECOND = 32_768
NANOSECONDS = Integer(-(1 << 72), 1 << 72)
"""Calendar times and their differences: the registers reach year 16,665, past what 64 bits of nanoseconds hold."""


class Rtc(Device):
    """The clock chip. `wall_ns` reads the host's calendar time in ns since 1970; `clock` times the interrupts.

    `mask_nmi` is told bit 7 of the index port, the PC's NMI gate. CMOS RAM and time survive a reset, as with a battery.
    """

    kind = "mc146818rtc"
    regions = (Region("rtc", 2),)

    index = Register(0, access="wo", doc="bits 6-0 select the byte, bit 7 masks NMI")
    data = Register(1, stored=False, doc="the selected byte")

    cmos = State(Memory(128), bytes(128), survives_reset=True, doc="RAM, alarm and control registers; frozen time")
    offset_ns = State(NANOSECONDS, 0, survives_reset=True, doc="guest's calendar time minus the host's")
    weekday_shift = State(Integer(0, 6), 0, survives_reset=True, doc="the guest's day of week against the calendar's")
    stopped = State(BOOL, False, survives_reset=True, doc="the time is in the registers")
    period_began = State(NANOSECONDS, 0, survives_reset=True, doc="tick of the last edge of the periodic interrupt")
    flags_seen_ns = State(NANOSECONDS, 0, survives_reset=True, doc="guest time up to which register C is computed")

    def __init__(
        self,
        irq: IrqLine,
        clock: Clock,
        wall_ns: Callable[[], int],
        mask_nmi: Callable[[bool], None] | None = None,
    ) -> None:
        self._irq = irq
        self._clock = clock
        self._wall_ns = wall_ns
        self._mask_nmi = mask_nmi
        self.on_change: Callable[[int], None] | None = None
        """Hears when the guest sets the clock: the difference from the host's, in seconds."""
        self.on_alarm: list[Callable[[], None]] = []
        """Called at every alarm whose interrupt is enabled: it may wake the machine."""
        self._timer = clock.timer(self._look_at_flags)
        super().__init__()
        self.cmos[REG_A], self.cmos[REG_B], self.cmos[REG_D] = 0x26, B_24_HOURS, D_VALID
        self.flags_seen_ns = self.guest_ns()

    def reset(self) -> None:
        super().reset()
        self.cmos[REG_B] &= ~(B_PERIODIC | B_ALARM | B_UPDATE | 0x08)
        self.cmos[REG_C] = 0
        self._timer.cancel()
        self._irq.set(False)

    def after_load(self) -> None:
        self._irq.set(bool(self.cmos[REG_C] & C_IRQ))
        self._look_at_flags()

    def guest_ns(self) -> int:
        """The guest's calendar time in nanoseconds since 1970, while the clock goes."""
        return self._wall_ns() + self.offset_ns

    def set_cmos(self, index: int, value: int) -> None:
        """Put a byte of CMOS RAM where firmware would find it (memory size, boot order)."""
        self.cmos[index] = value & 0xFF

    def acpi(self, where: aml.Resources) -> bytes:
        """The clock with the eight ports that a PC's decoder gives it."""
        return aml.device(
            "RTC",
            aml.name("_HID", aml.eisa_id("PNP0B00"))
            + aml.name("_CRS", aml.resource_template(aml.io_ports(where.ports[0], 8, alignment=1), aml.irq(where.gsi))),
        )

    # The two ports.

    @index.on_write
    def _write_index(self, value: int) -> None:
        if (value ^ self.index) & 0x80 and self._mask_nmi is not None:
            self._mask_nmi(bool(value & 0x80))
        self.index = value

    @data.on_read
    def _read_data(self) -> int:
        index = self.index & 0x7F
        if index in TIME_REGISTERS and not self.stopped:
            self._time_to_registers()
        elif index == REG_A:
            in_update = not self.stopped and self.guest_ns() % SECOND >= SECOND - UPDATE_LASTS
            return self.cmos[REG_A] | (A_UPDATE_IN_PROGRESS if in_update else 0)
        elif index == REG_C:
            return self._read_flags()
        return self.cmos[index]

    @data.on_write
    def _write_data(self, value: int) -> None:
        index = self.index & 0x7F
        if index in (REG_C, REG_D):
            return
        self._look_at_flags()  # What came before the change follows the registers as they were.
        if index in TIME_REGISTERS and not self.stopped:
            self._time_to_registers()
            self.cmos[index] = value
            self._registers_to_time()
        elif index == REG_A:
            self._write_reg_a(value)
        elif index == REG_B:
            self._write_reg_b(value)
        else:
            self.cmos[index] = value
        self._look_at_flags()

    def _write_reg_a(self, value: int) -> None:
        held, period = _divider_held(self.cmos[REG_A]), self._periodic_interrupt()
        self.cmos[REG_A] = value & ~A_UPDATE_IN_PROGRESS
        self._period_changed(period)
        self._stop_or_go()
        if held and not _divider_held(value) and not self.stopped:
            # The first update comes half a second after the divider is let go.
            self._set_time(self.guest_ns() // SECOND * SECOND + SECOND // 2)

    def _write_reg_b(self, value: int) -> None:
        if value & B_SET:
            value &= ~B_UPDATE
        if not self.stopped:
            self._time_to_registers()
        new_format = (value ^ self.cmos[REG_B]) & (B_BINARY | B_24_HOURS)
        period = self._periodic_interrupt()
        self.cmos[REG_B] = value
        self._period_changed(period)
        self._stop_or_go()
        if new_format and not self.stopped:
            self._time_to_registers()

    def _stop_or_go(self) -> None:
        stop = bool(self.cmos[REG_B] & B_SET) or _divider_held(self.cmos[REG_A])
        if stop and not self.stopped:
            self._time_to_registers()
            self.stopped = True
        elif not stop and self.stopped:
            self.stopped = False
            self._registers_to_time()

    # Time.

    def _format(self) -> Format:
        return Format(bool(self.cmos[REG_B] & B_BINARY), bool(self.cmos[REG_B] & B_24_HOURS))

    def _time_to_registers(self) -> None:
        written = self._format()
        days, second = divmod(self.guest_ns() // SECOND, SECONDS_A_DAY)
        year, month, day = civil_from_days(days)
        self.cmos[SECONDS] = written.encode(second % 60)
        self.cmos[MINUTES] = written.encode(second // 60 % 60)
        self.cmos[HOURS] = written.encode_hour(second // 3600)
        self.cmos[DAY_OF_WEEK] = written.encode((days + 4 + self.weekday_shift) % 7 + 1)
        self.cmos[DAY], self.cmos[MONTH] = written.encode(day), written.encode(month)
        self.cmos[YEAR] = written.encode(year % 100)
        self.cmos[CENTURY] = written.encode(year // 100 % 100)

    def _registers_to_time(self) -> None:
        written = self._format()
        number = [written.decode(byte) for byte in self.cmos]
        days = days_from_civil(number[CENTURY] * 100 + number[YEAR], number[MONTH], number[DAY])
        second = written.decode_hour(self.cmos[HOURS]) * 3600 + number[MINUTES] * 60 + number[SECONDS]
        fraction = 0 if self.stopped else self.guest_ns() % SECOND
        calendar_days = days + second // SECONDS_A_DAY
        self.weekday_shift = (number[DAY_OF_WEEK] - 1 - (calendar_days + 4)) % 7
        self._set_time((days * SECONDS_A_DAY + second) * SECOND + fraction)

    def _set_time(self, guest_ns: int) -> None:
        before, self.offset_ns = self.offset_ns, guest_ns - self._wall_ns()
        self.flags_seen_ns = guest_ns
        seconds = round(self.offset_ns / SECOND)
        if self.on_change is not None and seconds != round(before / SECOND):
            self.on_change(seconds)

    # The flags of register C and the interrupts.

    def _read_flags(self) -> int:
        self._look_at_flags()
        flags, self.cmos[REG_C] = self.cmos[REG_C], 0
        self._irq.set(False)
        self._arm()
        return flags

    def _look_at_flags(self) -> None:
        """Bring register C and the interrupt line up to now, and arm the timer for what is enabled."""
        now, before = self.guest_ns(), self.flags_seen_ns
        flags, alarmed = self.cmos[REG_C], False
        if not self.stopped and now // SECOND > before // SECOND:
            flags |= C_UPDATE
            if (alarm := self._next_alarm(before // SECOND)) is not None and alarm <= now // SECOND:
                flags |= C_ALARM
                alarmed = bool(self.cmos[REG_B] & B_ALARM)
        period = self._period_ticks()
        if period and (_ticks(now) - self.period_began) // period > (_ticks(before) - self.period_began) // period:
            flags |= C_PERIODIC
        if flags & self.cmos[REG_B] & (B_PERIODIC | B_ALARM | B_UPDATE):
            flags |= C_IRQ
        raised = flags & C_IRQ and not self.cmos[REG_C] & C_IRQ
        self.cmos[REG_C] = flags
        self.flags_seen_ns = now
        if raised:
            self._irq.set(True)
        if alarmed:
            for action in self.on_alarm:
                action()
        self._arm()

    def _arm(self) -> None:
        """Set the timer to the next enabled event, unless an interrupt already waits to be acknowledged."""
        enabled, now = self.cmos[REG_B], self.guest_ns()
        events: list[int] = []
        if enabled & B_UPDATE and not self.stopped:
            events.append((now // SECOND + 1) * SECOND)
        if enabled & B_ALARM and not self.stopped and (alarm := self._next_alarm(now // SECOND)) is not None:
            events.append(alarm * SECOND)
        if enabled & B_PERIODIC and (period := self._period_ticks()):
            tick = ((_ticks(now) - self.period_began) // period + 1) * period + self.period_began
            events.append(-(-tick * SECOND // TICKS_A_SECOND))
        if events and not self.cmos[REG_C] & C_IRQ:
            self._timer.arm(self._clock.now_ns() + min(events) - now)
        else:
            self._timer.cancel()

    def _next_alarm(self, after: int) -> int | None:
        """The first second later than `after` that the alarm registers match."""
        written = self._format()

        def matcher(index: int, decode: Callable[[int], int]) -> Callable[[int], bool]:
            byte = self.cmos[index]
            return lambda value: byte >= ANY_VALUE or decode(byte) == value

        hours = matcher(HOURS_ALARM, written.decode_hour)
        return next_alarm(
            after, (hours, matcher(MINUTES_ALARM, written.decode), matcher(SECONDS_ALARM, written.decode))
        )

    def _period_changed(self, before: int) -> None:
        """The periodic interrupt had `before` ticks, 0 for off: its next edge comes a new period after its last one.

        So QEMU counts it, where the chip's divider goes on; switched on, the first edge is a period from now.
        """
        now, after = _ticks(self.guest_ns()), self._period_ticks()
        if not before:
            self.period_began = now
        elif before != after:
            self.period_began = max(now - (now - self.period_began) % before, now - after)

    def _periodic_interrupt(self) -> int:
        """Ticks of its period; 0 while it is not enabled."""
        return self._period_ticks() if self.cmos[REG_B] & B_PERIODIC else 0

    def _period_ticks(self) -> int:
        """Ticks of 32,768 Hz in one period of the periodic interrupt; 0 when it is off."""
        rate = self.cmos[REG_A] & A_RATE
        if not rate or _divider_held(self.cmos[REG_A]):
            return 0
        return 1 << (rate + 6 if rate <= 2 else rate - 1)


def _divider_held(reg_a: int) -> bool:
    """Register A's divider is held in reset (11x), or set to a time base that the PC does not have."""
    return reg_a & A_DIVIDER in (0x60, 0x70)


def _ticks(ns: int) -> int:
    return ns * TICKS_A_SECOND // SECOND
