"""The stack: PUSH and POP as every instruction does them, in 64-bit mode and, by SS, in the others."""

from pellucid.cpu.memory import load, store
from pellucid.cpu.segments import check_stack
from pellucid.native import native, uint

RSP = 4


@native
def push(s, f, value, w):
    """Push `w` bytes; RSP changes only after the store succeeded."""
    T = uint(w)
    if f.m64:
        sp = s.gpr[RSP] - w
        store(s, sp, value, T)
        s.gpr[RSP] = sp
    else:
        mask = s.sp_mask
        sp = (s.gpr[RSP] - w) & mask
        check_stack(s, sp, w)
        store(s, (s.ss_base + sp) & 0xFFFF_FFFF, value, T)
        s.gpr[RSP] = (s.gpr[RSP] & ~mask) | sp


@native
def peek(s, f, depth, w):
    """Read `w` bytes `depth` bytes above the stack pointer, without popping."""
    T = uint(w)
    if f.m64:
        return load(s, s.gpr[RSP] + depth, T)
    else:
        sp = (s.gpr[RSP] + depth) & s.sp_mask
        check_stack(s, sp, w)
        return load(s, (s.ss_base + sp) & 0xFFFF_FFFF, T)


@native
def drop(s, f, size):
    """Pop `size` bytes off without reading."""
    if f.m64:
        s.gpr[RSP] = s.gpr[RSP] + size
    else:
        mask = s.sp_mask
        s.gpr[RSP] = (s.gpr[RSP] & ~mask) | ((s.gpr[RSP] + size) & mask)


@native
def pop(s, f, w):
    """Pop `w` bytes."""
    value = peek(s, f, 0, w)
    drop(s, f, w)
    return value
