"""-daemonize and -pidfile by themselves; whole machines in the background are in tests/monitor/test_qmp_process.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pellucid.cli.daemon import pidfile
from pellucid.errors import UserError

PROGRAM = """
import sys
from pellucid.cli.daemon import go_to_background
ready = go_to_background()
if sys.argv[1] == "fails":
    print("cannot", file=sys.stderr)
    sys.exit(3)
ready()
print("to nobody")
"""


def run(argument: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, argument],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_the_parent_ends_when_the_child_is_ready() -> None:
    done = run("works")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_parent_tells_the_child_s_failure() -> None:
    done = run("fails")
    assert (done.returncode, done.stderr) == (3, "cannot\n")


def test_pidfile(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text("what was there before, and longer")
    with pidfile(str(path)):
        assert path.read_text() == f"{os.getpid()}\n"
        other = f"from pellucid.cli.daemon import pidfile\nwith pidfile({str(path)!r}): pass"
        done = subprocess.run(
            [sys.executable, "-c", other],
            capture_output=True,
            timeout=60,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert b"cannot lock pid file" in done.stderr
    assert not path.exists()
    with pidfile(None):
        pass


def test_a_pidfile_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot create PID file: No such file or directory"):
        with pidfile(str(tmp_path / "no" / "pid")):
            pass
