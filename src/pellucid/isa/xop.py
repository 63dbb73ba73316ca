"""XOP of AMD's processors: vector integers with three sources, and fractions (APM vol. 4 and, of XOP, chapter 1.9).

An encoding with a third source has it in bits 7:4 of its last byte, and XOP.W tells which of the second and the third
may be memory (`forms.order`): f.extra = 2 * number of the mnemonic + W. Everything else is as with VEX.
"""

from collections.abc import Callable
from typing import Any

from pellucid.cpu.host_sse import HOST, F, host_binary, host_vector_truncate
from pellucid.cpu.simd import extended, lanes, operand, permute_halves, put, scalar
from pellucid.isa.forms import is_swapped
from pellucid.isa.simd import avx, element
from pellucid.isa.table import instruction
from pellucid.native import (
    add_sat, bitcast, i8, i16, i32, i64, maximum, minimum, native, permute, select, sint, static, u8, u32, u64,
    uint, vec)

B: Any = vec[u8, 16]


def xop(*mnemonics: str, extra: Callable[[str], int] | None = None) -> Callable[[Any], Any]:
    """Rows for the XOP encodings of these mnemonics, written without their V; none where the host lacks AVX.

    `extra` sees the code's name without "XOP_V".
    """
    number = extra or (lambda code: 0)

    def register(fn: Any) -> Any:
        if "avx" in HOST:
            instruction(*("V" + name for name in mnemonics), fpu=True, avx=True,
                        codes=lambda code: code.startswith("XOP_V"),
                        extra=lambda code: number(code.removeprefix("XOP_V")))(fn)
        return fn

    return register


def with_order(numbers: tuple[str, ...]) -> Callable[[str], int]:
    """`extra` of instructions with three sources: the mnemonic's number, and whether memory is the third one."""
    return lambda code: 2 * numbers.index(code.split("_")[0]) + is_swapped(code)


@native
def three(s, o, f, V):
    """Three vector sources, in the order of the manual."""
    a = operand(s, o, f, 1, V)
    if f.extra & 1:
        return a, operand(s, o, f, 3, V), operand(s, o, f, 2, V)
    else:
        return a, operand(s, o, f, 2, V), operand(s, o, f, 3, V)


# --- selections ----------------------------------------------------------------------------------------


@xop("PCMOV", extra=with_order(("PCMOV",)))
@native
def vpcmov(s, o, f):
    """Bits of the first source where the third has ones, else of the second."""
    V = lanes(f, u64)
    a, b, choice = three(s, o, f, V)
    put(s, o, f, V, (a & choice) | (b & ~choice))


@native
def reversed_bits(a):
    """The bits of every byte the other way round."""
    a = ((a >> B(1)) & B(0x55)) | ((a & B(0x55)) << B(1))
    a = ((a >> B(2)) & B(0x33)) | ((a & B(0x33)) << B(2))
    return (a >> B(4)) | (a << B(4))


@xop("PPERM", extra=with_order(("PPERM",)))
@native
def vpperm(s, o, f):
    """Each byte of the third source takes one of 32 bytes, the first source's first, and says what becomes of it."""
    a, b, control = three(s, o, f, B)
    byte = select((control & B(0x10)) != B(0), permute(b, control & B(15)), permute(a, control & B(15)))
    N = vec[i8, 16]
    sign = bitcast(B, bitcast(N, byte) >> N(7))
    moved = select((control & B(0x40)) != B(0), reversed_bits(byte), byte)
    filled = select((control & B(0x40)) != B(0), sign, B(0))
    r = select((control & B(0x80)) != B(0), filled, moved)
    inverted = select((control & B(0x20)) != B(0), B(0xFF), B(0))
    put(s, o, f, B, r ^ inverted)


_PERMIL2 = ("PERMIL2PS", "PERMIL2PD")


@avx(*_PERMIL2, extra=with_order(_PERMIL2))
@native
def vpermil2(s, o, f):
    """Lanes of two sources within every 16 bytes; bit 3 of a lane's control and the immediate may zero it."""
    w = 8 if f.extra >= 2 else 4
    T = uint(w)
    V = lanes(f, T)
    a, b, control = three(s, o, f, V)
    number = control >> V(1) if w == 8 else control
    r = select((control & V(4)) != V(0), permute_halves(b, number, V), permute_halves(a, number, V))
    match = ((control >> V(3)) & V(1)) ^ V(T(o.imm & 1))
    zeroed = (match & V(T((o.imm >> 1) & 1))) != V(0)
    put(s, o, f, V, select(zeroed, V(0), r))


# --- comparisons ---------------------------------------------------------------------------------------

_LESS, _EQUAL, _GREATER = 0xA3, 0x9A, 0xAC
"""Bit n: whether condition n (<, <=, >, >=, =, !=, never, always) holds for less, equal and greater."""


def _compared(code: str) -> int:
    """`extra` of VPCOM: the lane in bytes, and 16 where it is unsigned."""
    return element(code) | 16 * code.startswith("PCOMU")


@native
def held(o, conditions, V):
    """All ones where the immediate's condition is one of these."""
    T = V.element
    return V(T(0) - T((u64(conditions) >> (o.imm & 7)) & 1))


@xop(*(f"PCOM{sign}{size}" for sign in ("", "U") for size in "BWDQ"), extra=_compared)
@native
def vpcom(s, o, f):
    w = f.extra & 15
    U = lanes(f, uint(w))
    V = U if f.extra & 16 else lanes(f, sint(w))
    a = operand(s, o, f, 1, V)
    b = operand(s, o, f, 2, V)
    r = select(a < b, held(o, _LESS, U), select(a == b, held(o, _EQUAL, U), held(o, _GREATER, U)))
    put(s, o, f, U, r)


# --- rotates and shifts by signed counts ---------------------------------------------------------------

_SIZES = "BWDQ"


def is_by_immediate(f):
    return f.kinds[2] == "i"


@xop(*("PROT" + size for size in _SIZES), extra=element)
@native
def vprot(s, o, f):
    """To the left, by negative counts to the right."""
    V = lanes(f, uint(f.extra))
    T = V.element
    a = operand(s, o, f, 1, V)
    if is_by_immediate(f):
        count = V(T(o.imm & 0xFF))
    else:
        count = operand(s, o, f, 2, V)
    count = count & V(f.extra * 8 - 1)
    put(s, o, f, V, (a << count) | (a >> (V(f.extra * 8) - count)))


@xop(*(name + size for name in ("PSHL", "PSHA") for size in _SIZES),
     extra=lambda code: element(code) | 16 * code.startswith("PSHA"))
@native
def vpsh(s, o, f):
    """Logical or arithmetic; the low byte of each lane's count is signed, and counts modulo the lane's width."""
    w = f.extra & 15
    U = lanes(f, uint(w))
    a = operand(s, o, f, 1, U)
    count = operand(s, o, f, 2, U)
    wide = U(w * 8 - 1)
    back = (U(0) - count) & wide
    if f.extra & 16:
        N = lanes(f, sint(w))
        right = bitcast(U, bitcast(N, a) >> bitcast(N, back))
    else:
        right = a >> back
    put(s, o, f, U, select((count & U(0x80)) != U(0), right, a << (count & wide)))


# --- multiply and add ----------------------------------------------------------------------------------

_MACS = ("PMACSWW", "PMACSSWW", "PMACSDD", "PMACSSDD", "PMACSWD", "PMACSSWD", "PMACSDQL", "PMACSSDQL", "PMACSDQH",
         "PMACSSDQH", "PMADCSWD", "PMADCSSWD")
"""A second S saturates."""


@native
def clamped(a, V, low, high, saturate):
    return maximum(minimum(a, V(high)), V(low)) if saturate else a


@xop(*_MACS[:4], extra=with_order(_MACS))
@native
def vpmacs_same(s, o, f):
    """Sources as wide as sums."""
    name = _MACS[f.extra // 2]
    saturate = name[5] == "S"
    T = i16 if name.endswith("WW") else i32
    V = lanes(f, T)
    W = vec[i32 if T.size == 2 else i64, V.count]
    a, b, c = three(s, o, f, V)
    low = -(1 << (T.size * 8 - 1))
    put(s, o, f, V, V(clamped(W(a) * W(b) + W(c), W, low, -low - 1, saturate)))


@native
def sum_up(a, b, saturate):
    return add_sat(a, b) if saturate else a + b


@xop(*_MACS[4:6], extra=with_order(_MACS))
@native
def vpmacs_wd(s, o, f):
    """The odd words of two sources, added to dwords."""
    V = lanes(f, i32)
    a, b, c = three(s, o, f, V)
    put(s, o, f, V, sum_up((a >> V(16)) * (b >> V(16)), c, _MACS[f.extra // 2][5] == "S"))


@xop(*_MACS[6:10], extra=with_order(_MACS))
@native
def vpmacs_dq(s, o, f):
    """The low or the high dword of every quadword of two sources, added to quadwords."""
    name = _MACS[f.extra // 2]
    V = lanes(f, i64)
    a, b, c = three(s, o, f, V)
    if name.endswith("L"):
        a = a << V(32)
        b = b << V(32)
    put(s, o, f, V, sum_up((a >> V(32)) * (b >> V(32)), c, name[5] == "S"))


@xop(*_MACS[10:], extra=with_order(_MACS))
@native
def vpmadcs(s, o, f):
    """Both products of words, added to dwords; saturation looks at the sum of all three."""
    V = lanes(f, i32)
    W = vec[i64, V.count]
    a, b, c = three(s, o, f, V)
    odd = W((a >> V(16)) * (b >> V(16)))
    even = W(((a << V(16)) >> V(16)) * ((b << V(16)) >> V(16)))
    saturate = _MACS[f.extra // 2][6] == "S"
    put(s, o, f, V, V(clamped(odd + even + W(c), W, -0x8000_0000, 0x7FFF_FFFF, saturate)))


# --- sums within a lane --------------------------------------------------------------------------------

_SUMS = ("BW", "BD", "BQ", "WD", "WQ", "DQ")


def _summed(code: str) -> int:
    """`extra`: bytes of a part and of a sum, and 1 << 8 where the parts are unsigned."""
    name = code.split("_")[0]
    size = {"B": 1, "W": 2, "D": 4, "Q": 8}
    return size[name[-2]] | size[name[-1]] << 4 | name.startswith("PHADDU") << 8


@native
def part(a, number, f, V):
    """Part `number` of every lane."""
    size = f.extra & 15
    return (a << V(V.element.size * 8 - 8 * size * (number + 1))) >> V((V.element.size - size) * 8)


@xop(*(f"PHADD{sign}{sizes}" for sign in ("", "U") for sizes in _SUMS), extra=_summed)
@native
def vphadd(s, o, f):
    w = (f.extra >> 4) & 15
    V = lanes(f, uint(w) if f.extra >> 8 else sint(w))
    a = operand(s, o, f, 1, V)
    total = V(0)
    for number in static(range(w // (f.extra & 15))):
        total = total + part(a, number, f, V)
    put(s, o, f, V, total)


@xop(*("PHSUB" + sizes for sizes in ("BW", "WD", "DQ")), extra=_summed)
@native
def vphsub(s, o, f):
    """The lower of two parts less the upper one."""
    V = lanes(f, sint((f.extra >> 4) & 15))
    a = operand(s, o, f, 1, V)
    put(s, o, f, V, part(a, 0, f, V) - part(a, 1, f, V))


# --- fractions -----------------------------------------------------------------------------------------


def _fraction(code: str) -> int:
    """`extra`: 1 for double precision."""
    return int(code.split("_")[0].endswith("D"))


@native
def fraction(s, a, V, double):
    """What is left of each lane without its whole part: an exact difference."""
    kind = "pd" if double else "ps"
    return host_binary(s, "sub" + kind, a, host_vector_truncate(s, kind, a, V), V)


@xop("FRCZPS", "FRCZPD", extra=_fraction)
@native
def vfrcz_packed(s, o, f):
    V = lanes(f, u32)
    put(s, o, f, V, fraction(s, operand(s, o, f, 1, V), V, f.extra))


@xop("FRCZSS", "FRCZSD", extra=_fraction)
@native
def vfrcz_scalar(s, o, f):
    """The rest of the register becomes zero."""
    T = u64 if f.extra else u32
    r = fraction(s, extended(T, F, scalar(s, o, f, 1, T)), F, f.extra)
    put(s, o, f, F, extended(T, F, bitcast(vec[T, 16 // T.size], r)[0]))

