"""What AVX and AVX2 have beside wider SSE: broadcast, insert, extract, permute, shifts by lane, zeroing."""

from typing import Any

from pellucid.cpu.operands import slot_pointer
from pellucid.cpu.simd import (
    by_immediate, join, lanes, left, operand, permute_halves, put, put_anywhere, right, scalar)
from pellucid.cpu.state import MODE_64, MODE_SIZE
from pellucid.isa.simd import avx, by_mnemonic, element
from pellucid.native import ptr, bitcast, native, permute, select, shuffle, sint, static, u64, u128, uint, vec

H: Any = vec[u64, 2]
Y: Any = vec[u64, 4]


# --- zero ----------------------------------------------------------------------------------------------


@avx("ZEROALL", "ZEROUPPER", extra=by_mnemonic({"ZEROALL": 0, "ZEROUPPER": 1}))
@native
def zero_registers(s, o, f):
    """All of them, or what is above their low 16 bytes; outside 64-bit mode the first eight."""
    zero_some(s, f, 0)
    if (s.mode & MODE_SIZE) == MODE_64:
        zero_some(s, f, 8)


@native
def zero_some(s, f, first):
    """Eight registers from number `first`."""
    for number in static(range(first, first + 8)):
        register = u64(s.xmm) + number * 64
        if f.extra == 0:
            ptr[H](register)[0] = H(0)
        ptr[H](register + 16)[0] = H(0)


# --- broadcast, insert, extract --------------------------------------------------------------------------

_BROADCASTS = {"BROADCASTSS": 4, "BROADCASTSD": 8, "PBROADCASTB": 1, "PBROADCASTW": 2, "PBROADCASTD": 4,
               "PBROADCASTQ": 8}


@avx(*_BROADCASTS, extra=by_mnemonic(_BROADCASTS))
@native
def broadcast(s, o, f):
    T = uint(f.extra)
    V = lanes(f, T)
    put(s, o, f, V, V(scalar(s, o, f, 1, T)))


@avx("BROADCASTF128", "BROADCASTI128")
@native
def broadcast_128(s, o, f):
    a = operand(s, o, f, 1, H)
    put(s, o, f, Y, shuffle(a, a, [0, 1, 0, 1]))


@avx("INSERTF128", "INSERTI128")
@native
def insert_128(s, o, f):
    a = left(s, o, f, Y)
    part = right(s, o, f, H)
    b = shuffle(part, part, [0, 1, 0, 1])
    put(s, o, f, Y, select((o.imm & 1) != 0, shuffle(a, b, [0, 1, 4, 5]), shuffle(a, b, [4, 5, 2, 3])))


@avx("EXTRACTF128", "EXTRACTI128")
@native
def extract_128(s, o, f):
    put_anywhere(s, o, f, H, slot_pointer(s, o, 1, H)[o.imm & 1])


# --- permute -------------------------------------------------------------------------------------------


@native
def chosen_half(a, b, control):
    """16 bytes of a or b by bits 1:0 of the control, or zero by bit 3."""
    source = select((control & 2) != 0, b, a)
    r = select((control & 1) != 0, shuffle(source, source, [2, 3]), shuffle(source, source, [0, 1]))
    return bitcast(u128, select((control & 8) != 0, H(0), r))


@avx("PERM2F128", "PERM2I128")
@native
def permute_128(s, o, f):
    a = left(s, o, f, Y)
    b = right(s, o, f, Y)
    put(s, o, f, Y, join(chosen_half(a, b, o.imm), chosen_half(a, b, o.imm >> 4)))


@avx("PERMQ", "PERMPD")
@native
def permute_quads(s, o, f):
    put(s, o, f, Y, permute(operand(s, o, f, 1, Y), by_immediate(o.imm, Y, 2)))


@avx("PERMD", "PERMPS")
@native
def permute_doubles(s, o, f):
    """The lanes of the second source, by the first one's low three bits."""
    V = lanes(f, uint(4))
    i = left(s, o, f, V)
    put(s, o, f, V, permute(right(s, o, f, V), i))


def by_register(code):
    """The forms of VPERMILPS and VPERMILPD whose control is a vector."""
    return not code.endswith("IMM8")


@avx("PERMILPS", codes=by_register)
@native
def permilps(s, o, f):
    """Every 16 bytes by themselves."""
    V = lanes(f, uint(4))
    a = left(s, o, f, V)
    put(s, o, f, V, permute_halves(a, right(s, o, f, V), V))


@avx("PERMILPD", codes=by_register)
@native
def permilpd(s, o, f):
    V = lanes(f, u64)
    a = left(s, o, f, V)
    put(s, o, f, V, permute_halves(a, right(s, o, f, V) >> 1, V))


@avx("PERMILPD", codes=lambda code: code.endswith("IMM8"))
@native
def permilpd_by_immediate(s, o, f):
    V = lanes(f, u64)
    put(s, o, f, V, permute_halves(operand(s, o, f, 1, V), by_immediate(o.imm, V, 1), V))


# --- shifts by as many counts as lanes -------------------------------------------------------------------


@avx("PSLLVD", "PSLLVQ", extra=element)
@native
def psllv(s, o, f):
    V = lanes(f, uint(f.extra))
    put(s, o, f, V, left(s, o, f, V) << right(s, o, f, V))


@avx("PSRLVD", "PSRLVQ", extra=element)
@native
def psrlv(s, o, f):
    V = lanes(f, uint(f.extra))
    put(s, o, f, V, left(s, o, f, V) >> right(s, o, f, V))


@avx("PSRAVD")
@native
def psravd(s, o, f):
    V = lanes(f, sint(4))
    put(s, o, f, V, left(s, o, f, V) >> right(s, o, f, V))
