"""What devices are given in tests: a hand-cranked clock, a wire that remembers, a fabricated guest."""

from collections.abc import Callable

from pellucid.machine.device import Device


class HandTimer:
    def __init__(self, clock: "HandClock", callback: Callable[[], None]) -> None:
        self.clock = clock
        self.callback = callback
        self.deadline: int | None = None

    def arm(self, deadline_ns: int) -> None:
        self.deadline = deadline_ns

    def cancel(self) -> None:
        self.deadline = None


class HandClock:
    """Time goes only when `advance` says so; timers that fall due call back in order, at their own time."""

    def __init__(self, now: int = 0) -> None:
        self.now = now
        self.timers: list[HandTimer] = []

    def now_ns(self) -> int:
        return self.now

    def timer(self, callback: Callable[[], None]) -> HandTimer:
        timer = HandTimer(self, callback)
        self.timers.append(timer)
        return timer

    def advance(self, nanoseconds: int) -> None:
        end = self.now + nanoseconds
        for _ in range(10_000):
            due = [timer for timer in self.timers if timer.deadline is not None and timer.deadline <= end]
            if not due:
                self.now = end
                return
            timer = min(due, key=lambda timer: timer.deadline or 0)
            assert timer.deadline is not None
            self.now = max(self.now, timer.deadline)
            timer.deadline = None
            timer.callback()
        raise AssertionError("a device arms its timer again and again without time going on")


class Wire:
    """An interrupt line: its level, and how often it rose."""

    def __init__(self) -> None:
        self.level = False
        self.edges = 0

    def set(self, level: bool) -> None:
        if level and not self.level:
            self.edges += 1
        self.level = level

    def pulse(self) -> None:
        self.set(True)
        self.set(False)


class Counter:
    """A callback that counts its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def __call__(self, *arguments: object) -> None:
        self.calls.append(arguments)


def round_trip(device: Device, fresh: Device) -> None:
    """What `device` saves, `fresh` loads and saves again, equal in every value."""
    saved = device.save()
    fresh.load(saved)
    assert fresh.save() == saved
