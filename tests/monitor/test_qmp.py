"""QMP on a stream in memory: negotiation, answers, errors, events, and clients that behave badly."""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

from pellucid.machine.chardev import ChardevEvent, MemoryChardev
from pellucid.machine.config import CharBackend, CharBackendKind, MonitorConfig, MonitorMode
from pellucid.machine.devices.rtc import Rtc
from pellucid.monitor.command import QMP_COMMANDS
from pellucid.monitor.control import Control
from pellucid.monitor.events import EVENTS, EventBroker
from pellucid.monitor.json_value import JsonValue
from pellucid.monitor.qapi import check_members, members
from pellucid.monitor.qmp import ENOUGH_OUTPUT, MOST_OUTPUT, QmpServer
from pellucid.records import replace
from pellucid.runtime import PanicAction
from tests.monitor.controlled import controlled_pc, ringbuf, turn

BIG = 64 << 20


class Client:
    """The other end of a stream in memory."""

    def __init__(self, control: Control, chardev: MemoryChardev | None = None, *, negotiate: bool = True) -> None:
        self.chardev = chardev or MemoryChardev(capacity=BIG)
        self.server = QmpServer(control, self.chardev) if chardev is None else None
        self.greeting = self.replies()[0]
        if negotiate:
            self.send(b'{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}')
            assert self.replies() == [{"return": {}}]

    def send(self, data: bytes) -> None:
        self.chardev.feed(data + b"\n")

    def replies(self) -> list[Any]:
        lines = self.chardev.take(BIG).split(b"\r\n")
        assert lines.pop() == b""
        return [json.loads(line) for line in lines]

    def ask(self, data: bytes) -> Any:
        self.send(data)
        (reply,) = self.replies()
        return reply

    def execute(self, command: str, **arguments: JsonValue) -> Any:
        named = {key.replace("_", "-"): value for key, value in arguments.items()}
        return self.ask(json.dumps({"execute": command, "arguments": named}).encode())

    def get(self, command: str, **arguments: JsonValue) -> Any:
        return self.execute(command, **arguments)["return"]


@pytest.fixture
def client(control: Control) -> Client:
    return Client(control)


def error(desc: str, kind: str = "GenericError") -> dict[str, Any]:
    return {"error": {"class": kind, "desc": desc}}


def test_greeting_and_negotiation(control: Control) -> None:
    client = Client(control, negotiate=False)
    assert client.greeting["QMP"]["version"]["qemu"] == {"major": 7, "minor": 2, "micro": 22}
    assert client.greeting["QMP"]["capabilities"] == ["oob"]
    not_yet = "Expecting capabilities negotiation with 'qmp_capabilities'"
    assert client.execute("query-status") == error(not_yet, "CommandNotFound")
    bad = client.ask(b'{"execute":"qmp_capabilities","arguments":{"enable":["foo"]}}')
    assert bad == error("Parameter 'null' does not accept value 'foo'")
    assert client.ask(b'{"exec-oob":"query-yank"}') == error("QMP input member 'exec-oob' is unexpected")
    assert client.ask(b'{"execute":"qmp_capabilities","id":1}') == {"return": {}, "id": 1}
    again = error("Capabilities negotiation is already complete, command ignored", "CommandNotFound")
    assert client.execute("qmp_capabilities") == again


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (b'{"execute":"nope"}', error("The command nope has not been found", "CommandNotFound")),
        (b'{"execute":"query-name","id":{"a":[1,null]}}', {"return": {}, "id": {"a": [1, None]}}),
        (b'{"execute":"query-status","foo":1}', error("QMP input member 'foo' is unexpected")),
        (b'{"execute":"query-status","arguments":{"x":1}}', error("Parameter 'x' is unexpected")),
        (b'{"execute":"query-status","arguments":3}', error("QMP input member 'arguments' must be an object")),
        (b'{"execute":3}', error("QMP input member 'execute' must be a string")),
        (b'{"exec-oob":"query-status"}', error("The command query-status does not support OOB")),
        (b'{"exec-oob":"query-yank"}', {"return": []}),
        (b'{"id":5}', {"id": 5} | error("QMP input lacks member 'execute'")),
        (b"[]", error("QMP input must be a JSON object")),
        (b'"abc"', error("QMP input must be a JSON object")),
        (b'{"execute":"query-name","exec-oob":"x"}', error("QMP input member 'execute' clashes with 'exec-oob'")),
        (b"{'execute':'query-kvm'}", {"return": {"enabled": False, "present": False}}),
        (b'{"a":}', error("JSON parse error, expecting value")),
        (b'{"execute":"human-monitor-command"}', error("Parameter 'command-line' is missing")),
        (b'{"execute":"memsave","arguments":{"val":"1","size":2,"filename":"x"}}',
         error("Invalid parameter type for 'val', expected: integer")),
        (b'{"execute":"memsave","arguments":{"val":1,"size":2,"filename":"/nonexistent/x"}}',
         error("Could not open '/nonexistent/x': No such file or directory")),
        (b'{"execute":"memsave","arguments":{"val":1,"size":2,"filename":"x","cpu-index":9}}',
         error("Parameter 'cpu-index' expects a CPU number")),
        (b'{"execute":"send-key","arguments":{"keys":[{"type":"qcode","data":"foo"}]}}',
         error("Parameter 'data' does not accept value 'foo'")),
        (b'{"execute":"send-key","arguments":{"keys":[{"type":"qcode"}]}}',
         error("Parameter 'keys[0].data' is missing")),
        (b'{"execute":"send-key","arguments":{"keys":[{"type":"qcode","data":"a"}]}}', {"return": {}}),
        (b'{"execute":"system_wakeup"}', error("Unable to wake up: guest is not in suspended state")),
        (b'{"execute":"set-action","arguments":{"reboot":"foo"}}',
         error("Parameter 'reboot' does not accept value 'foo'")),
        (b'{"execute":"qom-list","arguments":{"path":"/nope"}}',
         error("Device '/nope' not found", "DeviceNotFound")),
        (b'{"execute":"qom-get","arguments":{"path":"/machine","property":"nope"}}',
         error("Property 'pc-machine.nope' not found")),
        (b'{"execute":"device-list-properties","arguments":{"typename":"nope"}}',
         error("Device 'nope' not found", "DeviceNotFound")),
        (b'{"execute":"query-cpu-model-expansion","arguments":{"type":"full","model":{"name":"nope"}}}',
         error("CPU model 'nope' not found")),
        (b'{"execute":"query-command-line-options","arguments":{"option":"nope"}}',
         error("invalid option name: nope")),
        (b'{"execute":"getfd","arguments":{"fdname":"x"}}',
         error("getfd: file descriptors sent over the socket are not built yet")),
        (b'{"execute":"inject-nmi"}', {"return": {}}),
        (b'{"execute":"query-target"}', {"return": {"arch": "x86_64"}}),
        (b'{"execute":"query-block"}',
         {"return": [{"device": name, "type": "unknown", "removable": True, "locked": False, "tray_open": False,
                      "qdev": ANY} for name in ("ide1-cd0", "floppy0")]}),
        (b'{"execute":"query-memory-size-summary"}',
         {"return": {"base-memory": 16 << 20, "plugged-memory": 0}}),
    ],
)  # fmt: skip
def test_answers(client: Client, line: bytes, answer: Any) -> None:
    assert client.ask(line) == answer


def test_lines_do_not_matter(client: Client) -> None:
    client.chardev.feed(b'{"execute":"query-name"}{"execute":\n"query-uuid"} {"exec')
    assert len(client.replies()) == 2
    assert client.ask(b'ute":"query-name"}') == {"return": {}}


def test_pretty_answers_are_spread_over_lines(control: Control) -> None:
    chardev = MemoryChardev()
    QmpServer(control, chardev, pretty=True)
    assert chardev.output.count(b"\n") > 5 and json.loads(chardev.output)["QMP"]


def test_people_s_commands_from_programs(client: Client) -> None:
    assert client.get("human-monitor-command", command_line="info status") == "VM status: paused (prelaunch)\r\n"
    assert client.get("human-monitor-command", command_line="foo") == "unknown command: 'foo'\r\n"
    assert "CPU#1" in client.get("human-monitor-command", command_line="info registers", cpu_index=1)
    bad = client.execute("human-monitor-command", command_line="info status", cpu_index=7)
    assert bad == error("Parameter 'cpu-index' expects a CPU number")


def test_stop_and_go_with_events(control: Control, client: Client) -> None:
    def names() -> list[str]:
        return [reply.get("event", "return") for reply in client.replies()]

    client.send(b'{"execute":"cont"} {"execute":"stop"}')
    assert names() == ["RESUME", "return", "STOP", "return"]
    assert client.get("query-status") == {"running": False, "singlestep": False, "status": "paused"}
    client.send(b'{"execute":"system_reset"} {"execute":"system_powerdown"}')
    turn(control.machine)
    assert names() == ["return", "return", "RESET", "POWERDOWN"]
    client.send(b'{"execute":"quit"}')
    assert turn(control.machine)
    reply, event = client.replies()
    assert reply == {"return": {}} and event["event"] == "SHUTDOWN"
    assert event["data"] == {"guest": False, "reason": "host-qmp-quit"}
    assert event["timestamp"].keys() == {"seconds", "microseconds"}


def test_events_are_as_declared(control: Control, client: Client) -> None:
    system = control.machine.system
    client.execute("set-action", panic="none")
    system.guest_panicked()
    assert client.replies()[0]["data"] == {"action": "run"}
    client.execute("set-action", panic="pause", shutdown="pause", reboot="shutdown")
    assert (system.panic_action, system.no_shutdown, system.requests.no_reboot) == (PanicAction.PAUSE, True, True)
    client.chardev.take(BIG)
    system.guest_panicked()
    client.send(b'{"execute":"system_reset"}')
    turn(control.machine)
    events = [reply for reply in client.replies() if "event" in reply]
    assert [event["event"] for event in events] == ["GUEST_PANICKED", "SHUTDOWN"]
    for event in events:
        data = EVENTS[event["event"]]
        assert data is not None
        check_members(members(data), event["data"])


def test_a_guest_s_clock_is_told_of_at_most_once_a_second(control: Control, client: Client) -> None:
    rtc = next(device for device in control.machine.devices if isinstance(device, Rtc))
    path = client.get("qom-list", path="/machine/unattached")
    assert {"name": "device[0]", "type": "child<pellucid-x86_64-cpu>"} in path
    # Not the hour that it is: that would change nothing.
    first = 0x15 if rtc.guest_ns() // (3600 * 10**9) % 24 == 5 else 0x05
    for hour in (first, first + 1, first + 2):
        control.machine.port_write(0x70, 1, 4)
        control.machine.port_write(0x71, 1, hour)
    (event,) = client.replies()
    assert event["event"] == "RTC_CHANGE" and set(event["data"]) == {"offset", "qom-path"}
    assert client.get("qom-get", path=event["data"]["qom-path"], property="type") == rtc.kind
    control.events._rate_over("RTC_CHANGE")
    (latest,) = client.replies()
    assert latest["data"]["offset"] - event["data"]["offset"] == 2 * 3600
    control.events._rate_over("RTC_CHANGE")
    assert client.replies() == []


def test_nobody_hears_events_before_negotiating(control: Control) -> None:
    client = Client(control, negotiate=False)
    control.events.emit("STOP", {})
    assert client.replies() == []


def test_the_schema_is_whole(client: Client) -> None:
    entries = client.get("query-qmp-schema")
    by_name = {entry["name"]: entry for entry in entries}
    assert len(by_name) == len(entries)
    commands = {entry["name"] for entry in entries if entry["meta-type"] == "command"}
    assert commands == set(QMP_COMMANDS) == {entry["name"] for entry in client.get("query-commands")}
    assert {entry["name"] for entry in entries if entry["meta-type"] == "event"} == set(EVENTS)
    for entry in entries:
        used = [entry[key] for key in ("arg-type", "ret-type", "element-type") if key in entry]
        if entry["meta-type"] == "object":
            used += [member["type"] for member in (*entry["members"], *entry.get("variants", ()))]
        assert set(used) <= set(by_name)
        if entry["meta-type"] in ("command", "event"):
            assert by_name[entry["arg-type"]]["meta-type"] == "object"


QUERIES = sorted(
    name
    for name, found in QMP_COMMANDS.items()
    if name.startswith("query-") and all(member.optional for member in found.members)
)


@pytest.mark.parametrize("name", QUERIES)
def test_every_query_answers_as_its_schema_says(client: Client, name: str) -> None:
    result = client.get(name)
    described = {entry["name"]: entry for entry in client.get("query-qmp-schema")}
    conforms(described, described[name]["ret-type"], result)


def conforms(entries: dict[str, Any], name: str, value: Any) -> None:
    """Checks a value against the introspected schema."""
    entry = entries[name]
    kind = entry["meta-type"]
    if kind == "array":
        assert isinstance(value, list)
        for item in value:
            conforms(entries, entry["element-type"], item)
    elif kind == "object":
        expected = {member["name"]: member for member in entry["members"]}
        assert set(value) <= set(expected)
        for key, member in expected.items():
            assert key in value or "default" in member, f"{name}.{key}"
            if key in value:
                conforms(entries, member["type"], value[key])
    elif kind == "enum":
        assert value in entry["values"]
    else:
        wanted = {"int": int, "string": str, "boolean": bool, "number": (int, float), "value": object}
        assert isinstance(value, wanted[entry["json-type"]]) and (kind != "int" or not isinstance(value, bool))


def test_objects_and_types(client: Client) -> None:
    top = {entry["name"]: entry["type"] for entry in client.get("qom-list", path="/")}
    assert top == {
        "type": "string", "objects": "child<container>", "machine": "child<pc-machine>", "chardevs": "child<container>",
    }  # fmt: skip
    machines = client.get("qom-list-types", implements="machine")
    assert {"name": "pc-machine", "parent": "machine"} in machines
    assert {entry["name"] + "-machine" for entry in client.get("query-machines")} == {m["name"] for m in machines}
    devices = client.get("qom-list-types", implements="device")
    assert {"name": "mc146818rtc", "parent": "device"} in devices
    assert all("abstract" not in entry for entry in devices)
    assert {"name": "device", "parent": "object", "abstract": True} in client.get("qom-list-types", abstract=True)
    assert client.get("qom-list-types", implements="nope") == []
    serial = {entry["name"]: entry for entry in client.get("device-list-properties", typename="isa-serial")}
    assert serial["baudbase"]["type"] == "uint32" and serial["baudbase"]["default-value"] == 115200


def test_processors(client: Client) -> None:
    fast = client.get("query-cpus-fast")
    assert [cpu["cpu-index"] for cpu in fast] == [0, 1] and all(cpu["thread-id"] > 0 for cpu in fast)
    assert fast[1]["props"] == {"socket-id": 1, "core-id": 0, "thread-id": 0}
    assert [cpu["qom-path"] for cpu in client.get("query-hotpluggable-cpus")] == [
        cpu["qom-path"] for cpu in reversed(fast)
    ]
    model = {"name": "Nehalem", "props": {"sse4.2": False}}
    props = client.get("query-cpu-model-expansion", type="full", model=model)["model"]["props"]
    assert props["sse4.2"] is False and props["sse4.1"] is True and props["vendor"] == "GenuineIntel"


def test_ring_buffers(tmp_path: Path) -> None:
    with controlled_pc(tmp_path, [ringbuf("ring")]) as control:
        client = Client(control)
        assert client.get("ringbuf-write", device="ring", data="aGFs", format="base64") == {}
        assert client.get("ringbuf-write", device="ring", data="lo") == {}
        assert client.get("ringbuf-read", device="ring", size=4) == "hall"
        assert client.execute("ringbuf-read", device="ring", size=0) == error("size must be greater than zero")
        assert client.execute("ringbuf-write", device="ring", data="!", format="base64") == error(
            "Base64 data is not valid"
        )
        assert client.get("query-chardev") == [{"label": "ring", "filename": "ringbuf", "frontend-open": False}]


def test_several_clients(tmp_path: Path) -> None:
    users = [CharBackend(CharBackendKind.CHARDEV, id=name) for name in ("one", "two")]
    monitors = tuple(MonitorConfig(user, MonitorMode.CONTROL) for user in users)
    with controlled_pc(tmp_path, [ringbuf("one"), ringbuf("two")], monitors=monitors) as control:
        ends = [end for end in control.streams.named.values() if isinstance(end, MemoryChardev)]
        one, two = Client(control, ends[0]), Client(control, ends[1])
        one.send(b'{"execute":"cont","id":1}')
        assert [reply.get("event") for reply in one.replies()] == ["RESUME", None]
        assert [reply.get("event") for reply in two.replies()] == ["RESUME"]


class Stuck(MemoryChardev):
    """A client that reads nothing until it is told to."""

    reads = False

    def write(self, data: bytes) -> int:
        return super().write(data) if self.reads else 0

    def wake(self) -> None:
        self.reads = True
        self._writable()


def test_a_client_that_does_not_read(control: Control) -> None:
    chardev = Stuck(capacity=BIG)
    server = QmpServer(control, chardev)
    chardev.feed(b'{"execute":"qmp_capabilities"}\n' + b'{"execute":"query-qmp-schema"}\n' * 60)
    assert chardev.room() == 0
    held = len(server._output)
    assert ENOUGH_OUTPUT <= held < ENOUGH_OUTPUT + (1 << 17)
    for _ in range(20_000):
        control.events.emit("STOP", {})
    assert len(server._output) < MOST_OUTPUT + 1000
    chardev.wake()
    replies = [json.loads(line) for line in chardev.take(BIG).split(b"\r\n") if line]
    answers = [reply for reply in replies if "return" in reply]
    assert len(answers) == 61 and all(len(answer["return"]) > 100 for answer in answers[1:])


def test_each_connection_begins_anew(control: Control) -> None:
    client = Client(control)
    client.chardev.feed(b'{"execute":"query-na')
    client.chardev.signal_event(ChardevEvent.CLOSED)
    assert client.chardev.room() == 0
    control.events.emit("STOP", {})
    assert client.replies() == []
    client.chardev.signal_event(ChardevEvent.OPENED)
    assert "QMP" in client.replies()[0]
    assert client.execute("query-name")["error"]["class"] == "CommandNotFound"


def test_an_id_too_deep_to_be_written_back(client: Client) -> None:
    reply = client.ask(b'{"execute":"query-name","id":' + b"[" * 1023 + b"]" * 1023 + b"}")
    assert reply == error("JSON nesting depth limit exceeded") or "return" in reply
    assert client.execute("query-name") == {"return": {}}


def test_event_rates_need_a_loop(control: Control) -> None:
    heard: list[JsonValue] = []
    broker = EventBroker(control.machine.loop)
    broker.listen(heard.append)
    broker.emit("STOP", {})
    broker.unlisten(heard.append)
    broker.emit("STOP", {})
    assert len(heard) == 1


HARMFUL = ("quit", "memsave", "pmemsave", "human-monitor-command")


def requests(rng: random.Random) -> Iterator[bytes]:
    """Commands with nearly right arguments, now and then damaged."""
    names = [name for name in QMP_COMMANDS if name not in HARMFUL]
    values: list[JsonValue] = [0, -1, 1 << 62, 1.5, "", "x", "/machine", "pc", None, True, [], {}, [{"type": "qcode"}]]
    while True:
        name = rng.choice(names)
        arguments = {member.name: rng.choice(values) for member in QMP_COMMANDS[name].members if rng.random() < 0.8}
        if rng.random() < 0.1:
            arguments["surplus"] = rng.choice(values)
        text = bytearray(json.dumps({"execute": name, "arguments": arguments, "id": rng.choice(values)}).encode())
        if rng.random() < 0.2:
            text[rng.randrange(len(text))] = rng.randrange(256)
        yield bytes(text)


def test_fuzz(control: Control, client: Client) -> None:
    rng = random.Random(int(os.environ.get("PELLUCID_SEED", "11")))
    for _, line in zip(range(400), requests(rng)):
        client.send(line)
        client.replies()
    client.send(b"\x00\n" + b"}]" * 40 + b"\x00")
    client.replies()
    client.send(b'{"execute":"query-name","id":"alive"}')
    assert client.replies()[-1] == {"return": {}, "id": "alive"}


def test_a_mistake_in_a_command_ends_no_machine(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(session: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setitem(QMP_COMMANDS, "stop", replace(QMP_COMMANDS["stop"], run=broken))
    assert client.execute("stop") == error("stop failed: ZeroDivisionError: oops")
    assert "the command stop failed" in caplog.text
    answer = client.get("human-monitor-command", command_line='logfile "a\0b"')
    assert answer.startswith("Error opening logfile a\0b: ")
