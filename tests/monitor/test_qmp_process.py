"""The program under the `qemu.qmp` client library, over real sockets; nobody executes the guest (-accel qtest)."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import AF_UNIX, socket
from typing import Any

import pytest

from tests.machine.pc_machine import firmware

qmp = pytest.importorskip("qemu.qmp", reason="the client library qemu.qmp is not installed")
WITHIN = 60


@contextmanager
def pellucid(folder: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """The program with a `pc` that has nothing but the monitors asked for; listening when this returns."""
    ready = folder / "ready.pid"
    words = ["-M", f"pc,firmware={firmware(folder)}", "-nodefaults", "-display", "none", "-accel", "qtest", "-m", "8"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pellucid.cli", "run", *words, *options, "-qtest", f"unix:{ready},server=on,wait=off"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        wait_for(ready, process)
        yield process
    finally:
        process.kill()
        process.communicate(timeout=WITHIN)


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Until the socket is there: it is made last, in the order of the monitors' coming."""

    async def appear() -> None:
        while not path.exists():
            assert process.poll() is None, process.communicate()[0].decode()
            await asyncio.sleep(0.02)

    asyncio.run(asyncio.wait_for(appear(), WITHIN))


def drive(address: Any, talk: Callable[[Any], Awaitable[None]]) -> None:
    """Connect, negotiate, talk, disconnect."""

    async def run() -> None:
        client = qmp.QMPClient("test")
        await client.connect(str(address) if isinstance(address, Path) else address)
        try:
            await talk(client)
        finally:
            with contextlib.suppress(EOFError):  # The program has ended: it was told to quit.
                await client.disconnect()

    asyncio.run(asyncio.wait_for(run(), WITHIN))


def test_a_life_by_qmp(tmp_path: Path) -> None:
    where = tmp_path / "qmp"

    async def talk(client: Any) -> None:
        assert client.greeting.QMP.version["qemu"]["major"] == 7
        events = qmp.EventListener(("STOP", "RESUME", "RESET", "POWERDOWN", "SHUTDOWN"))
        client.register_listener(events)
        assert (await client.execute("query-status"))["status"] == "prelaunch"
        assert await client.execute("query-name") == {"name": "guest"}
        await client.execute("cont")
        assert (await events.get())["event"] == "RESUME"
        await client.execute("stop")
        assert (await events.get())["event"] == "STOP"
        await client.execute("system_reset")
        assert (await events.get())["data"] == {"guest": False, "reason": "host-qmp-system-reset"}
        await client.execute("system_powerdown")
        assert (await events.get())["event"] == "POWERDOWN"
        with pytest.raises(qmp.ExecuteError, match="The command nope has not been found"):
            await client.execute("nope")
        assert len(await client.execute("query-qmp-schema")) > 100
        chardevs = await client.execute("query-chardev")
        assert [entry["label"] for entry in chardevs] == ["compat_monitor0", "qtest"]
        await client.execute("quit")
        assert (await events.get())["data"]["reason"] == "host-qmp-quit"

    with pellucid(tmp_path, "-S", "-name", "guest", "-qmp", f"unix:{where},server=on,wait=off") as process:
        drive(where, talk)
        assert process.wait(timeout=WITHIN) == 0


def test_named_streams_and_tcp_and_one_client_after_the_other(tmp_path: Path) -> None:
    import socket as sockets

    with sockets.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    async def talk(client: Any) -> None:
        assert (await client.execute("query-kvm"))["enabled"] is False

    path = tmp_path / "named"
    options = (
        "-chardev", f"socket,id=one,path={path},server=on,wait=off", "-mon", "chardev=one,mode=control",
        "-qmp", f"tcp:127.0.0.1:{port},server=on,wait=off",
        "-daemonize", "-pidfile", str(tmp_path / "pid"),
    )  # fmt: skip
    with pellucid(tmp_path, *options) as parent:
        assert parent.wait(timeout=WITHIN) == 0  # it went to the background
        daemon = int((tmp_path / "pid").read_text())
        drive(path, talk)
        drive(("127.0.0.1", port), talk)
        drive(path, talk)

        async def end(client: Any) -> None:
            await client.execute("quit")

        drive(("127.0.0.1", port), end)
        asyncio.run(asyncio.wait_for(gone(daemon), WITHIN))
    assert not (tmp_path / "pid").exists()


async def gone(process: int) -> None:
    """Until no process has the number, or only a dead one that nobody waits for."""
    while (stat := Path(f"/proc/{process}/stat")).exists():
        if stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        await asyncio.sleep(0.02)


def test_garbage_over_a_socket(tmp_path: Path) -> None:
    path = tmp_path / "qmp"

    async def shout() -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"\x00\xff\x01{]}'\"" + os.urandom(2000) + b"\n" + b"[" * 3000)
        await writer.drain()
        assert await reader.readline() != b""
        writer.close()

    async def talk(client: Any) -> None:
        await client.execute("quit")

    with pellucid(tmp_path, "-qmp", f"unix:{path},server=on,wait=off") as process:
        asyncio.run(asyncio.wait_for(shout(), WITHIN))
        drive(path, talk)
        assert process.wait(timeout=WITHIN) == 0


def test_a_start_as_by_libqtest(tmp_path: Path) -> None:
    """The test program listens on two sockets, and asks a machine without anything what machines and devices exist."""
    with socket(AF_UNIX) as tests, socket(AF_UNIX) as control:
        for listener, name in ((tests, "qtest"), (control, "qmp")):
            listener.bind(str(tmp_path / name))
            listener.listen(1)
            listener.settimeout(WITHIN)
        words = [
            "-qtest", f"unix:{tmp_path}/qtest", "-qtest-log", "/dev/null", "-chardev",
            f"socket,path={tmp_path}/qmp,id=char0", "-mon", "chardev=char0,mode=control", "-display", "none", "-audio",
            "none", "-machine", "none", "-accel", "qtest",
        ]  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-m", "pellucid.cli", "run", *words],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        try:
            qtest, _ = tests.accept()
            monitor, _ = control.accept()
            with qtest, monitor, monitor.makefile("rw") as lines:
                monitor.settimeout(WITHIN)
                assert "QMP" in json.loads(lines.readline())
                answers = []
                for command in ("qmp_capabilities", "query-machines", "query-cpus-fast", "quit"):
                    lines.write(json.dumps({"execute": command}) + "\n")
                    lines.flush()
                    answers.append(json.loads(lines.readline())["return"])
                assert {"none", "pc", "microvm"} <= {board["name"] for board in answers[1]} and answers[2] == []
            assert process.wait(timeout=WITHIN) == 0
        finally:
            process.kill()
            process.wait(timeout=WITHIN)
