"""MC146818: calendar, formats, alarms, periodic and update interrupts, update in progress, CMOS RAM."""

import calendar
import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.machine.devices import rtc_time
from pellucid.machine.devices.rtc import SECOND, Rtc
from pellucid.machine.devices.rtc_time import civil_from_days, days_from_civil, next_alarm
from tests.machine.helpers import Counter, HandClock, Wire, round_trip

NOON = calendar.timegm((2026, 7, 23, 12, 34, 56)) * SECOND


class Board:
    """A clock chip whose host time goes with the hand-cranked clock."""

    def __init__(self, start_ns: int = NOON) -> None:
        self.irq = Wire()
        self.clock = HandClock()
        self.nmi = Counter()
        self.rtc = Rtc(self.irq, self.clock, lambda: start_ns + self.clock.now, self.nmi)

    def read(self, index: int) -> int:
        self.rtc.write(0, 1, index)
        return self.rtc.read(1, 1)

    def write(self, index: int, value: int) -> None:
        self.rtc.write(0, 1, index)
        self.rtc.write(1, 1, value)

    def time(self) -> list[int]:
        """Seconds, minutes, hours, day of week, day, month, year, century as the bytes read."""
        return [self.read(index) for index in (0, 2, 4, 6, 7, 8, 9, 0x32)]


@given(st.dates())
def test_days_agree_with_the_calendar(date: datetime.date) -> None:
    days = date.toordinal() - datetime.date(1970, 1, 1).toordinal()
    assert days_from_civil(date.year, date.month, date.day) == days
    assert civil_from_days(days) == (date.year, date.month, date.day)


@given(st.integers(-5000, 20000), st.integers(-30, 200), st.integers(-200, 400))
def test_any_date_carries_over(year: int, month: int, day: int) -> None:
    days = days_from_civil(year, month, day)
    assert days == days_from_civil(year, month, 1) + day - 1
    assert days_from_civil(*civil_from_days(days)) == days


def test_time_in_bcd() -> None:
    assert Board().time() == [0x56, 0x34, 0x12, 5, 0x23, 0x07, 0x26, 0x20]


def test_time_in_binary_and_12_hours() -> None:
    board = Board()
    board.write(0x0B, 0x04)
    assert board.time() == [56, 34, 0x80 | 12, 5, 23, 7, 26, 20]
    board.clock.advance(12 * 3600 * SECOND)
    assert board.read(4) == 12
    board.clock.advance(3600 * SECOND)
    assert board.read(4) == 1


def test_time_goes_on_and_carries() -> None:
    board = Board(calendar.timegm((1999, 12, 31, 23, 59, 59)) * SECOND)
    board.clock.advance(SECOND)
    assert board.time() == [0, 0, 0, 7, 1, 1, 0, 0x20]


def test_setting_the_time_as_linux_does() -> None:
    board = Board()
    board.write(0x0B, 0x82)
    for index, value in ((9, 0x31), (8, 0x12), (7, 0x30), (4, 0x23), (2, 0x59), (0, 0x58), (0x32, 0x20), (6, 3)):
        board.write(index, value)
    board.clock.advance(100 * SECOND)
    assert board.time() == [0x58, 0x59, 0x23, 3, 0x30, 0x12, 0x31, 0x20], "frozen while SET"
    board.write(0x0B, 0x02)
    board.clock.advance(3 * SECOND)
    assert board.time() == [0x01, 0, 0, 4, 0x31, 0x12, 0x31, 0x20]


def test_setting_one_register_while_running() -> None:
    board = Board()
    board.clock.advance(SECOND // 4)
    board.write(4, 0x09)
    assert board.read(4) == 0x09
    board.clock.advance(3 * SECOND // 4)
    assert board.read(0) == 0x57, "the fraction of the second is kept"


def test_divider_reset_restarts_half_a_second_before_the_update() -> None:
    board = Board()
    board.write(0x0A, 0x70)
    board.clock.advance(10 * SECOND)
    assert board.read(0) == 0x56
    board.write(0x0A, 0x26)
    board.clock.advance(SECOND // 2 - 1)
    assert board.read(0) == 0x56
    board.clock.advance(1)
    assert board.read(0) == 0x57


def test_update_in_progress_is_seen_before_the_second() -> None:
    board = Board()
    assert not board.read(0x0A) & 0x80
    board.clock.advance(SECOND - 244_140)
    assert board.read(0x0A) & 0x80
    board.clock.advance(244_141)
    assert not board.read(0x0A) & 0x80


def test_update_interrupt_each_second() -> None:
    board = Board()
    board.write(0x0B, 0x12)
    for _ in range(3):
        board.clock.advance(SECOND)
        assert board.irq.level
        assert board.read(0x0C) & ~0x40 == 0x90, "the periodic flag rises by itself"
        assert not board.irq.level and board.read(0x0C) == 0
    assert board.irq.edges == 3


def test_alarm_interrupt() -> None:
    board = Board()
    board.write(1, 0x10)
    board.write(3, 0x35)
    board.write(5, 0x12)
    board.write(0x0B, 0x22)
    board.clock.advance(13 * SECOND)
    assert not board.irq.level
    board.clock.advance(SECOND)
    assert board.irq.level
    assert board.read(0x0C) & 0xA0 == 0xA0
    board.clock.advance(23 * 3600 * SECOND)
    assert not board.irq.level
    board.clock.advance(3600 * SECOND)
    assert board.irq.level, "again the next day"


def test_alarm_with_dont_cares() -> None:
    board = Board()
    for index in (1, 3, 5):
        board.write(index, 0xFF)
    board.write(0x0B, 0x22)
    board.clock.advance(SECOND)
    assert board.read(0x0C) & 0x20


def test_an_alarm_that_no_time_matches_never_comes() -> None:
    board = Board()
    board.write(5, 0x33)
    board.write(0x0B, 0x22)
    board.clock.advance(48 * 3600 * SECOND)
    assert not board.irq.level and not board.read(0x0C) & 0x20


def test_flags_rise_without_their_interrupts() -> None:
    board = Board()
    board.read(0x0C)
    board.clock.advance(SECOND)
    assert board.read(0x0C) == 0x50, "update, and periodic at the power-on rate; no IRQF"
    assert board.irq.edges == 0


@pytest.mark.parametrize(("rate", "ticks"), [(3, 4), (6, 32), (15, 16384), (1, 128), (2, 256)])
def test_periodic_rate(rate: int, ticks: int) -> None:
    board = Board(0)
    board.write(0x0A, 0x20 | rate)
    board.write(0x0B, 0x42)
    for tick in range(1, 4):
        board.clock.advance(-(-tick * ticks * SECOND // 32768) - board.clock.now)
        assert board.irq.edges == tick
        assert board.read(0x0C) & 0xC0 == 0xC0


def test_an_unacknowledged_interrupt_costs_nothing() -> None:
    board = Board()
    board.write(0x0A, 0x23)
    board.write(0x0B, 0x42)
    board.clock.advance(1000 * SECOND)
    assert board.irq.edges == 1


def test_cmos_ram_survives_and_control_bits_do_not() -> None:
    board = Board()
    board.write(0x40, 0xA5)
    board.write(0x0B, 0x72)
    board.rtc.reset()
    assert board.read(0x40) == 0xA5 and board.read(0x0B) == 0x02 and not board.irq.level
    board.write(0x0D, 0)
    assert board.read(0x0D) == 0x80


def test_index_port_masks_nmi_and_reads_as_ones() -> None:
    board = Board()
    board.rtc.write(0, 1, 0x8F)
    board.rtc.write(0, 1, 0x0F)
    board.rtc.write(0, 1, 0x0E)
    assert board.nmi.calls == [(True,), (False,)]
    assert board.rtc.read(0, 1) == 0xFF


def test_saved_state_continues() -> None:
    board, other = Board(), Board()
    board.write(4, 0x03)
    board.write(0x0B, 0x12)
    round_trip(board.rtc, other.rtc)
    other.clock.advance(SECOND)
    assert other.irq.level and other.read(4) == 0x03


@given(st.integers(0, 10**9), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59), st.integers(0, 7))
def test_next_alarm_is_the_first_match(after: int, hour: int, minute: int, second: int, any_mask: int) -> None:
    wanted = [None if any_mask >> n & 1 else value for n, value in enumerate((hour, minute, second))]
    found = next_alarm(
        after,
        tuple((lambda value, want=want: want is None or value == want) for want in wanted),  # type: ignore[misc]
    )
    assert found is not None and after < found <= after + rtc_time.SECONDS_A_DAY

    def matches(time: int) -> bool:
        fields = (time // 3600 % 24, time // 60 % 60, time % 60)
        return all(want is None or want == field for want, field in zip(wanted, fields, strict=True))

    assert matches(found)
    step = 1 if wanted[2] is None else (60 if wanted[1] is None else (3600 if wanted[0] is None else 86400))
    earlier = found - step
    assert earlier <= after or not matches(earlier)


def test_a_new_rate_counts_from_the_last_edge() -> None:
    board = Board()
    board.write(0x0A, 0x2D)  # 8 Hz
    board.write(0x0B, 0x42)
    board.clock.advance(SECOND // 8 + SECOND // 32)
    assert board.read(0x0C) & 0x40
    board.write(0x0A, 0x2F)  # 2 Hz: half a second behind the last edge, not at the next half of the second
    board.clock.advance(SECOND // 2 - SECOND // 32 - 1_000_000)
    assert not board.read(0x0C) & 0x40
    board.clock.advance(2_000_000)
    assert board.read(0x0C) & 0x40
