"""-rtc: where the guest's calendar starts, and which clock drives it."""

from datetime import UTC, datetime

from pellucid.cli.draft import Draft
from pellucid.cli.keyval import parse_keyval
from pellucid.errors import NotBuiltError, UserError
from pellucid.machine.config import RtcConfig

CLOCKS = ("host", "rt", "vm")
FORMATS = ("%Y-%m-%dT%H:%M:%S", "%Y-%m-%d")


def rtc(draft: Draft, text: str) -> None:
    """-rtc [base=utc|localtime|DATE],clock=host|rt|vm,driftfix=none."""
    values = parse_keyval("rtc", text, ("base", "clock", "driftfix"))
    clock, drift = values.get("clock", draft.rtc.clock), values.get("driftfix", "none")
    if clock not in CLOCKS:
        raise UserError(f"-rtc {text}: invalid option value '{clock}': give clock={' or '.join(CLOCKS)}")
    if drift not in ("none", "slew"):
        raise UserError(f"-rtc {text}: invalid option value '{drift}': give driftfix=none")
    if drift == "slew":
        raise NotBuiltError(f"-rtc {text}: driftfix=slew is not built yet: leave it out")
    base = values.get("base", draft.rtc.base)
    if base not in ("utc", "localtime") and "base" in values:
        base = str(_seconds(text, base))
    draft.rtc = RtcConfig(base, clock)


def _seconds(text: str, date: str) -> int:
    for form in FORMATS:
        try:
            return int(datetime.strptime(date, form).replace(tzinfo=UTC).timestamp())
        except ValueError:
            continue
    raise UserError(f"-rtc {text}: invalid datetime format: write 2006-06-17T16:01:21 or 2006-06-17")
