"""The conformance runner: the suite's configuration, what an exit status means, and runs of a stand-in emulator."""

import json
import random
import sys
from pathlib import Path

import pytest

from pellucid.cli.conformance import conformance, exits
from pellucid.cli.conformance.entries import DEFAULT_TIMEOUT, Entry, on_our_host, read_entries, sections, words
from pellucid.cli.conformance.runner import COMMON, ERROR, FAIL, PASS, SKIP, TIMEOUT, outcome, telling_line
from pellucid.errors import EXIT_INTERNAL, UserError

CONFIGURATION = '''
# a comment
[good]
file = good.flat
smp = 3
test_args = 'a b' c
qemu_params = -cpu max,+umip -m 4g

[bad]
file = bad.flat
timeout = 5s
extra_params = -enable-kvm -cpu max

[skipped]
file = skipped.flat
[stuck]
file = stuck.flat
timeout = 1
[dies]
file = dies.flat
[vmx]
file = good.flat
qemu_params = -cpu max,+vmx
groups = vmx
[other]
file = good.flat
arch = i386
[host]
file = good.flat
check = /sys/x=Y
[hand]
file = good.flat
groups = nodefault slow
[refused]
file = refused.flat
[long]
file = good.flat
test_args = """first \\
second"""
'''
EMULATOR = '''
import sys, time
name = sys.argv[sys.argv.index("-kernel") + 1].rsplit("/", 1)[1].split(".")[0]
if name == "refused": print("pellucid: no", file=sys.stderr); sys.exit(1)
print("PASS: one"); print(*sys.argv[1:], sep="|")
if name == "bad": print("FAIL: two"); print("SUMMARY: 2 tests, 1 unexpected failures"); sys.exit(3)
if name == "skipped": print("SUMMARY: 1 tests, 1 skipped"); sys.exit(77)
if name == "stuck": sys.stdout.flush(); time.sleep(60)
if name == "dies": sys.exit(0)
print("SUMMARY: 1 tests"); sys.exit(1)
'''


EXITS = """
[vmexit_one]
file = good.flat
test_args = one
groups = vmexit
[other]
file = good.flat
"""
COUNTS = """
import sys
print("paging enabled\\r"); print(sys.argv[-1], sys.argv[1], end="\\r\\n"); print("  ipi part", 7); print("FAIL: no 5")
sys.exit(1)
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    (tmp_path / "x86").mkdir()
    (tmp_path / "x86" / "unittests.cfg").write_text(CONFIGURATION)
    (tmp_path / "config.mak").write_text("SRCDIR=x\nARCH=x86_64\n")
    for name in ("good", "bad", "skipped", "stuck", "dies", "refused"):
        (tmp_path / "x86" / f"{name}.flat").touch()
    (tmp_path / "emulator.py").write_text(EMULATOR)
    return tmp_path


def run(suite: Path, *arguments: str) -> tuple[int, dict[str, dict[str, str]]]:
    emulator = f"{sys.executable} {suite}/emulator.py"
    status = conformance(["kvm-unit-tests", str(suite), *arguments, "--emulator", emulator,
                          "--json", str(suite / "out.json"), "--logs", str(suite / "logs")])  # fmt: skip
    entries = json.loads((suite / "out.json").read_text())["entries"]
    return status, {entry["name"]: entry for entry in entries}


def test_the_configuration_is_read(suite: Path) -> None:
    entries = {entry.name: entry for entry in read_entries(suite)}
    good = entries["good"]
    assert (good.file, good.smp, words(good.test_args), words(good.params)) == (
        "good.flat", "3", ["a b", "c"], ["-cpu", "max,+umip", "-m", "4g"])  # fmt: skip
    assert good.timeout == DEFAULT_TIMEOUT and entries["bad"].timeout == 5 and entries["stuck"].timeout == 1
    assert words(entries["long"].test_args) == ["first", "second"]
    assert [name for name, entry in entries.items() if entry.beyond] == ["vmx", "host", "hand"]


def test_an_entry_that_wants_little_memory_gets_it() -> None:
    assert words(on_our_host(Entry("asyncpf", "asyncpf.flat", params="-m 2048")).params) == [
        "-m", "2048", "-mem-resident", "512M"]
    assert on_our_host(Entry("other", "other.flat", params="-m 2048")).params == "-m 2048"


def test_results_of_a_run(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, entries = run(suite)
    assert status == 1
    assert {name: entry["outcome"] for name, entry in entries.items()} == {
        "good": PASS, "bad": FAIL, "skipped": SKIP, "stuck": TIMEOUT, "dies": ERROR, "vmx": "beyond",
        "other": "beyond", "host": "beyond", "hand": "beyond", "refused": ERROR, "long": PASS}  # fmt: skip
    assert entries["bad"]["line"] == "FAIL: two" and entries["good"]["line"] == "SUMMARY: 1 tests"
    assert entries["vmx"]["line"] == "needs VMX" and entries["other"]["line"] == "of the i386 build"
    out = capsys.readouterr().out
    assert "11 entries: 2 pass, 1 fail, 1 timeout, 2 error, 1 skip, 4 beyond" in out
    words_of_good = (suite / "logs" / "good.log").read_text().splitlines()[1].split("|")
    assert words_of_good[: len(COMMON)] == COMMON
    assert words_of_good[len(COMMON) + 2 :] == ["-smp", "3", "-append", "a b c", "-cpu", "max,+umip", "-m", "4g"]
    assert "-enable-kvm" not in (suite / "logs" / "bad.log").read_text()


def test_entries_by_name_and_group(suite: Path) -> None:
    assert run(suite, "good", "vmx")[1].keys() == {"good", "vmx"}
    assert run(suite, "vmx")[1]["vmx"]["outcome"] == PASS  # whoever names it wants it
    assert run(suite, "--group", "slow")[1].keys() == {"hand"}
    assert run(suite, "good")[0] == 0


@pytest.mark.parametrize(
    ("status", "meaning"),
    [(1, PASS), (3, FAIL), (77, SKIP), (155, FAIL), (None, TIMEOUT), (0, ERROR), (EXIT_INTERNAL, ERROR), (-6, ERROR),
     (255, FAIL), (2, ERROR)],
)
def test_what_a_status_means(status: int | None, meaning: str) -> None:
    assert outcome(status) == meaning


def test_the_line_that_tells() -> None:
    assert telling_line("a\nb\n\n", FAIL) == "b" and telling_line("", TIMEOUT) == "printed nothing"
    assert telling_line("pellucid: -x: unknown option\n", ERROR) == "pellucid: -x: unknown option"
    assert telling_line("FAIL: x\nSUMMARY: y\n", PASS) == "SUMMARY: y"


def test_bad_input_is_named(suite: Path, tmp_path: Path) -> None:
    for arguments, found in (
        (["kvm-unit-tests", str(tmp_path / "none")], "give the folder of a built"),
        (["kvm-unit-tests", str(suite), "god"], "no such entry"),
        (["kvm-unit-tests", str(suite), "-j", "0"], "above 0"),
        (["other", str(suite)], "invalid choice"),
    ):
        with pytest.raises(UserError, match=found):
            conformance(arguments)
    (suite / "config.mak").unlink()
    with pytest.raises(UserError, match="not built there"):
        conformance(["kvm-unit-tests", str(suite)])


def test_random_configurations_are_read_or_refused() -> None:
    rng = random.Random(5)
    for _ in range(500):
        lines = CONFIGURATION.splitlines()
        for _ in range(rng.randrange(6)):
            lines.insert(rng.randrange(len(lines)), "".join(rng.choices('[]="\\ afile\t', k=rng.randrange(20))))
        assert all(isinstance(body, dict) for _, body in sections("\n".join(lines)))


def test_cycles_per_exit_side_by_side(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (suite / "x86" / "unittests.cfg").write_text(EXITS)
    (suite / "counts.py").write_text(COUNTS)
    emulator = f"{sys.executable} {suite}/counts.py"
    wanted = ["kvm-unit-tests", str(suite), "--rounds", "1", "--emulator", f"{emulator} 300", "--exits"]
    assert conformance([*wanted, f"{emulator} 100"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert any(row.split()[1::2] == ["one", "300", "100", "3.00"] for row in rows), rows
    assert any("ipi part" in row and "1.00" in row for row in rows) and not any("no" in row.split() for row in rows)
    assert conformance([*wanted, f"{emulator} 99"]) == 1
    assert "above 3 times the other's: one" in capsys.readouterr().out


def test_an_emulator_that_refuses_its_options_is_no_comparison(suite: Path) -> None:
    (suite / "x86" / "unittests.cfg").write_text(EXITS)
    (suite / "counts.py").write_text(COUNTS)
    (suite / "refuses.py").write_text("import sys; sys.exit('options do not fit')")
    wanted = ["kvm-unit-tests", str(suite), "--emulator", f"{sys.executable} {suite}/counts.py 1", "--exits"]
    with pytest.raises(UserError, match="did not run vmexit_one: options do not fit"):
        conformance([*wanted, f"{sys.executable} {suite}/refuses.py"])


def test_what_only_one_emulator_measures_has_no_ratio() -> None:
    assert exits.Comparison("a", 5, None).ratio is None and exits.Comparison("a", None, 5).ratio is None
    assert exits.ticks("a 1\nbcd 2 3\n  eoi x 4\nB 5\n\n") == {"a": 1, "eoi x": 4}
