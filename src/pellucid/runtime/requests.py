"""Requests to the machine as a whole, left by any thread and carried out by the main loop.

A device that resets or powers off the machine is called from a vCPU thread, in the middle of an instruction; it may not
stop the vCPUs from there. It leaves a request here, and the main loop takes it at its next turn.
"""

import enum
import threading
from collections.abc import Callable

from pellucid.records import dataclass
from pellucid.runtime.run_state import RunState


class PanicAction(enum.Enum):
    """What becomes of a machine whose guest says that it has crashed (`-action panic=`)."""

    PAUSE = "pause"
    SHUTDOWN = "shutdown"
    EXIT_FAILURE = "exit-failure"
    NONE = "none"


class ShutdownCause(enum.Enum):
    """Why the machine is reset or goes down; the value is the name in QMP's SHUTDOWN and RESET events."""

    NONE = "none"
    HOST_ERROR = "host-error"
    HOST_QMP_QUIT = "host-qmp-quit"
    HOST_QMP_SYSTEM_RESET = "host-qmp-system-reset"
    HOST_SIGNAL = "host-signal"
    HOST_UI = "host-ui"
    GUEST_SHUTDOWN = "guest-shutdown"
    GUEST_RESET = "guest-reset"
    GUEST_PANIC = "guest-panic"
    SUBSYSTEM_RESET = "subsystem-reset"
    SNAPSHOT_LOAD = "snapshot-load"

    @property
    def by_guest(self) -> bool:
        """Whether the guest itself asked."""
        return self in _BY_GUEST


_BY_GUEST = frozenset({ShutdownCause.GUEST_SHUTDOWN, ShutdownCause.GUEST_RESET, ShutdownCause.GUEST_PANIC})


class WakeReason(enum.Enum):
    """What ends a suspend to RAM, for the device that tells the guest."""

    OTHER = "other"
    RTC = "rtc"
    PM_TIMER = "pm timer"


@dataclass(slots=True)
class Requested:
    """The requests that lie there at one moment; None or False where there is none."""

    debug: bool = False
    suspend: bool = False
    shutdown: ShutdownCause | None = None
    reset: ShutdownCause | None = None
    wakeup: WakeReason | None = None
    powerdown: bool = False
    vmstop: RunState | None = None


class SystemRequests:
    """A letter box: every method may be called from any thread; `wake` is how the main loop is told."""

    def __init__(self, wake: Callable[[], None], *, no_reboot: bool = False) -> None:
        self._wake = wake
        # Recursive: a signal handler may leave a request while the main thread is inside a method here.
        self._lock = threading.RLock()
        self._requested = Requested()
        self.no_reboot = no_reboot
        """`-no-reboot`: a reset ends the machine instead."""

    def take(self) -> Requested:
        """All requests left since the last call; the box is empty afterwards."""
        with self._lock:
            requested, self._requested = self._requested, Requested()
        return requested

    def shutdown(self, cause: ShutdownCause) -> None:
        """Go down."""
        with self._lock:
            self._requested.shutdown = cause
        self._wake()

    def reset(self, cause: ShutdownCause) -> None:
        """Reset; or go down, with `-no-reboot` and unless only a part of the machine is reset."""
        with self._lock:
            if self.no_reboot and cause is not ShutdownCause.SUBSYSTEM_RESET:
                self._requested.shutdown = cause
            else:
                self._requested.reset = cause
        self._wake()

    def powerdown(self) -> None:
        """Press the power button."""
        with self._lock:
            self._requested.powerdown = True
        self._wake()

    def suspend(self) -> None:
        """Suspend to RAM."""
        with self._lock:
            self._requested.suspend = True
        self._wake()

    def wakeup(self, reason: WakeReason = WakeReason.OTHER) -> None:
        """Wake from suspend; a machine that is not suspended by then stays as it is."""
        with self._lock:
            self._requested.wakeup = reason
        self._wake()

    def debug(self) -> None:
        """Stop because of a breakpoint or single step."""
        with self._lock:
            self._requested.debug = True
        self._wake()

    def vmstop(self, state: RunState) -> None:
        """Stop the guest and become `state`."""
        with self._lock:
            self._requested.vmstop = state
        self._wake()
