"""Watching a process of random cases: it may crash, hang or grow, and then we know in which case."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .child import PROGRESS, case_seed
from .situation import situation

from pellucid.records import dataclass

HANG_SECONDS = 60.0
"""A case that takes this long never ends: it is kicked after 20 ms."""
MEMORY = 1 << 30
"""Resident bytes that many cases may take more than few of them did."""
_SETTLED = 300    # cases after which memory is measured first
_LOOK_SECONDS = 0.25


@dataclass(frozen=True)
class Result:
    """How a run ended. `problem` is empty when all was well."""

    problem: str
    output: str
    done: int


def fuzz(seed: int, seconds: float, *, first: int = 0, last: int | None = None, kind: str | None = None) -> Result:
    """Run random cases in a process of its own for about `seconds`."""
    with tempfile.TemporaryFile() as shared, tempfile.TemporaryFile() as out:
        shared.truncate(4096)
        place = mmap.mmap(shared.fileno(), 4096)
        command = [sys.executable, "-m", "tests.cpu.fuzz.child", "--seed", str(seed), "--seconds", str(seconds),
                   "--first", str(first), "--progress", str(shared.fileno())]
        command += ["--last", str(last)] if last is not None else []
        command += ["--kind", kind] if kind else []
        root = str(Path(__file__).resolve().parents[3])
        paths = os.pathsep.join((root, *(path for path in sys.path if path)))
        child = subprocess.Popen(command, stdout=out, stderr=out, pass_fds=(shared.fileno(),), cwd=root,
                                 env={**os.environ, "PYTHONPATH": paths})
        try:
            problem = _watch(child, place, seed)
        finally:
            child.kill()
            child.wait()
        out.seek(0)
        output = out.read().decode(errors="replace")
        done = PROGRESS.unpack_from(place)[1]
        if not problem and child.returncode:
            problem = "cases in which something that must hold did not"
        return Result(problem, output, done)


def _watch(child: subprocess.Popen[bytes], place: mmap.mmap, seed: int) -> str:
    """Wait for the end; what went wrong, with what it takes to repeat it."""
    seen, since, settled = (-1, -1), time.monotonic(), 0
    while child.poll() is None:
        time.sleep(_LOOK_SECONDS)
        number, done, _ = PROGRESS.unpack_from(place)
        if (number, done) != seen:
            seen, since = (number, done), time.monotonic()
        elif time.monotonic() - since > HANG_SECONDS:
            child.send_signal(signal.SIGABRT)   # faulthandler then prints where it is
            child.wait(10)
            return "hang in " + describe(seed, place)
        size = _resident(child.pid)
        if done >= _SETTLED and not settled:
            settled = size
        if settled and size > settled + MEMORY:
            return f"memory grew from {settled >> 20} to {size >> 20} MiB by " + describe(seed, place)
    if child.returncode not in (0, 1):
        return f"ended with status {child.returncode} in " + describe(seed, place)
    return ""


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * mmap.PAGESIZE
    except (OSError, IndexError):
        return 0


def describe(seed: int, place: mmap.mmap) -> str:
    """The case that is under way: how to repeat it, its machine and its code."""
    number, _, kind = PROGRESS.unpack_from(place)
    name = kind.rstrip(b"\0").decode()
    case = situation(case_seed(seed, number), tame=name not in ("step", "events"))
    return (f"case {number}: python -m tests.cpu.fuzz --seed {seed} --case {number} --kind {name}\n"
            f"{case.name}, code {case.code[:64].hex()}...")
