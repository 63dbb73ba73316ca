"""Clocks: order of timers, cancelling, re-arming, stopping. Nothing here asks how long anything took."""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from pellucid.kvm.clock import Clock, Timer
from pellucid.runtime import BigLock, HostClock, LockedClock, VirtualClock

LONG = 3600 * 10**9


@pytest.fixture
def clock() -> Iterator[HostClock]:
    host = HostClock()
    yield host
    host.close()


@pytest.fixture
def virtual() -> Iterator[VirtualClock]:
    guest = VirtualClock()
    yield guest
    guest.close()


def is_a_clock(clock: Clock) -> Clock:
    return clock


def test_timers_fire_in_order_of_their_deadlines_and_not_early(virtual: VirtualClock) -> None:
    is_a_clock(virtual)
    fired: list[tuple[int, int]] = []
    done = threading.Event()

    def callback(deadline: int) -> None:
        fired.append((deadline, virtual.now_ns()))
        if len(fired) == 4:
            done.set()

    deadlines = (3_000_000, 1_000_000, 2_000_000, -5)
    for deadline in deadlines:
        virtual.timer(lambda deadline=deadline: callback(deadline)).arm(deadline)  # type: ignore[misc]
    virtual.start()  # not before: on a slow day the first would fire while the last is being armed
    assert done.wait(60)
    assert [deadline for deadline, _ in fired] == sorted(deadlines)
    assert all(now >= deadline for deadline, now in fired)


def test_arming_again_replaces_and_cancel_forgets(clock: HostClock) -> None:
    fired: list[str] = []
    done = threading.Event()
    moved = clock.timer(lambda: fired.append("moved"))
    gone = clock.timer(lambda: fired.append("gone"))
    last = clock.timer(done.set)
    now = clock.now_ns()
    moved.arm(now + LONG)
    gone.arm(now + LONG)
    gone.cancel()
    gone.cancel()
    moved.arm(now + 1_000_000)
    last.arm(now + 2_000_000)
    assert done.wait(60)
    assert fired == ["moved"]


def test_a_callback_may_arm_its_own_timer(clock: HostClock) -> None:
    ticks: list[int] = []
    done = threading.Event()

    def tick() -> None:
        ticks.append(clock.now_ns())
        if len(ticks) < 5:
            timer.arm(ticks[-1] + 100_000)
        else:
            done.set()

    timer = clock.timer(tick)
    timer.arm(clock.now_ns())
    assert done.wait(60)
    assert len(ticks) == 5


def test_a_failing_callback_is_reported_and_stops_nothing(clock: HostClock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    done = threading.Event()
    now = clock.now_ns()

    def fail() -> None:
        raise ValueError("no")

    clock.timer(fail).arm(now)
    clock.timer(done.set).arm(now + 1)
    assert done.wait(60)
    assert "a timer's callback failed" in caplog.text and "ValueError: no" in caplog.text


def test_stale_entries_do_not_pile_up(clock: HostClock) -> None:
    timer = clock.timer(lambda: None)
    for i in range(10_000):
        timer.arm(clock.now_ns() + LONG + i)
    assert len(clock._heap) < 100
    timer.cancel()
    for _ in range(10_000):
        timer.arm(clock.now_ns() + LONG)
        timer.cancel()
    assert len(clock._heap) < 100


def test_one_thread_and_none_before_the_first_timer_and_none_after_close() -> None:
    clock = HostClock("a-clock-of-its-own")

    def threads() -> int:
        return sum(thread.name == "a-clock-of-its-own" for thread in threading.enumerate())

    assert threads() == 0
    fired = threading.Event()
    for _ in range(3):
        clock.timer(fired.set).arm(clock.now_ns())
    assert fired.wait(60)
    assert threads() == 1
    timer = clock.timer(fired.set)
    timer.arm(clock.now_ns() + LONG)
    clock.close()
    clock.close()
    assert threads() == 0
    timer.arm(0)  # a device may still arm while the machine goes down
    HostClock().close()


def test_virtual_clock_stands_still_while_stopped(virtual: VirtualClock) -> None:
    assert virtual.now_ns() == 0 and not virtual.running
    virtual.start()
    virtual.start()
    while virtual.now_ns() == 0:
        pass
    virtual.stop()
    virtual.stop()
    frozen = virtual.now_ns()
    assert frozen > 0
    assert all(virtual.now_ns() == frozen for _ in range(100))
    virtual.start()
    assert virtual.now_ns() >= frozen and virtual.running


def test_a_follower_hears_how_far_ahead_of_the_host_the_clock_is(virtual: VirtualClock) -> None:
    heard: list[int | None] = []
    virtual.follow_host(heard.append)
    virtual.start()
    virtual.start()
    ahead = heard[-1]
    assert ahead is not None
    before = time.monotonic_ns() + ahead
    assert before <= virtual.now_ns() <= time.monotonic_ns() + ahead
    virtual.stop()
    assert heard == [None, ahead, None]
    stood = virtual.now_ns()
    virtual.start()
    assert heard[3] is not None and heard[3] < ahead
    assert stood <= time.monotonic_ns() + heard[3]
    host = HostClock()
    host.follow_host(heard.append)
    assert heard[4:] == [0]
    host.close()


def test_virtual_timers_wait_for_the_clock(virtual: VirtualClock) -> None:
    fired = threading.Event()
    timer = virtual.timer(fired.set)
    timer.arm(-1)  # overdue, and yet: the clock stands still
    probe = threading.Event()
    other = HostClock()
    other.timer(probe.set).arm(other.now_ns() + 2_000_000)
    assert probe.wait(60)
    assert not fired.is_set()
    virtual.start()
    assert fired.wait(60)
    other.close()


def test_deadlines_keep_their_distance_over_a_stop(virtual: VirtualClock) -> None:
    fired_at: list[int] = []
    fired = threading.Event()

    def callback() -> None:
        fired_at.append(virtual.now_ns())
        fired.set()

    virtual.start()
    virtual.stop()
    deadline = virtual.now_ns() + 2_000_000
    virtual.timer(callback).arm(deadline)
    virtual.start()
    virtual.stop()
    virtual.start()
    assert fired.wait(60)
    assert fired_at[0] >= deadline


def test_virtual_time_never_goes_back_for_any_reader(virtual: VirtualClock) -> None:
    backwards: list[tuple[int, int]] = []
    over = threading.Event()

    def reader() -> None:
        last = 0
        while not over.is_set():
            now = virtual.now_ns()
            if now < last:
                backwards.append((last, now))
            last = now

    thread = threading.Thread(target=reader)
    thread.start()
    for _ in range(300):
        virtual.start()
        virtual.stop()
    over.set()
    thread.join()
    assert backwards == []


def test_a_stop_in_the_middle_of_a_reading_is_seen(virtual: VirtualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    host = iter([1000, 1070, 1100])  # start; the stop that comes between; the reader's own look at the host's time
    armed = False

    def monotonic_ns() -> int:
        nonlocal armed
        if armed:
            armed = False
            virtual.stop()
        return next(host)

    monkeypatch.setattr("pellucid.runtime.clock.time.monotonic_ns", monotonic_ns)
    virtual.start()
    armed = True
    assert virtual.now_ns() == 70


class IdleTimer:
    def arm(self, deadline_ns: int) -> None: ...

    def cancel(self) -> None: ...


class HandCrankedClock:
    """Time stands where the test puts it; the one timer's callback is the test's to call."""

    def __init__(self) -> None:
        self.now = 0
        self.callback: Callable[[], None] = lambda: None

    def now_ns(self) -> int:
        return self.now

    def timer(self, callback: Callable[[], None]) -> Timer:
        self.callback = callback
        return IdleTimer()


def test_locked_clock_drops_a_callback_that_was_armed_again_while_it_waited() -> None:
    inner = HandCrankedClock()
    fired: list[int] = []
    alarm = LockedClock(inner, BigLock()).timer(lambda: fired.append(inner.now))
    alarm.arm(10)
    inner.now = 20
    alarm.arm(30)  # the callback for 10 is on its way
    inner.callback()
    assert fired == []
    inner.now = 30
    inner.callback()
    inner.callback()
    assert fired == [30]


def test_locked_clock_calls_back_under_the_lock_and_cancels_exactly(clock: HostClock) -> None:
    bql = BigLock()
    locked = LockedClock(clock, bql)
    is_a_clock(locked)
    fired: list[str] = []
    done = threading.Event()

    def callback() -> None:
        assert bql.locked_by_me()
        fired.append("callback")
        done.set()

    waiting = threading.Event()
    with bql:
        cancelled = locked.timer(lambda: fired.append("cancelled"))
        later = locked.timer(lambda: fired.append("too early"))
        cancelled.arm(locked.now_ns())
        later.arm(locked.now_ns() + 1)
        # The timer thread now waits for the lock inside the first callback, or soon will.
        waiting.wait(0.001)
        cancelled.cancel()
        later.arm(locked.now_ns() + LONG)
        locked.timer(callback).arm(locked.now_ns())
    assert done.wait(60)
    assert fired == ["callback"]


def test_random_arming_and_cancelling_from_two_threads(clock: HostClock) -> None:
    rng = random.Random(7)
    count = 40
    fired = [0] * count
    timers = []
    for index in range(count):

        def callback(index: int = index) -> None:
            fired[index] += 1

        timers.append(clock.timer(callback))

    def play(seed: int) -> None:
        mine = random.Random(seed)
        for _ in range(2000):
            timer = mine.choice(timers)
            if mine.random() < 0.7:
                timer.arm(clock.now_ns() + mine.randrange(-1000, 200_000))
            else:
                timer.cancel()

    players = [threading.Thread(target=play, args=(rng.random(),)) for _ in range(2)]
    for player in players:
        player.start()
    for player in players:
        player.join()
    for timer in timers:
        timer.cancel()
    flush(clock)
    before = list(fired)
    for timer in timers:
        timer.arm(0)
    flush(clock)
    assert [after - earlier for after, earlier in zip(fired, before, strict=True)] == [1] * count
    assert clock._live == 0


def flush(clock: HostClock) -> None:
    """Wait until every timer that is due has called back."""
    last = threading.Event()
    clock.timer(last.set).arm(clock.now_ns())
    assert last.wait(60)
