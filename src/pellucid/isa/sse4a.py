"""SSE4A of AMD's processors: bit fields of the low quadword of a vector register (APM vol. 4)."""

from pellucid.cpu.operands import address, slot_pointer
from pellucid.cpu.memory import store
from pellucid.isa.table import instruction
from pellucid.native import native, u64, uint


@native
def field_mask(length):
    """So many low bits; a length of 0 means 64."""
    if length == 0:
        return ~u64(0)
    return (u64(1) << length) - 1


@native
def set_low(s, o, value):
    """The low quadword of operand 0; AMD leaves the high one undefined, here it is 0 as in its processors."""
    p = slot_pointer(s, o, 0, u64)
    p[0] = value
    p[1] = 0


@native
def extract(s, o, length, index):
    set_low(s, o, (slot_pointer(s, o, 0, u64)[0] >> (index & 63)) & field_mask(length & 63))


@instruction("EXTRQ", codes=lambda code: code.endswith("IMM8_IMM8"), fpu=True, sse=True, name="extrq_immediate")
@native
def extrq_immediate(s, o, f):
    """The immediates are length and index."""
    extract(s, o, o.imm & 0xFF, (o.imm >> 8) & 0xFF)


@instruction("EXTRQ", codes=lambda code: code.endswith("XMM"), fpu=True, sse=True)
@native
def extrq(s, o, f):
    """Length and index are the first two bytes of operand 1."""
    control = slot_pointer(s, o, 1, u64)[0]
    extract(s, o, control & 0xFF, (control >> 8) & 0xFF)


@native
def insert_field(s, o, length, index):
    mask = field_mask(length & 63) << (index & 63)
    value = (slot_pointer(s, o, 1, u64)[0] << (index & 63)) & mask
    set_low(s, o, (slot_pointer(s, o, 0, u64)[0] & ~mask) | value)


@instruction("INSERTQ", codes=lambda code: code.endswith("IMM8_IMM8"), fpu=True, sse=True, name="insertq_immediate")
@native
def insertq_immediate(s, o, f):
    insert_field(s, o, o.imm & 0xFF, (o.imm >> 8) & 0xFF)


@instruction("INSERTQ", codes=lambda code: code.endswith("XMM"), fpu=True, sse=True)
@native
def insertq(s, o, f):
    """Length and index are bytes 8 and 9 of operand 1."""
    control = slot_pointer(s, o, 1, u64)[1]
    insert_field(s, o, control & 0xFF, (control >> 8) & 0xFF)


@instruction("MOVNTSS", "MOVNTSD", fpu=True, sse=True)
@native
def movnts(s, o, f):
    T = uint(f.widths[0])
    store(s, address(s, o), slot_pointer(s, o, 1, T)[0], T)
