"""The machine's life: start, stop, reset, suspend, power off. It carries out what `SystemRequests` collects.

The order in which one turn of the main loop looks at the requests (debug, suspend, shutdown, reset, wake-up, power
button, stop) is QEMU's, because a guest or a management program can leave several at once and the events show the
order.
"""

import logging
from collections.abc import Callable

from pellucid.kvm.api import Exit, SystemEvent, SystemEventExit
from pellucid.runtime.clock import VirtualClock
from pellucid.runtime.main_loop import MainLoop
from pellucid.runtime.requests import PanicAction, ShutdownCause, SystemRequests, WakeReason
from pellucid.runtime.run_state import InvalidTransition, RunState, RunStateMachine
from pellucid.runtime.vcpu_group import VcpuGroup
from pellucid.runtime.vcpu_thread import Outcome, VcpuThread

_log = logging.getLogger("pellucid.runtime.system")

ENDS_ANYWAY = frozenset(
    {ShutdownCause.HOST_ERROR, ShutdownCause.HOST_QMP_QUIT, ShutdownCause.HOST_SIGNAL, ShutdownCause.HOST_UI}
)
"""The user's own word, or that nothing is left to look at: `-no-shutdown` is about guests."""

EventData = dict[str, object]
EventHandler = Callable[[str, EventData], None]


class System:
    """Run state, vCPUs and guest clock of one machine, kept in step.

    The machine hangs its own actions in the public lists: `on_reset` (in order, vCPUs paused), `on_powerdown`,
    `on_suspend`, `on_wakeup`. `on_event` hears the events that QMP sends (STOP, RESUME, RESET, SHUTDOWN …).
    Everything but `run` and the `requests` is called with the big lock held.
    """

    def __init__(
        self,
        main_loop: MainLoop,
        vcpus: VcpuGroup,
        clock: VirtualClock,
        *,
        no_reboot: bool = False,
        no_shutdown: bool = False,
    ) -> None:
        self.main_loop = main_loop
        self.vcpus = vcpus
        self.clock = clock
        self.no_shutdown = no_shutdown
        """`-no-shutdown`: a machine that powers off stays, stopped."""
        self.panic_action = PanicAction.SHUTDOWN
        self.run_state = RunStateMachine()
        self.requests = SystemRequests(main_loop.wake, no_reboot=no_reboot)
        self.on_reset: list[Callable[[ShutdownCause], None]] = []
        self.on_powerdown: list[Callable[[], None]] = []
        self.on_suspend: list[Callable[[], None]] = []
        self.on_wakeup: list[Callable[[WakeReason], None]] = []
        self.on_event: list[EventHandler] = []
        self.on_failure: list[Callable[[VcpuThread, Exit], None]] = []
        self.shutdown_cause = ShutdownCause.NONE
        """Why `run` returned."""

    def run(self) -> ShutdownCause:
        """Turn the main loop until the machine goes down; returns the reason. On the main thread, without the lock."""
        while not self._carry_out_requests():
            self.main_loop.run_once()
        return self.shutdown_cause

    def vm_start(self) -> None:
        """Run the guest (HMP's `cont`). One that is suspended stays so: it is woken, not continued.

        Raises:
            InvalidTransition: it must be reset first, or may not run from the present state.
        """
        if self.run_state.running or self.run_state.state is RunState.SUSPENDED:
            return
        if self.run_state.needs_reset:
            raise InvalidTransition(f"a machine that is '{self.run_state.state.value}' must be reset before it can run")
        self._emit("RESUME")
        self.run_state.set(RunState.RUNNING)
        self.clock.start()
        self.vcpus.resume_all()

    def vm_stop(self, state: RunState = RunState.PAUSED) -> None:
        """Stop the guest and become `state`; a stopped one keeps the state it has.

        On a vCPU thread: that CPU stops after its exit, and the main loop does the rest.
        """
        if self.vcpus.current() is not None:
            self.requests.vmstop(state)
            self.vcpus.stop_current()
            return
        if self.run_state.running:
            # The vCPUs first: what they read of their TSC until they stand is time that the clock has seen, too.
            self.vcpus.pause_all()
            self.clock.stop()
            self.run_state.set(state)
            self._emit("STOP")

    def request_reset(self, cause: ShutdownCause) -> None:
        """Reset at the main loop's next turn; the calling vCPU executes nothing more before."""
        self.vcpus.stop_current()
        self.requests.reset(cause)

    def request_shutdown(self, cause: ShutdownCause) -> None:
        """Go down at the main loop's next turn; the calling vCPU executes nothing more before."""
        self.vcpus.stop_current()
        self.requests.shutdown(cause)

    def request_suspend(self) -> None:
        """Suspend to RAM at the main loop's next turn; the calling vCPU executes nothing more before."""
        if self.run_state.state is not RunState.SUSPENDED:
            self.vcpus.stop_current()
            self.requests.suspend()

    def request_wakeup(self, reason: WakeReason = WakeReason.OTHER) -> None:
        """End a suspend to RAM at the main loop's next turn.

        Raises:
            InvalidTransition: the guest is not suspended.
        """
        if self.run_state.state is not RunState.SUSPENDED:
            raise InvalidTransition("Unable to wake up: guest is not in suspended state")
        self.requests.wakeup(reason)

    def guest_panicked(self) -> None:
        """The guest says that it has crashed: `panic_action` is done, with `-no-shutdown` pausing instead."""
        action = self.panic_action
        if action is PanicAction.NONE:
            self._emit("GUEST_PANICKED", action="run")
            return
        stays = action is PanicAction.PAUSE or (action is PanicAction.SHUTDOWN and self.no_shutdown)
        self._emit("GUEST_PANICKED", action="pause" if stays else "poweroff")
        self.vm_stop(RunState.GUEST_PANICKED)
        if not stays:
            fails = action is PanicAction.EXIT_FAILURE
            self.requests.shutdown(ShutdownCause.HOST_ERROR if fails else ShutdownCause.GUEST_PANIC)

    def guest_crash_loaded(self) -> None:
        """The guest says that it has crashed, and that its crash kernel takes over: only told."""
        self._emit("GUEST_CRASHLOADED", action="run")

    def vcpu_event(self, thread: VcpuThread, outcome: Outcome, exit: Exit) -> None:
        """The `on_event` of the machine's vCPU threads."""
        if outcome is Outcome.RESET:
            _log.info("%s shut down: %s", thread.name, exit)
            self.request_reset(ShutdownCause.GUEST_RESET)
        elif outcome is Outcome.DEBUG:
            thread.pause()
            self.requests.debug()
        elif isinstance(exit, SystemEventExit):
            self._system_event(exit.kind)
        else:
            _log.error("%s cannot go on: %s", thread.name, exit)
            for handler in self.on_failure:
                handler(thread, exit)
            self.vm_stop(RunState.INTERNAL_ERROR)

    def _system_event(self, kind: SystemEvent) -> None:
        if kind is SystemEvent.SHUTDOWN:
            self.request_shutdown(ShutdownCause.GUEST_SHUTDOWN)
        elif kind is SystemEvent.RESET:
            self.request_reset(ShutdownCause.GUEST_RESET)
        elif kind is SystemEvent.CRASH:
            self.guest_panicked()
        elif kind is SystemEvent.SUSPEND:
            self.request_suspend()
        else:
            self.requests.wakeup()

    def _carry_out_requests(self) -> bool:
        """Do what is requested; True when the machine goes down."""
        with self.main_loop.bql:
            requested = self.requests.take()
            if requested.debug:
                self.vm_stop(RunState.DEBUG)
            if requested.suspend:
                self._suspend()
            if requested.shutdown is not None and self._shutdown(requested.shutdown):
                return True
            if requested.reset is not None:
                self._reset(requested.reset)
            if requested.wakeup is not None:
                self._wakeup(requested.wakeup)
            if requested.powerdown:
                self._emit("POWERDOWN")
                for action in self.on_powerdown:
                    action()
            if requested.vmstop is not None:
                self.vm_stop(requested.vmstop)
            return False

    def _shutdown(self, cause: ShutdownCause) -> bool:
        self._emit("SHUTDOWN", guest=cause.by_guest, reason=cause.value)
        if self.no_shutdown and cause not in ENDS_ANYWAY:
            self.vm_stop(RunState.SHUTDOWN)
            return False
        self.shutdown_cause = cause
        self.clock.stop()
        self.vcpus.pause_all()
        return True

    def _reset(self, cause: ShutdownCause) -> None:
        self.vcpus.pause_all()
        for action in self.on_reset:
            action(cause)
        self._emit("RESET", guest=cause.by_guest, reason=cause.value)
        if self.run_state.running:
            self.vcpus.resume_all()
        elif self.run_state.state is not RunState.INMIGRATE:
            self.run_state.set(RunState.PRELAUNCH)

    def _suspend(self) -> None:
        """Only the CPUs stop: the guest's time goes on, and a clock chip's alarm may end its sleep."""
        if not self.run_state.running:
            return
        self.vcpus.pause_all()
        for action in self.on_suspend:
            action()
        self.run_state.set(RunState.SUSPENDED)
        self._emit("SUSPEND")

    def _wakeup(self, reason: WakeReason) -> None:
        """The guest goes on at its reset vector: firmware sees that this is no start, and enters the kernel's own."""
        if self.run_state.state is not RunState.SUSPENDED:
            return
        for action in self.on_wakeup:
            action(reason)
        self.run_state.set(RunState.RUNNING)
        self.clock.start()
        self.vcpus.resume_all()
        self._emit("WAKEUP")

    def _emit(self, event: str, **data: object) -> None:
        for handler in self.on_event:
            handler(event, data)
