"""Encodings of one `Code` in its operand forms: register classes, ways to address memory, prefixes, immediates.

`variants` walks a plan (register form, then each memory form) and fills in the rest at random, so a few variants per
code reach every form and many reach every combination.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import iced_x86

from . import layout
from .catalog import REGISTER, mnemonic_name, op_info
from .values import edge_int

from pellucid.records import dataclass

KIND: Any = iced_x86.OpCodeOperandKind
OP: Any = iced_x86.OpKind
_R = REGISTER


def _registers(names: str) -> tuple[int, ...]:
    return tuple(getattr(_R, name) for name in names.split())


_R8_LOW = _registers("AL CL DL BL AH CH DH BH")
_R8 = _R8_LOW + _registers("SPL BPL SIL DIL R8L R9L R10L R11L R12L R13L R14L R15L")
_R16 = _registers("AX CX DX BX SP BP SI DI") + tuple(getattr(_R, f"R{n}W") for n in range(8, 16))
_R32 = _registers("EAX ECX EDX EBX ESP EBP ESI EDI") + tuple(getattr(_R, f"R{n}D") for n in range(8, 16))
_R64 = _registers("RAX RCX RDX RBX RSP RBP RSI RDI") + tuple(getattr(_R, f"R{n}") for n in range(8, 16))
_XMM = tuple(getattr(_R, f"XMM{n}") for n in range(16))
_YMM = tuple(getattr(_R, f"YMM{n}") for n in range(16))
_MM = tuple(getattr(_R, f"MM{n}") for n in range(8))
_ST = tuple(getattr(_R, f"ST{n}") for n in range(8))
_SEG = _registers("ES CS SS DS FS GS")
_CR = _registers("CR0 CR2 CR3 CR4")
_DR = tuple(getattr(_R, f"DR{n}") for n in range(8))

_CLASSES = {
    "R8": _R8, "R16": _R16, "R32": _R32, "R64": _R64, "XMM": _XMM, "YMM": _YMM, "MM": _MM, "STI": _ST, "SEG": _SEG,
    "CR": _CR, "DR": _DR,
}  # fmt: skip
_KIND_NAMES = {value: name for name, value in vars(KIND).items() if isinstance(value, int) and name.isupper()}
_FIXED = {getattr(KIND, name): getattr(_R, name) for name in "AL AX EAX RAX CL DX ES CS SS DS FS GS ST0".split()}
_IMMEDIATES = {
    KIND.IMM4_M2Z: (OP.IMMEDIATE8, 2, 2),
    KIND.IMM8: (OP.IMMEDIATE8, 8, 8),
    KIND.IMM8SEX16: (OP.IMMEDIATE8TO16, 8, 16),
    KIND.IMM8SEX32: (OP.IMMEDIATE8TO32, 8, 32),
    KIND.IMM8SEX64: (OP.IMMEDIATE8TO64, 8, 64),
    KIND.IMM16: (OP.IMMEDIATE16, 16, 16),
    KIND.IMM32: (OP.IMMEDIATE32, 32, 32),
    KIND.IMM32SEX64: (OP.IMMEDIATE32TO64, 32, 64),
    KIND.IMM64: (OP.IMMEDIATE64, 64, 64),
}
_NEAR = {
    KIND.BR16_1: (16, 1), KIND.BR16_2: (16, 2), KIND.BR32_1: (32, 1), KIND.BR32_4: (32, 4), KIND.BR64_1: (64, 1),
    KIND.BR64_4: (64, 4),
}  # fmt: skip
_VSIB = {
    KIND.MEM_VSIB32X: _XMM, KIND.MEM_VSIB64X: _XMM, KIND.MEM_VSIB32Y: _YMM, KIND.MEM_VSIB64Y: _YMM,
}  # fmt: skip
_IMPLICIT_MEMORY = {
    KIND.SEG_RSI: (OP.MEMORY_SEG_ESI, OP.MEMORY_SEG_RSI),
    KIND.ES_RDI: (OP.MEMORY_ESEDI, OP.MEMORY_ESRDI),
    KIND.SEG_RDI: (OP.MEMORY_SEG_EDI, OP.MEMORY_SEG_RDI),
}
_STRING = frozenset(
    name + size for name in ("MOVS", "CMPS", "SCAS", "LODS", "STOS", "INS", "OUTS") for size in ("B", "W", "D", "Q")
)
_SIXTEEN_BIT = (
    (_R.BX, _R.SI), (_R.BX, _R.DI), (_R.BP, _R.SI), (_R.BP, _R.DI), (_R.NONE, _R.SI), (_R.NONE, _R.DI), (_R.BP,
    _R.NONE), (_R.BX, _R.NONE), (_R.NONE, _R.NONE),
)  # fmt: skip
_SMALL_IMMEDIATE = frozenset(("ENTER", "RET", "RETF"))


@dataclass(frozen=True)
class Variant:
    """An encoded instruction at address `ip`.

    `valid` is False when the bytes must raise #UD: `decoded` is then the instruction without its wrong LOCK prefix, or
    iced-x86's invalid instruction (its code is 0).
    """

    code: int
    data: bytes
    bits: int
    ip: int
    decoded: iced_x86.Instruction
    valid: bool = True


@dataclass
class _Builder:
    rng: random.Random
    code: Any
    bits: int
    form: str
    ip: int

    def __post_init__(self) -> None:
        self.info: Any = op_info(self.code)
        self.instruction: Any = iced_x86.Instruction()
        self.instruction.code = self.code
        self.narrow = self.bits == 64 and self.form.endswith("a32")
        self.high_bytes = self.rng.randrange(2) == 0
        self.immediates = 0

    def build(self) -> Any:
        for index in range(self.info.op_count):
            kind = self.info.op_kind(index)
            if kind in _IMMEDIATES or kind == KIND.IMM8_CONST_1:
                self._immediate(index, kind)
            elif kind in _NEAR:
                self._near_branch(index, *_NEAR[kind])
            elif kind in (KIND.FARBR2_2, KIND.FARBR4_2):
                self._far_branch(index, kind == KIND.FARBR4_2)
            elif not self._memory_operand(index, kind):
                self.instruction.set_op_kind(index, OP.REGISTER)
                self.instruction.set_op_register(index, self._register(kind))
        return self.instruction

    def _register(self, kind: Any) -> int:
        if kind in _FIXED:
            return int(_FIXED[kind])
        name = _KIND_NAMES[kind].split("_")[0]
        if name not in _CLASSES:
            raise ValueError(f"no registers for operand kind {_KIND_NAMES[kind]}")
        choices = _CLASSES[name]
        if name == "R8":
            choices = _R8_LOW if self.high_bytes or self.bits == 32 else _R8
        elif self.bits == 32:
            choices = choices[:8]
        chosen: int = self.rng.choice(choices)
        return chosen

    def _immediate(self, index: int, kind: Any) -> None:
        if kind == KIND.IMM8_CONST_1:
            self.instruction.set_op_kind(index, OP.IMMEDIATE8)
            self.instruction.immediate8 = 1
            return
        op_kind, width, extended = _IMMEDIATES[kind]
        value = edge_int(self.rng, width)
        if mnemonic_name(self.code) in _SMALL_IMMEDIATE and self.rng.randrange(4):
            value &= 3 if self.immediates else 0x7F
        if mnemonic_name(self.code) == "INT" and value == 0x80:
            value = 0x81  # INT 0x80 is a system call
        self.immediates += 1
        if self.immediates == 2:
            self.instruction.set_op_kind(index, OP.IMMEDIATE8_2ND)
            self.instruction.immediate8_2nd = value & 0xFF
            return
        self.instruction.set_op_kind(index, op_kind)
        if extended > width and value >> width - 1:
            value |= (1 << extended) - (1 << width)
        self.instruction.set_immediate_u64(index, value & (1 << 64) - 1)

    def _near_branch(self, index: int, width: int, size: int) -> None:
        step = self.rng.randrange(0x10, 0x70)
        target = self.ip + (step if self.rng.getrandbits(1) else -step)
        if size > 1 and self.rng.randrange(4) == 0:
            target = self.rng.choice(
                (layout.DATA + 8, layout.HOLE, layout.CODE + 3, layout.CODE + layout.CODE_SIZE - 1)
            )
        self.instruction.set_op_kind(index, {16: OP.NEAR_BRANCH16, 32: OP.NEAR_BRANCH32, 64: OP.NEAR_BRANCH64}[width])
        if width == 16:
            self.instruction.near_branch16 = target & 0xFFFF
        else:
            setattr(self.instruction, f"near_branch{width}", target)

    def _far_branch(self, index: int, wide: bool) -> None:
        self.instruction.set_op_kind(index, OP.FAR_BRANCH32 if wide else OP.FAR_BRANCH16)
        target = self.ip + self.rng.randrange(0x10, 0x70)
        if wide:
            self.instruction.far_branch32 = target
        else:
            self.instruction.far_branch16 = target & 0xFFFF
        self.instruction.far_branch_selector = random_selector(self.rng, code=True)

    def _memory_operand(self, index: int, kind: Any) -> bool:
        name = _KIND_NAMES[kind]
        if kind in _IMPLICIT_MEMORY:
            wide = self.bits == 64 and not self.narrow
            self.instruction.set_op_kind(index, _IMPLICIT_MEMORY[kind][wide])
        elif kind == KIND.SEG_RBX_AL:
            self._place(index, _R.RBX if self.bits == 64 and not self.narrow else _R.EBX, _R.AL, 1, 0, 0)
        elif kind == KIND.MEM_OFFS:
            size = 8 if self.bits == 64 and not self.narrow else 4
            self._place(index, _R.NONE, _R.NONE, 1, self._target(), size)
        elif self.form == "a16" and (name.startswith("MEM") or name.endswith("_OR_MEM")):
            self._sixteen_bit(index)
        elif kind in _VSIB:
            self._general(index, "sib32", self.rng.choice(_VSIB[kind][: self.bits // 4]))
        elif name.startswith("MEM") or (name.endswith("_OR_MEM") and self.form != "reg"):
            self._general(index, self.form.removesuffix("a32"), _R.NONE)
        else:
            return False
        return True

    def _target(self) -> int:
        return random_address(self.rng, 8, edges=self.rng.randrange(4) == 0)

    def _general(self, index: int, form: str, vector: int) -> None:
        """ModRM addressing; `vector` is the index register of a VSIB operand."""
        rng = self.rng
        wide = self.bits == 64 and not self.narrow
        pool = (_R64 if wide else _R32)[: 16 if self.bits == 64 else 8]
        base = rng.choice(pool)
        scale, index_register = 1, vector
        if form in ("sib", "sib8", "sib32", "index") or vector:
            scale = rng.choice((1, 2, 4, 8))
            index_register = vector or rng.choice([register for number, register in enumerate(pool) if number != 4])
        displacement, size = 0, 0
        if form in ("base8", "sib8"):
            displacement, size = rng.choice((-128, -1, 1, 8, 127, rng.randrange(-128, 128))), 1
        elif form in ("base32", "sib32", "index"):
            displacement, size = (
                rng.choice((-0x8000_0000, 0x7FFF_FFFF, rng.randrange(-0x8000_0000, 0x8000_0000))),
                8 if wide else 4,
            )
        if form == "index":
            base, displacement = _R.NONE, rng.randrange(0x1000)
        elif form == "absolute" or (form == "rip" and self.bits == 32):
            base, displacement, size = _R.NONE, self._target(), 8 if wide else 4
        elif form == "rip":
            base, displacement, size = (_R.RIP if wide else _R.EIP), self._target(), 8 if wide else 4
        self._place(index, base, index_register, scale, displacement & ((1 << 64) - 1 if wide else 0xFFFF_FFFF), size)

    def _sixteen_bit(self, index: int) -> None:
        """The 16-bit forms. They reach only the first 64 KiB, where nothing is mapped: CR2 tells what was computed."""
        base, index_register = self.rng.choice(_SIXTEEN_BIT)
        size = self.rng.choice((1, 2)) if base in (_R.BP, _R.NONE) else self.rng.choice((0, 1, 2))
        size = 2 if (base, index_register) == (_R.NONE, _R.NONE) else size
        displacement = self.rng.randrange(-128, 128) & 0xFFFF if size == 1 else self.rng.getrandbits(8 * size)
        self._place(index, base, index_register, 1, displacement, size)

    def _place(self, index: int, base: int, index_register: int, scale: int, displacement: int, size: int) -> None:
        instruction = self.instruction
        instruction.set_op_kind(index, OP.MEMORY)
        instruction.memory_base, instruction.memory_index, instruction.memory_index_scale = base, index_register, scale
        instruction.memory_displacement, instruction.memory_displ_size = displacement, size


# Sizes that fit the operand's part of a page, away from its edges, so that the usual access succeeds.
_ROOM = 0x400


def random_address(rng: random.Random, size: int, edges: bool) -> int:
    """Where an operand of `size` bytes should lie: 64-byte aligned in DATA, or, with `edges`, somewhere awkward."""
    if not edges:
        return layout.DATA + _ROOM + 64 * rng.randrange(0x2800 // 64)
    span = max(size, 1)
    choice = rng.randrange(8)
    if choice < 3:
        return layout.DATA + _ROOM + rng.randrange(0x2800)
    if choice == 3:
        return layout.DATA + layout.PAGE * rng.randrange(1, 4) - rng.randrange(span)
    if choice == 4:
        return layout.DATA + layout.DATA_SIZE - rng.randrange(span + 1)
    if choice == 5:
        return layout.DATA - rng.randrange(span + 1)
    return rng.choice(
        (layout.READONLY + 64 * rng.randrange(32), layout.READONLY + 64 * rng.randrange(32), layout.HOLE + 0x18)
    )


def random_selector(rng: random.Random, code: bool = False) -> int:
    """A selector that is usually one of the three user segments; else null, a non-user one, or beyond the table."""
    if rng.randrange(4):
        return layout.CS32 if code else layout.SS
    return rng.choice(
        (0, 3, layout.CS64, layout.CS32, layout.SS, layout.SS - 3, layout.CS64 - 3, 0x7FF8 | rng.getrandbits(2))
    )


def forms(code: int, bits: int) -> list[str]:
    """The operand forms that an encoding has: "reg", "plain" (nothing to choose), or ways to address memory.

    "a32" at the end means by 32-bit registers in 64-bit code, "a16" by 16-bit registers in 32-bit code.
    """
    info = op_info(code)
    names = [_KIND_NAMES[info.op_kind(index)] for index in range(info.op_count)]
    out = ["reg"] if any(name.endswith("_OR_MEM") for name in names) else []
    if any(name.startswith("MEM_VSIB") for name in names):
        return ["sib32", "sib32a32"] if bits == 64 else ["sib32"]
    if any(name in ("MEM_OFFS", "SEG_RSI", "ES_RDI", "SEG_RDI", "SEG_RBX_AL") for name in names):
        return ["plain", "plaina32"] if bits == 64 else ["plain"]
    if any(name.startswith("MEM") or name.endswith("_OR_MEM") for name in names):
        out += ["base", "sib8", "absolute", "base32", "rip", "sib", "index", "base8", "sib32"]
        if bits == 64:
            out += ["basea32", "sib8a32", "ripa32"]
        else:
            out += ["a16"]
    if mnemonic_name(code) == "MOVDIR64B":  # its register is as wide as its addresses
        out = [form for form in out if names[0].startswith(f"R{address_bits(form, bits)}_")]
    return out or ["plain"]


def address_bits(form: str, bits: int) -> int:
    """The width of the addresses of a form."""
    return 16 if form == "a16" else 32 if form.endswith("a32") else bits


def _decode(data: bytes, bits: int, ip: int) -> iced_x86.Instruction:
    return iced_x86.Decoder(bits, data, ip=ip).decode()


def _prefixes(rng: random.Random, instruction: Any, code: int, form: str) -> None:
    info = op_info(code)
    memory = form != "reg"
    name = mnemonic_name(code)
    if memory and info.can_use_lock_prefix and rng.randrange(3) == 0:
        instruction.has_lock_prefix = True
    if name in _STRING and rng.randrange(3):
        if info.can_use_repne_prefix and rng.getrandbits(1):
            instruction.has_repne_prefix = True
        else:
            instruction.has_rep_prefix = True


def _finish(rng: random.Random, code: int, data: bytes, bits: int, ip: int) -> Variant:
    """Add a useless or forbidden prefix now and then."""
    choice = rng.randrange(32)
    plain = _decode(data, bits, ip)
    if choice < 2:
        useless: tuple[int, ...] = (0x2E, 0x3E, 0x26, 0x36)
        if plain.flow_control == iced_x86.FlowControl.NEXT:
            # Before a branch in 64-bit code 66 is ignored by Intel, obeyed by AMD; F3 turns LOOPNE into LOOPE on AMD.
            useless += (0x66, 0xF2, 0xF3)
        longer = bytes([rng.choice(useless)]) + data
        decoded = _decode(longer, bits, ip)
        if decoded.code == code and len(longer) <= 15:
            return Variant(code, longer, bits, ip, decoded)
    elif choice == 2 and data[0] != 0xF0:
        locked = _decode(b"\xf0" + data, bits, ip)
        valid = locked.code != 0
        return Variant(code, b"\xf0" + data, bits, ip, locked if valid else plain, valid)
    return Variant(code, data, bits, ip, plain, valid=plain.code != 0)


def variants(code: int, count: int, rng: random.Random, bits: int = 64) -> Iterator[Variant]:
    """`count` encodings of `code`, going round its forms; ValueError when the encoder refuses the code altogether.

    One in thirty-two lies across the page boundary in CODE or runs out of it, so that fetching faults.
    """
    plan = forms(code, bits)
    made = attempts = 0
    while made < count:
        if (attempts := attempts + 1) > 20 * count + 20:
            raise ValueError(f"cannot encode {mnemonic_name(code)} ({op_info(code).instruction_string})")
        form = plan[made % len(plan)]
        place = rng.randrange(64)
        edge = {0: layout.CODE + layout.PAGE, 1: layout.CODE + layout.CODE_SIZE}.get(place)
        ip = edge - rng.randrange(1, 6) if edge else layout.START
        try:
            instruction = _Builder(rng, code, bits, form, ip).build()
            if form not in ("reg", "plain", "plaina32") and rng.randrange(8) == 0 and bits == 64:
                instruction.segment_prefix = rng.choice((_R.FS, _R.GS))
            _prefixes(rng, instruction, code, form)
            encoder: Any = iced_x86.Encoder(bits)
            encoder.prevent_vex2 = rng.getrandbits(1) == 1
            encoder.vex_wig = encoder.vex_lig = rng.getrandbits(1)
            encoder.encode(instruction, ip)
        except (ValueError, OverflowError):
            continue
        made += 1
        yield _finish(rng, code, encoder.take_buffer(), bits, ip)
