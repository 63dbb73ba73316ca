"""HMP on a stream: prompt, line editing, answers. The stream may be the monitor's own or shared by a mux."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from pellucid.machine.chardev.base import Chardev, ChardevEvent
from pellucid.monitor.hmp import COMMANDS, INFO_COMMANDS, Monitor
from pellucid.monitor.readline import LineEditor
from pellucid.monitor.target import MonitorTarget

PROMPT = "(qemu) "
"""QEMU's own: programs that drive its monitor wait for these characters."""


class MonitorConsole:
    """Connects a Monitor to a chardev. Everything runs with the machine's lock held, like all chardev callbacks."""

    def __init__(self, target: MonitorTarget, chardev: Chardev, *, shared: bool = False) -> None:
        """`shared`: on a mux, silent until `focused(True)`."""
        self._monitor = Monitor(target)
        self._editor = LineEditor(PROMPT, completions)
        self._chardev = chardev
        self._output = bytearray()
        self._greeted = False
        chardev.set_receiver(self._receive, writable=self._flush, event=self._event)
        if not shared:
            self.focused(True)

    def focused(self, has_focus: bool) -> None:
        """The mux switched to the monitor or away: greet the first time, then show the line being written."""
        if not has_focus:
            return
        self._show("" if self._greeted else f"Pellucid {_version()} monitor - type 'help' for more information\r\n")
        self._greeted = True
        self._show(self._editor.prompt())

    def _receive(self, data: bytes) -> None:
        for byte in data:
            echo, line = self._editor.feed(byte)
            self._show(echo)
            if line is not None:
                self._show(self._monitor.execute(line).replace("\n", "\r\n") + self._editor.prompt())

    def _event(self, event: ChardevEvent) -> None:
        if event is ChardevEvent.OPENED:
            self._greeted = False
            self.focused(True)

    def _show(self, text: str) -> None:
        self._output += text.encode("utf-8", "replace")
        self._flush()

    def _flush(self) -> None:
        """Write what the stream takes now; the rest follows when it has room again."""
        while self._output:
            taken = self._chardev.write(bytes(self._output))
            if taken <= 0:
                return
            del self._output[:taken]


def completions(line: str) -> Sequence[str]:
    """The words that could stand where the last word of `line` stands."""
    words = line.split(" ")
    if len(words) == 1:
        return [name for name in COMMANDS if name.isidentifier()]
    if words[0] in ("info", "help", "?") and len(words) == 2:
        return list(INFO_COMMANDS if words[0] == "info" else COMMANDS)
    return list(INFO_COMMANDS) if words[:2] == ["help", "info"] and len(words) == 3 else []


def _version() -> str:
    try:
        return version("pellucid")
    except PackageNotFoundError:
        return "(not installed)"
