"""QMP, the monitor for programs: JSON objects in, JSON objects out, one connection.

What a client sends is carried out in order, each command before the next is read. What it does not take is kept up to
a bound, and nothing more is read from it meanwhile; events beyond the bound are dropped, which is logged. So a client
that does not read holds nobody up and takes no more memory.
"""

import json
import logging

from pellucid.errors import PellucidError
from pellucid.machine.chardev.base import Chardev, ChardevEvent
from pellucid.monitor.command import QMP_COMMANDS, declare_commands, run_command
from pellucid.monitor.control import Control
from pellucid.monitor.errors import CommandError, CommandNotFound
from pellucid.monitor.identity import QEMU_VERSION, package
from pellucid.monitor.json_stream import JsonError, JsonStream
from pellucid.monitor.json_value import JsonValue
from pellucid.monitor.output import Output
from pellucid.monitor.qapi import check_members, plain
from pellucid.monitor.session import Session

_log = logging.getLogger("pellucid.monitor.qmp")

READ_AT_ONCE = 4096
ENOUGH_OUTPUT = 64 << 10
"""With so much waiting to be taken, nothing more is read."""
MOST_OUTPUT = 1 << 20
"""With so much, events are dropped."""
CAPABILITIES = ("oob",)
KNOWN = ("execute", "exec-oob", "arguments", "id")


class QmpServer:
    """Connects a session to a chardev, for as long as it lives: every client that comes is greeted anew."""

    def __init__(self, control: Control, chardev: Chardev, *, pretty: bool = False) -> None:
        """`pretty`: answers over several lines."""
        declare_commands()
        self._control = control
        self._chardev = chardev
        self._pretty = pretty
        self._output = Output(chardev)
        self._start_over()
        self._present = False
        self._busy = False
        self._dropping = False
        chardev.set_receiver(self._receive, self._room, writable=self._writable, event=self._event)
        control.events.listen(self._heard)
        if chardev.connected and not self._present:
            self._opened()

    def _start_over(self) -> None:
        self._stream = JsonStream()
        self._session = Session(self._control)
        self._negotiating = True
        self._oob = False

    def _opened(self) -> None:
        self._start_over()
        self._output.clear()
        self._present = True
        version = dict(zip(("major", "minor", "micro"), QEMU_VERSION))
        greeting: JsonValue = {
            "QMP": {"version": {"qemu": plain(version), "package": package()}, "capabilities": list(CAPABILITIES)}
        }
        self._send(greeting)
        self._chardev.accept_input()

    def _event(self, event: ChardevEvent) -> None:
        if event is ChardevEvent.OPENED:
            self._opened()
        elif event is ChardevEvent.CLOSED:
            self._present = False
            self._output.clear()
            self._start_over()

    # ---- bytes

    def _room(self) -> int:
        return READ_AT_ONCE if self._present and len(self._output) < ENOUGH_OUTPUT else 0

    def _receive(self, data: bytes) -> None:
        self._stream.feed(data)
        self._work()

    def _work(self) -> None:
        """Answer what has come, as long as answers are taken; within itself it does nothing."""
        if self._busy:
            return
        self._busy = True
        try:
            stream = self._stream
            for value in stream.read():
                self._answer(value)
                if len(self._output) >= ENOUGH_OUTPUT or stream is not self._stream:
                    break
        finally:
            self._busy = False

    def _writable(self) -> None:
        self._output.flush()
        self._dropping = self._dropping and bool(self._output)
        if len(self._output) < ENOUGH_OUTPUT:
            self._work()
            self._chardev.accept_input()

    def _send(self, value: JsonValue) -> None:
        if not self._present:
            return
        text = json.dumps(value, indent=4) if self._pretty else json.dumps(value)
        self._output.write(text.encode() + b"\r\n")

    # ---- messages

    def _heard(self, event: JsonValue) -> None:
        if self._negotiating or not self._present:
            return
        if len(self._output) >= MOST_OUTPUT:
            if not self._dropping:
                _log.warning("%s: the client does not read: events are being dropped", self._chardev.label)
                self._dropping = True
            return
        self._send(event)

    def _answer(self, value: JsonValue | JsonError) -> None:
        reply: dict[str, JsonValue] = {}
        identity: dict[str, JsonValue] = {}
        if isinstance(value, dict) and "id" in value:
            identity = {"id": value["id"]}
        try:
            reply = {"return": self._execute(value)} | identity
        except PellucidError as error:
            kind = error.error_class if isinstance(error, CommandError) else "GenericError"
            reply = identity | {"error": {"class": kind, "desc": str(error)}}
        try:
            self._send(reply)
        except RecursionError:
            # Only the id can be so deep: it is within the parser's bound and beyond the writer's.
            self._send({"error": {"class": "GenericError", "desc": "JSON nesting depth limit exceeded"}})

    def _execute(self, value: JsonValue | JsonError) -> JsonValue:
        if isinstance(value, JsonError):
            raise CommandError(str(value))
        name, arguments, oob = self._checked(value)
        found = QMP_COMMANDS.get(name)
        if self._negotiating and name != "qmp_capabilities":
            if found is None:
                raise CommandNotFound(f"The command {name} has not been found")
            raise CommandNotFound("Expecting capabilities negotiation with 'qmp_capabilities'")
        if found is None:
            raise CommandNotFound(f"The command {name} has not been found")
        if oob and not found.oob:
            raise CommandError(f"The command {name} does not support OOB")
        given = check_members(found.members, arguments)
        if self._negotiating:
            self._negotiating = False
            self._oob = "oob" in (given.get("enable") or ())
            return {}
        result = run_command(found, self._session, given)
        return {} if found.result is None else plain(result)

    def _checked(self, value: JsonValue) -> tuple[str, dict[str, JsonValue], bool]:
        """(command, arguments, whether out of band) of a request. Raises CommandError."""
        if not isinstance(value, dict):
            raise CommandError("QMP input must be a JSON object")
        name = None
        arguments: dict[str, JsonValue] = {}
        for key, item in value.items():
            if key not in KNOWN or (key == "exec-oob" and not self._oob):
                raise CommandError(f"QMP input member '{key}' is unexpected")
            if key in ("execute", "exec-oob"):
                if not isinstance(item, str):
                    raise CommandError(f"QMP input member '{key}' must be a string")
                if name is not None:
                    raise CommandError("QMP input member 'execute' clashes with 'exec-oob'")
                name = item
            elif key == "arguments":
                if not isinstance(item, dict):
                    raise CommandError("QMP input member 'arguments' must be an object")
                arguments = item
        if name is None:
            raise CommandError("QMP input lacks member 'execute'")
        return name, arguments, "exec-oob" in value
