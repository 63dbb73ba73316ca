"""From iced-x86's operand descriptions to `Form`s: which specializations exist, and which one an instruction needs."""

from __future__ import annotations

import functools
import itertools
import re
from typing import Any, cast

import iced_x86 as iced

from pellucid.cpu.operands import Form
from pellucid.isa.table import BRANCH, Row

CODE_NAMES: dict[int, str] = {v: k for k, v in vars(iced.Code).items() if isinstance(v, int) and k.isupper()}
MNEMONIC_NAMES: dict[int, str] = {v: k for k, v in vars(iced.Mnemonic).items() if isinstance(v, int) and k.isupper()}
_KINDS: dict[int, str] = {v: k for k, v in vars(iced.OpCodeOperandKind).items() if isinstance(v, int) and k.isupper()}

_FIXED = {
    "AL": ("r", 1), "CL": ("r", 1), "AX": ("r", 2), "DX": ("r", 2), "EAX": ("r", 4), "RAX": ("r", 8),
    "IMM8_CONST_1": ("i", 1), "IMM8": ("i", 1), "IMM4_M2Z": ("i", 1), "IMM16": ("i", 2), "IMM32": ("i", 4),
    "IMM64": ("i", 8), "IMM8SEX16": ("i", 2), "IMM8SEX32": ("i", 4), "IMM8SEX64": ("i", 8), "IMM32SEX64": ("i", 8),
    "ES": ("s", 2), "CS": ("s", 2), "SS": ("s", 2), "DS": ("s", 2), "FS": ("s", 2), "GS": ("s", 2),
    "SEG_REG": ("s", 2), "CR_REG": ("c", 8), "DR_REG": ("d", 8), "TR_REG": ("t", 4), "ST0": ("f", 10),
    "STI_OPCODE": ("f", 10), "SEG_RSI": ("-", 0), "ES_RDI": ("-", 0), "SEG_RDI": ("-", 0), "SEG_RBX_AL": ("-", 0),
    "MEM_OFFS": ("m", 0), "MEM": ("m", 0), "MEM_MIB": ("m", 0), "MEM_VSIB32X": ("m", 0), "MEM_VSIB64X": ("m", 0),
    "MEM_VSIB32Y": ("m", 0), "MEM_VSIB64Y": ("m", 0), "FARBR2_2": ("b", 4), "FARBR4_2": ("b", 6)}


@functools.cache
def _operand(kind: str) -> tuple[tuple[str, int], ...]:
    """The alternatives of one operand: (letter, width in bytes; 0 means the memory operand's size)."""
    if kind in _FIXED:
        return (_FIXED[kind],)
    if kind.startswith(("BR", "XBEGIN")):
        return (("b", 0),)
    register = re.match(r"(R8|R16|R32|R64|MM|XMM|YMM|ZMM|K|BND)_", kind)
    if register is None:
        return (("?", 0),)
    letter, width = {"R8": ("r", 1), "R16": ("r", 2), "R32": ("r", 4), "R64": ("r", 8), "MM": ("n", 8),
                     "XMM": ("x", 16), "YMM": ("y", 32)}.get(register[1], ("?", 0))
    return ((letter, width), ("m", 0)) if "_OR_MEM" in kind else ((letter, width),)


@functools.cache
def _kind_names(code: int) -> tuple[str, ...]:
    """iced-x86's kinds of the operands."""
    info = iced.OpCodeInfo(cast(Any, code))
    return tuple(_KINDS[info.op_kind(i)] for i in range(info.op_count))


@functools.cache
def describe(code: int) -> tuple[tuple[tuple[tuple[str, int], ...], ...], int, int]:
    """Operand alternatives of a code, its memory size in bytes, and its operand size in bytes (0: none)."""
    info = iced.OpCodeInfo(cast(Any, code))
    names = _kind_names(code)
    operands = tuple(_operand(names[i]) for i in order(code))
    return operands, iced.MemorySizeExt.size(info.memory_size), info.operand_size // 8


@functools.cache
def order(code: int) -> tuple[int, ...]:
    """The operands by iced-x86's numbers: the register that the last byte names (/is4, /is5) comes fourth.

    So what the bytes before it name always fits the op's three slots.
    """
    names = _kind_names(code)
    numbers = list(range(len(names)))
    if len(names) > 3 and is_fourth(names[2]):
        numbers[2:4] = 3, 2
    return tuple(numbers)


def is_fourth(kind: str) -> bool:
    """Whether an operand of this kind is a register in bits 7:4 of the last byte."""
    return kind.endswith(("_IS4", "_IS5"))


def has_fourth(code: int) -> bool:
    """Whether the encoding has such an operand."""
    return any(map(is_fourth, _kind_names(code)))


def is_swapped(name: str) -> bool:
    """Whether, by a code's name, its third source and not its second may be memory (VEX.W or XOP.W)."""
    return re.search(r"[XY]MMM\d+(_IMM4)?$", name) is not None


@functools.cache
def is_vex(code: int) -> bool:
    """Whether the encoding has a VEX prefix, or the XOP prefix that is like it."""
    return bool(iced.OpCodeInfo(cast(Any, code)).encoding in (iced.EncodingKind.VEX, iced.EncodingKind.XOP))


def make_form(row: Row, code: int, chosen: tuple[tuple[str, int], ...], *, lock: bool, rep: str, asize: int,
              m64: bool) -> Form:
    """The form for one choice of operands."""
    _, memory, size = describe(code)
    widths = tuple(memory if letter == "m" else width for letter, width in chosen)
    name = CODE_NAMES[code]
    if row.width is not None:
        size = row.width(name)
    elif not size:
        size = widths[0] if widths else 0
    return Form(kinds="".join(letter for letter, _ in chosen), w=size, widths=widths, lock=lock, rep=rep,
                asize=asize if row.asize else 8, m64=m64 if row.stack or row.ends == BRANCH else True,
                extra=row.extra(name) if row.extra else 0, vex=is_vex(code))


def all_forms(row: Row) -> list[Form]:
    """Every specialization of a row, without repetition, in a stable order."""
    forms: dict[Form, None] = {}
    for code, name in sorted(CODE_NAMES.items()):
        info = iced.OpCodeInfo(cast(Any, code))
        if MNEMONIC_NAMES[info.mnemonic] not in row.mnemonics or not _wanted(row, info, name):
            continue
        operands, _, _ = describe(code)
        if any(letter == "?" for alternatives in operands for letter, _ in alternatives):
            continue
        for chosen in itertools.product(*operands):
            for form in _variants(row, code, info, chosen):
                forms[form] = None
    return list(forms)


def _wanted(row: Row, info: Any, name: str) -> bool:
    """Encodings that this processor may meet; Knights and EVEX ones are not built."""
    return bool(info.encoding in (iced.EncodingKind.LEGACY, iced.EncodingKind.VEX, iced.EncodingKind.XOP)
                and info.is_instruction and not name.startswith("VEX_KNC_") and row.codes(name))


def _variants(row: Row, code: int, info: Any, chosen: Any) -> list[Form]:
    locks = (False, True) if row.lock and chosen and chosen[0][0] == "m" and info.can_use_lock_prefix else (False,)
    modes = []
    if info.mode64 and info.intel_decoder64:  # AMD's 16-bit branches in 64-bit mode are not decoded
        modes.append(True)
    if info.mode32 or info.mode16:
        modes.append(False)
    sizes: tuple[int, ...] = (8,)
    if row.asize:
        sizes = (2, 4, 8)
    return [make_form(row, code, chosen, lock=lock, rep=rep, asize=asize, m64=m64)
            for lock in locks for rep in row.rep for m64 in modes for asize in sizes
            if not row.asize or _has_address_size(row, asize, m64)]


def _has_address_size(row: Row, asize: int, m64: bool) -> bool:
    """Whether the mode has it; forms of rows that do not depend on the mode serve all modes."""
    by_mode = row.stack or row.ends == BRANCH
    return not (asize == 2 and m64 and by_mode or asize == 8 and not m64)


def root_name(row: Row, form: Form) -> str:
    """The handler's name in the image."""
    return f"{row.name}:{form.name}"
