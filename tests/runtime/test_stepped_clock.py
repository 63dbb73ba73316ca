"""A clock that goes by hand."""

import pytest

from pellucid.runtime import BigLock, LockedClock, SteppedClock, clock


def test_time_goes_only_in_steps() -> None:
    stepped = SteppedClock()
    stepped.start()
    assert stepped.now_ns() == 0 and not stepped.running
    assert stepped.step_to(1000) == 1000
    assert stepped.step_to(10) == 1000
    stepped.stop()
    assert stepped.now_ns() == 1000
    stepped.close()


def test_timers_call_at_their_own_time_and_in_order() -> None:
    stepped, called = SteppedClock(), []
    first, second, never = (stepped.timer(lambda n=n: called.append((n, stepped.now_ns()))) for n in (1, 2, 3))
    second.arm(70)
    first.arm(50)
    never.arm(60)
    never.cancel()
    assert stepped.next_deadline() == 50
    assert stepped.step_to(100) == 100
    assert called == [(1, 50), (2, 70)] and stepped.next_deadline() is None
    stepped.close()


def test_a_timer_that_arms_itself_again() -> None:
    stepped, called = SteppedClock(), []

    def tick() -> None:
        called.append(stepped.now_ns())
        timer.arm(stepped.now_ns() + 10)

    timer = stepped.timer(tick)
    timer.arm(10)
    stepped.step_to(35)
    assert called == [10, 20, 30] and stepped.next_deadline() == 40
    stepped.close()


def test_a_step_that_would_never_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "MOST_CALLBACKS", 100)
    stepped, called = SteppedClock(), []
    timer = stepped.timer(lambda: (called.append(1), timer.arm(stepped.now_ns())))
    timer.arm(5)
    assert stepped.step_to(1000) == 5 and len(called) == 100
    stepped.close()


def test_devices_are_called_with_the_lock() -> None:
    lock, stepped = BigLock(), SteppedClock()
    held: list[bool] = []
    LockedClock(stepped, lock).timer(lambda: held.append(lock.locked_by_me())).arm(5)
    stepped.step_to(10)
    assert held == [True]
    stepped.close()
