"""Calendar arithmetic of the MC146818: seconds since 1970 to and from the ten registers of time.

The registers may hold any bytes (a guest writes them), so nothing here raises: fields out of range carry over into
the next larger unit, as mktime(3) does, and an alarm that no time of day matches never comes.
"""

from collections.abc import Callable

from pellucid.records import dataclass

SECONDS_A_DAY = 86_400
_DAYS_TO_MONTH = (0, 31, 61, 92, 122, 153, 184, 214, 245, 275, 306, 337)
"""Days from 1 March to the first of March, April, ... February."""


def days_from_civil(year: int, month: int, day: int) -> int:
    """Days from 1970-01-01 to a date of the Gregorian calendar; months and days out of range carry over."""
    year, month = year + (month - 1) // 12, (month - 1) % 12
    # A year counted from March has its leap day at its end.
    year, month = (year, month - 2) if month >= 2 else (year - 1, month + 10)
    return 365 * year + year // 4 - year // 100 + year // 400 + _DAYS_TO_MONTH[month] + day - 1 - 719_468


def civil_from_days(days: int) -> tuple[int, int, int]:
    """(year, month, day) of a day counted from 1970-01-01; the inverse of days_from_civil."""
    days += 719_468
    era, day_of_era = divmod(days, 146_097)
    year_of_era = (day_of_era - day_of_era // 1_460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    month = max(index for index, first in enumerate(_DAYS_TO_MONTH) if first <= day_of_year)
    year = 400 * era + year_of_era
    day = day_of_year - _DAYS_TO_MONTH[month] + 1
    return (year, month + 3, day) if month < 10 else (year + 1, month - 9, day)


@dataclass(frozen=True)
class Format:
    """How register B says that the registers are written: `binary` or BCD, and 24 or 12 hours with a PM bit."""

    binary: bool
    hours_24: bool

    def encode(self, value: int) -> int:
        """A register's byte for a number from 0 to 99."""
        return value if self.binary else value // 10 << 4 | value % 10

    def decode(self, byte: int) -> int:
        """The number in a register's byte."""
        return byte if self.binary else (byte >> 4) * 10 + (byte & 15)

    def encode_hour(self, hour: int) -> int:
        """The hour register for an hour from 0 to 23."""
        if self.hours_24:
            return self.encode(hour)
        return self.encode((hour + 11) % 12 + 1) | (0x80 if hour >= 12 else 0)

    def decode_hour(self, byte: int) -> int:
        """The hour from 0 to 23 in the hour register."""
        if self.hours_24:
            return self.decode(byte)
        return self.decode(byte & 0x7F) % 12 + (12 if byte & 0x80 else 0)


def next_alarm(after: int, matches: tuple[Callable[[int], bool], ...]) -> int | None:
    """The first time of day-and-date, in seconds and later than `after`, whose (hour, minute, second) all match.

    None when no time of day does. `after` counts seconds from any midnight.
    """
    hours, minutes, seconds = (
        [value for value in range(limit) if match(value)] for limit, match in zip((24, 60, 60), matches, strict=True)
    )
    if not (hours and minutes and seconds):
        return None
    midnight, now = after - after % SECONDS_A_DAY, after % SECONDS_A_DAY
    for hour in hours:
        for minute in minutes:
            if hour * 3600 + minute * 60 + seconds[-1] > now:
                second = next(s for s in seconds if hour * 3600 + minute * 60 + s > now)
                return midnight + hour * 3600 + minute * 60 + second
    return midnight + SECONDS_A_DAY + hours[0] * 3600 + minutes[0] * 60 + seconds[0]
