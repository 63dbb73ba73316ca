"""What is logged, and where to."""

from pathlib import Path

from pellucid.errors import UserError
from pellucid.machine.log import LOG_ITEMS, LOG_ITEMS_NOT_BUILT, choose_log_items, configure_logging, logged_items
from pellucid.monitor.command import Filename, command
from pellucid.monitor.errors import CommandError
from pellucid.monitor.session import Session


@command(hmp="log", help="activate logging of the specified items", syntax="item1[,...]")
def log(session: Session, items: str) -> str:
    """Exactly these items from now on; `none` for none."""
    chosen = set(items.split(",")) - {"none"}
    for item in sorted(chosen):
        if item in LOG_ITEMS_NOT_BUILT:
            raise CommandError(f"log item {item}: not built yet")
        if item not in LOG_ITEMS:
            return log_items_text()
    choose_log_items(chosen)
    for tell in session.machine.on_log_items:
        tell()
    return ""


def log_items_text() -> str:
    """What there is to log."""
    lines = ["Log items (comma separated):", f"{'none':<15} remove all logs"]
    lines += [f"{item:<15} {row.help}" for item, row in LOG_ITEMS.items()]
    return "\n".join(lines) + "\n"


@command(hmp="logfile", help="output logs to 'filename'")
def logfile(session: Session, filename: Filename) -> str:
    """Where log lines go from now on."""
    try:
        configure_logging(logged_items(), Path(filename))
    except UserError as error:
        cause = error.__cause__
        reason = cause.strerror if isinstance(cause, OSError) else cause
        return f"Error opening logfile {filename}: {reason}\n"
    return ""


