"""-icount: the guest's time by the instructions that it executes."""

from pellucid.cli.draft import Draft
from pellucid.cli.keyval import parse_keyval, parse_switch
from pellucid.errors import NotBuiltError, UserError
from pellucid.kvm.api import InstructionTime

MAX_SHIFT = 10
NOT_BUILT = ("rr", "rrfile", "rrsnapshot")


def icount(draft: Draft, text: str) -> None:
    """-icount [shift=]N|auto,sleep=on|off,align=on|off."""
    values = parse_keyval("icount", text, ("shift", "align", "sleep", *NOT_BUILT), "shift")
    for name in NOT_BUILT:
        if name in values:
            raise NotBuiltError(f"-icount {text}: {name} is not built yet: leave it out")
    align = parse_switch("icount", "align", values.get("align", "off"))
    sleep = parse_switch("icount", "sleep", values.get("sleep", "on"))
    if "shift" not in values:
        if align:
            raise UserError("Please specify shift option when using align")
        return
    if values["shift"] == "auto":
        if align:
            raise UserError("shift=auto and align=on are incompatible")
        if not sleep:
            raise UserError("shift=auto and sleep=off are incompatible")
        draft.icount = InstructionTime(auto=True)
        return
    if align and not sleep:
        raise UserError("align=on and sleep=off are incompatible")
    draft.icount = InstructionTime(_shift(values["shift"]), sleep, align=align)


def _shift(text: str) -> int:
    try:
        shift = int(text, 0)
    except ValueError:
        shift = -1
    if not 0 <= shift <= MAX_SHIFT:
        raise UserError("icount: Invalid shift value")
    return shift
