"""PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM (SDM vol. 1, chapter 12; vol. 2, 4.1)."""

from typing import Any

from pellucid.cpu.flags import CC_UNKNOWN, set_eflags
from pellucid.cpu.operands import address, slot_pointer
from pellucid.cpu.simd import clear_above, load_vector, set_xmm
from pellucid.cpu.state import RFLAGS_CF, RFLAGS_OF, RFLAGS_SF, RFLAGS_ZF, slot_of
from pellucid.isa.simd import by_mnemonic, vector
from pellucid.native import bitcast, clz, ctz, i8, i16, i32, i64, minimum, movemask, native, select, u8, u16, u64, vec

RCX = 1
B: Any = vec[u8, 16]

# Fields of the immediate.
WORDS, SIGNED, AGGREGATION, NEGATIVE, MASKED, SELECT = 1, 2, 0xC, 0x10, 0x20, 0x40
ANY, RANGES, EACH, ORDERED = 0, 4, 8, 0xC


@native
def bits(count):
    """A mask of `count` low bits."""
    return (u64(1) << count) - 1


@native(inline=False)
def aggregate(V, imm: u64, a, b, la: u64, lb: u64) -> u64:
    """IntRes1: one bit for each lane of b, for a and b as lanes of V with la and lb valid ones."""
    n = V.count
    r: u64 = 0
    if (imm & AGGREGATION) == ANY:
        for i in range(la):
            r = r | movemask(b == V(a[i]))
        r = r & bits(lb)
    elif (imm & AGGREGATION) == RANGES:
        pair: u64 = 0
        while pair + 1 < la:
            r = r | (movemask(b >= V(a[pair])) & movemask(b <= V(a[pair + 1])))
            pair += 2
        r = r & bits(lb)
    elif (imm & AGGREGATION) == EACH:
        both = bits(minimum(la, lb))
        neither = ~(bits(la) | bits(lb)) & bits(u64(n))
        r = (movemask(a == b) & both) | neither
    else:
        r = bits(u64(n))
        for k in range(la):
            found = movemask(b == V(a[k])) & bits(lb)
            r = r & ((found >> k) | ~(bits(u64(n)) >> k))
    return r


@native(inline=False)
def compare_strings(imm: u64, a: B, b: B, la: u64, lb: u64) -> u64:
    """IntRes2: the aggregate, with its polarity."""
    r: u64 = 0
    n: u64 = 16
    if (imm & WORDS) != 0:
        n = 8
        if (imm & SIGNED) != 0:
            r = aggregate(vec[i16, 8], imm, bitcast(vec[i16, 8], a), bitcast(vec[i16, 8], b), la, lb)
        else:
            r = aggregate(vec[u16, 8], imm, bitcast(vec[u16, 8], a), bitcast(vec[u16, 8], b), la, lb)
    elif (imm & SIGNED) != 0:
        r = aggregate(vec[i8, 16], imm, bitcast(vec[i8, 16], a), bitcast(vec[i8, 16], b), la, lb)
    else:
        r = aggregate(B, imm, a, b, la, lb)
    if (imm & NEGATIVE) != 0:
        if (imm & MASKED) != 0:
            r = r ^ bits(lb)
        else:
            r = r ^ bits(n)
    return r


@native
def lane_count(imm):
    """How many lanes a register has: 16 bytes or 8 words."""
    return u64(16) >> (imm & WORDS)


@native
def implicit_length(imm, a):
    """Lanes before the first zero."""
    zeros = movemask(a == B(0))
    if (imm & WORDS) != 0:
        zeros = movemask(bitcast(vec[u16, 8], a) == vec[u16, 8](0))
    return minimum(ctz(zeros), lane_count(imm))


@native
def explicit_length(s, imm, number, wide):
    """The magnitude of EAX or EDX (RAX, RDX), no more than the lanes."""
    value = i64(s.gpr[number]) if wide else i64(i32(s.gpr[number]))
    magnitude = u64(-value) if value < 0 else u64(value)
    return minimum(magnitude, lane_count(imm))


@native
def put_index(s, imm, r):
    """ECX: the first or last lane found, or their number."""
    index = lane_count(imm)
    if r != 0:
        index = ctz(r)
        if (imm & SELECT) != 0:
            index = 63 - clz(r)
    s.gpr[RCX] = index


@native
def put_mask(s, imm, r):
    """XMM0: the bits, or a mask of bytes or words."""
    if (imm & SELECT) == 0:
        set_xmm(s, 0, vec[u64, 2]([r, u64(0)]), vec[u64, 2])
    elif (imm & WORDS) != 0:
        V = vec[u16, 8]
        found = (V(u16(r)) & [1 << i for i in range(8)]) != V(0)
        set_xmm(s, 0, select(found, V(0xFFFF), V(0)), V)
    else:
        low = vec[u8, 8](u8(r))
        high = vec[u8, 8](u8(r >> 8))
        put_byte_mask(s, low, high)


@native
def put_byte_mask(s, low, high):
    H = vec[u8, 8]
    first = select((low & [1 << i for i in range(8)]) != H(0), H(0xFF), H(0))
    second = select((high & [1 << i for i in range(8)]) != H(0), H(0xFF), H(0))
    set_xmm(s, 0, vec[u64, 2]([bitcast(u64, first), bitcast(u64, second)]), vec[u64, 2])


STRINGS = {"PCMPISTRI": 0, "PCMPISTRM": 1, "PCMPESTRI": 2, "PCMPESTRM": 3, "PCMPESTRI64": 6, "PCMPESTRM64": 7}


@vector("PCMPISTRI", "PCMPISTRM", "PCMPESTRI", "PCMPESTRM", "PCMPESTRI64", "PCMPESTRM64", extra=by_mnemonic(STRINGS),
        cc_out=CC_UNKNOWN)
@native
def pcmpstr(s, o, f):
    """f.extra: bit 0 the result is a mask, bit 1 lengths are explicit, bit 2 they are 64 bits wide."""
    imm = o.imm & 0xFF
    a = slot_pointer(s, o, 0, B)[0]
    b = load_vector(s, address(s, o), B) if f.kinds[1] == "m" else slot_pointer(s, o, 1, B)[0]
    if (f.extra & 2) != 0:
        la = explicit_length(s, imm, 0, (f.extra & 4) != 0)
        lb = explicit_length(s, imm, 2, (f.extra & 4) != 0)
    else:
        la = implicit_length(imm, a)
        lb = implicit_length(imm, b)
    r = compare_strings(imm, a, b, la, lb)
    if (f.extra & 1) != 0:
        put_mask(s, imm, r)
        if f.vex:
            clear_above(s, u64(slot_of("xmm")), 16)
    else:
        put_index(s, imm, r)
    n = lane_count(imm)
    flags = select(r != 0, u64(RFLAGS_CF), u64(0)) | select(lb < n, u64(RFLAGS_ZF), u64(0))
    set_eflags(s, flags | select(la < n, u64(RFLAGS_SF), u64(0)) | select(r & 1 != 0, u64(RFLAGS_OF), u64(0)))
