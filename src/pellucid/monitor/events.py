"""QMP's events: what each carries, and who hears it, no oftener than its rate allows.

Rates are QEMU's: an event that a guest can cause at will is sent at most once a second. What comes meanwhile is kept,
the latest only, and sent when the second is over.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pellucid.monitor.json_value import JsonValue
from pellucid.records import dataclass
from pellucid.runtime import MainLoop, ShutdownCause

if TYPE_CHECKING:
    from pellucid.monitor.qapi import Schema

SECOND = 1_000_000_000


@dataclass(frozen=True)
class ShutdownData:
    """`guest`: the guest itself asked."""

    guest: bool
    reason: ShutdownCause


@dataclass(frozen=True)
class GuestPanickedData:
    """What is done about it."""

    action: Literal["pause", "poweroff", "run"]


@dataclass(frozen=True)
class RtcChangeData:
    """The guest set its clock: `offset` is its difference from the host's in seconds."""

    offset: int
    qom_path: str


EVENTS: dict[str, type | None] = {
    "SHUTDOWN": ShutdownData,
    "POWERDOWN": None,
    "RESET": ShutdownData,
    "STOP": None,
    "RESUME": None,
    "SUSPEND": None,
    "WAKEUP": None,
    "GUEST_PANICKED": GuestPanickedData,
    "RTC_CHANGE": RtcChangeData,
}
RATES = {"RTC_CHANGE": SECOND}
"""Nanoseconds between two events of a kind."""

Listener = Callable[[JsonValue], None]


class EventBroker:
    """Takes events from the machine and hands them, with the time, to every listener. The big lock is held."""

    def __init__(self, loop: MainLoop) -> None:
        self._loop = loop
        self._listeners: list[Listener] = []
        self._quiet: set[str] = set()
        self._kept: dict[str, JsonValue] = {}

    def listen(self, listener: Listener) -> None:
        """Call `listener` with every event from now on."""
        self._listeners.append(listener)

    def unlisten(self, listener: Listener) -> None:
        """Stop calling it."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    def emit(self, name: str, data: dict[str, object]) -> None:
        """Something happened: now, or kept back for its rate."""
        event = _event(name, data)
        if name in self._quiet:
            self._kept[name] = event
            return
        self._send(event)
        if name in RATES:
            self._quiet.add(name)
            self._loop.call_later(RATES[name], lambda: self._rate_over(name))

    def _rate_over(self, name: str) -> None:
        kept = self._kept.pop(name, None)
        if kept is None:
            self._quiet.discard(name)
            return
        self._send(kept)
        self._loop.call_later(RATES[name], lambda: self._rate_over(name))

    def _send(self, event: JsonValue) -> None:
        for listener in list(self._listeners):
            listener(event)


def _event(name: str, data: dict[str, object]) -> JsonValue:
    microseconds = time.time_ns() // 1000
    seconds, rest = divmod(microseconds, 1_000_000)
    event: dict[str, JsonValue] = {"timestamp": {"seconds": seconds, "microseconds": rest}, "event": name}
    if data:
        event["data"] = {key: value for key, value in data.items() if isinstance(value, bool | int | str)}
    return event


def add_to_schema(schema: "Schema") -> None:
    """Describe every event."""
    for name, data in EVENTS.items():
        schema.add_event(name, data)
