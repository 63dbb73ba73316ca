"""The instruction table: one row binds encodings to the one function that says what the instruction does.

A row is written as a decorator over its function, in the family's file:

    @instruction("ADD", flags=CC_ADD, lock=True)
    @native
    def add(s, o, f): ...

The mnemonic is iced-x86's; every code of that mnemonic (all operand forms and widths) becomes a specialization,
unless `codes` narrows it. What the function gets: the CPU state, the op, the `Form`; a conditional instruction
(`cc=True`) also the compile-time kind of the flags that precede it, or CC_UNKNOWN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pellucid.records import dataclass, field

# How an instruction ends, `Row.ends`.
PLAIN = ""            # falls through
BRANCH = "branch"     # direct; the function returns whether it is taken (signature with kind)
JUMP = "jump"         # the function sets s.rip
LEAVE = "leave"       # falls through, but the run loop looks again (CR3, IF, mode changes)
LEAVE_JUMP = "leave_jump"   # both
COLD = "cold"         # `fn(cpu, op)` is ordinary Python


@dataclass(frozen=True, slots=True)
class Row:
    """One instruction: see the module's text. `undefined` are the status flags that the manual leaves undefined."""

    name: str
    fn: Any
    mnemonics: tuple[str, ...]
    codes: Callable[[str], bool]     # which codes of the mnemonics, by code name
    ends: str = PLAIN
    cc_out: int = 0xFE               # flags.CC_* family after it; CC_SAME leaves them, CC_UNKNOWN
    cc: bool = False                 # conditional: specialized on the flags before it
    cc_families: tuple[int, ...] = (2, 3)   # for which families of flags (flags.CC_*)
    lock: bool = False
    rep: tuple[str, ...] = ("",)
    asize: bool = False              # specialized on the address size
    stack: bool = False              # specialized on 64-bit mode
    fpu: bool = False                # traps on CR0.TS / CR0.EM
    sse: bool = False                # also needs CR4.OSFXSR
    avx: bool = False                # needs CR4.OSXSAVE and the AVX state in XCR0
    mmx: bool = False                # of `fpu`: CR0.EM raises #UD, not #NM
    extra: Callable[[str], int] | None = None   # compile-time number from the code's name
    width: Callable[[str], int] | None = None   # operand size in bytes from the code's name
    undefined: int = 0
    op_flags: int = 0                # OP_* of its op
    address_after_pop: bool = False  # a memory operand through RSP is addressed as if RSP had been popped (POP)
    implicit: bool = False           # a register alone addresses memory: Op.seg is its segment's base
    cet: bool = False                # for code whose shadow stack is enabled or whose branches are tracked
    address_only: bool = False       # the memory operand is not accessed as data (LEA, INVLPG, prefetch)


ROWS: list[Row] = []


def instruction(*mnemonics: str, codes: Callable[[str], bool] | None = None, name: str | None = None,
                **more: Any) -> Callable[[Any], Any]:
    """Register the decorated function as the semantics of these mnemonics."""

    def register(fn: Any) -> Any:
        ROWS.append(Row(name or fn.__name__, fn, mnemonics, codes or (lambda code: True), **more))
        return fn

    return register


@dataclass(slots=True)
class Table:
    """Rows by mnemonic name, with their numbers (Op.row)."""

    rows: list[Row]
    by_mnemonic: dict[str, list[tuple[int, Row]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            for mnemonic in row.mnemonics:
                self.by_mnemonic.setdefault(mnemonic, []).append((number, row))

    def find(self, mnemonic: str, code: str, cet: bool = False) -> tuple[int, Row] | None:
        """The row for one code, None where the instruction is not built. `cet`: one with `Row.cet` where there is."""
        found = [(number, row) for number, row in self.by_mnemonic.get(mnemonic, ())
                 if row.codes(code) and (cet or not row.cet)]
        return max(found, key=lambda each: each[1].cet, default=None)
