"""What the manual leaves undefined, per mnemonic and, where it depends on them, per operand values.

`undefined(case, outcome)` says which bits of an outcome not to compare. Sources: SDM volume 2 (Flags Affected, FPU
Flags Affected, Operation), volume 1 chapters 8, 10 and 13. "Undefined" counts when the instruction completed; when it
faulted, its results must be as before it, and only the few instructions that may have stored or gathered a part are
exempt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import iced_x86

from . import outcome as o
from .catalog import MNEMONIC_NAMES
from .generate import Case
from .outcome import Outcome
from .state import AF, CF, OF, PF, RCX, RSP, SF, STATUS_FLAGS, ZF, UserState

from pellucid.records import dataclass, field

C0, C1, C2, C3 = 1 << 8, 1 << 9, 1 << 10, 1 << 14
CONDITION_CODES = C0 | C1 | C2 | C3
FSW_PE = 1 << 5
FSW_TOP = 7 << 11
_MASK64 = (1 << 64) - 1
_REGISTERS: Any = iced_x86.RegisterExt


@dataclass
class Undefined:
    """What not to compare: bits of RFLAGS, FSW and each general register; ST and vector registers; memory ranges.

    `tags` is the x87 tag word, `bases` those of FS and GS. `approximate` is "reciprocal" (packed singles within 2^-9 of
    each other) or "transcendental" (ST within four units in the last place) where results may be approximations.
    """

    rflags: int = 0
    fsw: int = 0
    gpr: dict[int, int] = field(default_factory=dict)
    st: frozenset[int] = frozenset()
    vectors: frozenset[int] = frozenset()
    memory: list[tuple[int, int]] = field(default_factory=list)
    all_memory: bool = False
    tags: bool = False
    bases: bool = False
    approximate: str | None = None


def _names(table: dict[str, int]) -> dict[str, int]:
    return {name: bits for names, bits in table.items() for name in names.split()}


FLAGS: dict[str, int] = _names(
    {
        "AAA AAS": OF | SF | ZF | PF,
        "AAD AAM": OF | AF | CF,
        "DAA DAS": OF,
        "AND OR XOR TEST": AF,
        "ANDN BLSI BLSMSK BLSR BZHI": AF | PF,
        "BEXTR": AF | SF | PF,
        "BSF BSR": CF | OF | SF | AF | PF,
        "BT BTC BTR BTS": OF | SF | AF | PF,
        "DIV IDIV": STATUS_FLAGS,
        "IMUL MUL": SF | ZF | AF | PF,
        "LZCNT TZCNT": OF | SF | PF | AF,
    }
)
"""RFLAGS bits left undefined whatever the operands. Shifts and rotates are in `shift_flags`."""


def shift_flags(name: str, width: int, count: int) -> int:
    """RFLAGS bits that a shift or rotate of a `width`-bit operand by `count` (before masking) leaves undefined."""
    count &= 63 if width == 64 else 31
    if count == 0:
        return 0
    overflow = OF if count > 1 else 0
    if name in ("ROL", "ROR", "RCL", "RCR"):
        return overflow
    if name in ("SHLD", "SHRD"):
        return STATUS_FLAGS if count > width else overflow | AF
    carry = CF if name in ("SHL", "SAL", "SHR") and count >= width else 0
    return overflow | carry | AF


_LOADS = (
    "FLD FLD1 FLDZ FLDPI FLDL2E FLDL2T FLDLG2 FLDLN2 FILD FBLD FST FSTP FIST FISTP FISTTP FBSTP FXCH FABS FCHS"
    " FINCSTP FDECSTP"
)
_ARITHMETIC = (
    "FADD FADDP FIADD FSUB FSUBP FISUB FSUBR FSUBRP FISUBR FMUL FMULP FIMUL FDIV FDIVP FIDIV FDIVR FDIVRP FIDIVR"
    " FSQRT FRNDINT FSCALE FXTRACT F2XM1 FYL2X FYL2XP1 FPATAN FCMOVB FCMOVE FCMOVBE FCMOVU FCMOVNB FCMOVNE FCMOVNBE"
    " FCMOVNU"
)
FPU_FLAGS: dict[str, int] = _names(
    {
        _LOADS: C0 | C2 | C3,
        _ARITHMETIC: C0 | C2 | C3,
        "FSIN FCOS FSINCOS FPTAN": C0 | C3,
        "FNCLEX FLDCW FNSTCW FNSTSW FNSTENV FNOP FFREE FFREEP WAIT": CONDITION_CODES,
    }
)
"""FSW bits left undefined: condition codes only."""

_TRANSCENDENTAL = frozenset("FSIN FCOS FSINCOS FPTAN FPATAN F2XM1 FYL2X FYL2XP1".split())
_RECIPROCAL = frozenset("RCPPS RCPSS RSQRTPS RSQRTSS VRCPPS VRCPSS VRSQRTPS VRSQRTSS".split())
_SHIFTS = frozenset("ROL ROR RCL RCR SHL SAL SHR SAR SHLD SHRD".split())

MAY_STORE_BEFORE_FAULT = frozenset(
    "PUSHA PUSHAD ENTER CALL FNSAVE FNSTENV FXSAVE FXSAVE64 XSAVE XSAVE64 XSAVEC XSAVEC64 FSTP FBSTP".split()
)
"""More than one store, with no promise that a later fault leaves the earlier ones undone."""

# Offset and size of what an image holds that is not state a guest can rely on: x87 pointers (processors save them
# only with a pending exception, or not at all), MXCSR_MASK, reserved bytes.
_FX_HOLES = ((6, 18), (28, 4), (416, 96))
_IMAGE_HOLES = {
    **dict.fromkeys(("FXSAVE", "FXSAVE64", "XSAVE", "XSAVE64", "XSAVEC", "XSAVEC64"), _FX_HOLES),
    **dict.fromkeys(("FNSTENV", "FNSAVE"), ((12, 16),)),
}
_SHORT_ENVIRONMENT = ((6, 8),)
_SHORT_SIZES = (14, 94)


def undefined(case: Case, outcome: Outcome) -> Undefined:
    """What not to compare in `case`, given how it ended (which must be the same for both sides)."""
    result = Undefined()
    name = MNEMONIC_NAMES[case.instruction.mnemonic]
    if not case.valid:
        return result
    # A fault at another place is that of fetching what follows: the instruction itself completed.
    faulted = outcome.state.rip == case.state.rip
    if faulted and outcome.fault is not None and outcome.fault.vector not in (o.DB, o.MF):
        _partial(case, name, result)
        return result
    result.rflags = FLAGS.get(name, 0)
    result.fsw = FPU_FLAGS.get(name, 0)
    if name in _SHIFTS:
        _shift(case, name, result)
    if name in _TRANSCENDENTAL:
        _transcendental(case, name, result)
    if name in _RECIPROCAL:
        result.approximate = "reciprocal"
    if case.memory and name in _IMAGE_HOLES:
        holes = _SHORT_ENVIRONMENT if case.memory[0].size in _SHORT_SIZES else _IMAGE_HOLES[name]
        result.memory = [(case.memory[0].address + offset, size) for offset, size in holes]
    special = _SPECIAL.get(name)
    if special is not None:
        special(case, outcome, result)
    return result


def _partial(case: Case, name: str, result: Undefined) -> None:
    """After a fault: stores and loads that came before it, elements that a gather had already fetched.

    MASKMOVQ may have made its transition to MMX state (seen on AMD family 1Ah, as are POPA's partial loads).
    """
    if name in ("DIV", "IDIV") or (name[:4] in ("CMPS", "SCAS") and case.instruction.is_string_instruction):
        # A repeated comparison that faults keeps its old flags by the SDM; AMD's shows the last element's.
        result.rflags = STATUS_FLAGS
    result.all_memory = name in MAY_STORE_BEFORE_FAULT
    if name in ("POPA", "POPAD"):
        result.gpr = {number: _MASK64 for number in range(8) if number != RSP}
    if name == "MASKMOVQ":
        result.fsw, result.tags = FSW_TOP, True
    if case.instruction.is_vsib:
        used = (case.instruction.op_register(0), case.instruction.op_register(2))
        result.vectors = frozenset(_REGISTERS.number(register) for register in used)


def _width(case: Case, index: int = 0) -> int:
    if case.instruction.op_kind(index) == iced_x86.OpKind.REGISTER:
        return int(_REGISTERS.size(case.instruction.op_register(index))) * 8
    return int(iced_x86.MemorySizeExt.size(case.instruction.memory_size)) * 8


def _full_number(register: Any) -> int:
    return int(_REGISTERS.number(_REGISTERS.full_register(register)))


def _ignore_destination(case: Case, result: Undefined, bits: int) -> None:
    """Leave out `bits` of operand 0, which is a general register or memory."""
    if case.instruction.op_kind(0) == iced_x86.OpKind.REGISTER:
        result.gpr[_full_number(case.instruction.op_register(0))] = bits
    elif case.memory:
        result.memory.append((case.memory[0].address, _width(case) // 8))


def _shift(case: Case, name: str, result: Undefined) -> None:
    ins = case.instruction
    last = ins.op_count - 1
    count = case.state.gpr[RCX] & 0xFF if ins.op_kind(last) == iced_x86.OpKind.REGISTER else ins.immediate8
    width = _width(case)
    result.rflags = shift_flags(name, width, count)
    if name in ("SHLD", "SHRD") and count & 31 > width:
        _ignore_destination(case, result, (1 << width) - 1)


def _bit_scan(case: Case, outcome: Outcome, result: Undefined) -> None:
    """With a zero source the destination keeps its value on real processors.

    The upper half of a 32-bit one may be cleared.
    """
    if outcome.state.rflags & ZF and _width(case) == 32:
        result.gpr[_full_number(case.instruction.op_register(0))] = _MASK64 ^ 0xFFFF_FFFF


def _byte_swap(case: Case, outcome: Outcome, result: Undefined) -> None:
    """BSWAP of a 16-bit register."""
    del outcome
    if _width(case) == 16:
        _ignore_destination(case, result, 0xFFFF)


def _access_rights(case: Case, outcome: Outcome, result: Undefined) -> None:
    """LAR: bits 16-19 of the result."""
    if outcome.state.rflags & ZF and _width(case) > 16:
        _ignore_destination(case, result, 0xF_0000)


def _segment_base(case: Case, outcome: Outcome, result: Undefined) -> None:
    """A null selector in FS or GS clears the base on some processors and leaves it on others."""
    result.bases = any(
        before != after or after <= 3
        for before, after in zip(case.state.selectors[4:], outcome.state.selectors[4:], strict=True)
    )


def _push_segment(case: Case, outcome: Outcome, result: Undefined) -> None:
    """A selector pushed as a doubleword: the upper half of the slot may be left unwritten."""
    ins = case.instruction
    if ins.op_kind(0) == iced_x86.OpKind.REGISTER and _REGISTERS.is_segment_register(ins.op_register(0)):
        if ins.stack_pointer_increment == -4:
            result.memory.append((outcome.state.gpr[4] + 2, 2))


def _far_call(case: Case, outcome: Outcome, result: Undefined) -> None:
    """The upper part of the slot that holds CS."""
    size = -case.instruction.stack_pointer_increment // 2
    if (case.instruction.is_call_far or case.instruction.is_call_far_indirect) and size > 2:
        result.memory.append((outcome.state.gpr[4] + size + 2, size - 2))


_SPECIAL: dict[str, Callable[[Case, Outcome, Undefined], None]] = {
    "BSF": _bit_scan,
    "BSR": _bit_scan,
    "BSWAP": _byte_swap,
    "LAR": _access_rights,
    "MOV": _segment_base,
    "POP": _segment_base,
    "LFS": _segment_base,
    "LGS": _segment_base,
    "PUSH": _push_segment,
    "CALL": _far_call,
}


def _transcendental(case: Case, name: str, result: Undefined) -> None:
    """Results may be off in the last places, and with them C1 and the precision flag.

    Outside the domain they are undefined.
    """
    result.approximate = "transcendental"
    result.fsw |= C1 | FSW_PE
    exponent = case.state.st(0) >> 64 & 0x7FFF
    if name in ("F2XM1", "FYL2XP1") and (exponent >= 0x3FFF or (name == "FYL2XP1" and exponent == 0x3FFE)):
        result.st = frozenset(range(8))
        result.fsw |= 0x3F
    if name in ("FSIN", "FCOS", "FSINCOS", "FPTAN") and 0x4002 <= exponent < 0x3FFF + 63:
        result.st = frozenset(range(8))  # how exactly pi is taken for reducing the argument differs between processors


def approximately_equal(left: int, right: int, how: str) -> bool:
    """Whether two register values agree within what the manual allows: 80-bit ST, or a vector of singles."""
    if how == "transcendental":
        return left == right or _close80(left, right)
    return all(_close_single(left >> shift & 0xFFFF_FFFF, right >> shift & 0xFFFF_FFFF) for shift in range(0, 256, 32))


def _close80(left: int, right: int) -> bool:
    """Within four units in the last place, also over an exponent boundary."""
    if (left ^ right) >> 79:
        return False
    distance = [(value >> 64 & 0x7FFF) * (1 << 63) + (value & _MASK64 >> 1) for value in (left, right)]
    return abs(distance[0] - distance[1]) <= 4


def _close_single(left: int, right: int) -> bool:
    """Two approximations, each with a relative error of at most 1.5 * 2^-12."""
    if left == right:
        return True
    if (left ^ right) >> 31 or left >> 23 & 0xFF in (0, 0xFF) or right >> 23 & 0xFF in (0, 0xFF):
        return False
    return abs((left & 0x7FFF_FFFF) - (right & 0x7FFF_FFFF)) <= 1 << 14


def pointers_cleared(state: UserState) -> bytes:
    """The XSAVE image without FOP, FIP and FDP, which processors need not keep."""
    image = bytes(state.xsave)
    return image[:6] + bytes(18) + image[24:]
