"""The x87 register stack: places, tags, and what exceptions do (SDM vol. 1, chapter 8).

`st` holds the physical registers, 16 bytes each: significand, sign and exponent, and six bytes that nobody reads.
Register i of the stack is physical (fpu_top + i) & 7; fpu_tags has a bit for each physical register in use.

An exception that the guest unmasked is held in the status word (ES and B) until the next waiting x87 or MMX
instruction raises #MF. fpu_ip follows every instruction that computes; opcode and operand pointer only those with an
unmasked exception, and the two selectors stay 0: CPUID says both (leaf 7, EBX bits 6 and 13).
"""

from pellucid.cpu.faults import Stop, fault_plain
from pellucid.cpu.host_x87 import X87_BEFORE, X87_IE, X87_OE, X87_SF, X87_STICKY, X87_UE
from pellucid.cpu.memory import linear_wrap, load, probe_write, store, tlb_entry
from pellucid.cpu.operands import address, offset
from pellucid.cpu.state import CR0_NE, EXIT_FERR, MF, PAGE_MASK, slot_of
from pellucid.native import at, native, ptr, u8, u16, u32, u64, unlikely

ST = slot_of("st")
X87_ES, X87_B = 0x80, 0x8000
C0, C1, C2, C3 = 0x100, 0x200, 0x400, 0x4000
CODES = C0 | C1 | C2 | C3
UNDERFLOW, OVERFLOW = X87_IE | X87_SF, X87_IE | X87_SF | C1    # of the stack
NOT_STORED = X87_BEFORE | X87_OE | X87_UE                        # unmasked, these keep a result out of memory

INDEFINITE, INDEFINITE_HIGH = 0xC000_0000_0000_0000, 0xFFFF
CONTROL_DEFINED, CONTROL_FIXED, CONTROL_INITIAL = 0x1F7F, 0x40, 0x37F


# --- registers -----------------------------------------------------------------------------------------


@native
def place(s, i):
    """Where register i of the stack stands: a pointer to its significand."""
    return at(s, u64(ST) + u64((s.fpu_top + u32(i)) & 7) * 16, u64)


@native
def in_use(s, i):
    """Whether register i of the stack holds a value."""
    return ((s.fpu_tags >> ((s.fpu_top + u32(i)) & 7)) & 1) != 0


@native
def high(p):
    """Sign and exponent of the register at `p`."""
    return at(p, 8, u16)


@native
def put(p, low, top):
    """Write a register: significand, then sign and exponent."""
    p[0] = low
    high(p)[0] = top


@native
def put_indefinite(p):
    """The value that answers a masked invalid operation."""
    put(p, u64(INDEFINITE), u16(INDEFINITE_HIGH))


@native
def mark(s, i):
    """Register i of the stack is in use."""
    s.fpu_tags = s.fpu_tags | (u32(1) << ((s.fpu_top + u32(i)) & 7))


@native
def push(s):
    """Move the top down; it is in use."""
    s.fpu_top = (s.fpu_top + 7) & 7
    s.fpu_tags = s.fpu_tags | (u32(1) << s.fpu_top)


@native
def pop(s):
    """Free the top and move it up."""
    s.fpu_tags = s.fpu_tags & ~(u32(1) << s.fpu_top)
    s.fpu_top = (s.fpu_top + 1) & 7


# --- exceptions ----------------------------------------------------------------------------------------


@native
def begin_x87(s):
    """What every waiting x87 and MMX instruction does first: an exception still pending is raised."""
    if unlikely((s.fpu_sw & X87_ES) != 0):
        pending_exception(s)


@native(inline=False)
def pending_exception(s) -> None:
    """#MF, or with CR0.NE clear the external FERR# line, unless IGNNE# answers it already (SDM vol. 1, 8.7)."""
    if (s.cr0 & CR0_NE) != 0:
        fault_plain(s, u32(MF))
    if s.ignne == 0:
        s.exit_reason = EXIT_FERR
        raise Stop


@native
def assert_error(s):
    """Set ES and B. Where they were clear, FERR# was low meanwhile, and the chip set let go of IGNNE#."""
    if (s.fpu_sw & X87_ES) == 0:
        s.ignne = 0
    s.fpu_sw = s.fpu_sw | (X87_ES | X87_B)


@native
def settle(s, o, f, sw, codes):
    """Take over an operation's exceptions and the condition codes `codes`; whether its results count."""
    raised = sw & X87_STICKY
    s.fpu_sw = (s.fpu_sw & ~u16(codes)) | raised | (sw & codes)
    s.fpu_ip = s.rip + u64(o.ip)
    if unlikely((raised & ~s.fpu_cw & 0x3F) != 0):
        return unmasked(s, o, f, raised)
    return True


@native(inline=False)
def unmasked(s, o, f, raised: u16) -> bool:
    """An unmasked exception: pending from now on. Whether the instruction still completes."""
    assert_error(s)
    s.fpu_opcode = opcode(s, u64(o.ip), u64(o.length))
    s.fpu_dp = 0
    if f.kinds == "m":
        s.fpu_dp = offset(s, o)
    return (raised & ~s.fpu_cw & X87_BEFORE) == 0


@native
def opcode(s, ip, length):
    """The eleven opcode bits of the x87 instruction at s.rip + ip, or 0 where its bytes are out of reach."""
    lin = linear_wrap(s, s.rip + ip + s.cs_base)
    e = tlb_entry(s, s.tlb, lin)
    found: u32 = 0
    if e.xtag == (lin + length - 1) & PAGE_MASK:
        code = ptr[u8](e.addend + lin)
        for i in range(length - 1):
            if found == 0 and (code[i] & 0xF8) == 0xD8:
                found = (u32(code[i] & 7) << 8) | u32(code[i + 1]) | 0x1_0000
    return found & 0x7FF


@native
def follow_masks(s):
    """ES and B after a change of control or status word (SDM vol. 1, 8.1.3.3)."""
    if (s.fpu_sw & ~s.fpu_cw & 0x3F) != 0:
        assert_error(s)
    else:
        s.fpu_sw = s.fpu_sw & ~u16(X87_ES | X87_B)


@native
def settle_push(s, o, f):
    """A full stack: whether the indefinite value is to be pushed."""
    return settle(s, o, f, u16(OVERFLOW), C1)


@native
def stored(s, sw):
    """Whether an operation with this status word writes its memory operand."""
    return (sw & ~s.fpu_cw & NOT_STORED) == 0


# --- ten bytes of memory -------------------------------------------------------------------------------


@native
def load_ten(s, o, p):
    """Read an 80-bit memory operand to `p`."""
    lin = address(s, o)
    low = load(s, lin, u64)
    top = load(s, linear_wrap(s, lin + 8), u16)
    put(p, low, top)


@native
def store_ten(s, o, low, top):
    """Write an 80-bit memory operand, all of it or nothing."""
    lin = address(s, o)
    if unlikely((lin & 0xFFF) > 4096 - 10):
        probe_write(s, lin, u64(10))
    store(s, lin, low, u64)
    store(s, linear_wrap(s, lin + 8), top, u16)


# --- the whole state -----------------------------------------------------------------------------------


@native
def set_control(s, value):
    """Replace the control word."""
    s.fpu_cw = (value & CONTROL_DEFINED) | CONTROL_FIXED
    follow_masks(s)


@native
def reset_x87(s):
    """FNINIT: registers keep their bits, but none is in use."""
    s.fpu_cw = CONTROL_INITIAL
    s.fpu_sw = 0
    s.fpu_top = 0
    s.fpu_tags = 0
    s.fpu_opcode = 0
    s.fpu_ip = 0
    s.fpu_dp = 0
    s.fpu_cs = 0
    s.fpu_ds = 0


@native
def status_word(s):
    """The status word with TOP in it."""
    return s.fpu_sw | (u16(s.fpu_top) << 11)


@native
def set_status(s, value):
    """Replace the status word and TOP; ES and B follow the control word, which must be in place."""
    s.fpu_sw = value & ~u16(7 << 11)
    s.fpu_top = u32(value >> 11) & 7
    follow_masks(s)


@native(inline=False)
def tag_word(s) -> u32:
    """Two bits for each physical register: 0 valid, 1 zero, 2 special, 3 empty (SDM vol. 1, 8.1.7)."""
    word: u32 = 0
    for n in range(u32(8)):
        p = at(s, u64(ST) + u64(n) * 16, u64)
        exponent = high(p)[0] & 0x7FFF
        tag: u32 = 2
        if ((s.fpu_tags >> n) & 1) == 0:
            tag = 3
        elif exponent == 0 and p[0] == 0:
            tag = 1
        elif exponent != 0 and exponent != 0x7FFF and (p[0] >> 63) != 0:
            tag = 0
        word = word | (tag << (n * 2))
    return word


@native
def set_tag_word(s, word):
    """Only emptiness is taken from a tag word: a processor looks at the registers for the rest."""
    tags: u32 = 0
    for n in range(u32(8)):
        if (u32(word) >> (n * 2)) & 3 != 3:
            tags = tags | (u32(1) << n)
    s.fpu_tags = tags
