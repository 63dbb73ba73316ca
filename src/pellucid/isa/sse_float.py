"""Float arithmetic, comparison and logic on packed and scalar operands."""

from pellucid.cpu.flags import CC_UNKNOWN, set_eflags
from pellucid.cpu.host_sse import F, host_binary, host_by_immediate, host_compare, host_unary
from pellucid.cpu.simd import lanes, left, loosely, operand, put, right, second, xmm
from pellucid.isa.simd import by_mnemonic, numbered, vector
from pellucid.native import i32, i64, native, select, u8, u32, u64, uint, vec

# --- arithmetic ----------------------------------------------------------------------------------------

PACKED = tuple(name + kind for name in ("ADD", "SUB", "MUL", "DIV", "MIN", "MAX", "HADD", "HSUB", "ADDSUB")
               for kind in ("PS", "PD"))
SCALAR = tuple(name + kind for name in ("ADD", "SUB", "MUL", "DIV", "MIN", "MAX", "SQRT") for kind in ("SS", "SD"))
SCALAR += ("RCPSS", "RSQRTSS")
UNARY = ("SQRTPS", "SQRTPD", "RCPPS", "RSQRTPS")


@vector(*PACKED, extra=numbered(PACKED))
@native
def float_packed(s, o, f):
    put(s, o, f, F, host_binary(s, PACKED[f.extra].lower(), left(s, o, f, F), right(s, o, f, F)))


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
    put(s, o, f, F, host_unary(s, UNARY[f.extra].lower(), operand(s, o, f, 1, F)))


# --- with an immediate that the host instruction needs at compile time -----------------------------------

COMPARE = ("CMPPS", "CMPPD", "CMPSS", "CMPSD")
ROUND = ("ROUNDPS", "ROUNDPD", "ROUNDSS", "ROUNDSD")


@native
def immediate_operand(s, o, f, name):
    """The second source of an instruction that may be packed or scalar."""
    if name[-2] == "S":
        return loosely(s, o, f, second(f), scalar_type(name), F)
    return right(s, o, f, F)


@vector(*COMPARE, extra=numbered(COMPARE))
@native
def cmp_float(s, o, f):
    name = COMPARE[f.extra]
    b = immediate_operand(s, o, f, name)
    put(s, o, f, F, host_by_immediate(s, name.lower(), 8, left(s, o, f, F), b, o.imm & 7))


@vector(*ROUND, extra=numbered(ROUND))
@native
def round_float(s, o, f):
    name = ROUND[f.extra]
    b = immediate_operand(s, o, f, name)
    put(s, o, f, F, host_by_immediate(s, name.lower(), 16, left(s, o, f, F), b, o.imm & 15))


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
def chosen_lanes(imm, T):
    """A vector of bools, lane i from bit i."""
    V = vec[T, 16 // T.size]
    return (V(T(imm)) & [1 << i for i in range(16 // T.size)]) != V(0)


@vector("DPPS")
@native
def dpps(s, o, f):
    imm = u32(o.imm)
    zero = F(0)
    picked = chosen_lanes(imm >> 4, u32)
    a = select(picked, left(s, o, f, F), zero)
    b = select(picked, right(s, o, f, F), zero)
    p = host_binary(s, "mulps", a, b)
    p = host_binary(s, "haddps", p, p)
    p = host_binary(s, "haddps", p, p)
    put(s, o, f, F, select(chosen_lanes(imm, u32), p, zero))


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


@vector("SHUFPS")
@native
def shufps(s, o, f):
    a = left(s, o, f, F)
    b = right(s, o, f, F)
    i = o.imm
    put(s, o, f, F, F([a[i & 3], a[(i >> 2) & 3], b[(i >> 4) & 3], b[(i >> 6) & 3]]))


@vector("SHUFPD")
@native
def shufpd(s, o, f):
    V = vec[u64, 2]
    a = left(s, o, f, V)
    b = right(s, o, f, V)
    put(s, o, f, V, V([a[o.imm & 1], b[(o.imm >> 1) & 1]]))


@vector("BLENDPS", "BLENDPD", "PBLENDW", extra=by_mnemonic({"BLENDPS": 4, "BLENDPD": 8, "PBLENDW": 2}))
@native
def blend(s, o, f):
    T = uint(f.extra)
    V = lanes(f, T)
    picked = chosen_lanes(u8(o.imm), T)
    put(s, o, f, V, select(picked, right(s, o, f, V), left(s, o, f, V)))


@vector("BLENDVPS", "BLENDVPD", extra=by_mnemonic({"BLENDVPS": 4, "BLENDVPD": 8}))
@native
def blendv(s, o, f):
    S = i32 if f.extra == 4 else i64
    V = lanes(f, S)
    picked = xmm(s, 0, V) < V(0)
    put(s, o, f, V, select(picked, right(s, o, f, V), left(s, o, f, V)))
