"""The whole machine with Debian's kernel: to user space, through a self-test, at a shell, and down again."""

import subprocess
from pathlib import Path

import pytest

from pellucid.cli import guest
from pellucid.cli.bench import workload
from pellucid.cli.bench.loops import PROGRAMS
from pellucid.cli.guest.scripts import BANNER, FAILED, PASSED, SELF_TEST
from tests.boot.machine import APPEND, OURS, Terminal, run
from tests.cli.bench_results import EXPECTED, ITERATIONS

OPTIONS = ("-M", "microvm", "-accel", "tcg", "-m", "256M", "-nographic")

ARITHMETIC = """\
#!/bin/sh
for name in {names}; do /bench/$name {iterations}; done
echo "rebooting"
/bin/busybox reboot -f
"""
"""Runs the benchmark's programs, which compute the same on every processor, and resets the machine."""

RESET_ONCE = f"""\
#!/bin/sh
echo "{BANNER}"
/bin/busybox reboot -f
"""


def initrd(folder: Path, init: str, files: dict[str, guest.InitrdFile] | None = None) -> Path:
    path = folder / "initrd.gz"
    path.write_bytes(guest.build_initrd(init, files))
    return path


def lines(done: "subprocess.CompletedProcess[str]") -> list[str]:
    """The console's lines; shown by pytest when an assertion about them fails."""
    print(done.stdout[-6000:], done.stderr, sep="\n--- standard error:\n")
    return done.stdout.splitlines()


def test_debian_boots_passes_its_self_test_and_powers_off(debian: Path, tmp_path: Path) -> None:
    """Processes, files, pipes, signals and floating point in a guest's user space, and an end with status 0."""
    done = run(*OPTIONS, "-kernel", debian, "-initrd", initrd(tmp_path, SELF_TEST), "-append", APPEND)
    console = lines(done)
    assert BANNER in console
    assert [line for line in console if line.startswith("not ok") or FAILED in line] == []
    assert len([line for line in console if line.startswith("ok: ")]) >= 30
    assert PASSED in console
    assert done.returncode == 0


def test_programs_compute_what_a_processor_of_silicon_does(debian: Path, tmp_path: Path) -> None:
    """Integers, branches, strings, SSE and x87, system calls, page faults, fork and pipes; then a guest reset."""
    files = {f"bench/{program.name}": guest.InitrdFile(program.elf()) for program in PROGRAMS}
    script = ARITHMETIC.format(names=" ".join(EXPECTED), iterations=ITERATIONS)
    archive = initrd(tmp_path, script, files)
    done = run(*OPTIONS, "-no-reboot", "-kernel", debian, "-initrd", archive, "-append", APPEND)
    results = [result for line in lines(done) if (result := workload.finished(line))]
    assert {result.name: result.result for result in results} == EXPECTED
    assert "rebooting" in done.stdout
    assert done.returncode == 0  # -no-reboot: the reset ended it


@pytest.mark.skipif(not OURS, reason="QEMU 7.2's microvm does not come back from a guest's reset")
def test_a_guest_that_resets_boots_again(debian: Path, tmp_path: Path) -> None:
    options = (*OPTIONS, "-kernel", debian, "-initrd", initrd(tmp_path, RESET_ONCE), "-append", APPEND)
    with Terminal(*options) as machine:
        machine.expect(BANNER)
        machine.expect(BANNER)
        machine.send("\x01x")
        assert machine.wait() == 0


def test_a_person_at_the_shell(debian: Path) -> None:
    """The default initrd's shell: typed lines, Ctrl-C, the monitor in between, and leaving."""
    options = ("-kernel", debian, "-initrd", guest.default_initrd(), "-append", APPEND)
    with Terminal(*OPTIONS, *options) as machine:
        machine.expect(BANNER)
        machine.expect("~ # ")
        machine.send("echo $((6 * 7)) in hex is $(printf %x 42)\r")
        machine.expect("42 in hex is 2a")
        machine.expect("~ # ")
        # Ctrl-C is a signal only once the shell has put its line editor away, so wait for the program's own words.
        machine.send("(echo asleep by $((6 + 1)); sleep 1000000)\r")
        machine.expect("asleep by 7")
        machine.send("\x03")
        machine.expect("~ # ")
        machine.send("\x01c")
        machine.expect("(qemu) ")
        machine.send("info status\r")
        machine.expect("VM status: running")
        machine.send("\x01c")
        machine.send("dmesg | grep -c -E 'BUG:|Oops|Call Trace'; echo complaints\r")
        machine.expect("\n0\ncomplaints")
        machine.expect("~ # ")
        machine.send("exit\r")
        assert machine.wait() == 0
        assert machine.mode_now == machine.mode
