"""How a machine comes under control: its monitors are put on their streams, and its events find their listeners.

What serves QMP or qtest is loaded where somebody has asked for it.
"""

import sys
from typing import TextIO

from pellucid.errors import UserError
from pellucid.machine.chardev import MuxPort
from pellucid.machine.config import MonitorMode
from pellucid.machine.devices.rtc import Rtc
from pellucid.machine.machine import Machine
from pellucid.machine.streams import Streams
from pellucid.monitor.console import MonitorConsole
from pellucid.monitor.control import Control
from pellucid.monitor.events import EventBroker
from pellucid.monitor.objects import device_path


def attach_control(machine: Machine, streams: Streams) -> Control:
    """Serve HMP, QMP and qtest on the machine's streams, from now until they are closed."""
    events = EventBroker(machine.loop)
    machine.system.on_event.append(events.emit)
    _watch_clocks(machine, events)
    control = Control(machine, streams, events)
    for stream, monitor in streams.monitors:
        if monitor.mode is MonitorMode.CONTROL:
            from pellucid.monitor.qmp import QmpServer

            QmpServer(control, stream, pretty=monitor.pretty)
        else:
            console = MonitorConsole(control, stream, shared=isinstance(stream, MuxPort))
            if isinstance(stream, MuxPort):
                stream.focused = console.focused
    if streams.qtest is not None:
        from pellucid.monitor.qtest import QtestServer

        QtestServer(control, streams.qtest, _qtest_log(machine.config.qtest_log))
    return control


def _qtest_log(name: str) -> TextIO | None:
    if name == "none":
        return None
    if not name:
        return sys.stderr
    try:
        return open(name, "w", encoding="utf-8")
    except OSError as error:
        raise UserError(f"-qtest-log {name}: {error.strerror}: give a file that can be written, or none") from None


def _watch_clocks(machine: Machine, events: EventBroker) -> None:
    for device in machine.devices:
        if isinstance(device, Rtc):
            path = device_path(machine, device)

            def changed(offset: int, path: str = path) -> None:
                events.emit("RTC_CHANGE", {"offset": offset, "qom-path": path})

            device.on_change = changed
