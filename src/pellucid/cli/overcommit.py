"""-overcommit: what the guest may keep of the host, and what it may sleep by."""

from pellucid.cli.draft import Draft
from pellucid.cli.keyval import parse_keyval, parse_switch
from pellucid.errors import NotBuiltError


def overcommit(draft: Draft, text: str) -> None:
    """-overcommit [mem-lock=off][,cpu-pm=on|off]."""
    values = parse_keyval("overcommit", text, ("mem-lock", "cpu-pm"))
    if parse_switch("overcommit", "mem-lock", values.get("mem-lock", "off")):
        raise NotBuiltError(f"-overcommit {text}: mem-lock=on is not built yet: leave it out")
    draft.cpu_pm = parse_switch("overcommit", "cpu-pm", values.get("cpu-pm", "off"))
