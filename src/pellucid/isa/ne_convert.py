"""AVX-NE-CONVERT: BF16 and half precision to and from single, without exceptions and without MXCSR (SDM vol. 2)."""

from typing import Any

from pellucid.cpu.host_sse import F, host_vex_unary
from pellucid.cpu.simd import extended, lanes, operand, put, scalar, source_lanes
from pellucid.isa.simd import avx, numbered
from pellucid.native import bitcast, native, select, u16, u32, u64, vec

FROM_PAIRS = ("CVTNEEPH2PS", "CVTNEOPH2PS", "CVTNEEBF162PS", "CVTNEOBF162PS")
TO_ALL = ("BCSTNESH2PS", "BCSTNEBF162PS")
EXPONENT, FRACTION, QUIET = 0x7F80_0000, 0x7F_FFFF, 0x40_0000
LONG: Any = vec[u64, 2]


@avx("CVTNEPS2BF16", needs="f16c")
@native
def vcvtneps2bf16(s, o, f):
    """Rounded to nearest, ties to even; denormals become zeros, and NaNs quiet ones."""
    V = source_lanes(f, u32)
    a = operand(s, o, f, 1, V)
    upper = a >> V(16)
    exponent = a & V(EXPONENT)
    rounded = (a + V(0x7FFF) + (upper & V(1))) >> V(16)
    special = select((a & V(FRACTION)) != V(0), upper | V(QUIET >> 16), upper)
    r = select(exponent == V(EXPONENT), special, select(exponent == V(0), upper & V(0x8000), rounded))
    W = vec[u16, V.count]
    if V.count == 4:
        put(s, o, f, F, extended(u64, F, bitcast(u64, W(r))))
    else:
        put(s, o, f, F, bitcast(F, W(r)))


@native
def singles(s, halves, V):
    """Half precision, a u16 in each lane of V, to single: the host's conversion, which no signaling NaN disturbs."""
    nan = (halves & V(0x7FFF)) > V(0x7C00)
    quiet = select(nan, halves | V(0x200), halves)
    W = vec[u16, V.count]
    if V.count == 4:
        return host_vex_unary(s, "vcvtph2ps", extended(u64, F, bitcast(u64, W(quiet))), V)
    else:
        return host_vex_unary(s, "vcvtph2ps", bitcast(F, W(quiet)), V)


@avx(*FROM_PAIRS, extra=numbered(FROM_PAIRS), needs="f16c")
@native
def from_pairs(s, o, f):
    """The even (E) or the odd (O) one of every two numbers."""
    name = FROM_PAIRS[f.extra]
    V = lanes(f, u32)
    a = operand(s, o, f, 1, V)
    if "BF16" in name:
        put(s, o, f, V, a << V(16) if name[5] == "E" else a & V(0xFFFF_0000))
    else:
        put(s, o, f, V, singles(s, a & V(0xFFFF) if name[5] == "E" else a >> V(16), V))


@avx(*TO_ALL, extra=numbered(TO_ALL), needs="f16c")
@native
def to_all(s, o, f):
    """One number to all lanes."""
    V = lanes(f, u32)
    a = V(u32(scalar(s, o, f, 1, u16)))
    if f.extra == 1:
        put(s, o, f, V, a << V(16))
    else:
        put(s, o, f, V, singles(s, a, V))
