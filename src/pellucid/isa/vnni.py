"""Dot products and wide multiply-adds of integers with VEX: AVX-VNNI, AVX-VNNI-INT8, AVX-IFMA (SDM vol. 2)."""

from pellucid.cpu.simd import lanes, left, operand, put, right
from pellucid.isa.simd import avx, numbered
from pellucid.native import add_sat, bitcast, i32, i64, insert, maximum, minimum, native, static, u32, u64, u128, vec

BYTES = ("PDPBUSD", "PDPBUSDS", "PDPBUUD", "PDPBUUDS", "PDPBSUD", "PDPBSUDS", "PDPBSSD", "PDPBSSDS")
"""U and S behind PDPB: whether the first and the second source's bytes are unsigned or signed; S behind D saturates."""

WORDS = ("PDPWSSD", "PDPWSSDS")
LOW_52 = (1 << 52) - 1


@native
def byte_of(a, number, sign, V):
    """Byte `number` of every lane of a vector of i32, as `sign` ("U" or "S") extends it."""
    if sign == "S":
        return (a << V(24 - 8 * number)) >> V(24)
    return (a >> V(8 * number)) & V(0xFF)


@avx(*BYTES, extra=numbered(BYTES))
@native
def dot_bytes(s, o, f):
    """Four products of bytes are added to each lane of 32 bits."""
    name = BYTES[f.extra]
    V = lanes(f, i32)
    a = left(s, o, f, V)
    b = right(s, o, f, V)
    total = V(0)
    for n in static(range(4)):
        total = total + byte_of(a, n, name[4], V) * byte_of(b, n, name[5], V)
    old = operand(s, o, f, 0, V)
    if name.endswith("UUDS"):
        U = lanes(f, u32)
        put(s, o, f, U, add_sat(bitcast(U, old), bitcast(U, total)))
    elif name.endswith("DS"):
        put(s, o, f, V, add_sat(old, total))
    else:
        put(s, o, f, V, old + total)


@avx(*WORDS, extra=numbered(WORDS))
@native
def dot_words(s, o, f):
    """Two products of signed words are added to each lane of 32 bits; saturation looks at the sum of all three."""
    V = lanes(f, i32)
    W = vec[i64, V.count]
    a = left(s, o, f, V)
    b = right(s, o, f, V)
    low = ((a << V(16)) >> V(16)) * ((b << V(16)) >> V(16))
    high = (a >> V(16)) * (b >> V(16))
    total = W(operand(s, o, f, 0, V)) + W(low) + W(high)
    if WORDS[f.extra].endswith("S"):
        total = maximum(minimum(total, W(0x7FFF_FFFF)), W(-0x8000_0000))
    put(s, o, f, V, V(total))


@avx("PMADD52LUQ", "PMADD52HUQ", extra=lambda code: 52 if code.startswith("PMADD52H") else 0)
@native
def madd52(s, o, f):
    """Low or high 52 bits of a product of 52-bit numbers are added to each lane of 64 bits."""
    V = lanes(f, u64)
    a = left(s, o, f, V) & V(LOW_52)
    b = right(s, o, f, V) & V(LOW_52)
    r = operand(s, o, f, 0, V)
    for n in static(range(V.count)):
        product = (u128(a[n]) * u128(b[n])) >> f.extra
        r = insert(r, n, r[n] + (u64(product) & LOW_52))
    put(s, o, f, V, r)
