"""HMP on streams: greeting, focus, room."""

from pathlib import Path

from pellucid.machine.chardev import MemoryChardev, MuxChardev
from pellucid.machine.config import CharBackend, CharBackendKind, MonitorConfig
from pellucid.monitor.console import PROMPT, MonitorConsole
from pellucid.monitor.control import Control
from tests.monitor.controlled import controlled_pc


def test_console_greets_echoes_answers_and_prompts(control: Control) -> None:
    chardev = MemoryChardev()
    MonitorConsole(control, chardev)
    chardev.feed(b"info status\rinfo history\r")
    greeting, rest = chardev.output.decode().split("\r\n", 1)
    assert greeting.endswith("type 'help' for more information")
    assert rest == (
        f"{PROMPT}info status\r\nVM status: paused (prelaunch)\r\n"
        f"{PROMPT}info history\r\n0: 'info status'\r\n1: 'info history'\r\n{PROMPT}"
    )


def test_a_shared_console_is_silent_until_it_has_the_focus(control: Control) -> None:
    chardev = MemoryChardev()
    console = MonitorConsole(control, chardev, shared=True)
    assert chardev.output == b""
    console.focused(True)
    assert chardev.output.decode().endswith(PROMPT)


def test_another_key_introduces_commands() -> None:
    terminal, quits = MemoryChardev(), []
    mux = MuxChardev(terminal, lambda: quits.append(1), 0x14)
    got: list[bytes] = []
    mux.port("serial0").set_receiver(got.append)
    terminal.feed(b"a\x01c\x14\x14\x14h\x14x")
    assert b"".join(got) == b"a\x01c\x14" and quits == [1]
    assert b"C-t h    print this help" in terminal.output


def test_a_monitor_shares_a_named_stream(tmp_path: Path) -> None:
    backend = CharBackend(CharBackendKind.RINGBUF, id="both", mux=True)
    user = CharBackend(CharBackendKind.CHARDEV, id="both")
    with controlled_pc(tmp_path, [backend], monitors=(MonitorConfig(user), MonitorConfig(user))) as control:
        terminal = control.streams.named["both"]
        assert isinstance(terminal, MemoryChardev)
        terminal.feed(b"\x01c")
        assert terminal.output.count(b"monitor - type 'help'") == 1
        terminal.feed(b"info status\r\x01cinfo name\r")
        assert b"VM status" in terminal.output and terminal.output.count(b"monitor - type 'help'") == 2


class Narrow(MemoryChardev):
    """Takes three bytes at a time, and none in between."""

    open = True

    def write(self, data: bytes) -> int:
        taken = super().write(data[:3]) if self.open else 0
        self.open = not self.open
        return taken

    def drain(self) -> None:
        self._writable()


def test_output_waits_for_room_and_input_with_it(control: Control) -> None:
    chardev = Narrow()
    MonitorConsole(control, chardev)
    assert chardev.room() == 0
    chardev.feed(b"help\rinfo status\r")
    for _ in range(20_000):
        chardev.drain()
    assert chardev.output.decode().endswith(f"VM status: paused (prelaunch)\r\n{PROMPT}")


