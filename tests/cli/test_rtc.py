"""-rtc: what the guest's calendar starts from, and which clock drives it."""

import time

import pytest

from pellucid.cli.options import parse_options
from pellucid.errors import NotBuiltError, UserError
from pellucid.machine.calendar import calendar
from pellucid.machine.config import RtcConfig
from pellucid.runtime import VirtualClock

HOUR = 3600 * 10**9


def chosen(text: str) -> RtcConfig:
    return parse_options(["-M", "pc", "-rtc", text]).rtc


def test_what_is_said() -> None:
    assert chosen("base=localtime,clock=vm") == RtcConfig("localtime", "vm")
    assert chosen("base=2000-01-01T01:02:03") == RtcConfig("946688523", "host")
    assert chosen("base=2000-01-01,driftfix=none") == RtcConfig("946684800", "host")
    for text, said in (
        ("base=foo", "invalid datetime format"),
        ("clock=foo", "invalid option value 'foo'"),
        ("driftfix=foo", "invalid option value 'foo'"),
        ("xx=1", "unknown parameter 'xx'"),
    ):
        with pytest.raises(UserError, match=said):
            chosen(text)
    with pytest.raises(NotBuiltError, match="driftfix=slew"):
        chosen("driftfix=slew")


@pytest.mark.parametrize("clock", ["host", "rt", "vm"])
def test_the_calendar(clock: str) -> None:
    guest = VirtualClock()
    try:
        now = calendar(RtcConfig("utc", clock), guest)
        assert abs(now() - time.time_ns()) < HOUR
        then = calendar(RtcConfig("946688523", clock), guest)
        assert 0 <= then() - 946_688_523 * 10**9 < HOUR
        stands = clock == "vm"
        first = then()
        time.sleep(0.01)
        assert (then() == first) is stands  # the guest's clock has not been started
    finally:
        guest.close()
