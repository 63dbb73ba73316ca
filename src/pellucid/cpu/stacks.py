"""Stacks that an event or a far transfer switches to, and pushes with the privilege that it goes to.

Nothing of the CPU's state changes here: who pushes commits the new stack pointer when all else is done, so that a
fault finds the state of the interrupted instruction.
"""

from pellucid.cpu.descriptors import desc_attr, desc_base, desc_limit, load_stack_segment
from pellucid.cpu.faults import fault, stack_fault
from pellucid.cpu.memory import load_sys, privilege_index, store_as
from pellucid.cpu.paging import canonical
from pellucid.cpu.segments import beyond_limit
from pellucid.cpu.state import ATTR_DB, SS, TR, TS
from pellucid.native import native, struct, u16, u32, u64, uint
from pellucid.native.layout import Struct

RSP = 4


@struct
class Stack(Struct):
    """A stack being pushed on. `wide`: 64-bit, without segment."""

    sp: u64
    base: u64
    mask: u64        # the bits of RSP that it uses
    limit: u64
    attr: u32
    index: u32       # TLB_*: the privilege of its accesses
    error: u32       # error code of #SS
    wide: u32
    selector: u32    # SS to be
    pad: u32
    descriptor: u64  # its descriptor, 0 for the current stack


@native
def current_stack(s, k, cpl, error):
    """The stack in use outside 64-bit mode."""
    k.base = s.ss_base
    k.mask = s.sp_mask
    k.sp = s.gpr[RSP] & s.sp_mask
    k.limit = u64(s.seg_limit[SS])
    k.attr = s.seg_attr[SS]
    k.index = privilege_index(s, cpl)
    k.error = error
    k.wide = 0
    k.descriptor = 0


@native
def wide_stack(s, k, sp, cpl, error):
    """A 64-bit stack."""
    k.base = 0
    k.mask = ~u64(0)
    k.sp = sp
    k.index = privilege_index(s, cpl)
    k.error = error
    k.wide = 1
    k.descriptor = 0


@native(inline=False)
def segment_stack(s, k, selector: u32, sp: u64, cpl: u32, error: u32) -> None:
    """A stack by selector, as a TSS names it: #TS or #SS where it does not serve level `cpl`. `error` is EXT or 0."""
    name = (selector & 0xFFFC) | error
    d = load_stack_segment(s, selector, cpl, name, u32(TS))
    k.base = desc_base(d)
    k.limit = u64(desc_limit(d))
    k.attr = desc_attr(d)
    k.mask = 0xFFFF
    if (k.attr & ATTR_DB) != 0:
        k.mask = 0xFFFF_FFFF
    k.sp = sp & k.mask
    k.index = privilege_index(s, cpl)
    k.error = name
    k.wide = 0
    k.selector = selector
    k.descriptor = d


@native(inline=False)
def push_onto(s, k, value: u64, w) -> None:
    """Push `w` bytes; #SS(k.error) beyond the limit or at a non-canonical address."""
    T = uint(w)
    to = (k.sp - w) & k.mask
    linear = to
    if k.wide != 0:
        if not canonical(s, to) or not canonical(s, to + (w - 1)):
            stack_fault(s, k.error)
    else:
        if beyond_limit(k.attr, k.limit, to, u64(w)):
            stack_fault(s, k.error)
        linear = (k.base + to) & 0xFFFF_FFFF
    store_as(s, linear, T(value), T, k.index)
    k.sp = to


@native
def stack_pointer(s, k):
    """RSP with the stack's pointer in the bits that the stack uses."""
    return (s.gpr[RSP] & ~k.mask) | k.sp


# --- the task-state segment's stacks -------------------------------------------------------------------


@native(inline=False)
def task_stack64(s, offset: u32, ext: u32) -> u64:
    """A stack pointer of the 64-bit TSS; #TS beyond its limit."""
    check_task_limit(s, offset + 7, ext)
    return load_sys(s, s.seg_base[TR] + u64(offset), u64)


@native(inline=False)
def task_stack(s, k, cpl: u32, ext: u32) -> None:
    """The stack of a privilege level in the current 16- or 32-bit TSS."""
    selector: u32 = 0
    sp: u64 = 0
    if (s.seg_attr[TR] & 8) != 0:
        at = 4 + cpl * 8
        check_task_limit(s, at + 5, ext)
        sp = u64(load_sys(s, task_field(s, at), u32))
        selector = u32(load_sys(s, task_field(s, at + 4), u16))
    else:
        at = 2 + cpl * 4
        check_task_limit(s, at + 3, ext)
        sp = u64(load_sys(s, task_field(s, at), u16))
        selector = u32(load_sys(s, task_field(s, at + 2), u16))
    segment_stack(s, k, selector, sp, cpl, ext)


@native
def task_field(s, offset):
    """Linear address of a field of the 16- or 32-bit TSS."""
    return (s.seg_base[TR] + u64(offset)) & 0xFFFF_FFFF


@native
def check_task_limit(s, last, ext):
    if last > s.seg_limit[TR]:
        fault(s, u32(TS), (u32(s.seg_selector[TR]) & 0xFFFC) | ext)
