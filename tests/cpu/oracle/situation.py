"""A start state that makes an encoded instruction do something worth comparing.

iced-x86 names every register and memory operand, implicit ones too. Used registers get edge values; address registers
are solved so that each memory operand lies where `random_address` wants it; the operand there gets edge values of its
type. Then `special` corrects what a mnemonic needs beyond that (a quotient that fits, a sensible count, an image with
a valid header).
"""

from __future__ import annotations

import random
from typing import Any

import iced_x86

from . import layout
from .catalog import FEATURE, MNEMONIC_NAMES, features_of, op_info
from .encoding import Variant, random_address
from .state import AC, NT, RSP, TF, UserState
from .values import Kind, edge_bytes, edge_int, random_state

from pellucid.records import dataclass, field

_R: Any = iced_x86.Register
_ACCESS: Any = iced_x86.OpAccess
_REGISTERS: Any = iced_x86.RegisterExt
_SIZES: Any = iced_x86.MemorySizeExt
_SIZE: Any = iced_x86.MemorySize
_READS = frozenset((_ACCESS.READ, _ACCESS.COND_READ, _ACCESS.READ_WRITE, _ACCESS.READ_COND_WRITE))
_NO_ADDRESS = frozenset((_ACCESS.NONE, _ACCESS.NO_MEM_ACCESS))
_PLAIN_ALIGNMENT = frozenset(
    getattr(FEATURE, name)
    for name in "INTEL8086 INTEL186 INTEL286 INTEL386 INTEL486 X64 CMOV BMI1 BMI2 MOVBE LZCNT POPCNT".split()
)
"""Features whose memory operands raise #AC by one rule on every processor: the naturally aligned integer ones."""

_ELEMENTS = {
    _SIZE.FLOAT16: Kind.FLOAT16, _SIZE.FLOAT32: Kind.FLOAT32, _SIZE.FLOAT64: Kind.FLOAT64, _SIZE.FLOAT80: Kind.FLOAT80,
    _SIZE.BCD: Kind.BCD,
}  # fmt: skip
_INTEGERS = {1: Kind.INT8, 2: Kind.INT16, 4: Kind.INT32, 8: Kind.INT64}
_factory = iced_x86.InstructionInfoFactory()
_POOL_SIZE = 24
_MASK64 = (1 << 64) - 1


def element_kind(code: int) -> Kind | None:
    """What the elements of the memory operand are (known for the register form too); None when not told."""
    size = op_info(code).memory_size
    if size == _SIZE.UNKNOWN:
        return None
    info = _SIZES.info(size)
    return _ELEMENTS.get(info.element_type) or _INTEGERS.get(info.element_size)


@dataclass(frozen=True)
class Operand:
    """A memory operand of the case: linear address, size in bytes (0 when not fixed), whether it is read."""

    address: int
    size: int
    read: bool


@dataclass
class Situation:
    """A case in the making; what `special`'s functions work on."""

    rng: random.Random
    variant: Variant
    state: UserState
    memory: list[Operand] = field(default_factory=list)
    fixed: set[int] = field(default_factory=set)

    @property
    def instruction(self) -> Any:
        """The decoded instruction."""
        return self.variant.decoded

    @property
    def bits(self) -> int:
        """64 or 32."""
        return self.variant.bits

    @property
    def name(self) -> str:
        """The mnemonic, in capitals."""
        return MNEMONIC_NAMES[self.variant.decoded.mnemonic]

    def set_gpr(self, number: int, value: int) -> bool:
        """Set a register that no address depends on; False when one does."""
        if number in self.fixed:
            return False
        self.state.gpr[number] = value & _MASK64
        return True

    def operand_gpr(self, index: int) -> int | None:
        """The number of the general register that is operand `index`; None when it is something else."""
        if self.instruction.op_kind(index) != 0:
            return None
        register = self.instruction.op_register(index)
        return int(_REGISTERS.number(_REGISTERS.full_register(register))) if _REGISTERS.is_gpr(register) else None

    def operand_width(self, index: int) -> int:
        """Width in bits of operand `index`, a register or memory."""
        if self.instruction.op_kind(index) == 0:
            return int(_REGISTERS.size(self.instruction.op_register(index))) * 8
        return int(_SIZES.size(self.instruction.memory_size)) * 8

    def read_operand(self, index: int) -> int | None:
        """The value of operand `index`, a general register or memory; None when it cannot be told."""
        if self.instruction.op_kind(index) == 0:
            return register_value(self.state, self.instruction.op_register(index))
        for operand in self.memory:
            try:
                return int.from_bytes(self.state.read(operand.address, self.operand_width(index) // 8), "little")
            except KeyError:
                return None
        return None

    def write_operand(self, index: int, value: int) -> None:
        """Set operand `index`, a register that no address depends on, or memory."""
        width = self.operand_width(index)
        value &= (1 << width) - 1
        number = self.operand_gpr(index)
        if number is not None:
            low = 8 if is_high_byte(self.instruction.op_register(index)) else 0
            old = self.state.gpr[number] & ~(((1 << width) - 1) << low)
            self.set_gpr(number, old | value << low)
        elif self.memory:
            self.state.write(self.memory[0].address, value.to_bytes(width // 8, "little"))


def is_high_byte(register: int) -> bool:
    """Whether it is AH, CH, DH or BH."""
    return bool(_R.AH <= register <= _R.BH)


def register_value(state: UserState, register: int) -> int | None:
    """A general register's value at its own width; None for other registers."""
    handle: Any = register
    if not _REGISTERS.is_gpr(handle):
        return None
    value: int = state.gpr[_REGISTERS.number(_REGISTERS.full_register(handle))]
    width = 8 * int(_REGISTERS.size(handle))
    return value >> (8 if is_high_byte(register) else 0) & (1 << width) - 1


class Pool:
    """Ready random states to start from: making one costs as much as running ten cases."""

    def __init__(self, rng: random.Random) -> None:
        self._states = [random_state(rng) for _ in range(_POOL_SIZE)]

    def draw(self, rng: random.Random) -> UserState:
        """An independent copy of one."""
        return rng.choice(self._states).copy()


def situate(rng: random.Random, pool: Pool, variant: Variant) -> Situation:
    """A start state for `variant`."""
    state = pool.draw(rng)
    state.rip = variant.ip
    situation = Situation(rng, variant, state)
    if variant.bits == 32:
        state.gpr[:8] = [value & 0xFFFF_FFFF for value in state.gpr[:8]]
    if variant.decoded.code == 0:
        return situation
    _place_stack(situation)
    info: Any = _factory.info(variant.decoded)
    _fill_registers(situation, info)
    _place_memory(situation, info)
    _control_flags(situation)
    return situation


def _place_stack(situation: Situation) -> None:
    rng, state = situation.rng, situation.state
    choice = rng.randrange(16) if situation.instruction.is_stack_instruction else 15
    if choice == 0:
        state.gpr[RSP] = layout.STACK + rng.randrange(24)
    elif choice == 1:
        state.gpr[RSP] = layout.STACK + layout.STACK_SIZE - rng.randrange(24)
    elif choice < 6:
        state.gpr[RSP] = layout.STACK_TOP + rng.randrange(-64, 64)


def _fill_registers(situation: Situation, info: Any) -> None:
    rng, state = situation.rng, situation.state
    kind = element_kind(situation.variant.code)
    lanes: Kind | None = None if kind in (Kind.BCD, Kind.FLOAT80) else kind
    for used in info.used_registers():
        register = used.register
        if _REGISTERS.is_gpr(register):
            number = _REGISTERS.number(_REGISTERS.full_register(register))
            if number != RSP:
                _fill_gpr(situation, number, 8 * _REGISTERS.size(register), is_high_byte(register))
        elif _REGISTERS.is_vector_register(register) and rng.randrange(4):
            number = _REGISTERS.number(register)
            lane = lanes or rng.choice((Kind.INT8, Kind.INT16, Kind.INT32, Kind.INT64))
            state.set_ymm(number, int.from_bytes(edge_bytes(rng, lane, 32), "little"))
        elif _REGISTERS.is_mm(register):
            place = (_REGISTERS.number(register) - (state.fsw >> 11)) & 7
            state.set_st(place, 0xFFFF << 64 | int.from_bytes(edge_bytes(rng, lanes or Kind.INT16, 8), "little"))


def _fill_gpr(situation: Situation, number: int, width: int, high: bool) -> None:
    """An edge value in the part that is used; the rest stays random, to see it kept or cleared."""
    shift = 8 if high else 0
    mask = ((1 << width) - 1) << shift
    value = situation.state.gpr[number] & ~mask | edge_int(situation.rng, width) << shift
    situation.state.gpr[number] = value & (_MASK64 if situation.bits == 64 else 0xFFFF_FFFF)


def _place_memory(situation: Situation, info: Any) -> None:
    rng, state = situation.rng, situation.state
    edges = rng.randrange(4) == 0
    kind = element_kind(situation.variant.code)
    base_of = {_R.FS: "fs_base", _R.GS: "gs_base"}
    for used in info.used_memory():
        size = int(_SIZES.size(used.memory_size))
        segment_base = 0
        if used.segment in base_of and situation.bits == 64:
            segment_base = rng.choice((0, 0x1000, layout.DATA, (1 << 64) - 0x2000))
            if used.address_size != iced_x86.CodeSize.CODE64:
                segment_base = rng.choice((0, 0x1000, layout.DATA - 0x1_0000))
            setattr(state, base_of[used.segment], segment_base)
        address = _solve(situation, used, size, segment_base, edges)
        if address is None:
            continue
        operand = Operand(address, size, used.access in _READS)
        situation.memory.append(operand)
        if operand.read and used.access not in _NO_ADDRESS:
            element = kind or rng.choice((Kind.INT8, Kind.INT16, Kind.INT32, Kind.INT64))
            state.write(address, edge_bytes(rng, element, min(size, 64)))


def _solve(situation: Situation, used: Any, size: int, segment_base: int, edges: bool) -> int | None:
    """Choose the address registers of one memory operand.

    Returns its linear address, None when it has no single one.
    """
    rng, state = situation.rng, situation.state
    width = {iced_x86.CodeSize.CODE64: 64, iced_x86.CodeSize.CODE32: 32, iced_x86.CodeSize.CODE16: 16}[
        used.address_size
    ]
    mask = (1 << width) - 1
    if used.vsib_size or width == 16:
        return None
    base = None if used.base == _R.NONE else _REGISTERS.number(_REGISTERS.full_register(used.base))
    index = None if used.index == _R.NONE else _REGISTERS.number(_REGISTERS.full_register(used.index))
    index_value = 0
    if index is not None and index != base:
        if index not in situation.fixed and used.index != _R.AL:
            state.gpr[index] = rng.choice((0, 1, rng.randrange(64), _MASK64, rng.getrandbits(64)))
            if base is None:
                state.gpr[index] = _index_alone(rng, used, size, segment_base, edges, mask)
        _keep(situation, index)
        index_value = (state.gpr[index] & (0xFF if used.index == _R.AL else mask)) * used.scale
    if base is not None and base not in situation.fixed and not (base == RSP and _implicit_stack(situation, used)):
        target = random_address(rng, size, edges)
        wanted = (target - segment_base - used.displacement - index_value) & mask
        if base == index:
            wanted = (target - segment_base - used.displacement) // (1 + used.scale) & mask
        high = rng.getrandbits(64) & ~mask if situation.bits == 64 else 0
        state.gpr[base] = wanted | high
    if base is not None:
        _keep(situation, base)
        if base == index:
            index_value = (state.gpr[base] & mask) * used.scale
    base_value = 0 if base is None else state.gpr[base]
    offset = (base_value + index_value + used.displacement) & mask
    return int(offset + segment_base) & (_MASK64 if situation.bits == 64 else 0xFFFF_FFFF)


def _index_alone(rng: random.Random, used: Any, size: int, segment_base: int, edges: bool, mask: int) -> int:
    """An index for [index*scale+disp32]; it comes within `scale` bytes of the wanted address."""
    distance = random_address(rng, size, edges) - segment_base - used.displacement
    return int(distance // used.scale) & mask


def _implicit_stack(situation: Situation, used: Any) -> bool:
    """Whether a memory operand based on RSP is a push or pop rather than an explicit [rsp+...]."""
    return bool(situation.instruction.is_stack_instruction and situation.instruction.memory_base != used.base)


def _keep(situation: Situation, number: int) -> None:
    situation.fixed.add(number)
    if situation.bits == 32:
        situation.state.gpr[number] &= 0xFFFF_FFFF


def _control_flags(situation: Situation) -> None:
    """TF now and then; NT seldom; AC only where alignment checking does not depend on the processor."""
    rng, state = situation.rng, situation.state
    choice = rng.randrange(48)
    if choice == 0:
        state.rflags |= TF
    elif choice == 1:
        state.rflags |= NT
    elif choice < 5 and features_of(situation.variant.code) <= _PLAIN_ALIGNMENT:
        state.rflags |= AC
