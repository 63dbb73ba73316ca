"""Showing the rows: a table for people, a JSON object for programs."""

import json
import os
import platform
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from pellucid.cli.bench.results import Row

VERDICT = {True: "[green]yes[/]", False: "[red]no[/]", None: ""}


def show(rows: Sequence[Row], notes: Sequence[str], heading: str) -> None:
    """Print the table, its notes below."""
    console = Console()
    console.print(heading, highlight=False, soft_wrap=True)
    table = Table()
    table.add_column("", no_wrap=True)
    for heading in ("QEMU", "Pellucid", "ratio", "limit", "kept"):
        table.add_column(heading, justify="right")
    group = ""
    for row in rows:
        if row.group != group:
            table.add_section()
            table.add_row(f"[bold]{row.group}[/]")
            group = row.group
        table.add_row(*_cells(row))
    console.print(table)
    for note in notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)


def as_json(rows: Sequence[Row], notes: Sequence[str], heading: dict[str, Any]) -> str:
    """One JSON object."""
    host = {"machine": platform.machine(), "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}
    return json.dumps({**heading, "host": host, "rows": [row.plain() for row in rows], "notes": list(notes)}, indent=2)


def _cells(row: Row) -> tuple[str, ...]:
    if row.limit is None:
        limit = ""
    else:
        limit = f"{row.limit:g}x" if row.limit_is_ratio else quantity(row.limit, row.unit)
        limit = f"at least {limit}" if row.at_least else limit
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}x"
    return ("  " + row.name, quantity(row.qemu, row.unit), quantity(row.ours, row.unit), ratio, limit, VERDICT[row.met])


def quantity(value: float | None, unit: str) -> str:
    """A value with its unit, in three significant digits or so."""
    if value is None:
        return ""
    if unit == "B":
        return f"{value / 1e6:.0f} MB"
    if unit == "x":
        return f"{value:.2f}x"
    return f"{value * 1000:.0f} ms" if value < 0.9995 else f"{value:.2f} s"
