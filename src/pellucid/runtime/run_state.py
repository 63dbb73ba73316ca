"""Run states: QEMU's `RunState` names and the transitions that are legal between them.

`info status`, `query-status` and the STOP and RESUME events speak in these names, so they and their edges are QEMU's.
"""

import enum
from collections.abc import Callable

from pellucid.errors import PellucidError


class RunState(enum.Enum):
    """What the machine as a whole is doing; the value is the name in QMP."""

    DEBUG = "debug"
    INMIGRATE = "inmigrate"
    INTERNAL_ERROR = "internal-error"
    IO_ERROR = "io-error"
    PAUSED = "paused"
    POSTMIGRATE = "postmigrate"
    PRELAUNCH = "prelaunch"
    FINISH_MIGRATE = "finish-migrate"
    RESTORE_VM = "restore-vm"
    RUNNING = "running"
    SAVE_VM = "save-vm"
    SHUTDOWN = "shutdown"
    SUSPENDED = "suspended"
    WATCHDOG = "watchdog"
    GUEST_PANICKED = "guest-panicked"
    COLO = "colo"


_S = RunState

LEGAL_TRANSITIONS: dict[RunState, frozenset[RunState]] = {
    _S.DEBUG: frozenset({_S.RUNNING, _S.FINISH_MIGRATE, _S.PRELAUNCH, _S.SUSPENDED}),
    _S.INMIGRATE: frozenset(
        {_S.INTERNAL_ERROR, _S.IO_ERROR, _S.PAUSED, _S.RUNNING, _S.SHUTDOWN, _S.SUSPENDED, _S.WATCHDOG}
        | {_S.GUEST_PANICKED, _S.FINISH_MIGRATE, _S.PRELAUNCH, _S.POSTMIGRATE, _S.COLO}
    ),
    _S.INTERNAL_ERROR: frozenset({_S.PAUSED, _S.FINISH_MIGRATE, _S.PRELAUNCH}),
    _S.IO_ERROR: frozenset({_S.RUNNING, _S.FINISH_MIGRATE, _S.PRELAUNCH}),
    _S.PAUSED: frozenset({_S.RUNNING, _S.FINISH_MIGRATE, _S.POSTMIGRATE, _S.PRELAUNCH, _S.COLO}),
    _S.POSTMIGRATE: frozenset({_S.RUNNING, _S.FINISH_MIGRATE, _S.PRELAUNCH}),
    _S.PRELAUNCH: frozenset({_S.RUNNING, _S.FINISH_MIGRATE, _S.INMIGRATE}),
    _S.FINISH_MIGRATE: frozenset(
        {_S.RUNNING, _S.PAUSED, _S.POSTMIGRATE, _S.PRELAUNCH, _S.COLO, _S.INTERNAL_ERROR, _S.IO_ERROR}
        | {_S.SHUTDOWN, _S.SUSPENDED, _S.WATCHDOG, _S.GUEST_PANICKED}
    ),
    _S.RESTORE_VM: frozenset({_S.RUNNING, _S.PRELAUNCH}),
    _S.RUNNING: frozenset(
        {_S.DEBUG, _S.INTERNAL_ERROR, _S.IO_ERROR, _S.PAUSED, _S.FINISH_MIGRATE, _S.RESTORE_VM, _S.SAVE_VM}
        | {_S.SHUTDOWN, _S.WATCHDOG, _S.GUEST_PANICKED, _S.COLO, _S.SUSPENDED}
    ),
    _S.SAVE_VM: frozenset({_S.RUNNING}),
    _S.SHUTDOWN: frozenset({_S.PAUSED, _S.FINISH_MIGRATE, _S.PRELAUNCH, _S.COLO}),
    _S.SUSPENDED: frozenset({_S.RUNNING, _S.FINISH_MIGRATE, _S.PRELAUNCH, _S.COLO}),
    _S.WATCHDOG: frozenset({_S.RUNNING, _S.FINISH_MIGRATE, _S.PRELAUNCH, _S.COLO}),
    _S.GUEST_PANICKED: frozenset({_S.RUNNING, _S.FINISH_MIGRATE, _S.PRELAUNCH}),
    _S.COLO: frozenset({_S.RUNNING, _S.PRELAUNCH, _S.SHUTDOWN}),
}
"""From each state, the states that may follow it. Staying where one is, is always legal and is no transition."""

NEEDS_RESET = frozenset({_S.INTERNAL_ERROR, _S.SHUTDOWN})
"""States that `cont` cannot leave before a reset."""

ChangeHandler = Callable[[bool, RunState], None]


class InvalidTransition(PellucidError):
    """The machine was asked to go from a state to one that may not follow it."""


class RunStateMachine:
    """The present state, and who is told when it changes. The big lock is held around every call but reads."""

    def __init__(self) -> None:
        self._state = RunState.PRELAUNCH
        self._handlers: list[ChangeHandler] = []

    @property
    def state(self) -> RunState:
        """The present state."""
        return self._state

    @property
    def running(self) -> bool:
        """Whether the guest runs."""
        return self._state is RunState.RUNNING

    @property
    def needs_reset(self) -> bool:
        """Whether the guest must be reset before it can run again."""
        return self._state in NEEDS_RESET

    def subscribe(self, handler: ChangeHandler) -> None:
        """Call `handler(running, state)` after every change; stops are told in reverse order of subscription.

        So a part that depends on another (a network back end on its device) stops before it and starts after it.
        """
        self._handlers.append(handler)

    def set(self, state: RunState) -> None:
        """Go to `state`.

        Raises:
            InvalidTransition: it may not follow the present one; the present one stays.
        """
        old = self._state
        if state is old:
            return
        if state not in LEGAL_TRANSITIONS[old]:
            raise InvalidTransition(f"a machine that is '{old.value}' cannot become '{state.value}'")
        self._state = state
        running = state is RunState.RUNNING
        for handler in self._handlers if running else reversed(self._handlers):
            handler(running, state)
