"""A triple fault told as a story: which exception came while which was delivered, and what was wrong with its gate."""

from __future__ import annotations

from collections.abc import Callable

from pellucid.cpu.exceptions import RAISED_IN_DELIVERY
from pellucid.records import dataclass

VECTORS = ("#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "coprocessor overrun", "#TS", "#NP", "#SS",
           "#GP", "#PF", "15", "#MF", "#AC", "#MC", "#XM", "#VE", "#CP")
_WITH_ERROR = (8, 10, 11, 12, 13, 14, 17, 21)
_DF, _PF = 8, 14
_PF_BITS = ("protection", "write", "user", "reserved bit", "fetch", "protection key", "shadow stack")
_GATES_32 = (5, 6, 7, 14, 15)
_GATES_64 = (14, 15)

ReadLinear = Callable[[int, int], bytes | None]


@dataclass(frozen=True, slots=True)
class Raised:
    """One exception of the history. `during`: it came while the one before it was delivered."""

    vector: int
    error: int
    rip: int
    address: int
    cs: int
    cpl: int
    during: bool

    @classmethod
    def of(cls, words: tuple[int, int, int, int]) -> Raised:
        """From CpuState.history's four words."""
        what, rip, address, where = words
        return cls(what & 0xFFFF_FFFF, what >> 32, rip, address, where & 0xFFFF, where >> 32 & 3,
                   bool(where & RAISED_IN_DELIVERY))


@dataclass(frozen=True, slots=True)
class Table:
    """The IDT as it stands; `entry` is 4 (real mode), 8 or 16 bytes (IA-32e mode). `read`: linear memory."""

    base: int
    limit: int
    entry: int
    read: ReadLinear


def vector_name(vector: int) -> str:
    """#PF for 14, and so on."""
    return VECTORS[vector] if vector < len(VECTORS) else f"vector {vector:#x}"


def error_text(vector: int, error: int) -> str:
    """What an error code says (SDM vol. 3, 6.13 and 4.7); "" where it says nothing."""
    if vector == _PF:
        said = [name for bit, name in enumerate(_PF_BITS) if error >> bit & 1]
        said += [] if error & 0x12 else ["read"]
        return ", ".join(said if error & 1 else ["not present", *said])
    if vector not in _WITH_ERROR or not error & ~1:
        return ""
    if error & 2:
        return f"IDT entry {error >> 3}"
    return f"{'LDT' if error & 4 else 'GDT'} selector {error & ~3:#x}"


def gate_text(vector: int, table: Table) -> str:
    """Why the table's entry cannot take this vector, or "" where nothing is wrong with the entry itself."""
    at, last = vector * table.entry, vector * table.entry + table.entry - 1
    if last > table.limit:
        return f"IDT entry {vector} lies beyond the limit {table.limit:#x}"
    content = table.read(table.base + at, table.entry)
    if content is None:
        return f"IDT entry {vector} at {table.base + at:#x} is not mapped"
    if table.entry == 4:
        return ""
    gate = int.from_bytes(content[:8], "little")
    kind = gate >> 40 & 0x1F
    if kind not in (_GATES_64 if table.entry == 16 else _GATES_32):
        return f"IDT entry {vector} is {gate:#018x}, no gate"
    if not gate >> 47 & 1:
        return f"IDT entry {vector} is not present"
    return f"IDT entry {vector} leads to selector {gate >> 16 & 0xFFFF:#x}" if not gate >> 18 & 0x3FFF else ""


def tell(history: list[Raised], table: Table) -> list[str]:
    """A line for each, oldest first; the last is the one that ended it."""
    lines = []
    for n, raised in enumerate(history):
        text = f"  {vector_name(raised.vector)} error={raised.error:#x} at {raised.cs:04x}:{raised.rip:016x}"
        text += f" CPL={raised.cpl}" + (f" CR2={raised.address:016x}" if raised.vector == _PF else "")
        if meaning := error_text(raised.vector, raised.error):
            text += f" ({meaning})"
        if raised.during and n:
            text += _why(history, n, table)
        lines.append(text)
    return lines


def _why(history: list[Raised], n: int, table: Table) -> str:
    before = history[n - 1]
    if history[n].vector == _DF and n > 1:
        return f": {vector_name(history[n - 2].vector)} and {vector_name(before.vector)} together"
    wrong = gate_text(before.vector, table)
    return f", while {vector_name(before.vector)} was delivered" + (f": {wrong}" if wrong else "")
