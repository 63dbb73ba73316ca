"""vCPU threads fed with fabricated exits: dispatch, pause and resume, work, holding, ends."""

import logging
import threading
from collections.abc import Iterator

import pytest

from pellucid.kvm.api import (
    DebugExit,
    Exit,
    FailEntryExit,
    HltExit,
    InternalErrorExit,
    IntrExit,
    IoExit,
    MmioExit,
    ShutdownExit,
    SystemEvent,
    SystemEventExit,
)
from pellucid.kvm.coalesced import CoalescedWrite
from pellucid.records import dataclass
from pellucid.runtime import BigLock, Outcome, VcpuGroup, VcpuThread, outcome_of
from pellucid.runtime.vcpu_thread import VcpuGone
from tests.runtime.fake_vcpu import FakeBus, FakeVcpu


@dataclass
class Rig:
    """One vCPU thread with everything around it."""

    bql: BigLock
    vcpu: FakeVcpu
    ports: FakeBus
    memory: FakeBus
    thread: VcpuThread
    events: list[tuple[Outcome, Exit]]

    def run_exits(self, *exits: Exit) -> None:
        """Have the vCPU exit with each, and wait until all are handled."""
        for exit in exits:
            self.vcpu.script.put(exit)
        self.sync()

    def sync(self) -> None:
        handled = threading.Event()

        def step() -> Exit:
            handled.set()
            return IntrExit()

        self.vcpu.script.put(step)
        assert handled.wait(60)


def make_rig(bql: BigLock, index: int = 0, debug_threads: bool = False) -> Rig:
    vcpu = FakeVcpu()
    ports, memory = FakeBus(bql.locked_by_me), FakeBus(bql.locked_by_me)
    events: list[tuple[Outcome, Exit]] = []

    def on_event(thread: VcpuThread, outcome: Outcome, exit: Exit) -> None:
        assert bql.locked_by_me() and thread.is_current
        events.append((outcome, exit))

    thread = VcpuThread(vcpu, ports, memory, bql, on_event, index=index, debug_threads=debug_threads)  # type: ignore[arg-type]
    return Rig(bql, vcpu, ports, memory, thread, events)


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = make_rig(BigLock())
    rig.thread.start()
    yield rig
    rig.thread.end()


@pytest.mark.parametrize(
    ("exit", "outcome"),
    [
        (IoExit(0x70, 1, True, 5), Outcome.PORT_IO),
        (MmioExit(0xFEC00000, 4, False, None), Outcome.MEMORY_IO),
        (IntrExit(), Outcome.REENTER),
        (HltExit(), Outcome.HALT),
        (ShutdownExit("triple fault"), Outcome.RESET),
        (SystemEventExit(SystemEvent.RESET), Outcome.SYSTEM_EVENT),
        (DebugExit(1, 0, 0, 0), Outcome.DEBUG),
        (FailEntryExit("bad state"), Outcome.FAIL),
        (InternalErrorExit("emulation failed"), Outcome.FAIL),
    ],
)
def test_outcome_of_each_exit(exit: Exit, outcome: Outcome) -> None:
    assert outcome_of(exit) is outcome


def test_accesses_reach_the_right_bus_under_the_lock(rig: Rig) -> None:
    rig.thread.resume()
    rig.run_exits(
        IoExit(0x3F8, 1, True, 0x41),
        IoExit(0x3FD, 1, False, None),
        MmioExit(0xFEB00000, 4, True, 0),
        MmioExit(0xFEB00010, 8, False, None),
    )
    assert rig.ports.log == [("write", 0x3F8, 1, 0x41), ("read", 0x3FD, 1, 0)]
    assert rig.memory.log == [("write", 0xFEB00000, 4, 0), ("read", 0xFEB00010, 8, 0)]
    assert rig.vcpu.reads == [0x3FE, 0xFEB00011]
    assert rig.ports.locked == rig.memory.locked == {True}
    assert rig.events == []


def test_collected_writes_are_delivered_before_the_next_exit(rig: Rig) -> None:
    ring = rig.thread._coalesced
    ring.register(0x70, 1, pio=True)
    ring.register(0xB8000, 0x1000, pio=False)
    rig.thread.resume()

    def collect_and_read() -> Exit:
        assert ring.collect(CoalescedWrite(True, 0x70, 1, 0x0A))
        assert ring.collect(CoalescedWrite(False, 0xB8000, 2, 0x0741))
        return IoExit(0x71, 1, False, None)

    rig.vcpu.script.put(collect_and_read)
    rig.sync()
    assert rig.ports.log == [("write", 0x70, 1, 0x0A), ("read", 0x71, 1, 0)]
    assert rig.memory.log == [("write", 0xB8000, 2, 0x0741)] and not ring
    assert rig.ports.locked == rig.memory.locked == {True}


def test_it_starts_paused_and_pauses_and_resumes(rig: Rig) -> None:
    rig.thread.wait_paused()
    assert rig.vcpu.entries == 0
    for _ in range(50):
        rig.thread.resume()
        assert rig.vcpu.in_guest.wait(60)
        rig.thread.pause()
        rig.thread.wait_paused()
        assert rig.thread.paused and not rig.vcpu.in_guest.is_set()


def test_pause_and_resume_in_quick_turns_never_hang(rig: Rig) -> None:
    for _ in range(300):
        rig.thread.resume()
        rig.thread.pause()
    rig.thread.wait_paused()
    rig.thread.resume()
    rig.run_exits(IoExit(0x80, 1, True, 1))
    assert rig.ports.log == [("write", 0x80, 1, 1)]


def test_waiting_for_a_pause_gives_up_the_big_lock(rig: Rig) -> None:
    rig.thread.resume()
    assert rig.vcpu.in_guest.wait(60)
    with rig.bql:
        rig.vcpu.script.put(IoExit(0x80, 1, True, 1))  # needs the lock that this thread holds
        rig.thread.pause()
        rig.thread.wait_paused()
    assert rig.ports.log == [("write", 0x80, 1, 1)]


def test_run_on_cpu_runs_there_under_the_lock_even_while_paused(rig: Rig) -> None:
    def where() -> tuple[bool, bool]:
        return rig.thread.is_current, rig.bql.locked_by_me()

    assert rig.thread.run_on_cpu(where) == (True, True)
    rig.thread.resume()
    assert rig.thread.run_on_cpu(where) == (True, True)
    with rig.bql:
        assert rig.thread.run_on_cpu(where) == (True, True)
    assert rig.thread.run_on_cpu(lambda: rig.thread.run_on_cpu(where)) == (True, True)
    assert not rig.thread.is_current


def test_run_on_cpu_brings_exceptions_back(rig: Rig) -> None:
    def fail() -> int:
        raise KeyError("x")

    with pytest.raises(KeyError):
        rig.thread.run_on_cpu(fail)
    assert rig.thread.run_on_cpu(lambda: 5) == 5


def test_async_work_is_done_in_order_and_failures_are_logged(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.thread.resume()
    log: list[int] = []
    for number in range(20):
        rig.thread.async_run_on_cpu(lambda number=number: log.append(number))  # type: ignore[misc]

    def fail() -> None:
        raise ValueError("bad work")

    rig.thread.async_run_on_cpu(fail)
    rig.thread.async_run_on_cpu(lambda: log.append(20))
    rig.thread.run_on_cpu(lambda: None)
    assert log == list(range(21))
    assert "queued work failed" in caplog.text and "bad work" in caplog.text


def test_work_for_a_thread_that_is_gone(rig: Rig) -> None:
    rig.thread.end()
    rig.thread.end()
    with pytest.raises(VcpuGone, match="CPU 0/PLD is not running"):
        rig.thread.run_on_cpu(lambda: None)
    other = make_rig(BigLock())
    with pytest.raises(VcpuGone):
        other.thread.async_run_on_cpu(lambda: None)
    other.thread.end()


@pytest.mark.parametrize("exit", [ShutdownExit("triple fault"), InternalErrorExit("x"), FailEntryExit("y")])
def test_fatal_exits_pause_the_vcpu_first(rig: Rig, exit: Exit) -> None:
    rig.thread.resume()
    rig.vcpu.script.put(exit)
    while not rig.events:
        rig.thread.wait_paused()
    rig.thread.wait_paused()
    assert rig.events == [(outcome_of(exit), exit)]
    entries = rig.vcpu.entries
    rig.thread.run_on_cpu(lambda: None)
    assert rig.vcpu.entries == entries
    rig.thread.resume()
    rig.sync()


def test_other_events_do_not_pause(rig: Rig) -> None:
    rig.thread.resume()
    exits: list[Exit] = [SystemEventExit(SystemEvent.SHUTDOWN), DebugExit(3, 0x1000, 0, 0)]
    rig.run_exits(*exits)
    assert [exit for _, exit in rig.events] == exits


def test_a_device_that_raises_fails_the_vcpu_and_not_the_thread(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)

    def explode(addr: int, size: int, value: int) -> None:
        raise RuntimeError("device bug")

    rig.ports.write = explode  # type: ignore[method-assign]
    rig.thread.resume()
    rig.vcpu.script.put(IoExit(0x80, 1, True, 1))
    while not rig.events:
        rig.thread.wait_paused()
    rig.thread.wait_paused()
    assert rig.events == [(Outcome.FAIL, InternalErrorExit("RuntimeError: device bug"))]
    assert "failed while it handled an exit" in caplog.text
    assert rig.thread.run_on_cpu(rig.bql.locked_by_me)
    with rig.bql:
        pass  # the exit path gave the lock back


def test_halt_waits_for_wake_and_an_early_wake_is_kept(rig: Rig) -> None:
    rig.thread.resume()
    rig.vcpu.script.put(HltExit())
    rig.thread.run_on_cpu(lambda: None)
    while not rig.thread.halted:
        rig.thread.run_on_cpu(lambda: None)
    entries = rig.vcpu.entries
    rig.thread.run_on_cpu(lambda: None)
    assert rig.vcpu.entries == entries
    rig.thread.wake()
    rig.sync()
    rig.thread.wake()
    rig.run_exits(HltExit(), IoExit(0x80, 1, True, 1))
    assert rig.ports.log == [("write", 0x80, 1, 1)]


@pytest.mark.parametrize("debug_threads", [False, True])
def test_thread_names(debug_threads: bool) -> None:
    rig = make_rig(BigLock(), index=3, debug_threads=debug_threads)
    rig.thread.start()

    def names() -> tuple[str, str]:
        with open(f"/proc/self/task/{threading.get_native_id()}/comm", encoding="ascii") as comm:
            return threading.current_thread().name, comm.read().strip()

    python_name, kernel_name = rig.thread.run_on_cpu(names)
    assert python_name == "CPU 3/PLD"
    assert (kernel_name == "CPU 3/PLD") is debug_threads
    rig.thread.end()


@pytest.fixture
def pair() -> Iterator[tuple[VcpuGroup, list[Rig]]]:
    bql = BigLock()
    group = VcpuGroup(bql)
    rigs = [make_rig(bql, index) for index in range(2)]
    for rig in rigs:
        group.add(rig.thread)
        rig.thread.start()
    yield group, rigs
    group.end()
    assert not any(rig.thread.alive for rig in rigs)


def test_group_pauses_and_resumes_all(pair: tuple[VcpuGroup, list[Rig]]) -> None:
    group, rigs = pair
    with rigs[0].bql:
        group.resume_all()
    for rig in rigs:
        assert rig.vcpu.in_guest.wait(60)
    with rigs[0].bql:
        group.pause_all()
        assert all(rig.thread.paused for rig in rigs)
    assert group.current() is None
    assert rigs[1].thread.run_on_cpu(group.current) is rigs[1].thread


def test_pause_all_from_a_vcpu_waits_for_the_others_only(pair: tuple[VcpuGroup, list[Rig]]) -> None:
    group, rigs = pair
    group.resume_all()
    assert rigs[1].vcpu.in_guest.wait(60)
    rigs[0].thread.run_on_cpu(group.pause_all)
    assert rigs[1].thread.paused
    rigs[0].thread.wait_paused()


def test_exclusive_keeps_the_others_out_of_the_guest(pair: tuple[VcpuGroup, list[Rig]]) -> None:
    group, rigs = pair
    group.resume_all()
    for _ in range(20):
        for rig in rigs:
            assert rig.vcpu.in_guest.wait(60)
        with rigs[0].bql:
            with group.exclusive(), group.exclusive():
                assert not any(rig.vcpu.in_guest.is_set() for rig in rigs)
                assert rigs[0].bql.locked_by_me()
    with rigs[0].bql, group.exclusive():
        pass
    for rig in rigs:
        rig.run_exits(IoExit(0x80, 1, True, 1))
        assert rig.ports.log == [("write", 0x80, 1, 1)]


def test_safe_work_is_done_with_all_vcpus_out_of_the_guest(pair: tuple[VcpuGroup, list[Rig]]) -> None:
    group, rigs = pair
    group.resume_all()
    seen: list[tuple[bool, bool]] = []
    done = threading.Event()

    def look() -> None:
        seen.append((any(rig.vcpu.in_guest.is_set() for rig in rigs), rigs[0].thread.is_current))
        if len(seen) == 40:
            done.set()

    for _ in range(20):
        for rig in rigs:
            assert rig.vcpu.in_guest.wait(60)
        for worker in (rigs[0], rigs[1]):  # both ask for it at once: one is done after the other
            group.async_safe_run_on_cpu(worker.thread, look)
    assert done.wait(60)
    assert all(not inside for inside, _ in seen) and {first for _, first in seen} == {True, False}
    for rig in rigs:
        assert rig.vcpu.in_guest.wait(60), "and they go on"


def test_safe_work_for_a_thread_that_is_gone() -> None:
    bql = BigLock()
    rig = make_rig(bql)
    group = VcpuGroup(bql)
    group.add(rig.thread)
    with pytest.raises(VcpuGone):
        group.async_safe_run_on_cpu(rig.thread, lambda: None)


def test_exclusive_does_not_wait_for_an_exit_that_waits_for_the_lock(pair: tuple[VcpuGroup, list[Rig]]) -> None:
    group, rigs = pair
    group.resume_all()
    assert rigs[0].vcpu.in_guest.wait(60)
    with rigs[0].bql:
        rigs[0].vcpu.script.put(IoExit(0x80, 1, True, 1))
        with group.exclusive():
            assert rigs[0].ports.log == []
    rigs[0].sync()
    assert rigs[0].ports.log == [("write", 0x80, 1, 1)]


def test_exclusive_lasts_even_where_the_lock_is_given_up_inside(pair: tuple[VcpuGroup, list[Rig]]) -> None:
    group, rigs = pair
    group.resume_all()
    assert rigs[1].vcpu.in_guest.wait(60)
    with rigs[1].bql, group.exclusive():
        entries = rigs[1].vcpu.entries
        for _ in range(50):
            rigs[1].thread.run_on_cpu(lambda: None)
        assert rigs[1].vcpu.entries == entries
    rigs[1].sync()


def test_two_vcpus_that_exclude_each_other_do_not_deadlock(pair: tuple[VcpuGroup, list[Rig]]) -> None:
    group, rigs = pair

    def remap(addr: int, size: int, value: int) -> None:
        with group.exclusive():
            pass

    for rig in rigs:
        rig.ports.write = remap  # type: ignore[method-assign]
        for _ in range(200):
            rig.vcpu.script.put(IoExit(0x72, 1, True, 1))
    group.resume_all()
    for rig in rigs:
        rig.sync()
        assert rig.events == []
