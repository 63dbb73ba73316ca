"""Operand values worth testing: edges of every number format, and random ones.

All draws come from the given generator.
"""

from __future__ import annotations

import random
import struct
from enum import Enum

from .state import DF, FCW_RESET, MXCSR_RESET, RSP, STATUS_FLAGS, UserState


class Kind(Enum):
    """What an operand's elements are."""

    INT8 = 8
    INT16 = 16
    INT32 = 32
    INT64 = 64
    FLOAT16 = -16
    FLOAT32 = -32
    FLOAT64 = -64
    FLOAT80 = -80
    BCD = 80

    @property
    def bits(self) -> int:
        """Width of an element."""
        return abs(self.value)


_SMALL = (0, 1, 2, 3, 4, 7, 8, 9, 0xA, 0xF, 0x10, 0x1F, 0x20, 0x3F, 0x40, 0x63, 0x7F, 0x80, 0x99, 0x9A, 0xFF)


def edge_int(rng: random.Random, bits: int) -> int:
    """An unsigned `bits`-wide integer: an edge half of the time, else random bits of a random length."""
    mask = (1 << bits) - 1
    choice = rng.randrange(12)
    if choice < 3:
        value = rng.choice(_SMALL)
    elif choice == 3:
        value = 1 << rng.randrange(bits)
    elif choice == 4:
        value = (1 << rng.randrange(bits)) - 1
    elif choice == 5:
        value = -rng.choice(_SMALL)
    elif choice == 6:
        value = (1 << bits - 1) - rng.randrange(3) + 1
    elif choice == 7:
        value = int.from_bytes(bytes(rng.randrange(10) * 16 + rng.randrange(10) for _ in range(bits // 8)), "little")
    else:
        value = rng.getrandbits(rng.randrange(1, bits + 1)) if choice == 8 else rng.getrandbits(bits)
    return value & mask


def _format_edges(exponent_bits: int, fraction_bits: int) -> tuple[int, ...]:
    """Positive edge patterns of an IEEE 754 binary format with an implicit leading bit."""
    top = (1 << exponent_bits) - 1
    bias = top >> 1
    quiet = 1 << fraction_bits - 1
    ones = (1 << fraction_bits) - 1

    def pattern(exponent: int, fraction: int) -> int:
        return exponent << fraction_bits | fraction

    return (
        0, 1, 2, ones, quiet,  # zero and denormals pattern(1, 0), pattern(1, 1), pattern(2, ones),  # least normals
        pattern(bias, 0), pattern(bias, 1), pattern(bias - 1, ones), pattern(bias - 1, 0), pattern(bias, quiet),
        pattern(bias + 1, 0), pattern(bias + 1, quiet), pattern(bias - fraction_bits, 0), pattern(bias +
        fraction_bits, 1), pattern(min(bias + 15, top - 1), 0), pattern(min(bias + 31, top - 1), 0), pattern(min(bias
        + 30, top - 1), ones), pattern(min(bias + 63, top - 1), 0), pattern(min(bias + 62, top - 1), ones),
        pattern(top - 1, ones), pattern(top - 1, 0), pattern(top >> 1 | 1 << exponent_bits - 2, quiet), pattern(top,
        0), pattern(top, 1), pattern(top, quiet), pattern(top, quiet | 5), pattern(top, ones),
    )  # fmt: skip


_FLOATS = {Kind.FLOAT16: (5, 10), Kind.FLOAT32: (8, 23), Kind.FLOAT64: (11, 52)}
_FLOAT_EDGES = {kind: _format_edges(*widths) for kind, widths in _FLOATS.items()}
_ROUND_NUMBERS = (
    1.0,
    -1.0,
    0.5,
    1.5,
    2.5,
    -2.5,
    3.0,
    10.0,
    100.0,
    0.1,
    1e6,
    -7.75,
    2147483647.0,
    4294967296.5,
    3.14159265,
)
_PACK = {Kind.FLOAT16: "<e", Kind.FLOAT32: "<f", Kind.FLOAT64: "<d"}


def edge_float(rng: random.Random, kind: Kind) -> int:
    """The bits of a half, single or double: an edge, a plain number, a near-unity number, or random bits."""
    exponent_bits, fraction_bits = _FLOATS[kind]
    choice = rng.randrange(8)
    if choice < 4:
        return rng.choice(_FLOAT_EDGES[kind]) | rng.getrandbits(1) << kind.bits - 1
    if choice == 4:
        number = rng.choice(_ROUND_NUMBERS) if kind is not Kind.FLOAT16 else rng.choice(_ROUND_NUMBERS[:10])
        return int.from_bytes(struct.pack(_PACK[kind], number), "little")
    if choice < 7:
        bias = (1 << exponent_bits - 1) - 1
        exponent = bias + rng.randrange(-4, 5)
        return rng.getrandbits(1) << kind.bits - 1 | exponent << fraction_bits | rng.getrandbits(fraction_bits)
    return rng.getrandbits(kind.bits)


_F80_SIGNIFICANDS = (1 << 63, 0xC000 << 48, (1 << 64) - 1, 1 << 63 | 1, 0, 1, (1 << 63) - 1, 1 << 62, 0xAAAA << 48)
_F80_EXPONENTS = (0, 1, 2, 0x3FFE, 0x3FFF, 0x4000, 0x4001, 0x3FFF + 15, 0x3FFF + 31, 0x3FFF + 63, 0x7FFE, 0x7FFF)


def edge_float80(rng: random.Random) -> int:
    """The bits of a double extended number.

    Its special classes (pseudo-denormal, unnormal, pseudo-NaN) are among them.
    """
    sign = rng.getrandbits(1) << 79
    choice = rng.randrange(8)
    if choice < 3:
        return sign | rng.choice(_F80_EXPONENTS) << 64 | rng.choice(_F80_SIGNIFICANDS)
    if choice < 6:
        return sign | (0x3FFF + rng.randrange(-8, 9)) << 64 | 1 << 63 | rng.getrandbits(63)
    if choice == 6:
        return (
            sign | rng.randrange(1, 0x7FFF) << 64 | 1 << 63 | rng.getrandbits(rng.randrange(1, 64)) << rng.randrange(2)
        )
    return rng.getrandbits(80)


def packed_bcd(rng: random.Random) -> int:
    """An 80-bit packed BCD integer as FBLD reads it: 18 digits and a sign byte, now and then with an invalid digit."""
    digits = bytes(rng.randrange(10) * 16 + rng.randrange(10) for _ in range(9))
    value = int.from_bytes(digits, "little") >> rng.randrange(0, 72, 4)
    if rng.randrange(8) == 0:
        value |= 0xF << 4 * rng.randrange(18)
    return value | rng.choice((0, 0x80, 0x80, 0x55)) << 72


def edge(rng: random.Random, kind: Kind) -> int:
    """One element of the given kind."""
    if kind is Kind.FLOAT80:
        return edge_float80(rng)
    if kind is Kind.BCD:
        return packed_bcd(rng)
    return edge_float(rng, kind) if kind.value < 0 else edge_int(rng, kind.bits)


def edge_bytes(rng: random.Random, kind: Kind, size: int) -> bytes:
    """`size` bytes filled with elements of the given kind."""
    if size == 0:
        return b""
    step = kind.bits // 8
    data = b"".join(edge(rng, kind).to_bytes(step, "little") for _ in range(-(-size // step)))
    return data[:size]


def random_mxcsr(rng: random.Random) -> int:
    """MXCSR with any rounding mode, FTZ, DAZ and sticky flags; an exception unmasked now and then."""
    value = MXCSR_RESET | rng.getrandbits(2) << 13
    if rng.randrange(4) == 0:
        value |= rng.getrandbits(1) << 15 | rng.getrandbits(1) << 6
    if rng.randrange(4) == 0:
        value |= rng.getrandbits(6)
    if rng.randrange(8) == 0:
        value &= ~(1 << rng.randrange(7, 13) | (rng.getrandbits(6) << 7 if rng.getrandbits(1) else 0))
    return value


def random_fcw(rng: random.Random) -> int:
    """x87 control word with any rounding; mostly 64-bit precision and all exceptions masked."""
    value = FCW_RESET & ~0xF00 | rng.getrandbits(2) << 10 | rng.choice((3, 3, 3, 2, 0)) << 8
    return value & ~rng.getrandbits(6) if rng.randrange(8) == 0 else value


def random_x87(rng: random.Random, state: UserState) -> None:
    """Fill the x87 part: mostly a full stack, any TOP and condition codes, and no exception pending."""
    state.fcw = random_fcw(rng)
    sticky = rng.getrandbits(6) & state.fcw & 0x3F if rng.randrange(4) == 0 else 0
    state.fsw = rng.choice((0, rng.getrandbits(3))) << 11 | sticky | (rng.getrandbits(16) & 0x4700)
    state.ftw = rng.choice((0xFF, 0xFF, 0xFF, 0, rng.getrandbits(8)))
    for index in range(8):
        state.set_st(index, edge_float80(rng))


def random_flags(rng: random.Random) -> int:
    """Status flags at random, DF set in one of eight; bit 1 and IF as in every case."""
    direction = DF if rng.randrange(8) == 0 else 0
    return 0x202 | rng.getrandbits(12) & STATUS_FLAGS | direction


def random_state(rng: random.Random, kind: Kind | None = None) -> UserState:
    """Every register random or on an edge; RSP, RIP and memory as at rest. `kind` is what the YMM registers hold."""
    state = UserState()
    for index in range(16):
        if index != RSP:
            state.gpr[index] = edge_int(rng, rng.choice((8, 16, 32, 64, 64)))
        lane = kind or rng.choice((Kind.INT8, Kind.INT16, Kind.INT32, Kind.INT64, Kind.FLOAT32, Kind.FLOAT64))
        state.set_ymm(index, int.from_bytes(edge_bytes(rng, lane, 32), "little"))
    state.rflags = random_flags(rng)
    state.mxcsr = random_mxcsr(rng)
    random_x87(rng, state)
    return state
