"""`pellucid bench`: the same kernel and initrd on Debian's QEMU (-accel tcg) and on Pellucid, in turn, side by side.

    workload.py   the initrd, its /init script, and the lines it prints
    programs.py   what every guest program has in common; loops.py: the timed loops, in assembly
    asm.py        the assembler; elf.py: the files
    machines.py   how each machine is started; console.py: one that runs, and its console's lines
    disks.py      firmware, GRUB and AHCI; pair.py: two guest CPUs against one
    runs.py       which runs when; results.py: medians, ratios, limits; report.py: the table

Only ratios mean something from one computer to another; a loop counts by the host's clock.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from shutil import which

from pellucid.cli import guest
from pellucid.cli.arguments import ArgumentParser
from pellucid.cli.bench import report, results
from pellucid.cli.bench.loops import BY_NAME, PROGRAMS
from pellucid.cli.bench.machines import qemu, qemu_version
from pellucid.cli.bench.programs import GuestProgram
from pellucid.cli.bench.runs import Plan, measure
from pellucid.cli.keyval import suggestion
from pellucid.cli.progress import ProgressBar
from pellucid.errors import UserError

QEMU = "qemu-system-x86_64"
REPETITIONS = 3
SILENCE = 180.0
BUSY = 0.5
"""Load average per core from which on the table says that the computer had other work."""


def bench(arguments: Sequence[str]) -> int:
    """The subcommand. The status is 1 when a machine did not do its part or computed something wrong, else 0."""
    options = _read(arguments)
    program = None if options.no_qemu else which(options.qemu)
    if options.qemu != QEMU and program is None:
        raise UserError(f"--qemu {options.qemu}: no such program")
    plan = Plan(
        kernel=_kernel(options.kernel),
        loops=_loops(options.loops),
        repetitions=1 if options.quick else options.repetitions,
        qemu=qemu(program) if program else None,
        silence=options.silence,
        scale=options.scale,
        image=options.image,
        disks=not options.no_disks,
        logs=_log_folder(options.logs),
    )
    busy = os.getloadavg()[0] / len(os.sched_getaffinity(0))
    with ProgressBar() as bar:
        found = measure(plan, bar.percent)
    if program is None and not options.no_qemu:
        found.notes.append(f"{QEMU} is not installed, so there is nothing to compare with (Debian: qemu-system-x86)")
    if busy > BUSY:
        found.notes.append("other work ran on this computer when this began; times and ratios vary with it")
    rows, notes, wrong = results.rows(found), results.notes(found), results.wrong_results(found)
    compared = f"Pellucid and {qemu_version(program)}" if program else "Pellucid"
    if options.json:
        heading = {"compared": compared, "repetitions": plan.repetitions, "wrong_results": wrong}
        print(report.as_json(rows, notes, heading))
    else:
        report.show(rows, notes, f"{compared}: medians of {plan.repetitions}")
    if wrong:
        raise UserError(f"wrong results: {'; '.join(wrong)}")
    return 0


def _read(arguments: Sequence[str]) -> argparse.Namespace:
    parser = ArgumentParser(prog="pellucid bench", description="Compare the speed of Pellucid with that of QEMU's TCG.")
    parser.add_argument("--quick", action="store_true", help="one repetition")
    parser.add_argument("-n", "--repetitions", type=_count, default=REPETITIONS, metavar="N", help="default: 3")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--image", action="store_true", help="also time the compilation of the processor")
    parser.add_argument("--no-disks", action="store_true", help="leave out what boots from disks")
    parser.add_argument("--loops", metavar="NAME,...", help=f"only these ('none' for none): {', '.join(BY_NAME)}")
    parser.add_argument("--scale", type=_positive, default=1.0, metavar="F", help="multiply the loops' iterations by F")
    parser.add_argument("--kernel", type=Path, metavar="FILE", help="a bzImage instead of Debian's cloud kernel")
    parser.add_argument("--qemu", default=QEMU, metavar="PROGRAM", help=f"default: {QEMU}")
    parser.add_argument("--no-qemu", action="store_true", help="measure Pellucid alone")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep every console's text there")
    parser.add_argument("--silence", type=_positive, default=SILENCE, metavar="SECONDS",
                        help="without a line, after which a guest of ours counts as hung; default: 180")  # fmt: skip
    return parser.parse_args(list(arguments))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text}: give a number of 1 or more")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text}: give a number above 0")
    return value


def _loops(text: str | None) -> Sequence[GuestProgram]:
    if text is None:
        return PROGRAMS
    names = [name for name in text.split(",") if name and name != "none"]
    for name in names:
        if name not in BY_NAME:
            raise UserError(f"--loops {name}: no such loop: {suggestion(name, BY_NAME)}")
    return [program for program in PROGRAMS if program.name in names]


def _kernel(path: Path | None) -> Path:
    if path is None:
        return guest.default_kernel()
    if not path.is_file():
        raise UserError(f"--kernel {path}: no such file")
    return path


def _log_folder(path: Path | None) -> Path | None:
    if path is not None:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--logs {path}: {error.strerror}: give a folder that can be written") from error
    return path
