"""Memory that a register addresses without being written as a memory operand: CLZERO, MONITOR, UMONITOR.

The segment is DS or that of a prefix (`Row.implicit`).
"""

from pellucid.cpu.operands import register
from pellucid.cpu.segments import check_segment
from pellucid.cpu.state import CS, FS, GS, MODE_64, MODE_SEGMENTED, MODE_SIZE
from pellucid.cpu.strings import segment_of
from pellucid.native import native, u64

DIGITS = {"W": 2, "D": 4, "Q": 8}
"""Address size by the last letter of a code's name."""


@native
def implicit_address(s, o, asize, value, size, write):
    """The linear address of `size` bytes at `value`, truncated to the address size; segment faults outside 64-bit mode.

    What MODE_SEGMENTED does not look at (FS, GS) is checked always, and CS, since a flat one is not for writing.
    """
    offset = value & ((1 << (asize * 8)) - 1)
    linear = offset + register(s, o.seg, u64)
    if (s.mode & MODE_SIZE) != MODE_64:
        segment = segment_of(o)
        if (s.mode & MODE_SEGMENTED) != 0 or segment == CS or segment == FS or segment == GS:
            check_segment(s, segment, offset, size, write)
        linear = linear & 0xFFFF_FFFF
    return linear
