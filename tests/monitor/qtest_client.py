"""A client of the qtest protocol: what QEMU's libqtest does, in a few lines."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from socket import AF_UNIX, SOCK_STREAM, socket

WITHIN = 60


class QtestClient:
    """Talks over a connected socket; interrupt lines heard meanwhile are in `irqs`."""

    def __init__(self, connection: socket) -> None:
        self._file = connection.makefile("rw", encoding="ascii", newline="\n")
        self.irqs: list[str] = []

    def command(self, line: str) -> str:
        """The answer to one line, without `OK`; a FAIL comes as it is."""
        self._file.write(line + "\n")
        self._file.flush()
        while (answer := self._file.readline().rstrip("\n")).startswith("IRQ "):
            self.irqs.append(answer.removeprefix("IRQ "))
        assert answer, f"{line}: the connection is closed"
        return answer.removeprefix("OK").strip() if answer.startswith("OK") else answer

    def out(self, port: int, value: int, width: str = "b") -> None:
        assert self.command(f"out{width} {port:#x} {value:#x}") == ""

    def inp(self, port: int, width: str = "b") -> int:
        return int(self.command(f"in{width} {port:#x}"), 16)

    def write(self, address: int, value: int, width: str = "l") -> None:
        assert self.command(f"write{width} {address:#x} {value:#x}") == ""

    def read(self, address: int, width: str = "l") -> int:
        return int(self.command(f"read{width} {address:#x}"), 16)

    def step(self, ns: int | None = None) -> int:
        return int(self.command("clock_step" if ns is None else f"clock_step {ns}"))

    def close(self) -> None:
        self._file.close()


@contextmanager
def qtest_process(folder: Path, program: Sequence[str]) -> Iterator[QtestClient]:
    """Start a program as libqtest does, and hand out the connection that it makes to us."""
    path = folder / "qtest.sock"
    with socket(AF_UNIX, SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(1)
        listener.settimeout(WITHIN)
        process = subprocess.Popen(
            [*program, "-qtest", f"unix:{path}", "-qtest-log", "none", "-display", "none", "-nodefaults"],
            stdin=subprocess.DEVNULL,
        )
        try:
            connection, _ = listener.accept()
            connection.settimeout(WITHIN)
            client = QtestClient(connection)
            try:
                yield client
            finally:
                client.close()
                connection.close()
        finally:
            process.kill()
            process.wait(timeout=WITHIN)
            path.unlink()
