"""Float arithmetic, comparison and logic on packed and scalar operands."""

from pellucid.cpu.flags import CC_UNKNOWN, set_eflags
from pellucid.cpu.host_sse import (
    F, host_binary, host_by_immediate, host_compare, host_unary, host_vex_by_immediate)
from pellucid.cpu.simd import (
    blend_mask, by_immediate, lanes, left, loosely, operand, permute_halves, put, right, second)
from pellucid.isa.simd import by_mnemonic, numbered, vector
from pellucid.native import i32, i64, native, select, shuffle, u32, u64, uint

# --- arithmetic ----------------------------------------------------------------------------------------

PACKED = tuple(name + kind for name in ("ADD", "SUB", "MUL", "DIV", "MIN", "MAX", "HADD", "HSUB", "ADDSUB")
               for kind in ("PS", "PD"))
SCALAR = tuple(name + kind for name in ("ADD", "SUB", "MUL", "DIV", "MIN", "MAX", "SQRT") for kind in ("SS", "SD"))
SCALAR += ("RCPSS", "RSQRTSS")
UNARY = ("SQRTPS", "SQRTPD", "RCPPS", "RSQRTPS")


@vector(*PACKED, extra=numbered(PACKED))
@native
def float_packed(s, o, f):
    V = lanes(f, u32)
    put(s, o, f, V, host_binary(s, PACKED[f.extra].lower(), left(s, o, f, V), right(s, o, f, V), V))


def scalar_type(name):
    """The integer as wide as one lane of a scalar operation: u32 for ...SS, u64 for ...SD."""
    return u32 if name.endswith("SS") else u64


@vector(*SCALAR, extra=numbered(SCALAR))
@native
def float_scalar(s, o, f):
    T = scalar_type(SCALAR[f.extra])
    put(s, o, f, F, host_binary(s, SCALAR[f.extra].lower(), left(s, o, f, F), loosely(s, o, f, second(f), T, F)))


@vector(*UNARY, extra=numbered(UNARY))
@native
def float_unary(s, o, f):
    V = lanes(f, u32)
    put(s, o, f, V, host_unary(s, UNARY[f.extra].lower(), operand(s, o, f, 1, V), V))


# --- with an immediate that the host instruction needs at compile time -----------------------------------

COMPARE = ("CMPPS", "CMPPD", "CMPSS", "CMPSD")
ROUND = ("ROUNDPS", "ROUNDPD", "ROUNDSS", "ROUNDSD")


@native
def immediate_operand(s, o, f, name):
    """The second source of an instruction that may be packed or scalar."""
    if name[-2] == "S":
        return loosely(s, o, f, second(f), scalar_type(name), F)
    return right(s, o, f, lanes(f, u32))


@vector(*COMPARE, extra=numbered(COMPARE))
@native
def cmp_float(s, o, f):
    name = COMPARE[f.extra].lower()
    V = lanes(f, u32)
    b = immediate_operand(s, o, f, COMPARE[f.extra])
    if f.vex:
        put(s, o, f, V, host_vex_by_immediate(s, "v" + name, 32, left(s, o, f, V), b, o.imm & 31, V))
    else:
        put(s, o, f, V, host_by_immediate(s, name, 8, left(s, o, f, V), b, o.imm & 7))


@vector(*ROUND, extra=numbered(ROUND))
@native
def round_float(s, o, f):
    name = ROUND[f.extra]
    V = lanes(f, u32)
    b = immediate_operand(s, o, f, name)
    a = left(s, o, f, V) if name[-2] == "S" else b
    put(s, o, f, V, host_by_immediate(s, name.lower(), 16, a, b, o.imm & 15, V))


# --- flags ---------------------------------------------------------------------------------------------

COMI = ("COMISS", "COMISD", "UCOMISS", "UCOMISD")


@vector(*COMI, extra=numbered(COMI), cc_out=CC_UNKNOWN)
@native
def comis(s, o, f):
    name = COMI[f.extra]
    b = loosely(s, o, f, 1, scalar_type(name), F)
    set_eflags(s, host_compare(s, name.lower(), operand(s, o, f, 0, F), b))


# --- dot products --------------------------------------------------------------------------------------


@native
def chosen_lanes(imm, V, period):
    """A vector of bools for the lanes of V, lane i from bit i modulo `period`."""
    return (V(V.element(imm)) & [1 << (i % period) for i in range(V.count)]) != V(0)


@vector("DPPS")
@native
def dpps(s, o, f):
    V = lanes(f, u32)
    imm = u32(o.imm)
    zero = V(0)
    picked = chosen_lanes(imm >> 4, V, 4)
    a = select(picked, left(s, o, f, V), zero)
    b = select(picked, right(s, o, f, V), zero)
    p = host_binary(s, "mulps", a, b, V)
    p = host_binary(s, "haddps", p, p, V)
    p = host_binary(s, "haddps", p, p, V)
    put(s, o, f, V, select(chosen_lanes(imm, V, 4), p, zero))


@vector("DPPD")
@native
def dppd(s, o, f):
    imm = u32(o.imm)
    zero = F(0)
    picked = (F(imm >> 4) & [1, 1, 2, 2]) != zero
    a = select(picked, left(s, o, f, F), zero)
    b = select(picked, right(s, o, f, F), zero)
    p = host_binary(s, "mulpd", a, b)
    p = host_binary(s, "haddpd", p, p)
    put(s, o, f, F, select((F(imm) & [1, 1, 2, 2]) != zero, p, zero))


# --- logic ---------------------------------------------------------------------------------------------


@vector("ANDPS", "ANDPD", "PAND")
@native
def vector_and(s, o, f):
    V = lanes(f, u64)
    put(s, o, f, V, left(s, o, f, V) & right(s, o, f, V))


@vector("ANDNPS", "ANDNPD", "PANDN")
@native
def vector_andn(s, o, f):
    V = lanes(f, u64)
    put(s, o, f, V, ~left(s, o, f, V) & right(s, o, f, V))


@vector("ORPS", "ORPD", "POR")
@native
def vector_or(s, o, f):
    V = lanes(f, u64)
    put(s, o, f, V, left(s, o, f, V) | right(s, o, f, V))


@vector("XORPS", "XORPD", "PXOR")
@native
def vector_xor(s, o, f):
    V = lanes(f, u64)
    put(s, o, f, V, left(s, o, f, V) ^ right(s, o, f, V))


# --- shuffles and blends -------------------------------------------------------------------------------


@vector("SHUFPS", "SHUFPD", extra=by_mnemonic({"SHUFPS": 4, "SHUFPD": 8}))
@native
def shufp(s, o, f):
    """Every 16 bytes: the lower half from the first source, the upper from the second, by 2 bits a lane, or 1."""
    V = lanes(f, uint(f.extra))
    numbers = by_immediate(o.imm, V, 2 if f.extra == 4 else 1)
    a = permute_halves(left(s, o, f, V), numbers, V)
    b = permute_halves(right(s, o, f, V), numbers, V)
    put(s, o, f, V, shuffle(a, b, [lane + (V.count if lane * f.extra & 8 else 0) for lane in range(V.count)]))


@vector("BLENDPS", "BLENDPD", "PBLENDW", "PBLENDD",
        extra=by_mnemonic({"BLENDPS": 4, "BLENDPD": 8, "PBLENDW": 2, "PBLENDD": 4}))
@native
def blend(s, o, f):
    T = uint(f.extra)
    V = lanes(f, T)
    picked = chosen_lanes(o.imm & 0xFF, V, 8)
    put(s, o, f, V, select(picked, right(s, o, f, V), left(s, o, f, V)))


@vector("BLENDVPS", "BLENDVPD", extra=by_mnemonic({"BLENDVPS": 4, "BLENDVPD": 8}))
@native
def blendv(s, o, f):
    S = i32 if f.extra == 4 else i64
    V = lanes(f, S)
    picked = blend_mask(s, o, f, V) < V(0)
    put(s, o, f, V, select(picked, right(s, o, f, V), left(s, o, f, V)))
