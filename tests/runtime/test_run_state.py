"""Run states: QEMU's names, the legal transitions, and who is told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.runtime import InvalidTransition, RunState, RunStateMachine
from pellucid.runtime.run_state import LEGAL_TRANSITIONS


def test_names_are_qmps() -> None:
    assert {state.value for state in RunState} == set(
        "debug inmigrate internal-error io-error paused postmigrate prelaunch finish-migrate restore-vm running "
        "save-vm shutdown suspended watchdog guest-panicked colo".split()
    )
    assert LEGAL_TRANSITIONS.keys() == set(RunState)


@pytest.mark.parametrize(
    ("old", "new", "legal"),
    [
        ("prelaunch", "running", True),
        ("running", "paused", True),
        ("paused", "running", True),
        ("running", "prelaunch", False),
        ("shutdown", "running", False),
        ("shutdown", "paused", True),
        ("internal-error", "running", False),
        ("guest-panicked", "running", True),
        ("suspended", "paused", False),
        ("paused", "shutdown", False),
        ("save-vm", "paused", False),
    ],
)
def test_transitions(old: str, new: str, legal: bool) -> None:
    assert (RunState(new) in LEGAL_TRANSITIONS[RunState(old)]) is legal


def test_a_refused_transition_changes_nothing() -> None:
    machine = RunStateMachine()
    heard: list[RunState] = []
    machine.subscribe(lambda running, state: heard.append(state))
    with pytest.raises(InvalidTransition, match="a machine that is 'prelaunch' cannot become 'paused'"):
        machine.set(RunState.PAUSED)
    assert machine.state is RunState.PRELAUNCH and heard == []


def test_handlers_hear_starts_in_order_and_stops_backwards() -> None:
    machine = RunStateMachine()
    log: list[str] = []
    machine.subscribe(lambda running, state: log.append(f"a:{running}:{state.value}"))
    machine.subscribe(lambda running, state: log.append(f"b:{running}:{state.value}"))
    machine.set(RunState.RUNNING)
    machine.set(RunState.RUNNING)
    machine.set(RunState.PAUSED)
    assert log == ["a:True:running", "b:True:running", "b:False:paused", "a:False:paused"]


@given(st.lists(st.sampled_from(list(RunState)), max_size=30))
def test_a_random_walk_stays_within_the_table(wishes: list[RunState]) -> None:
    machine = RunStateMachine()
    for wish in wishes:
        old = machine.state
        try:
            machine.set(wish)
        except InvalidTransition:
            assert machine.state is old and wish not in LEGAL_TRANSITIONS[old]
        else:
            assert machine.state is wish and (wish is old or wish in LEGAL_TRANSITIONS[old])
        assert machine.needs_reset == (machine.state.value in ("shutdown", "internal-error"))
