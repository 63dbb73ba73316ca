"""BMI1, BMI2 and ADX: bit fields, deposits and extracts, shifts and sums that leave flags alone (SDM vol. 2).

And TBM of AMD's processors (APM vol. 3): the trailing bits of a number.
"""

from pellucid.cpu.flags import CC_UNKNOWN, set_eflags, status_flags, szp
from pellucid.cpu.operands import gpr, read, slot_pointer, write
from pellucid.cpu.state import RFLAGS_AF, RFLAGS_CF, RFLAGS_OF, RFLAGS_PF
from pellucid.isa.table import instruction
from pellucid.native import native, rotr, sint, u64, uint

RDX = 2
_AF_PF = RFLAGS_AF | RFLAGS_PF


@native
def set_result(s, o, f, result, carry):
    """Operand 0, with SF and ZF of it, CF as given and OF clear."""
    write(s, o, f, 0, result)
    set_eflags(s, (szp(result, f.widths[0]) & ~u64(RFLAGS_PF)) | u64(carry))


@instruction("ANDN", cc_out=CC_UNKNOWN, undefined=_AF_PF)
@native
def andn(s, o, f):
    set_result(s, o, f, ~read(s, o, f, 1) & read(s, o, f, 2), False)


@instruction("BLSR", cc_out=CC_UNKNOWN, undefined=_AF_PF)
@native
def blsr(s, o, f):
    a = read(s, o, f, 1)
    set_result(s, o, f, a & (a - 1), a == 0)


@instruction("BLSMSK", cc_out=CC_UNKNOWN, undefined=_AF_PF)
@native
def blsmsk(s, o, f):
    a = read(s, o, f, 1)
    set_result(s, o, f, a ^ (a - 1), a == 0)


@instruction("BLSI", cc_out=CC_UNKNOWN, undefined=_AF_PF)
@native
def blsi(s, o, f):
    a = read(s, o, f, 1)
    set_result(s, o, f, a & (~a + 1), a != 0)


TRAILING = ("BLCFILL", "BLCI", "BLCIC", "BLCMSK", "BLCS", "T1MSKC", "BLSFILL", "BLSIC", "TZMSK")
"""The first six add 1 to the source, the others take 1 away: CF is the carry, or the borrow."""


@instruction(*TRAILING, cc_out=CC_UNKNOWN, undefined=_AF_PF,
             extra=lambda code: TRAILING.index(code.removeprefix("XOP_").split("_")[0]))
@native
def trailing(s, o, f):
    name = TRAILING[f.extra]
    a = read(s, o, f, 1)
    adds = f.extra < 6
    near = a + 1 if adds else a - 1
    if name == "BLCI":
        r = a | ~near
    elif name == "BLCFILL":
        r = a & near
    elif name == "BLCMSK":
        r = a ^ near
    elif name == "BLCS" or name == "BLSFILL":
        r = a | near
    elif name == "BLCIC" or name == "TZMSK":
        r = ~a & near
    else:
        r = ~a | near
    set_result(s, o, f, r, ~a == 0 if adds else a == 0)


@native
def low_bits(T, count):
    """A mask of `count` low bits; all of T from its width on."""
    return (T(1) << count) - T(1)


@instruction("BEXTR", cc_out=CC_UNKNOWN, undefined=_AF_PF | 0x80)
@native
def bextr(s, o, f):
    """Bits start .. start + length - 1; start and length are the control's first two bytes."""
    T = uint(f.widths[0])
    control = u64(read(s, o, f, 2))
    a = read(s, o, f, 1) >> (control & 0xFF)
    set_result(s, o, f, a & low_bits(T, (control >> 8) & 0xFF), False)


@instruction("BZHI", cc_out=CC_UNKNOWN, undefined=_AF_PF)
@native
def bzhi(s, o, f):
    T = uint(f.widths[0])
    count = u64(read(s, o, f, 2)) & 0xFF
    set_result(s, o, f, read(s, o, f, 1) & low_bits(T, count), count >= T.bits)


@native(inline=False)
def deposit(value: u64, mask: u64) -> u64:
    """The low bits of `value` at the places of the bits of `mask`, in order."""
    r: u64 = 0
    while mask != 0:
        place = mask & (~mask + 1)
        if (value & 1) != 0:
            r = r | place
        value = value >> 1
        mask = mask ^ place
    return r


@native(inline=False)
def extract(value: u64, mask: u64) -> u64:
    """The bits of `value` at the places of the bits of `mask`, packed together."""
    r: u64 = 0
    at: u64 = 1
    while mask != 0:
        place = mask & (~mask + 1)
        if (value & place) != 0:
            r = r | at
        at = at << 1
        mask = mask ^ place
    return r


@instruction("PDEP")
@native
def pdep(s, o, f):
    T = uint(f.widths[0])
    write(s, o, f, 0, T(deposit(u64(read(s, o, f, 1)), u64(read(s, o, f, 2)))))


@instruction("PEXT")
@native
def pext(s, o, f):
    T = uint(f.widths[0])
    write(s, o, f, 0, T(extract(u64(read(s, o, f, 1)), u64(read(s, o, f, 2)))))


@instruction("MULX")
@native
def mulx(s, o, f):
    """The high half goes to operand 0, which wins where both are one register."""
    w = f.widths[0]
    T = uint(w)
    D = uint(w * 2)
    product = D(gpr(s, RDX, w)) * D(read(s, o, f, 2))
    write(s, o, f, 1, T(product))
    write(s, o, f, 0, T(product >> (w * 8)))


@instruction("RORX")
@native
def rorx(s, o, f):
    write(s, o, f, 0, rotr(read(s, o, f, 1), o.imm & (f.widths[0] * 8 - 1)))


@native
def count_of(s, o, f):
    """The count of SHLX and its kin: operand 2 modulo the width."""
    return u64(read(s, o, f, 2)) & (f.widths[0] * 8 - 1)


@instruction("SHLX")
@native
def shlx(s, o, f):
    write(s, o, f, 0, read(s, o, f, 1) << count_of(s, o, f))


@instruction("SHRX")
@native
def shrx(s, o, f):
    write(s, o, f, 0, read(s, o, f, 1) >> count_of(s, o, f))


@instruction("SARX")
@native
def sarx(s, o, f):
    T = uint(f.widths[0])
    S = sint(f.widths[0])
    write(s, o, f, 0, T(S(read(s, o, f, 1)) >> count_of(s, o, f)))


@instruction("ADCX", "ADOX", extra=lambda code: RFLAGS_CF if code.startswith("ADCX") else RFLAGS_OF,
             cc_out=CC_UNKNOWN)
@native
def adcx(s, o, f):
    """Sum with carry in and out through one flag, f.extra."""
    b = read(s, o, f, 1)
    T = uint(f.widths[0])
    flags = status_flags(s)
    a = slot_pointer(s, o, 0, T)[0]
    partial = a + b
    r = partial + T(u64((flags & f.extra) != 0))
    write(s, o, f, 0, r)
    carry: u64 = 0
    if partial < a or r < partial:
        carry = f.extra
    set_eflags(s, (flags & ~u64(f.extra)) | carry)
