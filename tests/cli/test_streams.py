"""The program started with standard streams closed, as some supervisors do."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
from pellucid.cli.main import main
status = main(["-version"])
print("to nobody", file=sys.stderr)
sys.stdout.flush()
probe = os.open(os.devnull, os.O_RDONLY)
os._exit(status if probe > 2 and sys.stdin.read() == "" else 99)
"""


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_streams(closed: tuple[int, ...]) -> None:
    shell = " ".join(["exec", '"$0" -c "$1"', *(f"{number}>&-" for number in closed)])
    process = subprocess.run(
        ["sh", "-c", shell, sys.executable, PROGRAM],
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        timeout=60,
    )
    assert process.returncode == 0, process.stderr
    assert (b"pellucid" in process.stdout.lower()) == (1 not in closed)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_enough(unbuffered: str) -> None:
    """As under `| head -1`: no traceback."""
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run(
        [sys.executable, "-m", "pellucid.cli", "run", "-help"],
        stdin=subprocess.DEVNULL,
        stdout=write,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": unbuffered},
        timeout=60,
    )
    os.close(write)
    assert (process.returncode, process.stderr) == (1, b"")
