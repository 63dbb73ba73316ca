"""The benchmark's runner, on machines that are shell scripts: what it reads, compares, repeats, and says."""

import json
import os
import sys
from pathlib import Path

import pytest

from pellucid.cli import guest
from pellucid.cli import main as main_module
from pellucid.cli.bench import console, disks, machines, pair, results, runs
from pellucid.cli.bench.console import GuestError, GuestHung, Memory, memfd_resident, session
from pellucid.cli.bench.disks import DiskTimes, Media, measure_disks
from pellucid.cli.bench.loops import BY_NAME
from pellucid.cli.bench.machines import Emulator
from pellucid.cli.bench.results import Row
from pellucid.cli.bench.runs import Boot, LoopTime, Measurements, Plan, Series
from pellucid.records import replace

# A machine: prints what a guest would, by the words of its command line. $BROKEN says what it gets wrong.
MACHINE = """\
#!/bin/sh
[ "$1" = -version ] && { echo "Fake emulator 1.0"; exit; }
while [ $# -gt 0 ]; do
    case $1 in -kernel) kernel=$2 ;; -append) append=$2 ;; esac
    shift
done
echo "$PELLUCID_CACHE" >> "$STARTS"
[ "$BROKEN" = hang ] && exec sleep 60
[ "$BROKEN" = hang-once ] && [ "$(wc -l < $STARTS)" = 1 ] && exec sleep 60
case $kernel in */probe) [ "$BROKEN" = start ] || echo '!'; exec sleep 60 ;; esac
[ "$BROKEN" = refuse ] && { echo "pellucid: -kernel: no good" >&2; exit 1; }
printf '[    0.1] booting\\r\\nPellucid: userspace reached\\r\\n'
for word in $append; do
    case $word in bench=*) loops=$(echo ${word#bench=} | tr , ' ') ;; pair=*) pair=${word#pair=} ;; esac
done
if [ "$pair" ]; then
    name=${pair%%:*} count=${pair##*:}
    echo "one copy"; sleep 0.1; echo "two copies"; sleep 0.1; [ "$BROKEN" = one ] || echo "copies done"
    for n in 1 2 3; do
        [ "$BROKEN" = apart ] && count=$((count + n))
        echo "bench $name ${pair##*:} 1000 $count"
    done
fi
for loop in $loops; do
    name=${loop%%:*} count=${loop##*:}
    [ "$BROKEN" = lost ] && continue
    [ "$BROKEN" = failed ] && { echo "bench failed $name"; continue; }
    echo "start $name"
    [ "$BROKEN" = wrong ] && [ $name = fork ] && count=$((count + 1))
    echo "bench $name ${loop##*:} 1000 $count"
done
echo "bench done"
[ "$BROKEN" = status ] && exit 3
exit 0
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that both machines of the benchmark are; BROKEN is for ours alone."""
    program = tmp_path / "fake-emulator"
    program.write_text(MACHINE)
    program.chmod(0o755)
    kernel = tmp_path / "vmlinuz"
    kernel.touch()
    busybox = tmp_path / "busybox"
    busybox.write_bytes(b"busybox")
    monkeypatch.setattr(guest, "busybox", lambda: busybox)
    monkeypatch.setattr(guest, "default_kernel", lambda: kernel)
    monkeypatch.setenv("STARTS", str(tmp_path / "starts"))
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path / "cache"))
    broken = os.environ.pop("BROKEN", "")

    def ours(cache: Path | None, silence: float) -> Emulator:
        folder = str(cache) if cache else "theirs"
        environment = {**os.environ, "PELLUCID_CACHE": folder, "BROKEN": os.environ.get("OURS_BROKEN", broken)}
        return Emulator("pellucid", (str(program),), silence, environment=environment)

    monkeypatch.setattr(runs, "ours", ours)
    monkeypatch.setattr(runs, "prepare", lambda folder, kernel: Media())
    return program


def bench(*arguments: str) -> int:
    return main_module.main(["bench", *arguments])


def test_the_whole_benchmark(fake: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    assert bench("--qemu", str(fake), "-n", "2", "--json", "--image", "--logs", str(logs)) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["compared"] == "Pellucid and Fake emulator 1.0"
    assert (said["repetitions"], said["wrong_results"]) == (2, [])
    rows = {row["name"]: row for row in said["rows"]}
    assert {"cold cache", "warm cache", "compiling the processor", *BY_NAME} <= rows.keys()
    # Here a loop may take no time at all, and have no ratio.
    assert all(row["ours"] is not None and row["qemu"] is not None for name, row in rows.items() if name in BY_NAME)
    assert rows["cold cache"]["ratio"] > 0
    assert 0.5 < rows["two CPUs against one"]["ours"] < 8 and rows["two CPUs against one"]["unit"] == "x"
    # Two builds; then in each of two rounds QEMU's boot and starts; ours with the cache cold, warm, starts, two CPUs.
    caches = (tmp_path / "starts").read_text().splitlines()
    assert len(caches) == 2 + 2 * (1 + runs.STARTS + 2 + runs.STARTS + 1)
    assert caches[1] == "theirs" and len(set(caches)) == 4  # --image's empty one, theirs, QEMU's environment, our own
    assert "Pellucid: userspace reached" in (logs / "qemu-2.log").read_text()
    assert {path.name for path in logs.iterdir()} >= {"pellucid-cold-cache-1.log", "pellucid-start-8.log"}


def test_the_table(fake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--qemu", str(fake), "--quick", "--loops", "fork,integer", "--scale", "0.001") == 0
    out, err = capsys.readouterr()
    lines = [line.split() for line in out.splitlines()]
    assert "Pellucid and Fake emulator 1.0: medians of 1" in out
    assert any("integer" in line and "8x" in line for line in lines)
    assert not any("branches" in line for line in lines)
    assert "two CPUs against one" in out
    assert "pellucid: 1 of 1: qemu\n" in err


def test_without_qemu(fake: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr("pellucid.cli.bench.which", lambda _: None)
    assert bench("--quick", "--loops", "none", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert all(row["qemu"] is None and row["ratio"] is None for row in said["rows"])
    assert any("not installed" in note for note in said["notes"])
    assert bench("--quick", "--loops", "none", "--no-qemu") == 0
    assert "not installed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("broken", "line"),
    [
        ("refuse", "pellucid, cold cache ended without user space; its last line: pellucid: -kernel: no good"),
        ("lost", "pellucid, warm cache ended without fork; its last line: bench done"),
        ("failed", "pellucid, warm cache could not run a loop; its last line: bench failed fork"),
        ("status", "pellucid, cold cache ended with status 3"),
        ("hang", "pellucid start printed nothing for 1 s"),
        ("wrong", "wrong results: fork computed 10 on qemu, 11 on pellucid"),
    ],
)
def test_a_machine_that_fails(
    fake: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, broken: str, line: str
) -> None:
    monkeypatch.setenv("OURS_BROKEN", broken)
    monkeypatch.setattr(runs, "BUILD_SILENCE", 1.0)
    assert bench("--qemu", str(fake), "--quick", "--loops", "fork", "--scale", "0.01") == 1
    assert f"pellucid: {line}" in capsys.readouterr().err.splitlines()[-1]


def test_a_machine_that_hangs_at_boot_is_started_again(fake: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "BROKEN": "hang-once"}
    emulator = Emulator("qemu", (str(fake),), silence=1, attempts=50, environment=environment)
    plan = Plan(tmp_path / "vmlinuz", [], 1, emulator, silence=20)
    # Our own first start comes before QEMU's, so that QEMU's is not the first line of STARTS.
    found = runs.measure(replace(plan, qemu=None), lambda label, percent: None)
    assert (found.hangs, found.qemu) == ({}, None)
    (tmp_path / "starts").unlink()
    run = runs._Run(plan, lambda label, percent: None)
    run.label, run.initrd, run.probe = "", tmp_path / "initrd", tmp_path / "probe"
    boot = run._boot(emulator, "qemu", ())
    assert boot.userspace > 0 and run.found.hangs["qemu"] >= 1
    (note,) = results.notes(run.found)
    assert note.startswith("qemu: hung at boot ")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--loops", "forks"], "--loops forks: no such loop: did you mean 'fork'?"),
        (["--qemu", "/no/such/program"], "--qemu /no/such/program: no such program"),
        (["--kernel", "/no/such/kernel"], "--kernel /no/such/kernel: no such file"),
        (["-n", "0"], "bench: argument -n/--repetitions: 0: give a number of 1 or more: see pellucid bench --help"),
        (["--scale", "x"], "bench: argument --scale: x: give a number above 0: see pellucid bench --help"),
        (["--frob"], "bench: unrecognized arguments: --frob: see pellucid bench --help"),
        (["--logs", "/dev/null/x", "--loops", "none"], "--logs /dev/null/x: Not a directory"),
    ],
)
def test_bad_options(fake: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], line: str) -> None:
    assert bench("--no-qemu", *arguments) == 1
    out, err = capsys.readouterr()
    assert err.startswith(f"pellucid: {line}") and err.count("\n") == 1 and out == ""


def test_ours_is_what_a_user_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    emulator = machines.ours(tmp_path, 10)
    assert emulator.boots(Path("k"), Path("i"), "quiet") == [
        sys.executable, "-m", "pellucid.cli", "run", "-M", "microvm", "-accel", "tcg", "-m", "256M", "-nographic",
        "-no-reboot", "-kernel", "k", "-initrd", "i", "-append", "quiet",
    ]  # fmt: skip
    assert emulator.environment["PELLUCID_CACHE"] == str(tmp_path)
    assert "PYTHONDONTWRITEBYTECODE" not in emulator.environment


def test_qemu_is_told_the_frequency_of_the_time_stamp_counter() -> None:
    emulator = machines.qemu("qemu-system-x86_64")
    frequency = machines.host_tsc_khz()
    assert frequency is None or frequency > 0
    if frequency:
        assert emulator.boots(Path("k"), None, "quiet")[-1].split()[0].startswith("tsc_early_khz=")


def test_a_cold_cache_is_all_but_the_translations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = tmp_path / "theirs"
    for kind in ("images", "translations"):
        (theirs / kind).mkdir(parents=True)
        (theirs / kind / "file").write_text(kind)
    monkeypatch.setenv("PELLUCID_CACHE", str(theirs))
    with machines.private_cache() as cache:
        assert [path.name for path in cache.iterdir()] == ["images"]
        assert (cache / "images" / "file").read_text() == "images"
        machines.forget_translations(cache)
        (cache / "translations").mkdir()
        (cache / "translations" / "file").touch()
        machines.forget_translations(cache)
        assert list((cache / "translations").iterdir()) == []
    assert not cache.exists()
    assert (theirs / "translations" / "file").exists() and (theirs / "images" / "file").exists()


def test_console_lines_and_their_times() -> None:
    script = "printf 'one\\r\\ntw'; sleep 0.2; printf 'o\\nend'; echo oops >&2"
    with session("it", ["sh", "-c", script], os.environ, 20) as run:
        lines = list(run.lines())
        assert run.wait() == 0
        assert run.error_lines() == ["oops"]
        assert run.complaint("stopped") == "it stopped; its last line: oops"
    assert [line.text for line in lines] == ["one", "two", "end"]
    assert 0 < lines[0].at <= lines[1].at <= lines[2].at


def test_a_silent_machine_is_ended() -> None:
    with pytest.raises(GuestHung, match="it printed nothing for 0 s; its last line: hello"):
        with session("it", ["sh", "-c", "echo hello; exec sleep 60"], os.environ, 0.3) as run:
            list(run.lines())
    assert run.process.returncode == -15


def test_a_machine_that_ignores_the_signal_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "END_LIMIT", 0.3)
    script = "trap '' TERM; echo hello; while :; do sleep 1; done"
    with session("it", ["sh", "-c", script], os.environ, 20) as run:
        assert next(run.lines()).text == "hello"
        with pytest.raises(GuestError, match="did not end"):
            run.wait()
    assert run.process.returncode == -9


def test_memory_of_a_process() -> None:
    script = "import mmap, os; fd = os.memfd_create('ram'); os.truncate(fd, 1 << 24); m = mmap.mmap(fd, 1 << 24)\n"
    script += "m[:1 << 22] = b'x' * (1 << 22); print('ready', flush=True); input()"
    with session("it", [sys.executable, "-c", script], os.environ, 20) as run:
        next(run.lines())
        memory = run.memory()
    assert memory is None or memory.guest == 1 << 22 or memory.peak > memory.guest
    assert run.memory() is None


SMAPS = """\
7f0000000000-7f0001000000 rw-s 00000000 00:01 1029  /memfd:ram (deleted)
Size:              16384 kB
Rss:                4096 kB
Pss:                4096 kB
7f0002000000-7f0002001000 rw-p 00000000 00:00 0
Rss:                  12 kB
7f0003000000-7f0003001000 rw-s 00000000 00:01 1030  /memfd:rom (deleted)
Rss:                   8 kB
"""


def test_memfd_resident() -> None:
    assert memfd_resident(SMAPS) == (4096 + 8) << 10


def boot(userspace: float, memory: Memory | None = None, **loops: float) -> Boot:
    times = {name.replace("_", "-"): LoopTime(seconds, seconds, 10, 7) for name, seconds in loops.items()}
    return Boot(userspace, times, memory)


def test_rows_are_medians_ratios_and_limits() -> None:
    qemu = Series("qemu", warm=[boot(t, integer=1, float_sse=2) for t in (2, 4, 1)], starts=[0.1])
    ours = Series("pellucid", starts=[0.6, 0.2, 0.3])
    ours.cold = [boot(t) for t in (8, 4, 6)]
    ours.warm = [boot(t, Memory(500_000_000, 250_000_000), integer=9, float_sse=1) for t in (1, 5, 4)]
    rows = {row.name: row for row in results.rows(Measurements(qemu, ours, image=61))}
    assert (rows["cold cache"].ratio, rows["cold cache"].met) == (3, True)
    assert (rows["warm cache"].ratio, rows["warm cache"].met) == (2, False)
    assert (rows["first guest instruction"].ours, rows["first guest instruction"].met) == (0.3, True)
    assert rows["compiling the processor"].met is False
    assert (rows["integer"].ratio, rows["integer"].limit, rows["integer"].met) == (9, 8, False)
    assert (rows["float-sse"].ratio, rows["float-sse"].limit, rows["float-sse"].met) == (0.5, 1, True)
    assert rows["geometric mean"].ratio == pytest.approx((9 * 0.5) ** 0.5)
    assert rows["without guest RAM"].ours == 250_000_000
    assert rows["without guest RAM"].met is True


@pytest.mark.parametrize(
    ("idle", "pairs", "met"), [(True, [1.9, 1.2, 1.8], True), (True, [1.79], False), (False, [1.0], None)]
)
def test_two_cpus_have_a_limit_from_below_where_two_cores_are_idle(
    idle: bool, pairs: list[float], met: bool | None
) -> None:
    (row,) = results.rows(Measurements(None, Series("pellucid", pairs=pairs), two_idle_cores=idle))[3:]
    assert (row.name, row.met, row.at_least) == ("two CPUs against one", met, True)


@pytest.mark.parametrize(
    ("broken", "line"),
    [("one", "ended without its two loops"), ("apart", "computed 5001, 5003, 5006 of one loop on two CPUs")],
)
def test_two_cpus_that_do_not_do_their_part(fake: Path, tmp_path: Path, broken: str, line: str) -> None:
    emulator = Emulator("fake", (str(fake),), 5, environment={**os.environ, "BROKEN": broken})
    with pytest.raises(GuestError, match=f"fake two CPUs {line}"):
        pair.measure_pair(emulator, tmp_path / "vmlinuz", tmp_path / "initrd", 1e-5, None)


def test_a_row_with_nothing_to_compare() -> None:
    row = Row("boot", "cold", None, 2.0, 3.0)
    assert (row.ratio, row.met) == (None, None)
    assert row.plain()["ratio"] is None


def test_a_guest_clock_that_is_off_is_told() -> None:
    loops = {"fork": LoopTime(2.0, 1.0, 10, 7), "integer": LoopTime(2.0, 1.9, 10, 7), "memory": LoopTime(1, 3, 10, 7)}
    (note,) = results.notes(Measurements(None, Series("pellucid", warm=[Boot(1, loops)])))
    said = "fork 1.00 s for 2.00 s, memory 3.00 s for 1.00 s"
    assert note == f"the clock of pellucid's guest was off, and the host's counts: {said}"


def test_results_that_differ_between_runs() -> None:
    ours = Series("pellucid", warm=[Boot(1, {"fork": LoopTime(1, 1, 10, result)}) for result in (3, 4)])
    assert results.wrong_results(Measurements(None, ours)) == ["fork computed 3, 4 on pellucid"]


DISK_MACHINE = """\
#!/bin/sh
case "$*" in
*reboot-timeout*)
    while :; do echo "Booting from Hard Disk..."; echo "No bootable device.  Retrying"; sleep 0.01; done ;;
*-cdrom*) echo "Booting from DVD/CD..."; [ "$BROKEN" ] || echo "[    0.0] Linux version 6" ;;
*q35*) echo "read begins"; sleep 0.05; echo "read ends" ;;
esac
"""


@pytest.fixture
def disk_machine(tmp_path: Path) -> Path:
    program = tmp_path / "disk-machine"
    program.write_text(DISK_MACHINE)
    program.chmod(0o755)
    return program


def test_firmware_and_disks(disk_machine: Path) -> None:
    media, times = Media(Path("blank"), Path("iso"), (Path("kernel"), Path("initrd"))), DiskTimes()
    measure_disks(Emulator("fake", (str(disk_machine),), 5), media, None, times)
    assert len(times.firmware) == 5 and len(times.grub) == 1 and times.ahci[0] >= 0.05
    found = Measurements(Series("qemu", disks=times), Series("pellucid", disks=times))
    rows = {row.name: row for row in results.rows(found)}
    assert rows["SeaBIOS, reset to boot attempt"].ratio == rows["GRUB's ISO to the kernel"].ratio == 1
    assert rows["AHCI, read 256 MiB"].met and rows["AHCI, read 256 MiB"].limit == pytest.approx(1.342, abs=0.001)
    alone = Measurements(None, Series("pellucid", disks=DiskTimes()))
    assert not any(row.group == "firmware and disks" for row in results.rows(alone))


def test_a_machine_that_does_not_boot(disk_machine: Path) -> None:
    emulator = Emulator("fake", (str(disk_machine),), 5, environment={**os.environ, "BROKEN": "1"})
    with pytest.raises(GuestError, match="fake grub ended without 'Linux version'"):
        measure_disks(emulator, Media(iso=Path("iso")), None, DiskTimes())


def test_media_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disks, "which", lambda _: None)
    monkeypatch.setattr(disks, "GRUB", tmp_path)
    monkeypatch.setattr(disks, "BOARDS", {})
    monkeypatch.setattr(disks, "FIRMWARE", tmp_path / "bios.bin")
    assert "SeaBIOS is not installed" in disks.prepare(tmp_path, tmp_path / "k").notes[0]
    (tmp_path / "bios.bin").touch()
    media = disks.prepare(tmp_path, tmp_path / "k")
    assert media.blank is not None and media.iso is None and media.ahci is None
    assert "grub-common, grub-pc-bin, mtools, xorriso" in media.notes[0] and "q35" in media.notes[1]
