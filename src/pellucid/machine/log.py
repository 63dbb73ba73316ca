"""What is logged and where to (-d and -D, `log` and `logfile`): Python's logging under QEMU's item names.

An item opens its loggers down to DEBUG. Warnings are always shown; everything else below stays silent.
"""

import logging
import sys
from collections.abc import Iterable
from pathlib import Path

from pellucid.errors import UserError
from pellucid.records import dataclass


@dataclass(frozen=True)
class LogItem:
    """An item of -d: what it shows, and the loggers that it opens."""

    help: str
    loggers: tuple[str, ...]


LOG_ITEMS = {
    "in_asm": LogItem("instructions of each newly translated block", ("pellucid.cpu.in_asm",)),
    "int": LogItem("interrupts and exceptions, with the CPU's state", ("pellucid.cpu.int",)),
    "exec": LogItem("a line before each executed block (lots of lines)", ("pellucid.cpu.exec",)),
    "cpu": LogItem("registers before each block (lots of lines)", ("pellucid.cpu.cpu",)),
    "fpu": LogItem("floating-point registers too, with 'cpu'", ("pellucid.cpu.fpu",)),
    "mmu": LogItem("changes of CR0, CR3 and A20, and page faults with their walk", ("pellucid.cpu.mmu",)),
    "pcall": LogItem("far transfers of protected mode", ("pellucid.cpu.pcall",)),
    "cpu_reset": LogItem("registers before a CPU is reset", ("pellucid.cpu.cpu_reset",)),
    "nochain": LogItem("accepted: 'exec' and 'cpu' are complete without it", ("pellucid.cpu.nochain",)),
    "unimp": LogItem("instructions that the guest used and that are not built", ("pellucid.translate",)),
    "guest_errors": LogItem(
        "accesses of the guest to where nothing answers, and of MSRs that raise #GP",
        ("pellucid.memory.invalid", "pellucid.kvm.msr"),
    ),
}
LOG_ITEMS_NOT_BUILT = "out_asm op op_opt op_ind page plugin strace tid vpu".split()

AddressRange = tuple[int, int]
"""First and last address."""
_U64 = (1 << 64) - 1


def parse_log_ranges(text: str) -> tuple[AddressRange, ...]:
    """-dfilter's RANGE,...: FIRST..LAST, START+SIZE or END-SIZE (bytes up to and including END), as QEMU has them."""
    return tuple(_range(word) for word in text.split(","))


def _range(text: str) -> AddressRange:
    for sign in ("..", "+", "-"):
        first, found, second = text.partition(sign)
        if not found:
            continue
        try:
            a, b = int(first, 0), int(second, 0)
        except ValueError:
            break
        low, high = {"..": (a, b), "+": (a, a + b - 1), "-": (a - b + 1, a)}[sign]
        if 0 <= low <= high <= _U64:
            return low, high
        break
    raise UserError(f"-dfilter {text}: not a range: write FIRST..LAST, START+SIZE or END-SIZE, such as 0x1000..0x1fff")


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
