"""Cycles per exit, side by side: the entries of the suite's `vmexit` group on Pellucid and on another emulator.

Each runs in turn on both, several times, since other work on the host changes what either needs; the figure is the
median. A line of such a test says what was measured and how many TSC ticks one turn of it took.
"""

import re
import statistics
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from pellucid.cli.conformance.entries import Entry
from pellucid.cli.conformance.runner import Plan, execute
from pellucid.errors import UserError
from pellucid.records import dataclass, replace

GROUP = "vmexit"
LIMIT = 3.0
"""How many times the other's cycles are still good."""


@dataclass(frozen=True)
class Comparison:
    """Median ticks of one measurement; None where an emulator did not print it."""

    name: str
    ours: float | None
    theirs: float | None

    @property
    def ratio(self) -> float | None:
        """Ours in units of theirs."""
        return self.ours / self.theirs if self.ours is not None and self.theirs else None


def compare(plan: Plan, other: Sequence[str], rounds: int, done: Callable[[int, int], None]) -> list[Comparison]:
    """Run the plan's entries on its emulator and on `other`; `done` hears of (runs made, runs in all)."""
    entries = [entry for entry in plan.entries if GROUP in entry.groups.split()]
    plans = (plan, replace(plan, emulator=other))
    total = len(entries) * rounds * len(plans)
    runs = 0
    rows = []
    for entry in entries:
        taken: tuple[list[dict[str, int]], list[dict[str, int]]] = ([], [])
        for _ in range(rounds):
            for each, kept in zip(plans, taken, strict=True):
                kept.append(measured(each, entry))
                runs += 1
                done(runs, total)
        rows += [Comparison(name, *(_median(name, kept) for kept in taken))
                 for name in dict.fromkeys(name for kept in taken for found in kept for name in found)]  # fmt: skip
    return rows


def measured(plan: Plan, entry: Entry) -> dict[str, int]:
    """Ticks by name, as one run of the entry printed them. Raises UserError where the emulator ran no guest."""
    run = execute(plan, entry)
    if not run.output:
        said = run.errors.decode(errors="replace").strip().splitlines() or ["it printed nothing"]
        raise UserError(f"conformance: {plan.emulator[0]} did not run {entry.name}: {said[-1]}")
    return ticks(run.output.decode(errors="replace"))


def ticks(text: str) -> dict[str, int]:
    """Lines of a name and a number; what an interrupt's sender and its end took are parts of the line before."""
    return {found[1]: int(found[2]) for line in text.splitlines()
            if (found := re.fullmatch(r"\s*((?:(?:ipi|eoi) )?[a-z][\w-]*) (\d+)", line.rstrip()))}  # fmt: skip


def show(rows: Sequence[Comparison]) -> int:
    """Print the table; how many measurements are above the limit."""
    table = Table("exit", "cycles", "the other's", "ratio")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        table.add_row(row.name, *("-" if n is None else f"{n:.0f}" for n in (row.ours, row.theirs)), ratio)
    above = [row.name for row in rows if row.ratio is not None and row.ratio > LIMIT]
    console = Console()
    console.print(table)
    console.print(f"above {LIMIT:g} times the other's: {', '.join(above) or 'none'}", highlight=False)
    return len(above)


def _median(name: str, runs: Sequence[dict[str, int]]) -> float | None:
    found = [run[name] for run in runs if name in run]
    return statistics.median(found) if found else None
