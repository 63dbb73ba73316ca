"""Port input and output: IN, OUT, INS, OUTS (SDM vol. 1, chapter 19)."""

from pellucid.cpu.memory import load, probe_write, store
from pellucid.cpu.outside import outside_string
from pellucid.cpu.operands import read, write
from pellucid.cpu.portio import check_port, port_read, port_write
from pellucid.cpu.code_cache import Op
from pellucid.cpu.strings import (
    LOG2, RCX, RDI, RDX, RSI, backwards, check_destination, check_source, chunk, destination_linear, destination_room,
    forget_replay, interrupted, pointer, set_pointer, source_linear, stride, writable)
from pellucid.isa.string import string_width
from pellucid.isa.table import instruction
from pellucid.native import native, ptr, u64, uint

_REP = ("", "rep", "repne")


@instruction("IN", name="in")
@native
def in_(s, o, f):
    port = u64(read(s, o, f, 1))
    check_port(s, port, u64(f.widths[0]))
    write(s, o, f, 0, uint(f.widths[0])(port_read(s, port, u64(f.widths[0]))))


@instruction("OUT")
@native
def out(s, o, f):
    port = u64(read(s, o, f, 0))
    check_port(s, port, u64(f.widths[1]))
    port_write(s, port, u64(read(s, o, f, 1)), u64(f.widths[1]))


@instruction("INSB", "INSW", "INSD", width=string_width, asize=True, stack=True, rep=_REP)
@native
def ins(s, o, f):
    if f.rep == "":
        input_element(s, f.w, f.asize, f.m64)
    else:
        repeat_ins(s, f.w, f.asize, f.m64)


@native
def input_element(s, w, asize, m64):
    """The destination is tried first, for a byte taken from a port cannot be put back."""
    port = s.gpr[RDX] & 0xFFFF
    check_port(s, port, u64(w))
    destination = pointer(s, RDI, asize)
    check_destination(s, destination, w, m64, True)
    lin = destination_linear(s, destination, m64)
    probe_write(s, lin, u64(w))
    store(s, lin, uint(w)(port_read(s, port, u64(w))), uint(w))
    set_pointer(s, RDI, asize, destination + stride(s, w))


@native(inline=False)
def repeat_ins(s, w, asize, m64) -> None:
    """Elements that go to one page of RAM are read by one exit, which stores them; see `outside_string`."""
    check_port(s, s.gpr[RDX] & 0xFFFF, u64(w))
    count = pointer(s, RCX, asize)
    while count != 0:
        done: u64 = 1
        if s.replay_count != 0 and s.io_count != 0:
            done = s.replay[0]
            s.io_count = 0
            set_pointer(s, RDI, asize, pointer(s, RDI, asize) + done * w)
        else:
            input_page(s, count, w, asize, m64)
            input_element(s, w, asize, m64)
        forget_replay(s)
        count = count - done
        set_pointer(s, RCX, asize, count)
        if count != 0:
            interrupted(s)


@native
def input_page(s, count, w, asize, m64):
    """Leave for as many elements as can be stored at once; return where it is not more than one."""
    destination = pointer(s, RDI, asize)
    lin = destination_linear(s, destination, m64)
    n = chunk(s, count, destination_room(s, destination, lin, w, asize, m64, True))
    if n > 1 and s.replay_count == 0 and s.watch_port == 0 and not backwards(s):
        host = writable(s, lin, n << LOG2[w], u64(0))
        if host != 0:
            outside_string(s, s.gpr[RDX] & 0xFFFF, u64(w), n, host)


@instruction("OUTSB", "OUTSW", "OUTSD", width=string_width, asize=True, stack=True, rep=_REP)
@native
def outs(s, o, f):
    if f.rep == "":
        output_element(s, o, f.w, f.asize, f.m64)
    else:
        repeat_outs(s, o, f.w, f.asize, f.m64)


@native
def output_element(s, o, w, asize, m64):
    port = s.gpr[RDX] & 0xFFFF
    check_port(s, port, u64(w))
    source = pointer(s, RSI, asize)
    check_source(s, o, source, w, m64)
    port_write(s, port, u64(load(s, source_linear(s, o, source, m64), uint(w))), u64(w))
    set_pointer(s, RSI, asize, source + stride(s, w))


@native(inline=False)
def repeat_outs(s, o: ptr[Op], w, asize, m64) -> None:
    check_port(s, s.gpr[RDX] & 0xFFFF, u64(w))
    count = pointer(s, RCX, asize)
    while count != 0:
        output_element(s, o, w, asize, m64)
        forget_replay(s)
        count = count - 1
        set_pointer(s, RCX, asize, count)
        if count != 0:
            interrupted(s)
