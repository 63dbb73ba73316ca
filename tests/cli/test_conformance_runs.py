"""The conformance runner's machinery: which entries run side by side, what the host withholds, and ends by force."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pellucid.cli.conformance.entries import Entry
from pellucid.cli.conformance.runner import FAIL, PASS, Execution, Plan, Processes, execute, run_all
from pellucid.cli.conformance.schedule import run_side_by_side
from pellucid.cli.conformance.withheld import Withheld, usage, withheld_between
from pellucid.records import replace


class Room:
    """What runs at a time; the heaviest that there was."""

    def __init__(self) -> None:
        self.lock, self.now, self.most = threading.Lock(), 0, 0
        self.begun: list[int] = []

    def run(self, item: tuple[int, float]) -> int:
        with self.lock:
            self.begun.append(item[0])
            self.now += item[0]
            self.most = max(self.most, self.now)
        time.sleep(item[1])
        with self.lock:
            self.now -= item[0]
        return item[0]


def test_weights_fit_into_the_room() -> None:
    rng = random.Random(1)
    for room in (1, 2, 5):
        items = [(rng.randint(1, 4), rng.random() / 200) for _ in range(30)]
        seen, heard = Room(), list[int]()
        results = run_side_by_side(items, lambda item: item[0], room, seen.run, heard.append, lambda: None)
        assert results == [item[0] for item in items] and sorted(heard) == sorted(results)
        assert seen.most <= max(room, 4) and (room < 4 or seen.most > 1)
        if room == 1:
            assert seen.begun == results, "one after the other, in their order"


def test_a_heavy_one_waits_while_light_ones_go_first() -> None:
    seen = Room()
    run_side_by_side([(1, 0.2), (2, 0.0), (1, 0.0)], lambda item: item[0], 2, seen.run, lambda _: None, lambda: None)
    assert seen.begun == [1, 1, 2]


def test_a_failure_stops_what_runs_and_begins_no_more() -> None:
    stopped = threading.Event()
    begun = []

    def run(item: int) -> int:
        begun.append(item)
        if item == 0:
            raise ZeroDivisionError
        assert stopped.wait(10)
        return item

    with pytest.raises(ZeroDivisionError):
        run_side_by_side(range(4), lambda _: 1, 2, run, lambda _: None, stopped.set)
    assert sorted(begun) == [0, 1]


def test_what_others_took_is_withheld() -> None:
    second = 10**9
    before = {"1": (0, 0), "2": (0, 0)}
    assert withheld_between(before, {"1": (second, 0), "2": (0, 0)}, 1.0, 2) == 0
    assert withheld_between(before, {"1": (second // 2, second // 2)}, 1.0, 2) == 0.5
    assert withheld_between(before, {"1": (0, second), "2": (0, second)}, 1.0, 2) == 1.0, "one second, two threads"
    own = {"1": (second, 0), "2": (second, 0), "3": (0, second)}
    assert withheld_between({**before, "3": (0, 0)}, own, 1.0, 2) == 0, "the threads wait for each other only"
    assert withheld_between(before, {"9": (0, second)}, 1.0, 2) == 0, "a thread that is new"
    helper = {"1": (second // 2, second // 4), "2": (0, second // 3)}
    assert withheld_between(before, helper, 1.0, 2) == 0.25, "nothing waits for what wants to run now and then"


@pytest.mark.skipif(not usage(os.getpid()), reason="the host keeps no scheduler statistics")
def test_a_process_beside_others_on_one_cpu_loses_time() -> None:
    """A loop that shares a CPU with two others has less than half of it; alone it has nearly all."""
    loop = [sys.executable, "-c", f"import os\nos.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})\nwhile 1: 0"]
    processes = [subprocess.Popen(loop) for _ in range(3)]
    try:
        with Withheld(processes[0].pid) as beside:
            time.sleep(1.1)
        assert beside.seconds > 0.3
        with Withheld(os.getpid()) as asleep:
            time.sleep(0.6)
        assert asleep.seconds < 0.3
    finally:
        for process in processes:
            process.kill()
            process.wait()


def plan(tmp_path: Path, program: str) -> Plan:
    return Plan(tmp_path, (sys.executable, "-c", program), (), "x86_64")


def test_an_entry_that_hangs_is_ended(tmp_path: Path) -> None:
    program = "print('x', flush=True)\nimport time; time.sleep(60)"
    run = execute(plan(tmp_path, program), Entry("a", "a.flat", timeout=1))
    assert run.status is None and run.output == b"x\n" and 1 <= run.seconds < 20


def test_withheld_time_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all of the time is withheld, an entry ends by itself, or after five times its time-out."""
    monkeypatch.setattr("pellucid.cli.conformance.withheld.withheld_between", lambda *_: 0.25)
    short = plan(tmp_path, "import time; time.sleep(1); print('end')")
    run = execute(short, Entry("a", "a.flat", timeout=0.5))
    assert run.status == 0 and run.output == b"end\n" and run.withheld > 0.4
    run = execute(plan(tmp_path, "import time; time.sleep(60)"), Entry("a", "a.flat", timeout=0.5))
    assert run.status is None and 2.4 < run.seconds < 20


@pytest.mark.parametrize(("share", "fails", "runs", "outcome"), [
    (0.5, 1, 2, PASS), (0.5, 9, 3, FAIL), (0.0, 1, 1, FAIL), (0.5, 0, 1, PASS)])
def test_a_failure_on_a_busy_computer_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, fails: int, runs: int, outcome: str
) -> None:
    """Only where the host withheld much, and at most three times; the report says which run it is."""
    (tmp_path / "x86").mkdir()
    (tmp_path / "x86" / "a.flat").touch()
    begun: list[int] = []

    def run(*_: object) -> Execution:
        begun.append(1)
        return Execution(b"SUMMARY: 1 tests", b"", 3 if len(begun) <= fails else 1, 2.0, 2.0 * share)

    monkeypatch.setattr("pellucid.cli.conformance.runner.execute", run)
    (result,) = run_all(replace(plan(tmp_path, ""), entries=(Entry("a", "a.flat"),)), lambda _: None)
    assert (result.outcome, result.runs, len(begun)) == (outcome, runs, runs)


def test_emulators_that_start_too_late_are_ended_at_once() -> None:
    processes = Processes()
    processes.kill()
    process = processes.start([sys.executable, "-c", "import time; time.sleep(60)"])
    assert process.wait(20) == -signal.SIGKILL
    process.communicate()


def test_a_signal_leaves_no_emulator_behind(tmp_path: Path) -> None:
    (tmp_path / "x86").mkdir()
    (tmp_path / "x86" / "unittests.cfg").write_text("[one]\nfile = one.flat\n[two]\nfile = one.flat\n")
    (tmp_path / "x86" / "one.flat").touch()
    (tmp_path / "config.mak").write_text("ARCH=x86_64\n")
    (tmp_path / "emulator.py").write_text("import os, time\nopen(f'{os.getpid()}.pid', 'w').close()\ntime.sleep(60)\n")
    line = [sys.executable, "-m", "pellucid.cli", "conformance", "kvm-unit-tests", str(tmp_path), "-j", "2"]
    line += ["--emulator", f"{sys.executable} {tmp_path}/emulator.py"]
    runner = subprocess.Popen(line, cwd=tmp_path, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 30
    while len(found := list(tmp_path.glob("*.pid"))) < 2 and time.monotonic() < end:
        time.sleep(0.02)
    runner.send_signal(signal.SIGTERM)
    assert runner.wait(20) == 128 + signal.SIGTERM
    assert len(found) == 2
    for path in found:
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.stem), 0)
