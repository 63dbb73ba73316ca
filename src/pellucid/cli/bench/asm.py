"""A small assembler on iced-x86's encoder, for the guest programs: a user needs no toolchain to run the benchmark.

Text is in Intel's notation as NASM writes it: `mov rax, [rsi+rcx*8+16]`, `inc qword [count]`, `rep movsq`, `1` or `0x1`
or a name for a number, `label:` before an instruction, `;` before a comment. Directives: `.align N`, `.quad`, `.double`
and `.ascii`. Jumps back are short where they can be, jumps ahead always near, so two passes suffice: the first finds
where every label is, the second knows all of them.
"""

import ast
import re
import struct
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from iced_x86 import (
    Code,
    Encoder,
    Instruction,
    MemorySizeInfo,
    Mnemonic,
    OpCodeInfo,
    OpCodeOperandKind,
    OpKind,
    Register,
)

from pellucid.errors import PellucidError
from pellucid.records import dataclass, field

SIZES = {"byte": 1, "word": 2, "dword": 4, "qword": 8, "tword": 10, "oword": 16}
STRING_OPS = {
    "movsb": b"\xa4", "movsq": b"\x48\xa5", "stosb": b"\xaa", "stosq": b"\x48\xab",
    "lodsb": b"\xac", "scasb": b"\xae",
}  # fmt: skip
NOP = b"\x90"
AHEAD = 1 << 16

_IMMEDIATES: dict[Any, tuple[Any, int, int]] = {
    OpCodeOperandKind.IMM8: (OpKind.IMMEDIATE8, -(1 << 7), 1 << 8),
    OpCodeOperandKind.IMM8_CONST_1: (OpKind.IMMEDIATE8, 1, 2),
    OpCodeOperandKind.IMM8SEX32: (OpKind.IMMEDIATE8TO32, -(1 << 7), 1 << 7),
    OpCodeOperandKind.IMM8SEX64: (OpKind.IMMEDIATE8TO64, -(1 << 7), 1 << 7),
    OpCodeOperandKind.IMM16: (OpKind.IMMEDIATE16, -(1 << 15), 1 << 16),
    OpCodeOperandKind.IMM32: (OpKind.IMMEDIATE32, -(1 << 31), 1 << 32),
    OpCodeOperandKind.IMM32SEX64: (OpKind.IMMEDIATE32TO64, -(1 << 31), 1 << 31),
    OpCodeOperandKind.IMM64: (OpKind.IMMEDIATE64, -(1 << 63), 1 << 64),
}
"""How an immediate of this kind is set, and the values that it holds: at least the first, below the second."""

_SHORT = (OpCodeOperandKind.BR32_1, OpCodeOperandKind.BR64_1)
_NEAR = (OpCodeOperandKind.BR32_4, OpCodeOperandKind.BR64_4)
# iced-x86's enumerations are plain ints at run time and types of their own to a type checker; Any serves both.
_REGISTERS: dict[str, Any] = {name.lower(): value for name, value in vars(Register).items() if isinstance(value, int)}
_MNEMONICS: dict[str, Any] = {name.lower(): value for name, value in vars(Mnemonic).items() if isinstance(value, int)}
_MEMORY = re.compile(r"(?:(\w+)\s+)?\[(.+)\]")
_STATEMENT = re.compile(r"(?:(\w+):)?\s*([^;]*)(?:;.*)?")


class AssemblyError(PellucidError):
    """A line that does not assemble: its number, its text and why."""


@dataclass(frozen=True)
class Assembled:
    """Machine code for one address, and where its labels are."""

    code: bytes
    labels: dict[str, int]


@dataclass(frozen=True)
class _Memory:
    """`size` bytes (0: not said) at base + index * scale + displacement."""

    size: int
    base: Any
    index: Any
    scale: int
    displacement: int


_Operand = int | _Memory | str
"""An immediate, a memory operand, or a register's name."""


def assemble(source: str, origin: int, symbols: Mapping[str, int] | None = None, bits: int = 64) -> Assembled:
    """Assemble `source` for the address `origin`, with `symbols` for names, as 32- or 64-bit code.

    Raises AssemblyError.
    """
    first = _Pass(origin, bits, dict(symbols or {}))
    first.run(source)
    second = _Pass(origin, bits, {**first.names, **first.labels}, known=first.labels)
    code = second.run(source)
    assert second.labels == first.labels
    return Assembled(code, second.labels)


@dataclass
class _Pass:
    """One pass over the text. `known` has every label in the second pass, and nothing in the first."""

    origin: int
    bits: int
    names: dict[str, int]
    known: dict[str, int] | None = None
    labels: dict[str, int] = field(default_factory=dict)
    code: bytearray = field(default_factory=bytearray)

    def run(self, source: str) -> bytes:
        for number, line in enumerate(source.splitlines(), start=1):
            found = _STATEMENT.fullmatch(line.strip())
            try:
                if found is None:
                    raise ValueError("not `label: instruction`")
                if found[1]:
                    self.labels[found[1]] = self.here
                if found[2].strip():
                    self.code += self.statement(found[2].strip())
            except (ValueError, SyntaxError) as error:
                raise AssemblyError(f"line {number}: {line.strip()}: {error}") from error
        return bytes(self.code)

    @property
    def here(self) -> int:
        return self.origin + len(self.code)

    def statement(self, text: str) -> bytes:
        word, _, rest = text.partition(" ")
        match word:
            case ".align":
                return NOP * (-self.here % int(rest))
            case ".quad":
                return b"".join(struct.pack("<q", self.value(part)) for part in rest.split(","))
            case ".double":
                return b"".join(struct.pack("<d", float(part)) for part in rest.split(","))
            case ".ascii":
                return str(ast.literal_eval(rest.strip())).encode()
        prefix = b""
        if word in ("rep", "repe", "repne"):
            prefix = b"\xf2" if word == "repne" else b"\xf3"
            word, _, rest = rest.strip().partition(" ")
        if word in STRING_OPS:
            return prefix + STRING_OPS[word]
        return self.instruction(word, [self.operand(part.strip()) for part in rest.split(",") if part.strip()])

    def value(self, text: str) -> int:
        """A sum of numbers and names; in the first pass a label that comes later is AHEAD of us."""
        total = 0
        for sign, term in re.findall(r"([-+]?)\s*(\w+)", text):
            if term[0].isdigit():
                number = int(term, 0)
            elif term in self.names:
                number = self.names[term]
            elif self.known is None:
                number = self.labels.get(term, self.here + AHEAD)
            else:
                raise ValueError(f"nothing is called {term}")
            total += -number if sign == "-" else number
        return total

    def operand(self, text: str) -> _Operand:
        if text in _REGISTERS:
            return text
        found = _MEMORY.fullmatch(text)
        return self.value(text) if found is None else self.memory(found[1], found[2])

    def memory(self, size: str | None, text: str) -> _Memory:
        base = index = Register.NONE
        scale, rest = 1, ""
        for sign, term in re.findall(r"([-+]?)\s*([\w*]+)", text):
            register, _, factor = term.partition("*")
            if register not in _REGISTERS:
                rest += f"{sign or '+'}{term}"
            elif factor or base != Register.NONE:
                index, scale = _REGISTERS[register], int(factor or 1)
            else:
                base = _REGISTERS[register]
        return _Memory(SIZES[size] if size else 0, base, index, scale, self.value(rest))

    def instruction(self, mnemonic: str, operands: list[_Operand]) -> bytes:
        """The shortest encoding that the operands admit."""
        if mnemonic not in _MNEMONICS:
            raise ValueError("no such instruction")
        encodings = [
            code
            for info in _forms(_MNEMONICS[mnemonic], self.bits)
            if (code := self.encode(info, operands)) is not None
        ]
        if not encodings:
            raise ValueError("no form of the instruction takes these operands")
        return min(encodings, key=len)

    def encode(self, info: OpCodeInfo, operands: list[_Operand]) -> bytes | None:
        kinds = info.op_kinds()
        if len(kinds) != len(operands):
            return None
        instruction = Instruction()
        instruction.code = info.code
        for index, (kind, operand) in enumerate(zip(kinds, operands, strict=True)):
            if not self.put(instruction, index, kind, operand, info):
                return None
        encoder = Encoder(self.bits)
        try:
            encoder.encode(instruction, self.here)
        except ValueError:
            return None  # iced-x86 refuses operands that the form does not take
        return encoder.take_buffer()

    def put(self, instruction: Instruction, index: int, kind: Any, operand: _Operand, info: OpCodeInfo) -> bool:
        """Set one operand; False where an operand of this kind cannot be it."""
        if isinstance(operand, str):
            instruction.set_op_kind(index, OpKind.REGISTER)
            instruction.set_op_register(index, _REGISTERS[operand])
            return kind not in _IMMEDIATES and kind not in _SHORT and kind not in _NEAR
        if isinstance(operand, _Memory):
            if operand.size not in (0, MemorySizeInfo(info.memory_size).size):
                return False
            _put_memory(instruction, operand, self.bits)
            instruction.set_op_kind(index, OpKind.MEMORY)
            return True
        if kind in _SHORT or kind in _NEAR:
            if kind in _SHORT and not self.here - 120 < operand <= self.here:
                return False  # a jump ahead is always near: the first pass does not know how far it goes
            instruction.set_op_kind(index, OpKind.NEAR_BRANCH64 if self.bits == 64 else OpKind.NEAR_BRANCH32)
            _set_target(self.bits)(instruction, operand)
            return True
        if kind not in _IMMEDIATES:
            return False
        how, low, end = _IMMEDIATES[kind]
        if not low <= operand < end:
            return False
        instruction.set_op_kind(index, how)
        instruction.set_immediate_u64(index, operand & 0xFFFF_FFFF_FFFF_FFFF)
        return True


def _put_memory(instruction: Instruction, operand: _Memory, bits: int) -> None:
    instruction.memory_base, instruction.memory_index = operand.base, operand.index
    instruction.memory_index_scale = operand.scale
    instruction.memory_displacement = operand.displacement & 0xFFFF_FFFF_FFFF_FFFF
    plain = operand.base == Register.NONE
    small = -128 <= operand.displacement < 128 and not plain
    instruction.memory_displ_size = 0 if not operand.displacement and not plain else 1 if small else bits // 8


def _set_target(bits: int) -> Callable[[Instruction, int], None]:
    def near32(instruction: Instruction, target: int) -> None:
        instruction.near_branch32 = target

    def near64(instruction: Instruction, target: int) -> None:
        instruction.near_branch64 = target

    return near64 if bits == 64 else near32


@cache
def _forms(mnemonic: int, bits: int) -> tuple[OpCodeInfo, ...]:
    """The encodings of a mnemonic that exist in this mode, the legacy ones alone."""
    codes: list[Any] = [code for code in vars(Code).values() if isinstance(code, int)]
    infos = map(OpCodeInfo, codes)
    return tuple(
        info
        for info in infos
        if info.mnemonic == mnemonic and info.encoding == 0 and (info.mode64 if bits == 64 else info.mode32)
    )
