"""Single bits, bit scans and counts, byte order, exchange and compare (SDM vol. 2).

TZCNT and LZCNT (CPUID BMI1, LZCNT) have rows of their own; on a processor without them the same bytes are BSF and BSR
with a meaningless prefix.
"""

from pellucid.cpu.faults import general_protection
from pellucid.cpu.flags import CC_ADD, CC_LOGIC, CC_SUB, CC_UNKNOWN, set_cc, set_eflags, status_flags
from pellucid.cpu.host_crc import crc32c
from pellucid.cpu.memory import load, load_locked, load_rw, locked_pointer, store
from pellucid.cpu.operands import address, gpr, offset, read, read_rw, register, set_gpr, slot_pointer, update, write
from pellucid.cpu.segments import check_segment
from pellucid.cpu.state import RFLAGS_AF, RFLAGS_CF, RFLAGS_OF, RFLAGS_PF, RFLAGS_SF, RFLAGS_ZF
from pellucid.cpu.strings import is_checked, segment_of
from pellucid.isa.table import instruction
from pellucid.native import bswap, cas, clz, ctz, native, popcount, ptr, sint, u32, u64, uint

RAX, RCX, RDX, RBX = range(4)
_BIT_UNDEFINED = RFLAGS_OF | RFLAGS_SF | RFLAGS_AF | RFLAGS_PF
_LOG2_BITS = {2: 4, 4: 5, 8: 6}


# --- BT, BTS, BTR, BTC -----------------------------------------------------------------------------------

_BIT_TESTS = ("BT", "BTS", "BTR", "BTC")


def _by_immediate(code):
    return code.endswith("IMM8")


def _by_register(code):
    return not code.endswith("IMM8")


def _test_kind(code):
    """Which of BT, BTS, BTR, BTC."""
    return _BIT_TESTS.index(code.split("_")[0])


@native
def changed_bit(a, mask, kind):
    """The operand after BT (0), BTS, BTR, BTC."""
    if kind == 1:
        return a | mask
    if kind == 2:
        return a & ~mask
    return a ^ mask


@native
def set_carry(s, cf):
    """CF alone changes; ZF is defined to stay, and the others may."""
    set_eflags(s, (status_flags(s) & ~u64(RFLAGS_CF)) | cf)


@native
def bit_in_operand(s, o, f, index):
    """A bit inside operand 0: of a register, or of memory with an immediate index."""
    w = f.widths[0]
    T = uint(w)
    n = index & (w * 8 - 1)
    if f.extra == 0:
        a = read(s, o, f, 0)
    else:
        while True:
            a = read_rw(s, o, f, 0)
            if update(s, o, f, 0, a, changed_bit(a, T(1) << n, f.extra)):
                break
    set_carry(s, u64(a >> n) & 1)


@instruction(*_BIT_TESTS, codes=_by_immediate, lock=True, extra=_test_kind, cc_out=CC_UNKNOWN,
             undefined=_BIT_UNDEFINED, name="bt_immediate")
@native
def bt_immediate(s, o, f):
    bit_in_operand(s, o, f, u64(read(s, o, f, 1)))


@native
def bit_address(s, o, f, index):
    """The linear address of the operand-sized piece of a bit string that holds bit `index` (SDM vol. 1, 3.7.3)."""
    w = f.widths[0]
    piece = u64(sint(8)(index) >> _LOG2_BITS[w]) * w
    ea = offset(s, o) + piece
    if f.asize < 8:
        ea = ea & ((1 << (f.asize * 8)) - 1)
    linear = ea + register(s, o.seg, u64)
    if f.m64:
        return linear
    if is_checked(s, segment_of(o)):
        check_segment(s, segment_of(o), ea, u64(w), f.extra != 0)
    return linear & 0xFFFF_FFFF


@native
def bit_in_string(s, o, f, index):
    """A bit of memory by a register index, which is signed and reaches beyond the operand."""
    w = f.widths[0]
    T = uint(w)
    n = index & (w * 8 - 1)
    lin = bit_address(s, o, f, index)
    if f.extra == 0:
        a = load(s, lin, T)
    else:
        while True:
            a = load_locked(s, lin, T) if f.lock else load_rw(s, lin, T)
            if store_update(s, f, lin, a, changed_bit(a, T(1) << n, f.extra), T):
                break
    set_carry(s, u64(a >> n) & 1)


@native
def store_update(s, f, lin, old, new, T):
    """Finish a read-modify-write at a linear address; False where LOCK found another value."""
    if f.lock:
        host = locked_pointer(s, lin, u64(T.size))
        if host != 0:
            return cas(ptr[T](host), old, new)
    store(s, lin, new, T)
    return True


@instruction(*_BIT_TESTS, codes=_by_register, lock=True, asize=True, stack=True, extra=_test_kind, cc_out=CC_UNKNOWN,
             undefined=_BIT_UNDEFINED, name="bt_register")
@native
def bt_register(s, o, f):
    S = sint(f.widths[1])
    index = u64(S(read(s, o, f, 1)))
    if f.kinds[0] == "m":
        bit_in_string(s, o, f, index)
    else:
        bit_in_operand(s, o, f, index)


# --- scans and counts ------------------------------------------------------------------------------------

_SCAN_UNDEFINED = RFLAGS_CF | RFLAGS_OF | RFLAGS_SF | RFLAGS_AF | RFLAGS_PF


@native
def scanned(s, o, f, source, result):
    """BSF and BSR leave the destination for a source of 0, as processors have always done."""
    if source != 0:
        write(s, o, f, 0, result)
    set_cc(s, CC_LOGIC, f.widths[0], source, u64(0))


@instruction("BSF", cc_out=CC_LOGIC, undefined=_SCAN_UNDEFINED)
@native
def bsf(s, o, f):
    source = read(s, o, f, 1)
    scanned(s, o, f, source, ctz(source))


@instruction("BSR", cc_out=CC_LOGIC, undefined=_SCAN_UNDEFINED)
@native
def bsr(s, o, f):
    source = read(s, o, f, 1)
    scanned(s, o, f, source, (f.widths[0] * 8 - 1) - clz(source))


@native
def counted(s, o, f, source, result):
    """TZCNT and LZCNT: CF for a source of 0, ZF for a result of 0."""
    write(s, o, f, 0, result)
    set_eflags(s, u64(source == 0) | (u64(result == 0) << 6))


@instruction("TZCNT", cc_out=CC_UNKNOWN, undefined=RFLAGS_OF | RFLAGS_SF | RFLAGS_AF | RFLAGS_PF)
@native
def tzcnt(s, o, f):
    source = read(s, o, f, 1)
    counted(s, o, f, source, ctz(source))


@instruction("LZCNT", cc_out=CC_UNKNOWN, undefined=RFLAGS_OF | RFLAGS_SF | RFLAGS_AF | RFLAGS_PF)
@native
def lzcnt(s, o, f):
    source = read(s, o, f, 1)
    counted(s, o, f, source, clz(source))


@instruction("POPCNT", cc_out=CC_UNKNOWN, name="popcnt")
@native
def popcnt(s, o, f):
    source = read(s, o, f, 1)
    write(s, o, f, 0, popcount(source))
    set_eflags(s, u64(source == 0) << 6)


@instruction("CRC32")
@native
def crc32(s, o, f):
    value = crc32c(slot_pointer(s, o, 0, u32)[0], read(s, o, f, 1), f.widths[1])
    slot_pointer(s, o, 0, u64)[0] = value


# --- byte order ------------------------------------------------------------------------------------------


@instruction("BSWAP", name="bswap")
@native
def bswap_(s, o, f):
    if f.widths[0] == 2:
        # Undefined by the manual; processors give zero.
        write(s, o, f, 0, uint(2)(0))
    else:
        write(s, o, f, 0, bswap(slot_pointer(s, o, 0, uint(f.widths[0]))[0]))


@instruction("MOVBE")
@native
def movbe(s, o, f):
    write(s, o, f, 0, bswap(read(s, o, f, 1)))


# --- exchange and compare --------------------------------------------------------------------------------


@instruction("XADD", lock=True, cc_out=CC_ADD)
@native
def xadd(s, o, f):
    while True:
        b = read(s, o, f, 1)
        a = read_rw(s, o, f, 0)
        r = a + b
        if f.kinds[0] == "r":
            write(s, o, f, 1, a)
        if update(s, o, f, 0, a, r):
            break
    if f.kinds[0] != "r":
        write(s, o, f, 1, a)
    set_cc(s, CC_ADD, f.widths[0], r, b)


@instruction("CMPXCHG", codes=lambda code: "486" not in code, lock=True, cc_out=CC_SUB)
@native
def cmpxchg(s, o, f):
    w = f.widths[0]
    expected = gpr(s, RAX, w)
    while True:
        b = read(s, o, f, 1)
        a = read_rw(s, o, f, 0)
        if f.kinds[0] == "r" and a != expected:
            # A register keeps its upper half, too.
            break
        r = b if a == expected else a
        if update(s, o, f, 0, a, r):
            break
    if a != expected:
        set_gpr(s, RAX, w, u64(a))
    set_cc(s, CC_SUB, w, expected - a, a)


@instruction("CMPXCHG8B", "CMPXCHG16B", lock=True, cc_out=CC_UNKNOWN)
@native
def cmpxchg_pair(s, o, f):
    w = f.widths[0]
    half = w // 2
    T = uint(w)
    if w == 16:
        if address(s, o) & 15 != 0:
            general_protection(s, 0)
    expected = (T(gpr(s, RDX, half)) << (half * 8)) | T(gpr(s, RAX, half))
    wanted = (T(gpr(s, RCX, half)) << (half * 8)) | T(gpr(s, RBX, half))
    while True:
        a = read_rw(s, o, f, 0)
        r = wanted if a == expected else a
        if update(s, o, f, 0, a, r):
            break
    flags = status_flags(s) & ~u64(RFLAGS_ZF)
    if a == expected:
        flags = flags | RFLAGS_ZF
    else:
        set_gpr(s, RAX, half, u64(a) & ((1 << (half * 8)) - 1))
        set_gpr(s, RDX, half, u64(a >> (half * 8)))
    set_eflags(s, flags)
