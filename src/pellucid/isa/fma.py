"""Fused multiply-add (FMA, and FMA4 of AMD's processors) and half precision (F16C), by the host's own instructions."""

from pellucid.cpu.host_sse import F, host_ternary, host_vex_by_immediate, host_vex_unary
from pellucid.cpu.operands import address
from pellucid.cpu.simd import extended, lanes, loosely, operand, put, require_writable, source_lanes, store_vector
from pellucid.isa.simd import avx, numbered
from pellucid.isa.sse_float import scalar_type
from pellucid.isa.xop import three, with_order
from pellucid.native import bitcast, native, u32, u64, uint, vec

_ORDERS = ("132", "213", "231")
PACKED = tuple(f"F{name}{order}{kind}" for name in ("MADD", "MSUB", "NMADD", "NMSUB", "MADDSUB", "MSUBADD")
               for order in _ORDERS for kind in ("PS", "PD"))
SCALAR = tuple(f"F{name}{order}{kind}" for name in ("MADD", "MSUB", "NMADD", "NMSUB")
               for order in _ORDERS for kind in ("SS", "SD"))


@avx(*PACKED, extra=numbered(PACKED), needs="fma")
@native
def fma_packed(s, o, f):
    V = lanes(f, u32)
    a = operand(s, o, f, 0, V)
    b = operand(s, o, f, 1, V)
    put(s, o, f, V, host_ternary(s, "v" + PACKED[f.extra].lower(), a, b, operand(s, o, f, 2, V), V))


@avx(*SCALAR, extra=numbered(SCALAR), needs="fma")
@native
def fma_scalar(s, o, f):
    name = SCALAR[f.extra]
    a = operand(s, o, f, 0, F)
    b = operand(s, o, f, 1, F)
    put(s, o, f, F, host_ternary(s, "v" + name.lower(), a, b, loosely(s, o, f, 2, scalar_type(name), F), F))


FMA4_PACKED = tuple(f"F{name}{kind}" for name in ("MADD", "MSUB", "NMADD", "NMSUB", "MADDSUB", "MSUBADD")
                    for kind in ("PS", "PD"))
FMA4_SCALAR = tuple(f"F{name}{kind}" for name in ("MADD", "MSUB", "NMADD", "NMSUB") for kind in ("SS", "SD"))


def with_three_operands(name):
    """The host's instruction with one operand less: its destination is the first factor."""
    return "v" + name[:-2].lower() + "213" + name[-2:].lower()


@avx(*FMA4_PACKED, extra=with_order(FMA4_PACKED), needs="fma")
@native
def fma4_packed(s, o, f):
    V = lanes(f, u32)
    a, b, c = three(s, o, f, V)
    put(s, o, f, V, host_ternary(s, with_three_operands(FMA4_PACKED[f.extra // 2]), a, b, c, V))


@avx(*FMA4_SCALAR, extra=with_order(FMA4_SCALAR), needs="fma")
@native
def fma4_scalar(s, o, f):
    """The rest of the register becomes zero, unlike FMA's (APM vol. 4)."""
    name = FMA4_SCALAR[f.extra // 2]
    T = scalar_type(name)
    a = loosely(s, o, f, 1, T, F)
    b = loosely(s, o, f, 2, T, F)
    c = loosely(s, o, f, 3, T, F)
    if f.extra & 1:
        r = host_ternary(s, with_three_operands(name), a, c, b, F)
    else:
        r = host_ternary(s, with_three_operands(name), a, b, c, F)
    put(s, o, f, F, extended(T, F, bitcast(vec[T, 16 // T.size], r)[0]))


@avx("CVTPH2PS", needs="f16c")
@native
def vcvtph2ps(s, o, f):
    V = lanes(f, u32)
    put(s, o, f, V, host_vex_unary(s, "vcvtph2ps", loosely(s, o, f, 1, uint(f.widths[0] // 2), F), V))


@avx("CVTPS2PH", needs="f16c")
@native
def vcvtps2ph(s, o, f):
    """The immediate's low bits are a rounding mode, bit 2 says to use MXCSR's. Memory's faults come before #XM."""
    a = operand(s, o, f, 1, source_lanes(f, u32))
    if f.kinds[0] == "m":
        require_writable(s, address(s, o), f.widths[0])
    r = host_vex_by_immediate(s, "vcvtps2ph", 8, a, a, o.imm & 7, F)
    if f.widths[0] == 8:
        store_vector(s, address(s, o), vec[u64, 1](bitcast(vec[u64, 2], r)[0]), vec[u64, 1])
    elif f.kinds[0] == "m":
        store_vector(s, address(s, o), r, F)
    else:
        put(s, o, f, F, r)
