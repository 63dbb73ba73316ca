"""-overcommit: cpu-pm gives the guest MONITOR; locked memory is not built."""

import pytest

from pellucid.cli.options import parse_options
from pellucid.errors import NotBuiltError, UserError
from pellucid.machine.cpu_model import configured_model


@pytest.mark.parametrize(("words", "has"), [
    ([], False), (["-overcommit", "cpu-pm=on"], True), (["-overcommit", "cpu-pm=off"], False),
    (["-overcommit", "mem-lock=off,cpu-pm=on", "-cpu", "max"], True),
    (["-overcommit", "cpu-pm=on", "-cpu", "host,-monitor"], False),
    (["-cpu", "Opteron_G3"], True), (["-overcommit", "cpu-pm=on", "-cpu", "Nehalem"], False)])
def test_who_has_monitor(words: list[str], has: bool) -> None:
    model = configured_model(parse_options(words).cpu, warn=False)
    assert ("monitor" in model.features) == has


@pytest.mark.parametrize(("text", "error"), [
    ("mem-lock=on", NotBuiltError), ("cpu-pm=maybe", UserError), ("x=1", UserError)])
def test_what_is_refused(text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        parse_options(["-overcommit", text])
