"""`pellucid conformance SUITE DIR [NAME ...]`: a public test suite, run on Pellucid, and what came of each entry.

entries.py reads the suite's configuration, runner.py runs it, schedule.py says which entries run side by side and
withheld.py what they lost to others, report.py shows the results; exits.py compares what exits cost. The suite itself
is fetched and built by the user: github.com/kvm-unit-tests/kvm-unit-tests, ./configure && make.
"""

import argparse
import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pellucid.cli.arguments import ArgumentParser
from pellucid.cli.conformance import exits
from pellucid.cli.conformance.entries import Entry, architecture, on_our_host, read_entries
from pellucid.cli.conformance.report import show, write_json
from pellucid.cli.conformance.runner import ERROR, FAIL, TIMEOUT, Plan, Result, run_all
from pellucid.cli.keyval import suggestion
from pellucid.cli.progress import ProgressBar
from pellucid.engine import image
from pellucid.errors import UserError

SUITES = ("kvm-unit-tests",)
OURS = (sys.executable, "-c", "from pellucid.cli.main import system_main; raise SystemExit(system_main())")


def conformance(arguments: Sequence[str]) -> int:
    """The subcommand; the exit status: 0 when nothing failed."""
    options = _read(arguments)
    entries = _chosen(read_entries(options.folder), options.names, options.group)
    if not options.emulator:
        entries = [on_our_host(entry) for entry in entries]
    if options.logs is not None:
        options.logs.mkdir(parents=True, exist_ok=True)
    plan = Plan(
        options.folder,
        shlex.split(options.emulator) if options.emulator else OURS,
        entries,
        architecture(options.folder),
        everything=options.all or bool(options.names),
        stretch=options.stretch,
        jobs=options.jobs,
        logs=options.logs,
    )
    if options.exits is not None:
        return _compare_exits(plan, options)
    finished: list[Result] = []
    with ProgressBar() as bar, ended_by_signal():
        if not options.emulator:  # compiled once, not by each of the first entries, within its time-out
            image.load(bar.steps)

        def done(result: Result) -> None:
            finished.append(result)
            bar.steps("running", len(finished), len(entries))

        results = run_all(plan, done)
    show(results)
    if options.json is not None:
        write_json(results, options.json)
    return int(any(result.outcome in (FAIL, TIMEOUT, ERROR) for result in results))


@contextlib.contextmanager
def ended_by_signal() -> Iterator[None]:
    """Let SIGTERM end what runs, as Ctrl-C does, and not leave the emulators behind."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _compare_exits(plan: Plan, options: argparse.Namespace) -> int:
    with ProgressBar() as bar:
        other = shlex.split(options.exits)
        rows = exits.compare(plan, other, options.rounds, lambda done, of: bar.steps("running", done, of))
    return int(exits.show(rows) > 0)


def _read(arguments: Sequence[str]) -> argparse.Namespace:
    parser = ArgumentParser(prog="pellucid conformance", description="Run a public conformance suite, built by you.")
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("folder", type=Path, metavar="DIR", help="the suite's folder, built")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these entries, whatever they need")
    parser.add_argument("--group", help="only the entries of this group")
    parser.add_argument("--all", action="store_true", help="also what needs VMX, SVM, Hyper-V or the host's KVM")
    parser.add_argument("--jobs", "-j", type=int, default=len(os.sched_getaffinity(0)), metavar="N",
                        help="CPUs that entries may take up together; each takes as many as its guest has")  # fmt: skip
    parser.add_argument("--stretch", type=float, default=1.0, metavar="F", help="multiply every time-out by F")
    parser.add_argument("--emulator", metavar="COMMAND", help="another one than Pellucid, such as qemu-system-x86_64")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep every entry's output there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    parser.add_argument("--exits", metavar="COMMAND", help="compare cycles per exit with this emulator's, one run at a "
                        "time; with qemu-system-x86_64 that is TCG")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="runs of each for --exits")
    options = parser.parse_args(list(arguments))
    if options.jobs < 1 or options.rounds < 1 or options.stretch <= 0:
        raise UserError("conformance: --jobs, --rounds and --stretch want a number above 0")
    return options


def _chosen(entries: list[Entry], names: Sequence[str], group: str | None) -> list[Entry]:
    known = {entry.name for entry in entries}
    for name in names:
        if name not in known:
            raise UserError(f"conformance: {name}: no such entry: {suggestion(name, known)}")
    return [entry for entry in entries
            if (not names or entry.name in names) and (group is None or group in entry.groups.split())]  # fmt: skip
