"""Backends on real descriptors, driven by a real main loop: flow control both ways, end of file, mux, terminal mode."""

import fcntl
import os
import socket
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pellucid.errors import UserError
from pellucid.machine.chardev import ChardevEvent, MemoryChardev, MuxChardev, NullChardev, StdioChardev, open_chardev
from pellucid.machine.chardev.base import Chardev
from pellucid.machine.chardev.fd import BACKLOG, Descriptor, FdChardev
from pellucid.machine.chardev.pty import PtyChardev
from pellucid.machine.chardev.socket import SocketChardev, TelnetFilter
from pellucid.machine.chardev.stdio import RawTerminal
from pellucid.machine.config import CharBackend, CharBackendKind
from pellucid.runtime import BigLock, MainLoop
from tests.machine.helpers import Counter

SECOND = 10**9


@pytest.fixture
def loop() -> Iterator[MainLoop]:
    made = MainLoop(BigLock())
    yield made
    made.close()


def turn_until(loop: MainLoop, condition: Callable[[], bool]) -> None:
    """Turn the loop until it happens; each turn waits for an event, so only a failure takes long."""
    for _ in range(1000):
        if condition():
            return
        loop.run_once(10 * SECOND)
    raise AssertionError("it never happened")


class FrontEnd:
    """Collects input, taking at most `room` more bytes."""

    def __init__(self, chardev: Chardev, room: int = 1 << 30) -> None:
        self.chardev = chardev
        self.room = room
        self.data = bytearray()
        self.events: list[ChardevEvent] = []
        self.writable = Counter()
        chardev.set_receiver(self.receive, lambda: self.room, writable=self.writable, event=self.events.append)

    def receive(self, data: bytes) -> None:
        assert 0 < len(data) <= self.room
        self.room -= len(data)
        self.data += data

    def make_room(self, count: int) -> None:
        self.room += count
        self.chardev.accept_input()


class Pipes:
    """A chardev on two pipes and their far ends."""

    def __init__(self, loop: MainLoop) -> None:
        source, self.keys = os.pipe()
        self.screen, sink = os.pipe()
        self.chardev = FdChardev(
            "test", loop, Descriptor(source, os.O_RDONLY, own=True), Descriptor(sink, os.O_WRONLY, own=True)
        )

    def close(self) -> None:
        self.chardev.close()
        for fd in (self.keys, self.screen):
            if fd >= 0:
                os.close(fd)


@pytest.fixture
def pipes(loop: MainLoop) -> Iterator[Pipes]:
    made = Pipes(loop)
    yield made
    made.close()


def test_output_goes_out_at_once(pipes: Pipes) -> None:
    assert pipes.chardev.write(b"now") == 3
    assert os.read(pipes.screen, 100) == b"now"


def test_output_nobody_reads_backs_up_and_then_goes_out_in_order(loop: MainLoop, pipes: Pipes) -> None:
    front = FrontEnd(pipes.chardev)
    data = bytes(range(256)) * 4096
    taken = 0
    while accepted := pipes.chardev.write(data[taken : taken + 5000]):
        taken += accepted
    assert BACKLOG <= taken < len(data)
    assert pipes.chardev.write(b"x") == 0 and not front.writable.calls
    received = bytearray()

    def drained() -> bool:
        received.extend(os.read(pipes.screen, 1 << 16))
        return len(received) == taken

    turn_until(loop, drained)
    assert received == data[:taken] and front.writable.calls
    assert pipes.chardev.write(b"x") == 1


def test_close_writes_out_what_was_taken(pipes: Pipes) -> None:
    fcntl.fcntl(pipes.screen, fcntl.F_SETPIPE_SZ, 1 << 20)
    data = b"y" * (1 << 16)
    assert pipes.chardev.write(data) == len(data)
    pipes.chardev.close()
    received = bytearray()
    while piece := os.read(pipes.screen, 1 << 16):
        received += piece
    assert received == data


def test_a_reader_that_goes_away_is_no_error(loop: MainLoop, pipes: Pipes) -> None:
    os.close(pipes.screen)
    pipes.screen = -1
    assert pipes.chardev.write(b"lost") == 4
    assert pipes.chardev.write(b"lost too") == 8


def test_input_waits_for_room(loop: MainLoop, pipes: Pipes) -> None:
    front = FrontEnd(pipes.chardev, room=3)
    os.write(pipes.keys, b"abcdefgh")
    turn_until(loop, lambda: len(front.data) == 3)
    loop.run_once(0)
    assert front.data == b"abc"
    front.make_room(2)
    turn_until(loop, lambda: front.data == b"abcde")


def test_end_of_input_is_told_once_and_output_goes_on(loop: MainLoop, pipes: Pipes) -> None:
    front = FrontEnd(pipes.chardev)
    os.write(pipes.keys, b"last")
    os.close(pipes.keys)
    pipes.keys = -1
    turn_until(loop, lambda: front.events == [ChardevEvent.CLOSED])
    loop.run_once(0)
    assert front.data == b"last" and front.events == [ChardevEvent.CLOSED]
    pipes.chardev.write(b"still here")
    assert os.read(pipes.screen, 100) == b"still here"


def test_a_regular_file_as_input(loop: MainLoop, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes(b"0123456789" * 1000)
    chardev = FdChardev("file", loop, Descriptor(os.open(path, os.O_RDONLY), os.O_RDONLY, own=True), None)
    front = FrontEnd(chardev, room=7000)
    turn_until(loop, lambda: len(front.data) == 7000)
    front.make_room(7000)
    turn_until(loop, lambda: bool(front.events))
    assert front.data == path.read_bytes()
    chardev.close()


def test_dev_null_as_input_and_output(loop: MainLoop) -> None:
    ends = [os.open(os.devnull, flags) for flags in (os.O_RDONLY, os.O_WRONLY)]
    chardev = FdChardev("null", loop, Descriptor(ends[0], os.O_RDONLY), Descriptor(ends[1], os.O_WRONLY))
    front = FrontEnd(chardev)
    turn_until(loop, lambda: front.events == [ChardevEvent.CLOSED])
    assert chardev.write(b"gone") == 4
    chardev.close()
    for fd in ends:
        os.close(fd)


def test_shared_flags_are_left_alone(loop: MainLoop) -> None:
    reader, writer = os.pipe()
    one = Descriptor(writer, os.O_WRONLY)
    assert os.get_blocking(writer) and not os.get_blocking(one.fd)
    left, right = socket.socketpair()  # a socket cannot be opened again
    other = Descriptor(left.fileno(), os.O_RDWR)
    assert not os.get_blocking(left.fileno())
    for descriptor in (one, other):
        descriptor.close()
    assert os.get_blocking(left.fileno())
    os.close(reader)
    os.close(writer)
    left.close()
    right.close()


def test_file_backend(loop: MainLoop, tmp_path: Path) -> None:
    path = tmp_path / "out"
    chardev = open_chardev(CharBackend(CharBackendKind.FILE, path=path), loop)
    chardev.write(b"log")
    chardev.close()
    assert path.read_bytes() == b"log"
    with pytest.raises(UserError, match="cannot write guest output to .*/nowhere/out: No such file"):
        open_chardev(CharBackend(CharBackendKind.FILE, path=tmp_path / "nowhere" / "out"), loop)


def test_a_full_disk_loses_output_and_says_so_once(loop: MainLoop, caplog: pytest.LogCaptureFixture) -> None:
    chardev = open_chardev(CharBackend(CharBackendKind.FILE, path=Path("/dev/full")), loop)
    assert chardev.write(b"abc") == 3
    assert chardev.write(b"def") == 3
    chardev.close()
    assert [record.getMessage() for record in caplog.records] == [
        "file:/dev/full: guest output is being lost: No space left on device"
    ]


def test_pipe_backend(loop: MainLoop, tmp_path: Path) -> None:
    for end in ("in", "out"):
        os.mkfifo(tmp_path / f"com.{end}")
    chardev = open_chardev(CharBackend(CharBackendKind.PIPE, path=tmp_path / "com"), loop)
    front = FrontEnd(chardev)
    keys = os.open(tmp_path / "com.in", os.O_WRONLY)
    os.write(keys, b"in")
    turn_until(loop, lambda: front.data == b"in")
    chardev.write(b"out")
    screen = os.open(tmp_path / "com.out", os.O_RDONLY | os.O_NONBLOCK)
    assert os.read(screen, 10) == b"out"
    for fd in (keys, screen):
        os.close(fd)
    chardev.close()
    with pytest.raises(UserError, match="make it with mkfifo"):
        open_chardev(CharBackend(CharBackendKind.PIPE, path=tmp_path / "none"), loop)


def test_pty_backend(loop: MainLoop) -> None:
    chardev = PtyChardev(loop)
    front = FrontEnd(chardev)
    slave = os.open(chardev.slave_name, os.O_RDWR | os.O_NOCTTY)
    os.write(slave, b"keys")
    turn_until(loop, lambda: front.data == b"keys")
    chardev.write(b"screen\n")
    assert os.read(slave, 100) == b"screen\n"
    os.close(slave)
    loop.run_once(0)
    assert not front.events, "closing the slave ends nothing"
    chardev.close()


@pytest.mark.parametrize("kind", [CharBackendKind.UNIX, CharBackendKind.TCP])
def test_socket_server(loop: MainLoop, tmp_path: Path, kind: CharBackendKind) -> None:
    path = tmp_path / "socket"
    chardev = open_chardev(CharBackend(kind, path=path, host="127.0.0.1", server=True, wait=False), loop)
    assert isinstance(chardev, SocketChardev)
    front = FrontEnd(chardev)
    assert chardev.write(b"nobody hears this") == 17

    def connect() -> socket.socket:
        if kind is CharBackendKind.TCP:
            return socket.create_connection(("127.0.0.1", chardev.port))
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(path))
        return client

    for _ in range(2):
        client = connect()
        turn_until(loop, lambda: front.events[-1:] == [ChardevEvent.OPENED])
        chardev.write(b"login: ")
        assert client.recv(100) == b"login: "
        front.data.clear()
        client.sendall(b"root")
        turn_until(loop, lambda: front.data == b"root")
        client.close()
        turn_until(loop, lambda: front.events[-1] is ChardevEvent.CLOSED)
    chardev.close()
    assert not path.exists()


def test_socket_client_and_its_errors(loop: MainLoop, tmp_path: Path) -> None:
    path = str(tmp_path / "server")
    with pytest.raises(UserError, match="cannot connect to unix:.*No such file"):
        SocketChardev(loop, path, server=False)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(1)
        chardev = SocketChardev(loop, path, server=False)
        other = server.accept()[0]
        chardev.write(b"hi")
        assert other.recv(10) == b"hi"
        with pytest.raises(UserError, match="cannot listen on unix:.*in use"):
            SocketChardev(loop, path, server=True)
        other.close()
        chardev.close()
    SocketChardev(loop, path, server=True).close()  # the file was left by one that is gone


def test_null_backend(loop: MainLoop) -> None:
    chardev = open_chardev(CharBackend(CharBackendKind.NULL), loop)
    assert isinstance(chardev, NullChardev) and chardev.write(b"x" * 1000) == 1000


class Shared:
    """A mux with a console and a monitor on a backend in memory."""

    def __init__(self) -> None:
        self.backend = MemoryChardev()
        self.quit = Counter()
        self.mux = MuxChardev(self.backend, self.quit)
        self.focus: list[bool] = []
        self.console = FrontEnd(self.mux.port("console"))
        self.monitor = FrontEnd(self.mux.port("monitor", self.focus.append))


def test_mux_switches_and_escapes() -> None:
    shared = Shared()
    shared.backend.feed(b"ls\x01\x01\r\x01cinfo\x01cexit")
    assert shared.console.data == b"ls\x01\rexit"
    assert shared.monitor.data == b"info"
    assert shared.focus == [True, False]
    shared.console.chardev.write(b"from the guest ")
    shared.monitor.chardev.write(b"from the monitor")
    assert shared.backend.output == b"from the guest from the monitor"


def test_mux_quits_helps_and_breaks() -> None:
    shared = Shared()
    shared.backend.feed(b"\x01h")
    assert b"C-a x" in shared.backend.output
    shared.backend.feed(b"\x01b")
    assert shared.console.events == [ChardevEvent.BREAK] and not shared.monitor.events
    shared.backend.feed(b"typed\x01")
    assert shared.console.data == b"typed" and not shared.quit.calls
    shared.backend.feed(b"x")
    assert len(shared.quit.calls) == 1


def test_mux_escape_reaches_us_past_a_guest_that_reads_nothing() -> None:
    shared = Shared()
    shared.console.room = 0
    shared.backend.feed(b"typed ahead\x01x")
    assert shared.quit.calls and shared.console.data == b""
    shared.console.make_room(5)
    shared.console.make_room(100)
    assert shared.console.data == b"typed ahead"


def test_mux_passes_room_for_output_on() -> None:
    shared = Shared()
    shared.backend._writable()
    assert shared.console.writable.calls and shared.monitor.writable.calls


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    master, slave = os.openpty()
    yield master, slave
    os.close(master)
    os.close(slave)


def test_raw_terminal_and_back(terminal: tuple[int, int]) -> None:
    _, slave = terminal
    before = termios.tcgetattr(slave)
    raw = RawTerminal(slave, signals=False)
    raw.enter()
    during = termios.tcgetattr(slave)
    assert not during[3] & (termios.ECHO | termios.ICANON | termios.ISIG)
    assert not during[0] & (termios.ICRNL | termios.IXON)
    assert during[1] & termios.OPOST
    raw.enter()
    raw.restore()
    assert termios.tcgetattr(slave) == before
    raw.restore()


def test_raw_terminal_may_keep_signals(terminal: tuple[int, int]) -> None:
    raw = RawTerminal(terminal[1], signals=True)
    raw.enter()
    assert termios.tcgetattr(terminal[1])[3] & termios.ISIG
    raw.restore()


def test_stdio_on_a_terminal(loop: MainLoop, terminal: tuple[int, int]) -> None:
    master, slave = terminal
    before = termios.tcgetattr(slave)
    stdio = StdioChardev(loop, signals=False, fds=(slave, slave))
    try:
        front = FrontEnd(stdio)
        os.write(master, b"\x03\r")
        turn_until(loop, lambda: front.data == b"\x03\r")
        stdio.write(b"ok\n")
        assert os.read(master, 100) == b"ok\r\n"
        with pytest.raises(UserError, match="stdio is already used"):
            StdioChardev(loop, fds=(slave, slave))
        stdio.resume()
        assert not termios.tcgetattr(slave)[3] & termios.ECHO
    finally:
        stdio.close()
    assert termios.tcgetattr(slave) == before


@pytest.mark.parametrize("ending", ["sys.exit(3)", "raise RuntimeError('boom')", "pass"])
def test_the_terminal_is_restored_however_the_process_ends(terminal: tuple[int, int], ending: str) -> None:
    _, slave = terminal
    before = termios.tcgetattr(slave)
    program = (
        "import sys, termios\n"
        "from pellucid.machine.chardev.stdio import RawTerminal\n"
        "raw = RawTerminal(0, signals=False)\n"
        "raw.enter()\n"
        "assert not termios.tcgetattr(0)[3] & termios.ECHO\n" + ending
    )
    result = subprocess.run(
        [sys.executable, "-c", program], stdin=slave, capture_output=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert b"AssertionError" not in result.stderr
    assert termios.tcgetattr(slave) == before


def test_a_pipe_is_no_terminal() -> None:
    reader, writer = os.pipe()
    raw = RawTerminal(reader, signals=False)
    assert not raw.is_terminal
    raw.enter()
    raw.restore()
    os.close(reader)
    os.close(writer)


def test_telnet_commands_are_taken_out() -> None:
    telnet = TelnetFilter()
    text = b""
    breaks = 0
    data = b"a\xff\xfd\x03b\xff\xffc\xff\xf3\xff\xfa\x18\x00x\xff\xf0d\xff\xfb"
    for byte in data:
        piece, count = telnet.strip(bytes([byte]))
        text, breaks = text + piece, breaks + count
    assert (text, breaks) == (b"ab\xffcd", 1)
    assert TelnetFilter().strip(data) == (text, breaks)
