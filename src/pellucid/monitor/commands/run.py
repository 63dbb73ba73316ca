"""The machine's life: what it is doing, stop and go, reset, power, and what happens then."""

from typing import Literal

from pellucid.errors import NotBuiltError
from pellucid.monitor.command import command
from pellucid.monitor.errors import CommandError
from pellucid.monitor.session import Session
from pellucid.records import dataclass
from pellucid.runtime import PanicAction, RunState, ShutdownCause


@dataclass(frozen=True)
class StatusInfo:
    """`singlestep`: one guest instruction to a translated block, which is never so here."""

    running: bool
    singlestep: bool
    status: RunState


def _status_text(info: StatusInfo) -> str:
    state = info.status
    shown = state.value if state in (RunState.RUNNING, RunState.PAUSED) else f"paused ({state.value})"
    return f"VM status: {shown}\n"


@command(
    "query-status", info="status", help="show the current VM status (running|paused)", text=_status_text
)
def query_status(session: Session) -> StatusInfo:
    """What the machine as a whole is doing."""
    run_state = session.machine.system.run_state
    return StatusInfo(run_state.running, False, run_state.state)


@command("stop", hmp="stop|s", help="stop emulation")
def stop(session: Session) -> None:
    """Stop the guest; nothing when it is stopped."""
    session.machine.system.vm_stop()


@command("cont", hmp="cont|c", help="resume emulation")
def cont(session: Session) -> None:
    """Let the guest run; nothing when it runs or sleeps."""
    system = session.machine.system
    if system.run_state.needs_reset:
        raise CommandError("Resetting the Virtual Machine is required")
    if system.run_state.state is not RunState.SUSPENDED:
        system.vm_start()


@command("system_reset", hmp="system_reset", help="reset the system")
def system_reset(session: Session) -> None:
    """Ask for a reset."""
    session.machine.system.requests.reset(ShutdownCause.HOST_QMP_SYSTEM_RESET)


@command("system_powerdown", hmp="system_powerdown", help="send system power down event")
def system_powerdown(session: Session) -> None:
    """Press the power button."""
    session.machine.system.requests.powerdown()


@command("system_wakeup", hmp="system_wakeup", help="wakeup guest from suspend")
def system_wakeup(session: Session) -> None:
    """Wake the guest from suspend to RAM."""
    system = session.machine.system
    if system.run_state.state is not RunState.SUSPENDED:
        raise CommandError("Unable to wake up: guest is not in suspended state")
    system.requests.wakeup()


@command("quit", hmp="quit|q", help="quit the emulator")
def quit_(session: Session) -> None:
    """End the process, with status 0."""
    session.machine.system.requests.shutdown(ShutdownCause.HOST_QMP_QUIT)


@dataclass(frozen=True)
class CurrentMachineParams:
    """Whether the guest can be woken from suspend to RAM."""

    wakeup_suspend_support: bool


@command("query-current-machine")
def query_current_machine(session: Session) -> CurrentMachineParams:
    """What is so of this machine."""
    return CurrentMachineParams(bool(session.machine.system.on_wakeup))


@command("inject-nmi", hmp="nmi", help="inject an NMI")
def inject_nmi(session: Session) -> None:
    """An NMI to every CPU."""
    for thread in session.threads:
        thread.vcpu.nmi()


@command("set-action")
def set_action(
    session: Session,
    reboot: Literal["reset", "shutdown"] | None = None,
    shutdown: Literal["poweroff", "pause"] | None = None,
    panic: PanicAction | None = None,
    watchdog: Literal["reset", "shutdown", "poweroff", "pause", "debug", "none", "inject-nmi"] | None = None,
) -> None:
    """What a guest's reset, power-off or panic does from now on."""
    if watchdog is not None:
        raise NotBuiltError("set-action: watchdog: there are no watchdog devices yet: not built yet")
    system = session.machine.system
    if reboot is not None:
        system.requests.no_reboot = reboot == "shutdown"
    if shutdown is not None:
        system.no_shutdown = shutdown == "pause"
    if panic is not None:
        system.panic_action = panic
