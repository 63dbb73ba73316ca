"""A progress bar on standard error, for the few things that take seconds the first time.

Nothing is drawn before the first report, and the bar is gone afterwards; where standard error is no terminal, each
thing gets one line instead.
"""

import sys

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn


class ProgressBar:
    """A context manager; report through `percent` or `steps` while it is open, from one thread at a time."""

    def __init__(self) -> None:
        self._console = Console(file=sys.stderr)
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), console=self._console, transient=True
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress.live.is_started:
            self._progress.stop()

    def percent(self, label: str, percent: float) -> None:
        """`label` is `percent` (0..100) done."""
        if label not in self._tasks:
            if self._console.is_terminal:
                self._progress.start()
            else:
                print(f"pellucid: {label}", file=sys.stderr, flush=True)
            self._tasks[label] = self._progress.add_task(label, total=100)
        self._progress.update(self._tasks[label], completed=percent)

    def steps(self, label: str, done: int, total: int) -> None:
        """`done` of `total` steps of `label` are done: the form that `pellucid.native` reports in."""
        self.percent(label, 100 * done / total if total else 100)
