"""Every family, imported for its rows."""

from pellucid.isa import (
    alu, avx, avx_memory, bcd, bits, bmi, cet, cmpccxadd, control, control_registers, crypto, descriptor_tables,
    direct_store, far, fast_calls, flagops, fma, frame, fxsave, interrupts, io, move, msr, muldiv, ne_convert, rtm,
    segment_registers, shift, sse4a, sse_control, sse_convert, sse_float, sse_int, sse_int2, sse_move, sse_string,
    string, system, vnni, wait, x87, x87_arith, x87_move, x87_transcendental, xop, xsave)
from pellucid.isa.table import ROWS, Table

FAMILIES = (
    alu, avx, avx_memory, bcd, bits, bmi, cet, cmpccxadd, control, control_registers, crypto, descriptor_tables,
    direct_store, far, fast_calls, flagops, fma, frame, fxsave, interrupts, io, move, msr, muldiv, ne_convert, rtm,
    segment_registers, shift, sse4a, sse_control, sse_convert, sse_float, sse_int, sse_int2, sse_move, sse_string,
    string, system, vnni, wait, x87, x87_arith, x87_move, x87_transcendental, xop, xsave)
TABLE = Table(ROWS)
