"""A small assembler for test guests: Intel's notation, 16, 32 and 64-bit code in one text, every legacy instruction.

    bits 16                 the code that follows (also as an argument of `assemble`)
    start: mov ax, 0x10     labels stand before an instruction, a directive or alone
    jmp 0x08:start          far pointers; `jmp far [rbx]` through memory; `o32` and `a32` choose sizes
    mov dword [fs:rax+rcx*4-8], value + 1
    lock inc byte [rdi]     prefixes: lock rep repe repne o16 o32 a16 a32, and segments as `[ds:...]`
    db 0xF3, 0x90           dw dd dq likewise; `align 16`; `times 3 nop`

iced-x86's table says which encodings a mnemonic has; the shortest that takes the operands wins. Where widths decide
(`iretq`, `retfw`, `pushfd`), the code's own name is a mnemonic too. Near branches to labels are never short, except
where they must be or `short` stands before the label.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import iced_x86 as iced

from pellucid.records import dataclass

KIND: Any = iced.OpCodeOperandKind
OP: Any = iced.OpKind
_KIND_NAMES = {v: k for k, v in vars(KIND).items() if isinstance(v, int) and k.isupper()}
_CODES: dict[str, int] = {k: v for k, v in vars(iced.Code).items() if isinstance(v, int) and k.isupper()}
_MNEMONICS = {v: k for k, v in vars(iced.Mnemonic).items() if isinstance(v, int) and k.isupper()}
REGISTERS: dict[str, Any] = {k.lower(): v for k, v in vars(iced.Register).items() if isinstance(v, int)}
_SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")
_SIZES = {"byte": 1, "word": 2, "dword": 4, "qword": 8, "tword": 10, "oword": 16}
_PREFIXES = ("lock", "rep", "repe", "repne", "o16", "o32", "a16", "a32")
_DATA = {"db": 1, "dw": 2, "dd": 4, "dq": 8}
# How an immediate of a kind is set, its bits, and whether it is sign-extended.
_IMMEDIATES = {
    KIND.IMM8: (OP.IMMEDIATE8, 8, 8), KIND.IMM16: (OP.IMMEDIATE16, 16, 16), KIND.IMM32: (OP.IMMEDIATE32, 32, 32),
    KIND.IMM64: (OP.IMMEDIATE64, 64, 64), KIND.IMM8SEX16: (OP.IMMEDIATE8TO16, 8, 16),
    KIND.IMM8SEX32: (OP.IMMEDIATE8TO32, 8, 32), KIND.IMM8SEX64: (OP.IMMEDIATE8TO64, 8, 64),
    KIND.IMM32SEX64: (OP.IMMEDIATE32TO64, 32, 64),
}  # fmt: skip
_SHORT = (KIND.BR16_1, KIND.BR32_1, KIND.BR64_1)
_BRANCHES = {
    KIND.BR16_1: OP.NEAR_BRANCH16, KIND.BR16_2: OP.NEAR_BRANCH16, KIND.BR32_1: OP.NEAR_BRANCH32,
    KIND.BR32_4: OP.NEAR_BRANCH32, KIND.BR64_1: OP.NEAR_BRANCH64, KIND.BR64_4: OP.NEAR_BRANCH64,
}  # fmt: skip
_REGISTER_CLASSES = {
    "R8": ("al", "r15l"), "R16": ("ax", "r15w"), "R32": ("eax", "r15d"), "R64": ("rax", "r15"), "SEG": ("es", "gs"),
    "CR": ("cr0", "cr15"), "DR": ("dr0", "dr15"), "XMM": ("xmm0", "xmm15"), "MM": ("mm0", "mm7"), "STI": ("st0", "st7"),
}  # fmt: skip
_STRINGS = {
    KIND.SEG_RSI: (OP.MEMORY_SEG_SI, OP.MEMORY_SEG_ESI, OP.MEMORY_SEG_RSI),
    KIND.ES_RDI: (OP.MEMORY_ESDI, OP.MEMORY_ESEDI, OP.MEMORY_ESRDI),
}
_BRANCH_SIZE: Any = re.compile(r"(16|32|64)(?:_E?R?CX)?$")
_STRING_NAMES = re.compile(r"(?:movs|cmps|scas|lods|stos|ins|outs)[bwdq]$")


class AssemblyError(Exception):
    """A line that does not assemble."""


@dataclass(frozen=True)
class Assembled:
    """Machine code for `origin`, and the address of every label."""

    origin: int
    code: bytes
    labels: dict[str, int]


@dataclass(frozen=True)
class _Memory:
    size: int
    segment: Any
    base: Any
    index: Any
    scale: int
    displacement: int
    far: bool


@dataclass(frozen=True)
class _Immediate:
    value: int
    short: bool = False


@dataclass(frozen=True)
class _FarPointer:
    selector: int
    offset: int


def assemble(source: str, origin: int, bits: int = 64, symbols: Mapping[str, int] | None = None) -> Assembled:
    """Assemble `source` for address `origin`, beginning as `bits`-bit code, with `symbols` for names."""
    labels: dict[str, int] = {}
    for final in (False, False, False, True):
        assembly = _Pass(origin, bits, {**(symbols or {}), **labels}, final)
        assembly.run(source)
        if assembly.labels == labels and final:
            return Assembled(origin, bytes(assembly.code), labels)
        labels = assembly.labels
    raise AssemblyError("labels do not come to rest")


class _Pass:
    def __init__(self, origin: int, bits: int, names: dict[str, int], final: bool) -> None:
        self.origin, self.bits, self.names, self.final = origin, bits, names, final
        self.labels: dict[str, int] = {}
        self.code = bytearray()

    @property
    def here(self) -> int:
        return self.origin + len(self.code)

    def run(self, source: str) -> None:
        for number, line in enumerate(source.splitlines(), start=1):
            for text in line.split("#")[0].split(";"):
                try:
                    self.labelled(text.strip())
                except (ValueError, KeyError, NameError, SyntaxError, TypeError) as error:
                    raise AssemblyError(f"{number}: {text.strip()}: {error}") from error

    def labelled(self, text: str) -> None:
        while (label := re.match(r"(\w+):(?!\S)\s*", text)) is not None:
            self.labels[label[1]] = self.here
            text = text[label.end() :]
        if text:
            self.statement(text)

    def statement(self, text: str) -> None:
        word, _, rest = text.partition(" ")
        word = word.lower()
        if word == "bits":
            self.bits = int(rest)
        elif word == "align":
            self.code += bytes(-self.here % int(rest, 0))
        elif word == "times":
            count, _, what = rest.strip().partition(" ")
            for _ in range(self.value(count)):
                self.statement(what)
        elif word in _DATA:
            for item in rest.split(","):
                size = _DATA[word]
                self.code += (self.value(item) & (1 << size * 8) - 1).to_bytes(size, "little")
        else:
            self.code += self.instruction(text)

    def value(self, text: str) -> int:
        """An expression of numbers, names and labels; a label not seen yet counts as the origin."""
        names = self.names if self.final else _Unknown(self.names, self.origin)
        return int(eval(text.strip(), {"__builtins__": {}}, names))

    def instruction(self, text: str) -> bytes:
        words = text.split()
        prefixes = []
        while words[0].lower() in _PREFIXES:
            prefixes.append(words.pop(0).lower())
        mnemonic, rest = words[0].lower(), " ".join(words[1:])
        operands = [self.operand(part) for part in _split(rest)]
        found = list(_candidates(mnemonic, len(operands), self.bits))
        encoded = [raw for code in found for raw in self.encode(code, operands, prefixes, mnemonic)]
        if not prefixes and all(isinstance(operand, (_Immediate, _FarPointer)) for operand in operands):
            # Nothing says a size: it is the one that needs no prefix (PUSH, far transfers).
            encoded = [raw for raw in encoded if raw[0] != 0x66] or encoded
        if not encoded:
            raise ValueError(f"no encoding in {self.bits}-bit code")
        return min(encoded, key=len)

    # --- operands ---------------------------------------------------------------------------------------

    def operand(self, text: str) -> Any:
        text = text.strip()
        if text.lower() in REGISTERS:
            return REGISTERS[text.lower()]
        memory = re.fullmatch(r"(?:(\w+)\s+)?\[(.*)\]", text)
        if memory is not None:
            size = (memory[1] or "").lower()
            return self.memory(memory[2], _SIZES.get(size, 0), size == "far")
        if ":" in text:
            selector, offset = text.split(":")
            return _FarPointer(self.value(selector), self.value(offset))
        if text.startswith("short "):
            return _Immediate(self.value(text[6:]), True)
        return _Immediate(self.value(text))

    def memory(self, text: str, size: int, far: bool) -> _Memory:
        segment, base, index, scale, displacement = REGISTERS["none"], REGISTERS["none"], REGISTERS["none"], 1, 0
        if ":" in text:
            name, text = text.split(":")
            segment = REGISTERS[name.strip().lower()]
        relative = text.strip().startswith("rel ")
        if relative:
            return _Memory(size, segment, REGISTERS["rip"], index, 1, self.value(text.strip()[4:]), far)
        for sign, term in re.findall(r"([+-]?)\s*([^+-]+)", text):
            name, _, factor = (part.strip().lower() for part in term.partition("*"))
            if name in REGISTERS:
                if factor or base != REGISTERS["none"]:
                    index, scale = REGISTERS[name], int(factor or 1)
                else:
                    base = REGISTERS[name]
            else:
                displacement += -self.value(term) if sign == "-" else self.value(term)
        return _Memory(size, segment, base, index, scale, displacement, far)

    # --- encoding ---------------------------------------------------------------------------------------

    def encode(self, code: int, operands: list[Any], prefixes: list[str], mnemonic: str) -> Iterable[bytes]:
        if code == iced.Code.XBEGIN_REL32:
            yield self.begin_transaction(operands[0].value if self.final else self.here)
            return
        info: Any = iced.OpCodeInfo(code)
        wanted = 16 if "o16" in prefixes else 32 if "o32" in prefixes else 0
        size = int(_BRANCH_SIZE.search(_name(code))[1]) if "_REL" in _name(code) else info.operand_size
        if (wanted or "_REL" in _name(code)) and size and size != (wanted or self.bits):
            return
        instruction: Any = iced.Instruction()
        instruction.code = code
        try:
            explicit = iter(operands)
            for i in range(info.op_count):
                kind = info.op_kind(i)
                if kind in _STRINGS and _STRING_NAMES.match(mnemonic):
                    self.string(instruction, i, kind, prefixes)
                elif _is_implied(mnemonic, info, i):
                    _set(instruction, i, OP.REGISTER, _fixed(kind))
                else:
                    self.fit(instruction, i, kind, next(explicit), info)
        except (ValueError, StopIteration):
            return
        instruction.has_lock_prefix = "lock" in prefixes
        instruction.has_rep_prefix = "rep" in prefixes or "repe" in prefixes
        instruction.has_repne_prefix = "repne" in prefixes
        encoder = iced.Encoder(self.bits)
        try:
            encoder.encode(instruction, self.here)
        except ValueError:
            return
        yield bytes(encoder.take_buffer())

    def begin_transaction(self, fallback: int) -> bytes:
        """XBEGIN, always with 32 bits of distance: its operand is of no kind that another instruction has."""
        prefix = b"\x66" if self.bits == 16 else b""
        distance = fallback - self.here - len(prefix) - 6
        return prefix + b"\xc7\xf8" + distance.to_bytes(4, "little", signed=True)

    def string(self, instruction: Any, i: int, kind: int, prefixes: list[str]) -> None:
        size = 16 if "a16" in prefixes else 32 if "a32" in prefixes else self.bits
        _set(instruction, i, _STRINGS[kind][(16, 32, 64).index(size)], None)

    def fit(self, instruction: Any, i: int, kind: int, operand: Any, info: Any) -> None:
        """Set operand `i`, or ValueError where this encoding does not take it."""
        name = _KIND_NAMES[kind]
        if isinstance(operand, _Memory):
            if not (name.startswith("MEM") or "_OR_MEM" in name):
                raise ValueError
            self.fit_memory(instruction, i, operand, info)
        elif isinstance(operand, _FarPointer):
            _fit_far(instruction, i, kind, operand)
        elif isinstance(operand, _Immediate):
            self.fit_immediate(instruction, i, kind, operand)
        else:
            if not _takes(kind, name, operand):
                raise ValueError
            _set(instruction, i, OP.REGISTER, operand)

    def fit_memory(self, instruction: Any, i: int, operand: _Memory, info: Any) -> None:
        size = iced.MemorySizeExt.size(info.memory_size)
        if operand.size and size and operand.size != size:
            raise ValueError
        far = iced.OpCodeInfo(instruction.code).mnemonic in (iced.Mnemonic.JMP, iced.Mnemonic.CALL) and "_M16" in _name(
            instruction.code
        )
        if far != operand.far:
            raise ValueError
        _set(instruction, i, OP.MEMORY, None)
        instruction.memory_base, instruction.memory_index = operand.base, operand.index
        instruction.memory_index_scale = operand.scale
        instruction.segment_prefix = operand.segment
        bare = operand.base == operand.index == REGISTERS["none"]
        bits = 32 if self.bits == 16 and operand.displacement >> 16 else self.bits
        instruction.memory_displacement = operand.displacement & (1 << 64) - 1
        instruction.memory_displ_size = (
            bits // 8 if bare or operand.base == REGISTERS["rip"] else int(operand.displacement != 0)
        )
        if bare and self.bits == 64:
            instruction.memory_displ_size = 4 if -1 << 31 <= operand.displacement < 1 << 31 else 8

    def fit_immediate(self, instruction: Any, i: int, kind: int, operand: _Immediate) -> None:
        value = operand.value
        if kind in _BRANCHES:
            must = kind in _SHORT and _name(instruction.code).startswith(("LOOP", "JCXZ", "JECXZ", "JRCXZ"))
            if (kind in _SHORT) != (operand.short or must):
                raise ValueError
            instruction.set_op_kind(i, _BRANCHES[kind])
            mask = {OP.NEAR_BRANCH16: 0xFFFF, OP.NEAR_BRANCH32: 0xFFFF_FFFF}.get(_BRANCHES[kind], (1 << 64) - 1)
            instruction.near_branch64 = (value if self.final else self.here) & mask
        elif kind in _IMMEDIATES:
            how, bits, extended = _IMMEDIATES[kind]
            if _name(instruction.code).startswith("ENTER") and i == 1:
                how = OP.IMMEDIATE8_2ND
            if extended != bits:
                wrapped = value - (1 << extended) if value >> extended - 1 == 1 else value
                if not -(1 << bits - 1) <= wrapped < 1 << bits - 1:
                    raise ValueError
                value = wrapped
            elif not -(1 << bits - 1) <= value < 1 << bits:
                raise ValueError
            instruction.set_op_kind(i, how)
            instruction.set_immediate_i64(i, _signed(value, extended))
        elif kind == KIND.IMM8_CONST_1 and value == 1:
            instruction.set_op_kind(i, OP.IMMEDIATE8)
            instruction.set_immediate_i64(i, 1)
        else:
            raise ValueError


class _Unknown(dict):  # type: ignore[type-arg]
    """Names, where one that is not there yet stands for a far-off place."""

    def __init__(self, names: dict[str, int], origin: int) -> None:
        super().__init__(names)
        self._origin = origin

    def __missing__(self, name: str) -> int:
        return self._origin


def _split(text: str) -> list[str]:
    return [part for part in re.split(r",(?![^\[]*\])", text) if part.strip()]


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> bits - 1 else value


def _set(instruction: Any, i: int, kind: Any, register: Any) -> None:
    instruction.set_op_kind(i, kind)
    if register is not None:
        instruction.set_op_register(i, register)


def _fit_far(instruction: Any, i: int, kind: int, operand: _FarPointer) -> None:
    if kind == KIND.FARBR2_2 and operand.offset < 1 << 16:
        instruction.set_op_kind(i, OP.FAR_BRANCH16)
        instruction.far_branch16 = operand.offset
    elif kind == KIND.FARBR4_2:
        instruction.set_op_kind(i, OP.FAR_BRANCH32)
        instruction.far_branch32 = operand.offset
    else:
        raise ValueError
    instruction.far_branch_selector = operand.selector


_FIXED = {getattr(KIND, name): REGISTERS[name.lower()] for name in
          "AL AX EAX RAX CL DX ES CS SS DS FS GS ST0".split()}  # fmt: skip


def _fixed(kind: int) -> Any:
    return _FIXED[kind]


def _is_implied(mnemonic: str, info: Any, i: int) -> bool:
    """String instructions name no operands in their text."""
    return bool(_STRING_NAMES.match(mnemonic)) and info.op_kind(i) in _FIXED


def _takes(kind: int, name: str, register: Any) -> bool:
    if kind in _FIXED:
        return bool(_FIXED[kind] == register)
    head = name.split("_")[0]
    if head not in _REGISTER_CLASSES:
        return False
    low, high = (REGISTERS[end] for end in _REGISTER_CLASSES[head])
    return bool(low <= register <= high)


@functools.cache
def _name(code: int) -> str:
    return next(name for name, number in _CODES.items() if number == code)


@functools.cache
def _candidates(mnemonic: str, count: int, bits: int) -> tuple[int, ...]:
    """The codes that a mnemonic, or the head of a code's name, may stand for."""
    wanted = mnemonic.upper()
    condition = re.fullmatch(r"(J|SET|CMOV)(N?)(Z|C)", wanted)
    if condition is not None:
        wanted = condition[1] + {"Z": "E", "NZ": "NE", "C": "B", "NC": "AE"}[condition[2] + condition[3]]
    found = []
    for name, code in _CODES.items():
        info = iced.OpCodeInfo(code)
        if not info.is_instruction or info.encoding != iced.EncodingKind.LEGACY:
            continue
        if not {16: info.mode16, 32: info.mode32, 64: info.mode64}[bits]:
            continue
        named = _MNEMONICS[info.mnemonic] == wanted or name.split("_")[0] == wanted
        if named and (info.op_count == count or _STRING_NAMES.match(mnemonic)):
            found.append(code)
    return tuple(found)
