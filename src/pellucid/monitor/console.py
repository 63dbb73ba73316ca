"""HMP on a stream: prompt, line editing, answers. The stream may be the monitor's own or shared by a mux.

The commands are loaded when the first line comes: most monitors never get one.
"""

from functools import cached_property
from typing import TYPE_CHECKING

from pellucid.machine.chardev.base import Chardev, ChardevEvent
from pellucid.monitor.control import Control
from pellucid.monitor.identity import version
from pellucid.monitor.output import Output
from pellucid.monitor.readline import LineEditor

if TYPE_CHECKING:
    from pellucid.monitor.session import Session

PROMPT = "(qemu) "
"""QEMU's own: programs that drive its monitor wait for these characters."""


class MonitorConsole:
    """Connects a session to a chardev. Everything runs with the machine's lock held, like all chardev callbacks."""

    def __init__(self, control: Control, chardev: Chardev, *, shared: bool = False) -> None:
        """`shared`: on a mux, silent until `focused(True)`."""
        self._editor = LineEditor(PROMPT, _completions)
        self._control = control
        self._chardev = chardev
        self._output = Output(chardev)
        self._input = bytearray()
        self._greeted = False
        chardev.set_receiver(self._receive, self._room, writable=self._flush, event=self._event)
        if not shared:
            self.focused(True)

    @cached_property
    def _session(self) -> "Session":
        from pellucid.monitor.session import Session

        return Session(self._control, history=lambda: self._editor.history)

    def focused(self, has_focus: bool) -> None:
        """The mux switched to the monitor or away: greet the first time, then show the line being written."""
        if not has_focus:
            return
        self._show("" if self._greeted else f"Pellucid {version()} monitor - type 'help' for more information\r\n")
        self._greeted = True
        self._show(self._editor.prompt())

    def _room(self) -> int:
        """Nothing more is read while an answer waits to be taken: what a session keeps is bounded by one answer."""
        return 0 if self._output else 4096

    def _receive(self, data: bytes) -> None:
        self._input += data
        while self._input and not self._output:
            echo, line = self._editor.feed(self._input.pop(0))
            self._show(echo)
            if line is not None:
                self._show(_execute(self._session, line).replace("\n", "\r\n") + self._editor.prompt())

    def _event(self, event: ChardevEvent) -> None:
        if event is ChardevEvent.OPENED:
            self._greeted = False
            self.focused(True)
        elif event is ChardevEvent.CLOSED:
            self._output.clear()
            self._input.clear()

    def _show(self, text: str) -> None:
        self._output.write(text.encode("utf-8", "replace"))

    def _flush(self) -> None:
        self._output.flush()
        if not self._output:
            self._receive(b"")
            self._chardev.accept_input()


def _execute(session: "Session", line: str) -> str:
    from pellucid.monitor.hmp import execute

    return execute(session, line)


def _completions(line: str) -> list[str]:
    from pellucid.monitor.hmp import completions

    return completions(line)
