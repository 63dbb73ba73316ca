"""Conversions between integers and floats, and between single and double precision.

MMX operands go through the XMM form of the same conversion, upper lanes zero: a zero converts exactly. The x87 state
becomes MMX's even where the conversion then raises #XM, as processors do.
"""

from pellucid.cpu.host_sse import F, host_binary, host_from_integer, host_to_integer, host_unary, host_vex_unary
from pellucid.cpu.operands import read, write
from pellucid.cpu.simd import enter_mmx, has_mmx, lanes, left, loosely, operand, put, scalar, second, source_lanes
from pellucid.isa.simd import numbered, vector
from pellucid.native import bitcast, native, u32, u64, u128, uint, vec

PACKED_WHOLE = ("CVTDQ2PS", "CVTPS2DQ", "CVTTPS2DQ", "CVTPD2PS", "CVTPD2DQ", "CVTTPD2DQ")
PACKED_HALF = ("CVTPS2PD", "CVTDQ2PD")
SCALAR = ("CVTSS2SD", "CVTSD2SS")
FROM_INTEGER = ("CVTSI2SS", "CVTSI2SD")
TO_INTEGER = ("CVTSS2SI", "CVTSD2SI", "CVTTSS2SI", "CVTTSD2SI")
TO_MMX = ("CVTPS2PI", "CVTTPS2PI", "CVTPD2PI", "CVTTPD2PI")


@vector(*PACKED_WHOLE, extra=numbered(PACKED_WHOLE))
@native
def convert_packed(s, o, f):
    name = PACKED_WHOLE[f.extra].lower()
    V = lanes(f, u32)
    a = operand(s, o, f, 1, source_lanes(f, u32))
    if f.widths[1] > f.widths[0]:
        put(s, o, f, V, host_vex_unary(s, "v" + name, a, F))
    else:
        put(s, o, f, V, host_unary(s, name, a, V))


@vector(*PACKED_HALF, extra=numbered(PACKED_HALF))
@native
def convert_half(s, o, f):
    V = lanes(f, u32)
    a = loosely(s, o, f, 1, uint(f.widths[0] // 2), F)
    put(s, o, f, V, host_unary(s, PACKED_HALF[f.extra].lower(), a, V))


@vector(*SCALAR, extra=numbered(SCALAR))
@native
def convert_scalar(s, o, f):
    name = SCALAR[f.extra]
    b = loosely(s, o, f, second(f), u32 if name == "CVTSS2SD" else u64, F)
    put(s, o, f, F, host_binary(s, name.lower(), left(s, o, f, F), b))


@vector(*FROM_INTEGER, extra=numbered(FROM_INTEGER))
@native
def convert_from_integer(s, o, f):
    value = read(s, o, f, second(f))
    suffix = "q" if f.widths[second(f)] == 8 else "l"
    put(s, o, f, F, host_from_integer(s, FROM_INTEGER[f.extra].lower() + suffix, left(s, o, f, F), value))


@vector(*TO_INTEGER, extra=numbered(TO_INTEGER))
@native
def convert_to_integer(s, o, f):
    name = TO_INTEGER[f.extra]
    a = loosely(s, o, f, 1, u32 if name.endswith("SS2SI") else u64, F)
    write(s, o, f, 0, host_to_integer(s, name.lower(), a, uint(f.widths[0])))


@vector(*TO_MMX, extra=numbered(TO_MMX))
@native
def convert_to_mmx(s, o, f):
    name = TO_MMX[f.extra]
    host = name.replace("PI", "DQ").lower()
    if "PS" in name:
        a = bitcast(F, u128(scalar(s, o, f, 1, u64)))
    else:
        a = operand(s, o, f, 1, F)
    enter_mmx(s)
    V = vec[u64, 1]
    put(s, o, f, V, V(bitcast(vec[u64, 2], host_unary(s, host, a))[0]))


@vector("CVTPI2PS")
@native
def cvtpi2ps(s, o, f):
    source = bitcast(F, u128(scalar(s, o, f, 1, u64)))
    if has_mmx(f):
        enter_mmx(s)
    a = host_unary(s, "cvtdq2ps", source)
    V = vec[u64, 1]
    put(s, o, f, V, V(bitcast(vec[u64, 2], a)[0]))


@vector("CVTPI2PD")
@native
def cvtpi2pd(s, o, f):
    put(s, o, f, F, host_unary(s, "cvtdq2pd", bitcast(F, u128(scalar(s, o, f, 1, u64)))))


