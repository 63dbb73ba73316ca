"""-d and -D on Python's logging: an item opens the loggers that its row in names.LOG_ITEMS lists, down to DEBUG.

Warnings are always shown; everything else below stays silent.
"""

import logging
import sys
from collections.abc import Iterable
from pathlib import Path

from pellucid.cli.names import LOG_ITEMS
from pellucid.errors import UserError


def configure_logging(items: Iterable[str], file: Path | None) -> None:
    """Send log lines to `file`, or to standard error, with the loggers of `items` open. UserError: no such place."""
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if file is not None:
        try:
            handler = logging.FileHandler(file, mode="w", encoding="utf-8")
        except OSError as error:
            raise UserError(f"-D {file}: {error.strerror}: give a file that can be written") from error
    handler.setFormatter(logging.Formatter("%(message)s"))
    root = logging.getLogger("pellucid")
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    chosen = set(items)
    for item, row in LOG_ITEMS.items():
        for name in row.loggers:
            logging.getLogger(name).setLevel(logging.DEBUG if item in chosen else logging.NOTSET)
