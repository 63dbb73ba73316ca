"""The machine's life: requests from any thread, carried out by the main loop in QEMU's order."""

from collections.abc import Iterator

import pytest

from pellucid.kvm.api import (
    DebugExit,
    Exit,
    InternalErrorExit,
    IoExit,
    ShutdownExit,
    SystemEvent,
    SystemEventExit,
)
from pellucid.records import dataclass, field
from pellucid.runtime import (
    BigLock,
    InvalidTransition,
    MainLoop,
    PanicAction,
    RunState,
    ShutdownCause,
    System,
    SystemRequests,
    VcpuGroup,
    VcpuThread,
    VirtualClock,
    WakeReason,
)
from tests.runtime.fake_vcpu import FakeBus, FakeVcpu


@dataclass
class Machine:
    """A system with one vCPU; `log` holds events and actions in order."""

    system: System
    vcpu: FakeVcpu
    ports: FakeBus
    thread: VcpuThread
    log: list[str] = field(default_factory=list)

    def turn(self) -> bool:
        """One look at the requests."""
        return self.system._carry_out_requests()

    @property
    def state(self) -> str:
        return self.system.run_state.state.value


def make_machine(**options: bool) -> Machine:
    bql = BigLock()
    loop = MainLoop(bql)
    group = VcpuGroup(bql)
    system = System(loop, group, VirtualClock(), **options)
    vcpu, bus = FakeVcpu(), FakeBus(bql.locked_by_me)
    thread = VcpuThread(vcpu, bus, bus, bql, system.vcpu_event)  # type: ignore[arg-type]
    group.add(thread)
    thread.start()
    machine = Machine(system, vcpu, bus, thread)
    system.on_event.append(lambda name, data: machine.log.append(" ".join([name, *map(str, data.values())])))
    system.on_reset.append(lambda cause: machine.log.append(f"reset paused={thread.paused}"))
    system.on_powerdown.append(lambda: machine.log.append("button"))
    system.on_suspend.append(lambda: machine.log.append("suspend"))
    system.on_wakeup.append(lambda reason: machine.log.append(f"wake {reason.value}"))
    return machine


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = make_machine()
    yield made
    close(made)


def close(machine: Machine) -> None:
    machine.system.vcpus.end()
    machine.system.clock.close()
    machine.system.main_loop.close()


def test_start_stop_and_start(machine: Machine) -> None:
    system = machine.system
    assert machine.state == "prelaunch" and not system.clock.running
    with system.main_loop.bql:
        system.vm_start()
        system.vm_start()
    assert machine.state == "running" and system.clock.running
    assert machine.vcpu.in_guest.wait(60)
    with system.main_loop.bql:
        system.vm_stop()
        assert machine.thread.paused and not system.clock.running
        system.vm_stop(RunState.IO_ERROR)
    assert machine.state == "paused"
    with system.main_loop.bql:
        system.vm_start()
    assert machine.log == ["RESUME", "STOP", "RESUME"]


def test_run_returns_the_cause_of_the_shutdown(machine: Machine) -> None:
    with machine.system.main_loop.bql:
        machine.system.vm_start()
    machine.vcpu.script.put(SystemEventExit(SystemEvent.SHUTDOWN))
    assert machine.system.run() is ShutdownCause.GUEST_SHUTDOWN
    assert machine.thread.paused
    assert machine.log == ["RESUME", "SHUTDOWN True guest-shutdown"]


def test_triple_fault_resets_with_all_vcpus_paused_and_goes_on(machine: Machine) -> None:
    system = machine.system
    system.on_reset.append(
        lambda cause: system.requests.shutdown(ShutdownCause.HOST_SIGNAL) if len(machine.log) > 2 else None
    )
    with system.main_loop.bql:
        system.vm_start()
    machine.vcpu.script.put(ShutdownExit("triple fault"))
    machine.vcpu.script.put(IoExit(0x80, 1, True, 1))
    machine.vcpu.script.put(SystemEventExit(SystemEvent.RESET))
    assert system.run() is ShutdownCause.HOST_SIGNAL
    assert machine.log == [
        "RESUME",
        "reset paused=True",
        "RESET True guest-reset",
        "reset paused=True",
        "RESET True guest-reset",
        "SHUTDOWN False host-signal",
    ]
    assert machine.ports.log == [("write", 0x80, 1, 1)]


def test_no_reboot_makes_a_reset_a_shutdown() -> None:
    machine = make_machine(no_reboot=True)
    with machine.system.main_loop.bql:
        machine.system.vm_start()
    machine.vcpu.script.put(ShutdownExit("triple fault"))
    assert machine.system.run() is ShutdownCause.GUEST_RESET
    assert machine.log == ["RESUME", "SHUTDOWN True guest-reset"]
    close(machine)


def test_no_shutdown_keeps_the_machine_until_a_reset() -> None:
    machine = make_machine(no_shutdown=True)
    system = machine.system
    with system.main_loop.bql:
        system.vm_start()
        system.request_shutdown(ShutdownCause.GUEST_SHUTDOWN)
    assert not machine.turn()
    assert machine.state == "shutdown"
    with system.main_loop.bql, pytest.raises(InvalidTransition, match="must be reset before"):
        system.vm_start()
    system.requests.reset(ShutdownCause.HOST_QMP_SYSTEM_RESET)
    assert not machine.turn()
    assert machine.state == "prelaunch"
    with system.main_loop.bql:
        system.vm_start()
    assert machine.state == "running"
    close(machine)


def test_requests_are_looked_at_in_qemus_order(machine: Machine) -> None:
    requests = machine.system.requests
    with machine.system.main_loop.bql:
        machine.system.vm_start()
    requests.vmstop(RunState.PAUSED)
    requests.powerdown()
    requests.wakeup()
    requests.reset(ShutdownCause.HOST_QMP_SYSTEM_RESET)
    requests.suspend()
    assert not machine.turn()
    assert machine.log == [
        "RESUME",
        "suspend",
        "SUSPEND",
        "reset paused=True",
        "RESET False host-qmp-system-reset",
        "POWERDOWN",
        "button",
    ]
    assert machine.state == "prelaunch"


def test_suspend_and_wakeup(machine: Machine) -> None:
    system = machine.system
    with system.main_loop.bql:
        system.vm_start()
    machine.vcpu.script.put(SystemEventExit(SystemEvent.SUSPEND))
    while machine.state != "suspended":
        system.main_loop.run_once()
        assert not machine.turn()
    assert machine.thread.paused and system.clock.running
    with system.main_loop.bql:
        system.vm_start()
        system.vm_stop()
    assert machine.state == "suspended" and machine.thread.paused, "it is woken, not continued"
    system.requests.suspend()
    system.request_wakeup(WakeReason.RTC)
    assert not machine.turn()
    assert machine.state == "running" and system.clock.running
    with pytest.raises(InvalidTransition, match="guest is not in suspended state"):
        system.request_wakeup()
    system.requests.wakeup()
    machine.turn()
    assert machine.log == ["RESUME", "suspend", "SUSPEND", "wake rtc", "WAKEUP"]


def test_a_reset_ends_a_suspend_stopped(machine: Machine) -> None:
    system = machine.system
    with system.main_loop.bql:
        system.vm_start()
    system.requests.suspend()
    machine.turn()
    system.requests.reset(ShutdownCause.HOST_QMP_SYSTEM_RESET)
    machine.turn()
    assert machine.state == "prelaunch"


def test_the_clock_stands_only_after_the_vcpus(machine: Machine) -> None:
    system = machine.system
    seen: list[bool] = []
    system.run_state.subscribe(lambda running, state: seen.append(machine.thread.paused))
    with system.main_loop.bql:
        system.vm_start()
        pause_all = system.vcpus.pause_all

        def watched() -> None:
            pause_all()
            assert system.clock.running

        system.vcpus.pause_all = watched  # type: ignore[method-assign]
        system.vm_stop()
    assert seen == [True, True] and not system.clock.running


def test_stopping_from_a_vcpu_is_left_to_the_main_loop(machine: Machine) -> None:
    system = machine.system
    with system.main_loop.bql:
        system.vm_start()
    machine.thread.run_on_cpu(system.vm_stop)
    machine.thread.wait_paused()
    assert machine.state == "running"
    assert not machine.turn()
    assert machine.state == "paused"


@pytest.mark.parametrize(
    ("exit", "state"), [(DebugExit(3, 0, 0, 0), "debug"), (InternalErrorExit("emulation failed"), "internal-error")]
)
def test_exits_that_stop_the_machine(machine: Machine, exit: Exit, state: str) -> None:
    failures: list[Exit] = []
    machine.system.on_failure.append(lambda thread, exit: failures.append(exit))
    with machine.system.main_loop.bql:
        machine.system.vm_start()
    machine.vcpu.script.put(exit)
    while machine.state == "running":
        machine.system.main_loop.run_once()
        assert not machine.turn()
    assert machine.state == state and machine.log == ["RESUME", "STOP"]
    assert failures == ([exit] if state == "internal-error" else [])


@pytest.mark.parametrize("no_shutdown", [False, True])
def test_panic(no_shutdown: bool) -> None:
    machine = make_machine(no_shutdown=no_shutdown)
    with machine.system.main_loop.bql:
        machine.system.vm_start()
        machine.system.guest_panicked()
    assert machine.turn() is not no_shutdown
    action = "pause" if no_shutdown else "poweroff"
    expected = ["RESUME", f"GUEST_PANICKED {action}", "STOP"]
    assert machine.log == expected + ([] if no_shutdown else ["SHUTDOWN True guest-panic"])
    assert machine.state == "guest-panicked"
    close(machine)


@pytest.mark.parametrize(
    ("action", "no_shutdown", "ends", "log"),
    [
        (PanicAction.NONE, False, None, ["RESUME", "GUEST_PANICKED run"]),
        (PanicAction.PAUSE, False, None, ["RESUME", "GUEST_PANICKED pause", "STOP"]),
        (PanicAction.EXIT_FAILURE, True, ShutdownCause.HOST_ERROR,
         ["RESUME", "GUEST_PANICKED poweroff", "STOP", "SHUTDOWN False host-error"]),
    ],
)  # fmt: skip
def test_what_is_done_about_a_panic(
    action: PanicAction, no_shutdown: bool, ends: ShutdownCause | None, log: list[str]
) -> None:
    machine = make_machine(no_shutdown=no_shutdown)
    machine.system.panic_action = action
    with machine.system.main_loop.bql:
        machine.system.vm_start()
        machine.system.guest_panicked()
    assert machine.turn() is (ends is not None)
    assert machine.log == log and machine.system.shutdown_cause is (ends or ShutdownCause.NONE)
    close(machine)


def test_the_user_s_word_ends_a_machine_that_does_not_shut_down() -> None:
    machine = make_machine(no_shutdown=True)
    machine.system.requests.shutdown(ShutdownCause.HOST_SIGNAL)
    assert machine.turn()
    close(machine)


def test_request_box_is_emptied_and_wakes() -> None:
    woken: list[int] = []
    requests = SystemRequests(lambda: woken.append(1), no_reboot=True)
    requests.reset(ShutdownCause.SUBSYSTEM_RESET)
    requests.debug()
    taken = requests.take()
    assert taken.reset is ShutdownCause.SUBSYSTEM_RESET and taken.debug and taken.shutdown is None
    assert requests.take().reset is None and len(woken) == 2
