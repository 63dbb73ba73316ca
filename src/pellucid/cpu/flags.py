"""Lazy status flags: each arithmetic instruction leaves (kind, result, operand); a reader computes what it needs.

    kind = family * 4 + log2(width)
    ADD    dst = a + b, src = b          SUB    dst = a - b, src = b (CMP and NEG too)
    LOGIC  dst = result                  INC, DEC  dst = result, src = the carry kept
    SHL    dst = result, src = a << (n - 1): CF is its top bit
    SHR    dst = result, src = a >> (n - 1): CF is its low bit (SAR too)
    MUL    dst = low half, src != 0: the high half matters (CF and OF)
    EFLAGS src holds the six flags themselves
"""

from pellucid.cpu.state import RFLAGS_AF, RFLAGS_CF, RFLAGS_OF, RFLAGS_PF, RFLAGS_SF, RFLAGS_STATUS, RFLAGS_ZF
from pellucid.native import is_constant, native, popcount, sint, static, u64, u8, uint

CC_EFLAGS, CC_ADD, CC_SUB, CC_LOGIC, CC_INC, CC_DEC, CC_SHL, CC_SHR, CC_MUL = range(9)
CC_FAMILIES = 9
CC_KINDS = CC_FAMILIES * 4
CC_UNKNOWN, CC_SAME = 0xFF, 0xFE
_LOG = {1: 0, 2: 1, 4: 2, 8: 3}

# Condition codes by their number in the opcode (SDM vol. 1, appendix B).
COND_O, COND_NO, COND_B, COND_AE, COND_E, COND_NE, COND_BE, COND_A, COND_S, COND_NS, COND_P, COND_NP, COND_L, COND_GE, \
    COND_LE, COND_G = range(16)


def cc_kind(family: int, width: int) -> int:
    """The number of a lazy-flag kind for an operand of `width` bytes."""
    return family * 4 + _LOG[width]


@native
def set_cc(s, family, w, dst, src):
    """Leave the operands of the flags; dst and src are zero-extended."""
    s.cc_kind = cc_kind(family, w)
    s.cc_dst = u64(dst)
    s.cc_src = u64(src)


@native
def set_eflags(s, value):
    """Set the six status flags outright."""
    s.cc_kind = u64(0)
    s.cc_src = value & RFLAGS_STATUS


@native
def parity(x):
    """PF of a result: bit 2 set when its low byte has an even number of ones."""
    return u64((popcount(u8(x)) & 1) ^ 1) << 2


@native
def szp(r, w):
    """SF, ZF and PF of a result of width w."""
    T = uint(w)
    sf = u64(T(r) >> (w * 8 - 1)) << 7
    zf = u64(T(r) == 0) << 6
    return sf | zf | parity(r)


@native
def kind_flags(dst, src, family, w):
    """The six flags for one known kind."""
    T = uint(w)
    top = w * 8 - 1
    if family == CC_EFLAGS:
        return src
    r = T(dst)
    b = T(src)
    base = szp(r, w)
    if family == CC_ADD:
        a = r - b
        cf = u64(r < b)
        of = u64(((a ^ r) & (b ^ r)) >> top) << 11
        return base | cf | of | (u64(a ^ b ^ r) & RFLAGS_AF)
    if family == CC_SUB:
        a = r + b
        cf = u64(a < b)
        of = u64(((a ^ b) & (a ^ r)) >> top) << 11
        return base | cf | of | (u64(a ^ b ^ r) & RFLAGS_AF)
    if family == CC_LOGIC:
        return base
    if family == CC_INC:
        of = u64(r == T(1) << top) << 11
        return base | (src & 1) | of | (u64((r & 15) == 0) << 4)
    if family == CC_DEC:
        of = u64(r == (T(1) << top) - 1) << 11
        return base | (src & 1) | of | (u64((r & 15) == 15) << 4)
    if family == CC_SHL:
        return base | u64(b >> top) | (u64((b ^ r) >> top) << 11)
    if family == CC_SHR:
        return base | u64(b & 1) | (u64((b ^ r) >> top) << 11)
    both = u64(src != 0)
    return base | both | (both << 11)


@native
def known_flags(kind, dst, src):
    """The six flags for a kind that the compiler knows: of what stands here next to nothing is left then."""
    bits = u64(8) << (kind & 3)
    top = bits - 1
    mask = ~u64(0) >> (64 - bits)
    family = kind >> 2
    r = dst & mask
    b = src & mask
    flags = ((r >> top) << 7) | (u64(r == 0) << 6) | parity(r)
    if family == CC_EFLAGS:
        flags = src
    elif family == CC_ADD:
        a = (r - b) & mask
        flags = flags | u64(r < b) | ((((a ^ r) & (b ^ r)) >> top) << 11) | ((a ^ b ^ r) & RFLAGS_AF)
    elif family == CC_SUB:
        a = (r + b) & mask
        flags = flags | u64(a < b) | ((((a ^ b) & (a ^ r)) >> top) << 11) | ((a ^ b ^ r) & RFLAGS_AF)
    elif family == CC_INC:
        flags = flags | (src & 1) | (u64(r == u64(1) << top) << 11) | (u64((r & 15) == 0) << 4)
    elif family == CC_DEC:
        flags = flags | (src & 1) | (u64(r == (u64(1) << top) - 1) << 11) | (u64((r & 15) == 15) << 4)
    elif family == CC_SHL:
        flags = flags | (b >> top) | (((b ^ r) >> top) << 11)
    elif family == CC_SHR:
        flags = flags | (b & 1) | (((b ^ r) >> top) << 11)
    elif family == CC_MUL:
        flags = flags | (u64(src != 0) << 11) | u64(src != 0)
    return flags


@native(inline=False)
def status_flags(s) -> u64:
    """The six status flags, computed from the lazy state. Regions contain it, and mostly know the kind."""
    if is_constant(s.cc_kind):
        return known_flags(s.cc_kind, s.cc_dst, s.cc_src)
    return unknown_flags(s)


@native(inline=False)
def unknown_flags(s) -> u64:
    kind = s.cc_kind
    if kind < 4:
        return s.cc_src
    for family in static(range(1, 9)):
        for log in static(range(4)):
            if kind == family * 4 + log:
                return kind_flags(s.cc_dst, s.cc_src, family, 1 << log)
    return s.cc_src


@native
def get_rflags(s):
    """The whole RFLAGS."""
    return status_flags(s) | s.flags


@native
def set_rflags(s, value):
    """Replace the whole RFLAGS; the caller has merged what may not change, and calls update_mode for TF, VM, AC."""
    set_eflags(s, value)
    s.flags = (value & ~RFLAGS_STATUS) | 2


@native
def carry(s):
    """CF as 0 or 1."""
    return status_flags(s) & 1


@native
def flags_condition(flags, cond):
    """Whether a condition holds for computed flags."""
    base = cond & 14
    if base == COND_O:
        r = (flags & RFLAGS_OF) != 0
    elif base == COND_B:
        r = (flags & RFLAGS_CF) != 0
    elif base == COND_E:
        r = (flags & RFLAGS_ZF) != 0
    elif base == COND_BE:
        r = (flags & (RFLAGS_CF | RFLAGS_ZF)) != 0
    elif base == COND_S:
        r = (flags & RFLAGS_SF) != 0
    elif base == COND_P:
        r = (flags & RFLAGS_PF) != 0
    elif base == COND_L:
        r = (((flags >> 7) ^ (flags >> 11)) & 1) != 0
    else:
        r = (flags & RFLAGS_ZF) != 0 or (((flags >> 7) ^ (flags >> 11)) & 1) != 0
    return r if (cond & 1) == 0 else not r


@native
def condition(s, cond, kind):
    """Whether condition number `cond` holds; `kind` is the compile-time cc_kind, or CC_UNKNOWN."""
    if kind == CC_UNKNOWN:
        return flags_condition(status_flags(s), cond)
    family = kind >> 2
    w = 1 << (kind & 3)
    T = uint(w)
    S = sint(w)
    base = cond & 14
    r = T(s.cc_dst)
    negate = (cond & 1) != 0
    if base == COND_E:
        return (r != 0) if negate else (r == 0)
    if base == COND_S:
        return (S(r) >= 0) if negate else (S(r) < 0)
    if family == CC_SUB:
        b = T(s.cc_src)
        a = r + b
        if base == COND_B:
            return (a >= b) if negate else (a < b)
        if base == COND_BE:
            return (a > b) if negate else (a <= b)
        if base == COND_L:
            return (S(a) >= S(b)) if negate else (S(a) < S(b))
        if base == COND_LE:
            return (S(a) > S(b)) if negate else (S(a) <= S(b))
    if family == CC_LOGIC:
        if base == COND_BE:
            return (r != 0) if negate else (r == 0)
        if base == COND_L:
            return (S(r) >= 0) if negate else (S(r) < 0)
        if base == COND_LE:
            return (S(r) > 0) if negate else (S(r) <= 0)
    return flags_condition(kind_flags(s.cc_dst, s.cc_src, family, w), cond)
