"""-d and -D on Python's logging: item X of -d opens the logger `pellucid.log.X`, which whoever has something to say
under that name writes to with `debug()`. Everything else below WARNING stays silent."""

import logging
import sys
from collections.abc import Iterable
from pathlib import Path

from pellucid.errors import UserError

ITEM_LOGGERS = "pellucid.log."


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
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(ITEM_LOGGERS):
            logging.getLogger(name).setLevel(logging.NOTSET)
    for item in items:
        logging.getLogger(ITEM_LOGGERS + item).setLevel(logging.DEBUG)
