"""Random guest code: instructions of every row of the table, reached evenly, between bytes that are just random.

An instruction is assembled from what iced-x86's table says of its encoding (prefix, map, opcode, ModRM extension); the
rest of its bytes is random, but leans to registers, short displacements and addresses inside the guest.
"""

from __future__ import annotations

import functools
import random
import re
from typing import Any

import iced_x86 as iced

from pellucid.isa.all import TABLE
from pellucid.records import dataclass

_CODES = {value: name for name, value in vars(iced.Code).items() if isinstance(value, int) and name.isupper()}
_MNEMONICS = {value: name for name, value in vars(iced.Mnemonic).items() if isinstance(value, int) and name.isupper()}
_KINDS = {value: name for name, value in vars(iced.OpCodeOperandKind).items()
          if isinstance(value, int) and name.isupper()}
_MAPS = {0: b"", 1: b"\x0f", 2: b"\x0f\x38", 3: b"\x0f\x3a"}
_XOP_MAPS = {6: 8, 7: 9, 8: 10}
_MANDATORY: dict[int, bytes] = {0: b"", 1: b"", 2: b"\x66", 3: b"\xf3", 4: b"\xf2"}
_VEX_PREFIX = {0: 0, 1: 0, 2: 1, 3: 2, 4: 3}
_LEADS: dict[int, int] = {
    iced.EncodingKind.LEGACY: 0, iced.EncodingKind.VEX: 0xC4, iced.EncodingKind.XOP: 0x8F}
_SEGMENTS = (0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65)
_RANDOM: Any = re.compile(rb"\x0f\xc7[\xf0-\xff]")
_SEARCH: Any = re.compile(rb"[\xf2\xf3](?=[\x26\x2e\x36\x3e\x40-\x4f\x64-\x67\xf2\xf3]{0,8}[\xa6\xa7\xae\xaf])")
LONGEST = 15
_WAITS = tuple(bytes.fromhex(code) for code in (
    "660faef1", "f30faef6 f20faef1", "89f0 0f01c8 0f01c9", "f30faef6 fe06 f20faef1"))
"""tpause ecx; umonitor rsi and umwait ecx; mov eax, esi, monitor and mwait; and a store to the line in between."""


@dataclass(frozen=True)
class _Recipe:
    """What is fixed of one encoding."""

    lead: int            # 0xC4 for VEX, 0x8F for XOP, 0 for neither
    prefix: int          # iced_x86.MandatoryPrefix
    table: int
    opcode: bytes
    modrm: bool
    group: int           # ModRM.reg, or -1
    rm: int              # ModRM.rm of a register-only form, or -1
    vsib: bool           # its memory operand has a vector index
    operand_size: int    # 16, 32, 64; 0 where it has none
    address_size: int
    wide: int            # VEX.W
    long: int            # VEX.L
    lock: bool
    rep: bool


@functools.cache
def _recipes(bits: int) -> tuple[_Recipe, ...]:
    return tuple(recipe for code in _CODES if (recipe := _recipe(code, bits)) is not None)


def _recipe(code: int, bits: int) -> _Recipe | None:
    handle: Any = code
    info: Any = iced.OpCodeInfo(handle)
    if not info.is_instruction or not info.is_available_in_mode(bits) or info.encoding not in _LEADS:
        return None
    if TABLE.find(_MNEMONICS[info.mnemonic], _CODES[code]) is None:
        return None
    kinds = [_KINDS[info.op_kind(n)] for n in range(info.op_count)]
    modrm = info.group_index >= 0 or info.rm_group_index >= 0 or "MEM_OFFS" not in kinds and any(
        kind.startswith("MEM") or kind.endswith(("_REG", "_RM", "_OR_MEM")) for kind in kinds)
    opcode = info.op_code.to_bytes(info.op_code_len, "big")
    table = _XOP_MAPS.get(info.table, info.table)
    return _Recipe(_LEADS[info.encoding], info.mandatory_prefix, table, opcode, modrm and info.op_code_len == 1,
                   info.group_index, info.rm_group_index, any(kind.startswith("MEM_VSIB") for kind in kinds),
                   info.operand_size, info.address_size, info.w, info.l, info.can_use_lock_prefix,
                   info.can_use_rep_prefix or info.can_use_repne_prefix)


class Coder:
    """A source of code for one mode. `addresses` are places in the guest that displacements like to name."""

    def __init__(self, rng: random.Random, bits: int, addresses: tuple[int, ...]) -> None:
        self.rng, self.bits, self.addresses = rng, bits, addresses

    def program(self, size: int, wild: float = 0.15) -> bytes:
        """`size` bytes of code; a share `wild` of its pieces is random bytes."""
        out = bytearray()
        while len(out) < size:
            if self.rng.random() < wild:
                out += self.rng.randbytes(self.rng.randrange(1, 8))
            elif self.rng.randrange(100) == 0:
                out += (b"\x66" if self.bits == 16 else b"") + b"\x31\xc9" + self.rng.choice(_WAITS)  # xor ecx, ecx
            else:
                out += self.instruction()
        return bytes(out[:size])

    def instruction(self) -> bytes:
        """One valid instruction."""
        while True:
            recipe = self.rng.choice(_recipes(self.bits))
            data = self._vex(recipe) if recipe.lead else self._legacy(recipe)
            decoded: Any = iced.Decoder(self.bits, data[:LONGEST]).decode()
            if decoded.code:
                return data[:decoded.len]

    def _legacy(self, recipe: _Recipe) -> bytes:
        rng, head = self.rng, bytearray()
        if rng.randrange(12) == 0:
            head.append(rng.choice(_SEGMENTS))
        if recipe.lock and rng.randrange(4) == 0:
            head.append(0xF0)
        if recipe.rep and rng.randrange(2):
            head.append(rng.choice((0xF2, 0xF3)))
        if self._other(recipe.operand_size, 32 if self.bits == 64 else self.bits) and recipe.operand_size != 64:
            head.append(0x66)
        if self._other(recipe.address_size, self.bits) or rng.randrange(24) == 0:
            head.append(0x67)
        if _MANDATORY[recipe.prefix] and recipe.prefix in (2, 3, 4):
            head += _MANDATORY[recipe.prefix]
        if self.bits == 64 and (recipe.operand_size == 64 or rng.randrange(3) == 0):
            head.append(0x40 | (8 if recipe.operand_size == 64 else 0) | rng.randrange(8))
        return bytes(head) + _MAPS[recipe.table] + recipe.opcode + self._operands(recipe)

    @staticmethod
    def _other(wanted: int, present: int) -> bool:
        return wanted not in (0, present)

    def _vex(self, recipe: _Recipe) -> bytes:
        rng = self.rng
        wide = recipe.wide
        low = rng.randrange(16) << 3 | (recipe.long & 1 if recipe.long in (1, 2, 4) else rng.getrandbits(1)) << 2
        low |= _VEX_PREFIX[recipe.prefix]
        if rng.randrange(4) == 0:
            low |= 0x78
        if self.bits != 64:
            low |= 0x40
        inverted = rng.choice((0xE0, 0xE0, rng.randrange(8) << 5)) | (0xC0 if self.bits != 64 else 0)
        return bytes((recipe.lead, inverted | recipe.table, wide << 7 | low)) + recipe.opcode + self._operands(recipe)

    def _operands(self, recipe: _Recipe) -> bytes:
        rng, out = self.rng, bytearray()
        if recipe.modrm:
            mod = rng.choice((0, 0, 1, 1, 2, 3, 3, 3))
            reg = recipe.group if recipe.group >= 0 else rng.randrange(8)
            rm = rng.randrange(8)
            if recipe.rm >= 0:
                mod, rm = 3, recipe.rm
            elif recipe.vsib:
                mod, rm = mod % 3, 4
            out.append(mod << 6 | reg << 3 | rm)
            if mod != 3 and rm == 4:
                out.append(rng.getrandbits(8))
        return bytes(out) + self._tail()

    def _tail(self) -> bytes:
        """Displacement and immediate, whatever their sizes turn out to be."""
        rng, size = self.rng, 2 if self.bits == 16 else 4
        words = []
        for _ in range(4):
            kind = rng.randrange(6)
            if kind < 3:
                value = rng.choice(self.addresses) + rng.randrange(-16, 64)
            elif kind == 3:
                value = rng.randrange(-128, 128)
            elif kind == 4:
                value = rng.choice((0, 1, 2, 7, 8, 0x10, 0x7F, 0x80, 0xFF))
            else:
                value = rng.getrandbits(8 * size)
            words.append((value & (1 << 8 * size) - 1).to_bytes(size, "little"))
        return b"".join(words)


def repeatable(code: bytes) -> bytes:
    """`code` less what no two runs share: the results of RDRAND and RDSEED, and the flags of a repeated CMPS or SCAS
    that faults, which depend on where it was interrupted before (SDM vol. 2, REP).
    """
    return bytes(_SEARCH.sub(b"\x3e", _RANDOM.sub(b"\x0f\x1f\xc0", code)))
