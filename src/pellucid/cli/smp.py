"""-smp: from the numbers given to the machine's processors, with QEMU 7.2's rules and words.

What is left out is computed: a count of 0 means the same, with a warning. With nothing but `cpus` (or `maxcpus`) all
are cores of one socket; sockets follow where cores are given, threads where both are. The numbers are unsigned and of
32 bits, as QEMU has them, so that even nonsense gets its words.
"""

import re
from collections.abc import Mapping
from math import prod

from pellucid.cli.keyval import split_items
from pellucid.cpu.models.topology import CpuTopology
from pellucid.errors import UserError
from pellucid.machine.board import Board
from pellucid.machine.config import MAX_CPUS
from pellucid.machine.option_tables import OPTION_TABLES

DEPRECATED = "Deprecated CPU topology (considered invalid): CPU topology parameters must be greater than zero"
U32 = 0xFFFF_FFFF
C_NUMBER = re.compile(r"\s*([+-]?)(0[xX][0-9a-fA-F]+|[0-9]+)")


def parse_smp(text: str) -> dict[str, int]:
    """The numbers of one -smp by name. Raises UserError."""
    found = {}
    for index, item in enumerate(split_items(text)):
        name, equals, value = item.partition("=")
        if not equals and index == 0:
            if not item:
                continue
            name, value = "cpus", item
        elif not equals:
            raise UserError(f"-smp {text}: Expected '=' after parameter '{item}'")
        found[name] = parse_number(name, value)
    return found


def parse_number(name: str, text: str) -> int:
    """A number as C writes it. Raises UserError for what is none, or no count's name."""
    if name not in OPTION_TABLES["smp-opts"]:
        raise UserError(f"Parameter 'smp.{name}' is unexpected")
    match = C_NUMBER.fullmatch(text)
    digits = match[2] if match else ""
    octal = len(digits) > 1 and digits[0] == "0" and digits[1] not in "xX"
    if match is None or octal and not set(digits) <= set("01234567"):
        raise UserError(f"Parameter 'smp.{name}' expects integer")
    number = int(digits, 8 if octal else 0) * (-1 if match[1] == "-" else 1)
    if not -(1 << 63) <= number < 1 << 63:
        raise UserError(f"Parameter 'smp.{name}' expects integer")
    return number


def topology(given: Mapping[str, int], board: Board) -> tuple[CpuTopology, list[str]]:
    """The processors that `board` has for these numbers, and warnings. Raises UserError."""
    warnings = [DEPRECATED] if 0 in given.values() else []
    for level, known in (("dies", board.has_dies), ("clusters", False)):
        if given.get(level, 0) & U32 > 1 and not known:
            raise UserError(f"{level} not supported by this machine's CPU topology")
    counts, cpus, most = _complete({name: number & U32 for name, number in given.items()})
    total = prod(counts.values()) & U32
    most = most or total
    cpus = cpus or most
    hierarchy = " * ".join(f"{level} ({count})" for level, count in counts.items() if board.has_dies or level != "dies")
    if total != most:
        raise UserError("Invalid CPU topology: product of the hierarchy must match maxcpus: "
                        f"{hierarchy} != maxcpus ({most})")
    if most < cpus:
        raise UserError("Invalid CPU topology: maxcpus must be equal to or greater than smp: "
                        f"{hierarchy} == maxcpus ({most}) < smp_cpus ({cpus})")
    if most > board.max_cpus:
        raise UserError(f"Invalid SMP CPUs {most - (most >> 31 << 32)}. The max CPUs supported by machine "
                        f"'{board.full_name}' is {board.max_cpus}")
    found = CpuTopology(counts["sockets"], counts["cores"], counts["threads"], counts["dies"],
                        cpus if cpus < most else None)
    if found.apic_id_limit > MAX_CPUS:
        raise UserError("current -smp configuration requires kernel irqchip and X2APIC API support.")
    return found, warnings


def _complete(given: Mapping[str, int]) -> tuple[dict[str, int], int, int]:
    """The counts by level, cpus and maxcpus, with 0 for what is still open; cores before sockets before threads."""
    cpus, most = given.get("cpus", 0), given.get("maxcpus", 0)
    sockets, dies, cores, threads = (given.get(level, 0) for level in ("sockets", "dies", "cores", "threads"))
    dies = dies or 1
    if cpus == most == 0:
        sockets, cores, threads = sockets or 1, cores or 1, threads or 1
    else:
        most = most or cpus
        if cores == 0:
            sockets, threads = sockets or 1, threads or 1
            cores = _share(most, sockets * dies * threads)
        elif sockets == 0:
            threads = threads or 1
            sockets = _share(most, dies * cores * threads)
        if threads == 0:
            threads = _share(most, sockets * dies * cores)
    return {"sockets": sockets, "dies": dies, "cores": cores, "threads": threads}, cpus, most


def _share(number: int, among: int) -> int:
    among &= U32
    return number // among if among else 0
