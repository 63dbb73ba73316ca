"""Moves between vector registers, general registers and memory."""

from pellucid.cpu.memory import linear_wrap, probe_write, store
from pellucid.cpu.operands import address, read, register, slot_pointer, write
from pellucid.cpu.segments import check_segment
from pellucid.cpu.simd import (
    aligned_operand, check_x87, enter_mmx, has_mmx, is_nondestructive, lanes, left, load_vector, operand, put,
    put_aligned, put_anywhere, scalar, second, source_lanes)
from pellucid.cpu.state import MODE_64, MODE_SIZE, slot_of
from pellucid.isa.simd import by_mnemonic, element, vector
from pellucid.isa.table import instruction
from pellucid.native import (
    at, bitcast, i8, insert, movemask, native, select, shuffle, sint, u8, u32, u64, u128, uint, vec)

# --- whole registers -----------------------------------------------------------------------------------


@vector("MOVAPS", "MOVAPD", "MOVDQA", "MOVNTPS", "MOVNTPD", "MOVNTDQ", "MOVNTDQA", "MOVNTQ")
@native
def move_aligned(s, o, f):
    V = vec[u64, max(f.widths) // 8]
    put_aligned(s, o, f, V, aligned_operand(s, o, f, 1, V))
    if f.kinds == "mn":
        enter_mmx(s)


@vector("MOVUPS", "MOVUPD", "MOVDQU", "LDDQU")
@native
def move_unaligned(s, o, f):
    V = vec[u64, max(f.widths) // 8]
    if f.kinds[1] == "m":
        put(s, o, f, V, load_vector(s, address(s, o), V))
    else:
        put_anywhere(s, o, f, V, slot_pointer(s, o, 1, V)[0])


@instruction("MOVNTI")
@native
def movnti(s, o, f):
    write(s, o, f, 0, read(s, o, f, 1))


# --- low parts -----------------------------------------------------------------------------------------


@vector("MOVD", "MOVQ", extra=element)
@native
def movd(s, o, f):
    T = uint(f.extra)
    value = scalar(s, o, f, 1, T)
    if f.kinds[0] == "x":
        V = vec[u64, 2]
        put(s, o, f, V, bitcast(V, u128(value)))
    elif f.kinds[0] == "n":
        V = vec[u64, 1]
        put(s, o, f, V, bitcast(V, u64(value)))
    else:
        write(s, o, f, 0, value)
        if has_mmx(f):
            enter_mmx(s)


@vector("MOVSS", "MOVSD", extra=by_mnemonic({"MOVSS": 4, "MOVSD": 8}))
@native
def move_scalar(s, o, f):
    T = uint(f.extra)
    value = scalar(s, o, f, second(f), T)
    if f.kinds == "xm":
        V = vec[u64, 2]
        put(s, o, f, V, bitcast(V, u128(value)))
    elif f.kinds[0] == "m":
        store(s, address(s, o), value, T)
    elif f.vex:
        V = vec[T, 16 // f.extra]
        put(s, o, f, V, insert(left(s, o, f, V), 0, value))
    else:
        slot_pointer(s, o, 0, T)[0] = value


@vector("MOVLPS", "MOVLPD")
@native
def move_low(s, o, f):
    if f.kinds[0] == "m":
        store(s, address(s, o), scalar(s, o, f, 1, u64), u64)
    else:
        set_half(s, o, f, 0, scalar(s, o, f, second(f), u64))


@native
def set_half(s, o, f, half, value):
    """Replace the low (0) or high (1) eight bytes of the first source."""
    if is_nondestructive(f):
        V = vec[u64, 2]
        put(s, o, f, V, insert(left(s, o, f, V), half, value))
    else:
        at(s, u64(o.dst) + half * 8, u64)[0] = value


@native
def high_half(s, o, f):
    """The high eight bytes of the last operand, a register."""
    return slot_pointer(s, o, second(f), u64)[1]


@vector("MOVHPS", "MOVHPD")
@native
def move_high(s, o, f):
    if f.kinds[0] == "m":
        store(s, address(s, o), high_half(s, o, f), u64)
    else:
        set_half(s, o, f, 1, scalar(s, o, f, second(f), u64))


@vector("MOVHLPS")
@native
def movhlps(s, o, f):
    set_half(s, o, f, 0, high_half(s, o, f))


@vector("MOVLHPS")
@native
def movlhps(s, o, f):
    set_half(s, o, f, 1, scalar(s, o, f, second(f), u64))


@vector("MOVQ2DQ")
@native
def movq2dq(s, o, f):
    V = vec[u64, 2]
    put(s, o, f, V, bitcast(V, u128(scalar(s, o, f, 1, u64))))


@vector("MOVDQ2Q")
@native
def movdq2q(s, o, f):
    V = vec[u64, 1]
    put(s, o, f, V, bitcast(V, scalar(s, o, f, 1, u64)))


# --- duplicated lanes ----------------------------------------------------------------------------------


@vector("MOVDDUP")
@native
def movddup(s, o, f):
    V = lanes(f, u64)
    if f.widths[0] == 32:
        a = operand(s, o, f, 1, V)
        put(s, o, f, V, shuffle(a, a, pairs(4, 0)))
    else:
        put(s, o, f, V, V(scalar(s, o, f, 1, u64)))


def pairs(count, odd):
    """Lane numbers that repeat each even (0) or odd (1) lane: 0, 0, 2, 2, ..."""
    return [i // 2 * 2 + odd for i in range(count)]


@vector("MOVSLDUP", "MOVSHDUP", extra=by_mnemonic({"MOVSLDUP": 0, "MOVSHDUP": 1}))
@native
def move_duplicate(s, o, f):
    V = lanes(f, u32)
    a = operand(s, o, f, 1, V)
    put(s, o, f, V, shuffle(a, a, pairs(V.count, f.extra)))


# --- sign masks ----------------------------------------------------------------------------------------


@vector("MOVMSKPS", "MOVMSKPD", "PMOVMSKB", extra=by_mnemonic({"MOVMSKPS": 4, "MOVMSKPD": 8, "PMOVMSKB": 1}))
@native
def move_mask(s, o, f):
    V = source_lanes(f, sint(f.extra))
    mask = movemask(operand(s, o, f, 1, V) < V(0))
    write(s, o, f, 0, uint(f.widths[0])(mask))
    if has_mmx(f):
        enter_mmx(s)


@native(inline=False)
def string_destination(s, o, asize, size) -> u64:
    """DS:(E/R)DI, or the overriding segment, as a linear address."""
    offset = s.gpr[7] & ((1 << (asize * 8)) - 1)
    if (s.mode & MODE_SIZE) != MODE_64:
        segment = (u64(o.seg) - slot_of("seg_base")) >> 3
        check_segment(s, u32(segment), offset, u64(size), True)
    return linear_wrap(s, offset + register(s, o.seg, u64))


@native(inline=False)
def store_bytes(s, lin: u64, low: u64, high: u64, mask: u64, size: u64) -> None:
    """Store the bytes of high:low whose bit is set in `mask`; faults come from all of the operand, as on processors."""
    probe_write(s, lin, size)
    for i in range(size):
        if (mask >> i) & 1 != 0:
            byte = low >> (i * 8)
            if i >= 8:
                byte = high >> ((i - 8) * 8)
            store(s, linear_wrap(s, lin + i), u8(byte), u8)


@vector("MASKMOVQ", "MASKMOVDQU", asize=True)
@native
def maskmov(s, o, f):
    V = vec[i8, f.widths[1]]
    W = vec[u64, f.widths[1] // 8]
    if has_mmx(f):
        check_x87(s)
    mask = movemask(slot_pointer(s, o, 2, V)[0] < V(0))
    value = slot_pointer(s, o, 1, W)[0]
    store_bytes(s, string_destination(s, o, f.asize, f.widths[1]), value[0], value[W.count - 1], mask, u64(f.widths[1]))
    if has_mmx(f):
        enter_mmx(s)


# --- single lanes --------------------------------------------------------------------------------------


@native
def lane_offset(o, slot, width, size):
    """State offset of the lane that the immediate names, of a register of `width` bytes."""
    return u64(slot) + (o.imm & (width // size - 1)) * size


@vector("PINSRB", "PINSRW", "PINSRD", "PINSRQ", extra=element)
@native
def pinsr(s, o, f):
    T = uint(f.extra)
    V = lanes(f, T)
    a = left(s, o, f, V)
    put(s, o, f, V, insert(a, o.imm & (V.count - 1), T(read(s, o, f, second(f)))))


@vector("PEXTRB", "PEXTRW", "PEXTRD", "PEXTRQ", "EXTRACTPS",
        extra=lambda code: 4 if code.startswith("EXTRACTPS") else element(code))
@native
def pextr(s, o, f):
    if has_mmx(f):
        check_x87(s)
    value = at(s, lane_offset(o, o.src, f.widths[1], f.extra), uint(f.extra))[0]
    write(s, o, f, 0, uint(f.widths[0])(value))
    if has_mmx(f):
        enter_mmx(s)


@vector("INSERTPS")
@native
def insertps(s, o, f):
    V = vec[u32, 4]
    if f.kinds[second(f)] == "m":
        value = scalar(s, o, f, second(f), u32)
    else:
        value = slot_pointer(s, o, second(f), u32)[(o.imm >> 6) & 3]
    r = insert(left(s, o, f, V), (o.imm >> 4) & 3, value)
    put(s, o, f, V, select((V(u32(o.imm)) & [1, 2, 4, 8]) != V(0), V(0), r))


# --- widening ------------------------------------------------------------------------------------------

_WIDENINGS = ("BW", "BD", "BQ", "WD", "WQ", "DQ")
_SIZES = {"B": 1, "W": 2, "D": 4, "Q": 8}


def widening(code):
    """`extra`: source lane size * 16 + destination lane size, of PMOVZXBW to PMOVSXDQ."""
    kind = code.split("_")[0][-2:]
    return _SIZES[kind[0]] * 16 + _SIZES[kind[1]]


@native
def widened_source(s, o, f, T):
    """Operand 1 as lanes of T, as many as the destination has."""
    count = f.widths[0] // (f.extra & 15)
    return bitcast(vec[T, count], scalar(s, o, f, 1, uint(count * T.size)))


@vector(*("PMOVZX" + kind for kind in _WIDENINGS), extra=widening)
@native
def pmovzx(s, o, f):
    V = lanes(f, uint(f.extra & 15))
    put(s, o, f, V, V(widened_source(s, o, f, uint(f.extra >> 4))))


@vector(*("PMOVSX" + kind for kind in _WIDENINGS), extra=widening)
@native
def pmovsx(s, o, f):
    V = lanes(f, sint(f.extra & 15))
    put(s, o, f, V, V(widened_source(s, o, f, sint(f.extra >> 4))))
