"""Packed integers across lanes: pack, unpack, shuffle, align, horizontal sums, sums of differences, blend."""

from pellucid.cpu.simd import (
    blend_mask, by_immediate, extended, half, join, lanes, left, loosely, operand, permute_halves, put, right)
from pellucid.isa.simd import avx, by_mnemonic, element, vector
from pellucid.isa.sse_int import even, odd
from pellucid.native import (
    add_sat, bitcast, i8, i16, i32, maximum, minimum, native, select, shuffle, sint, static, sub_sat, u8, u16,
    u32, u64, u128, uint, vec)

# --- pack and unpack -----------------------------------------------------------------------------------


def joined(width, size):
    """Lanes of two operands narrowed to `size` bytes: in every 16 bytes of the result, the first's go first."""
    per = min(width, 16) // size // 2
    count = width // size // 2
    return [which * count + block * per + i for block in range(count // per) for which in (0, 1) for i in range(per)]


@native
def pack(s, o, f, V, D, low, high):
    """Clamp the lanes V of both sources to low..high and narrow them to D."""
    N = vec[D, V.count]
    a = minimum(maximum(left(s, o, f, V), V(low)), V(high))
    b = minimum(maximum(right(s, o, f, V), V(low)), V(high))
    put(s, o, f, lanes(f, D), shuffle(N(a), N(b), joined(f.widths[0], D.size)))


@vector("PACKSSWB")
@native
def packsswb(s, o, f):
    pack(s, o, f, lanes(f, i16), i8, -128, 127)


@vector("PACKSSDW")
@native
def packssdw(s, o, f):
    pack(s, o, f, lanes(f, i32), i16, -32768, 32767)


@vector("PACKUSWB")
@native
def packuswb(s, o, f):
    pack(s, o, f, lanes(f, i16), u8, 0, 255)


@vector("PACKUSDW")
@native
def packusdw(s, o, f):
    pack(s, o, f, lanes(f, i32), u16, 0, 65535)


def interleaved(width, size, high):
    """Lanes of two operands alternating, from the low or high half of every 16 bytes."""
    per = min(width, 16) // size
    count = width // size
    return [which * count + block * per + high * per // 2 + i
            for block in range(count // per) for i in range(per // 2) for which in (0, 1)]


_UNPACK = {"BW": 1, "WD": 2, "DQ": 4, "QDQ": 8}


@vector(*("PUNPCKL" + kind for kind in _UNPACK), "UNPCKLPS", "UNPCKLPD",
        extra=by_mnemonic({**{"PUNPCKL" + k: n for k, n in _UNPACK.items()}, "UNPCKLPS": 4, "UNPCKLPD": 8}))
@native
def unpack_low(s, o, f):
    V = lanes(f, uint(f.extra))
    b = loosely(s, o, f, 1, u32, V) if f.kinds == "nm" else right(s, o, f, V)
    put(s, o, f, V, shuffle(left(s, o, f, V), b, interleaved(f.widths[0], f.extra, 0)))


@vector(*("PUNPCKH" + kind for kind in _UNPACK), "UNPCKHPS", "UNPCKHPD",
        extra=by_mnemonic({**{"PUNPCKH" + k: n for k, n in _UNPACK.items()}, "UNPCKHPS": 4, "UNPCKHPD": 8}))
@native
def unpack_high(s, o, f):
    V = lanes(f, uint(f.extra))
    put(s, o, f, V, shuffle(left(s, o, f, V), right(s, o, f, V), interleaved(f.widths[0], f.extra, 1)))


# --- shuffles ------------------------------------------------------------------------------------------


_LANE = by_mnemonic({"PSHUFD": 4, "PSHUFW": 2, "PERMILPS": 4})


@vector("PSHUFD", "PSHUFW", extra=_LANE)
@avx("PERMILPS", codes=lambda code: code.endswith("IMM8"), extra=_LANE)
@native
def pshufd(s, o, f):
    """Every 16 bytes by themselves."""
    V = lanes(f, uint(f.extra))
    put(s, o, f, V, permute_halves(operand(s, o, f, 1, V), by_immediate(o.imm, V, 2), V))


@vector("PSHUFLW", "PSHUFHW", extra=by_mnemonic({"PSHUFLW": 0, "PSHUFHW": 1}))
@native
def pshuf_half(s, o, f):
    V = lanes(f, u16)
    numbers = by_immediate(o.imm, V, 2)
    straight = V([lane & 7 for lane in range(V.count)])
    if f.extra == 0:
        numbers = shuffle(numbers, straight, [lane + (lane & 4) // 4 * V.count for lane in range(V.count)])
    else:
        numbers = shuffle(straight, numbers + 4, [lane + (lane & 4) // 4 * V.count for lane in range(V.count)])
    put(s, o, f, V, permute_halves(operand(s, o, f, 1, V), numbers, V))


@vector("PSHUFB")
@native
def pshufb(s, o, f):
    V = lanes(f, u8)
    a = left(s, o, f, V)
    b = right(s, o, f, V)
    put(s, o, f, V, select(b > V(127), V(0), permute_halves(a, b, V)))


@vector("PALIGNR")
@native
def palignr(s, o, f):
    """Of every 16 bytes (8 of MMX) of both, the low half of what remains shifted right by that many bytes."""
    V = lanes(f, u8)
    size = min(V.count, 16)
    n = V(u8(minimum(o.imm & 0xFF, u64(32)))) + V([lane % 16 for lane in range(V.count)])
    high = permute_halves(left(s, o, f, V), n, V)
    low = permute_halves(right(s, o, f, V), n, V)
    put(s, o, f, V, select(n < size, low, select(n < 2 * size, high, V(0))))


# --- horizontal ----------------------------------------------------------------------------------------


def halves(V, which):
    """Numbers of the even (0) or odd (1) lanes of two vectors V, 16 bytes at a time."""
    per = min(V.size, 16) // V.element.size
    return [operand * V.count + block * per + i
            for block in range(V.count // per) for operand in (0, 1) for i in range(which, per, 2)]


@vector("PHADDW", "PHADDD", extra=element)
@native
def phadd(s, o, f):
    V = lanes(f, sint(f.extra))
    a = left(s, o, f, V)
    b = right(s, o, f, V)
    put(s, o, f, V, shuffle(a, b, halves(V, 0)) + shuffle(a, b, halves(V, 1)))


@vector("PHSUBW", "PHSUBD", extra=element)
@native
def phsub(s, o, f):
    V = lanes(f, sint(f.extra))
    a = left(s, o, f, V)
    b = right(s, o, f, V)
    put(s, o, f, V, shuffle(a, b, halves(V, 0)) - shuffle(a, b, halves(V, 1)))


@vector("PHADDSW")
@native
def phaddsw(s, o, f):
    V = lanes(f, i16)
    a = left(s, o, f, V)
    b = right(s, o, f, V)
    put(s, o, f, V, add_sat(shuffle(a, b, halves(V, 0)), shuffle(a, b, halves(V, 1))))


@vector("PHSUBSW")
@native
def phsubsw(s, o, f):
    V = lanes(f, i16)
    a = left(s, o, f, V)
    b = right(s, o, f, V)
    put(s, o, f, V, sub_sat(shuffle(a, b, halves(V, 0)), shuffle(a, b, halves(V, 1))))


@vector("PHMINPOSUW")
@native
def phminposuw(s, o, f):
    V = lanes(f, u16)
    a = operand(s, o, f, 1, V)
    best: u32 = 0xFFFF_FFFF
    for lane in static(range(8)):
        best = minimum(best, (u32(a[lane]) << 3) | lane)
    put(s, o, f, V, extended(u32, V, (best >> 3) | ((best & 7) << 16)))


# --- sums of absolute differences ----------------------------------------------------------------------


@native
def difference(a, b):
    """Absolute differences of unsigned lanes."""
    return maximum(a, b) - minimum(a, b)


@vector("PSADBW")
@native
def psadbw(s, o, f):
    V = lanes(f, u8)
    bytewise = vec[u16, V.count](difference(left(s, o, f, V), right(s, o, f, V)))
    sums = sum_pairs(sum_pairs(sum_pairs(bytewise, V.count), V.count // 2), V.count // 4)
    put(s, o, f, lanes(f, u64), vec[u64, V.count // 8](sums))


@native
def sum_pairs(x, count):
    """Neighbours added: half as many lanes."""
    return shuffle(x, x, even(count)) + shuffle(x, x, odd(count))


@vector("MPSADBW")
@native
def mpsadbw(s, o, f):
    """Every 16 bytes by themselves, each with three bits of the immediate."""
    V = lanes(f, u64)
    a = left(s, o, f, V)
    b = right(s, o, f, V)
    if f.widths[0] == 32:
        high = sad_windows(half(a, 1), half(b, 1), o.imm >> 3)
        put(s, o, f, V, join(bitcast(u128, sad_windows(half(a, 0), half(b, 0), o.imm)), bitcast(u128, high)))
    else:
        put(s, o, f, vec[u16, 8], sad_windows(bitcast(u128, a), bitcast(u128, b), o.imm))


@native
def sad_windows(a, b, imm):
    """Eight sums of differences: of four bytes of b with each four bytes in a row of eleven of a."""
    W = vec[u16, 8]
    B = vec[u8, 8]
    a = a >> (((imm >> 2) & 1) * 32)
    b = b >> ((imm & 3) * 32)
    total = W(0)
    for j in static(range(4)):
        window = W(bitcast(B, u64(a >> (j * 8))))
        total = total + difference(window, W(u16(u8(b >> (j * 8)))))
    return total


# --- blend ---------------------------------------------------------------------------------------------


@vector("PBLENDVB")
@native
def pblendvb(s, o, f):
    V = lanes(f, i8)
    picked = blend_mask(s, o, f, V) < V(0)
    put(s, o, f, V, select(picked, right(s, o, f, V), left(s, o, f, V)))
