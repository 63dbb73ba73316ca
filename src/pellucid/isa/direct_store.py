"""Direct stores and whole lines: MOVDIRI, MOVDIR64B, CLZERO (SDM vol. 2; APM vol. 3).

A line of plain memory is written in one go; it lies within a page.
"""

from typing import Any

from pellucid.cpu.faults import general_protection
from pellucid.cpu.memory import locked_pointer
from pellucid.cpu.operands import address, read, register, write
from pellucid.cpu.segments import check_segment
from pellucid.cpu.simd import load_vector, store_vector
from pellucid.cpu.state import ES, MODE_64, MODE_SEGMENTED, MODE_SIZE
from pellucid.isa.implicit import DIGITS, implicit_address
from pellucid.isa.table import instruction
from pellucid.native import native, ptr, u32, u64, uint, vec

LINE = 64
Y: Any = vec[u64, 4]


@instruction("MOVDIRI")
@native
def movdiri(s, o, f):
    write(s, o, f, 0, read(s, o, f, 1))


@native
def put_line(s, lin, low, high):
    """Write the line at `lin`."""
    host = locked_pointer(s, lin, u64(LINE))
    if host != 0:
        ptr[Y](host)[0] = low
        ptr[Y](host)[1] = high
    else:
        store_vector(s, lin, low, Y)
        store_vector(s, lin + 32, high, Y)


@instruction("MOVDIR64B")
@native
def movdir64b(s, o, f):
    """To ES and a register, which must be aligned to 64 bytes; the source need not be."""
    to = u64(register(s, o.dst, uint(f.widths[0])))
    if (s.mode & MODE_SIZE) != MODE_64:
        if (s.mode & MODE_SEGMENTED) != 0:
            check_segment(s, u32(ES), to, u64(LINE), True)
        to = (to + s.seg_base[ES]) & 0xFFFF_FFFF
    if (to & (LINE - 1)) != 0:
        general_protection(s, 0)
    source = address(s, o)
    low = load_vector(s, source, Y)
    high = load_vector(s, source + 32, Y)
    put_line(s, to, low, high)


@instruction("CLZERO", implicit=True, extra=lambda code: DIGITS[code[-1]])
@native
def clzero(s, o, f):
    """Zeros for the line around RAX."""
    lin = implicit_address(s, o, f.extra, s.gpr[0], u64(1), True) & ~u64(LINE - 1)
    put_line(s, lin, Y(0), Y(0))
