"""Segment registers as operands: MOV, PUSH and POP of segments, LDS to LGS."""

from pellucid.cpu.descriptors import load_segment
from pellucid.cpu.memory import load, store
from pellucid.cpu.operands import address, write
from pellucid.cpu.segments import update_mode
from pellucid.cpu.stack import drop, peek, push
from pellucid.cpu.state import SHADOW_MOV_SS, SS
from pellucid.isa.table import LEAVE, instruction
from pellucid.native import at, native, u16, u32, u64, uint


@instruction("MOV", codes=lambda code: code.endswith("_SREG"), name="mov_from_segment")
@native
def mov_from_segment(s, o, f):
    value = s.seg_selector[o.src]
    if f.kinds[0] == "m":
        store(s, address(s, o), value, u16)
    else:
        T = uint(f.widths[0])
        write(s, o, f, 0, T(value))


@instruction("MOV", codes=lambda code: code.startswith("MOV_SREG"), ends=LEAVE, name="mov_to_segment")
@native
def mov_to_segment(s, o, f):
    selector: u32 = 0
    if f.kinds[1] == "m":
        selector = u32(load(s, address(s, o), u16))
    else:
        selector = u32(at(s, u64(o.src), u16)[0])
    load_segment(s, u32(o.dst), selector)
    if o.dst == SS:
        s.shadow = SHADOW_MOV_SS
    update_mode(s)


def _segment_push(code):
    return code.split("_")[-1] in ("ES", "CS", "SS", "DS", "FS", "GS")


def _segment_width(code):
    return {"Q": 8, "D": 4, "W": 2}[code.split("_")[0][-1]]


@instruction("PUSH", codes=_segment_push, stack=True, width=_segment_width, name="push_segment")
@native
def push_segment(s, o, f):
    push(s, f, uint(f.w)(s.seg_selector[o.dst]), f.w)


@instruction("POP", codes=_segment_push, stack=True, ends=LEAVE, width=_segment_width, name="pop_segment")
@native
def pop_segment(s, o, f):
    selector = u32(peek(s, f, 0, f.w)) & 0xFFFF
    load_segment(s, u32(o.dst), selector)
    drop(s, f, f.w)
    if o.dst == SS:
        s.shadow = SHADOW_MOV_SS
    update_mode(s)


@instruction("LDS", "LES", "LFS", "LGS", "LSS", ends=LEAVE, name="load_far_pointer",
             extra=lambda code: {"LES": 0, "LSS": 2, "LDS": 3, "LFS": 4, "LGS": 5}[code.split("_")[0]])
@native
def load_far_pointer(s, o, f):
    w = f.widths[0]
    lin = address(s, o)
    offset = load(s, lin, uint(w))
    selector = u32(load(s, lin + w, u16))
    load_segment(s, u32(f.extra), selector)
    write(s, o, f, 0, offset)
    update_mode(s)
