"""What is logged and where to (-d and -D, `log` and `logfile`): Python's logging under QEMU's item names.

An item opens its loggers down to DEBUG. Warnings are always shown; everything else below stays silent.
"""

import logging
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pellucid.errors import UserError


@dataclass(frozen=True)
class LogItem:
    """An item of -d: what it shows, and the loggers that it opens."""

    help: str
    loggers: tuple[str, ...]


LOG_ITEMS = {
    "unimp": LogItem("instructions that the guest used and that are not built", ("pellucid.translate",)),
    "guest_errors": LogItem("accesses of the guest to where nothing answers", ("pellucid.memory.invalid",)),
}
LOG_ITEMS_NOT_BUILT = """
in_asm out_asm op op_opt op_ind int exec cpu fpu mmu pcall cpu_reset page nochain plugin strace tid vpu
""".split()


def configure_logging(items: Iterable[str], file: Path | None) -> None:
    """Send log lines to `file`, or to standard error, with the loggers of `items` open. UserError: no such place."""
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if file is not None:
        try:
            handler = logging.FileHandler(file, mode="w", encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"-D {file}: {reason}: give a file that can be written") from error
    handler.setFormatter(logging.Formatter("%(message)s"))
    root = logging.getLogger("pellucid")
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    choose_log_items(items)


def choose_log_items(items: Iterable[str]) -> None:
    """Open the loggers of exactly these items."""
    chosen = set(items)
    for item, row in LOG_ITEMS.items():
        for name in row.loggers:
            logging.getLogger(name).setLevel(logging.DEBUG if item in chosen else logging.NOTSET)


def logged_items() -> set[str]:
    """The items whose loggers are open."""
    return {
        item
        for item, row in LOG_ITEMS.items()
        if all(logging.getLogger(name).level == logging.DEBUG for name in row.loggers)
    }
