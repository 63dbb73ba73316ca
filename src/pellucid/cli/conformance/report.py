"""Showing what came of the entries: a table for people, JSON for programs."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pellucid.cli.conformance.runner import BEYOND, ERROR, FAIL, PASS, SKIP, TIMEOUT, Result
from pellucid.errors import UserError
from pellucid.records import asdict

STYLE = {PASS: "green", FAIL: "red", TIMEOUT: "red", ERROR: "red", SKIP: "yellow", BEYOND: "dim"}


def show(results: Sequence[Result]) -> None:
    """Print the table, and below it how many there are of each outcome."""
    table = Table("entry", "result", "seconds", "what it said")
    table.columns[2].justify = "right"
    for result in results:
        table.add_row(result.name, Text(result.outcome, STYLE[result.outcome]), _seconds(result), Text(result.line))
    console = Console()
    console.print(table)
    console.print(summary(results), highlight=False)


def _seconds(result: Result) -> str:
    """How long it took; on a computer that others use too, also how much of that they had."""
    own = f"{result.seconds:.1f}" if result.seconds else ""
    more = [f"{result.withheld:.0f} withheld"] * (result.withheld >= 1) + [f"run {result.runs}"] * (result.runs > 1)
    return f"{own} ({', '.join(more)})" if more else own


def summary(results: Sequence[Result]) -> str:
    """One line."""
    counts = Counter(result.outcome for result in results)
    return f"{len(results)} entries: " + ", ".join(f"{counts[word]} {word}" for word in STYLE if counts[word])


def write_json(results: Sequence[Result], path: Path) -> None:
    """Raises UserError for a file that cannot be written."""
    text = json.dumps({"summary": summary(results), "entries": [asdict(result) for result in results]}, indent=2)
    try:
        path.write_text(text + "\n")
    except OSError as error:
        raise UserError(f"--json {path}: {error.strerror}") from None
