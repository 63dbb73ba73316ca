"""I/O ports: who may use them, and the access itself, which leaves the engine like that of a device in memory."""

from pellucid.cpu.breakpoints import match_port
from pellucid.cpu.faults import general_protection
from pellucid.cpu.memory import load_sys
from pellucid.cpu.outside import outside
from pellucid.cpu.state import (
    ATTR_P, ATTR_TYPE, ATTR_UNUSABLE, CR0_PE, EFER_LMA, EXIT_IO, RFLAGS_VM, TR)
from pellucid.native import native, u16, u32, u64, unlikely

_IO_MAP_BASE = 102       # the same in the 32-bit and the 64-bit TSS (SDM vol. 3, figures 8-2 and 8-11)
_TSS_AVAILABLE, _TSS_BUSY = 9, 11


@native(inline=False)
def check_port(s, port: u64, size: u64) -> None:
    """#GP(0) where CPL is above IOPL, or in virtual-8086 mode, unless the TSS allows every port (SDM vol. 1, 19.5)."""
    if (s.cr0 & CR0_PE) == 0:
        return
    if (s.flags & RFLAGS_VM) == 0 and u64(s.cpl) <= (s.flags >> 12) & 3:
        return
    at = io_map_base(s) + (port >> 3)
    # Two bytes are always read, so that a wide access may begin at any bit.
    if at + 1 > u64(s.seg_limit[TR]):
        general_protection(s, 0)
    denied = u64(load_sys(s, task_state(s, at), u16)) >> (port & 7)
    if (denied & ((u64(1) << size) - 1)) != 0:
        general_protection(s, 0)


@native
def io_map_base(s):
    """Where the TSS has its I/O permission map; #GP(0) where TR has no TSS of 32 bits or more, or a short one."""
    attr = s.seg_attr[TR]
    kind = attr & ATTR_TYPE
    if (attr & ATTR_UNUSABLE) != 0 or (attr & ATTR_P) == 0 or (kind != _TSS_AVAILABLE and kind != _TSS_BUSY):
        general_protection(s, 0)
    if u64(s.seg_limit[TR]) < _IO_MAP_BASE + 1:
        general_protection(s, 0)
    return u64(load_sys(s, task_state(s, u64(_IO_MAP_BASE)), u16))


@native
def task_state(s, offset):
    """The linear address of a byte of the TSS."""
    linear = s.seg_base[TR] + offset
    return linear if (s.efer & EFER_LMA) != 0 else linear & 0xFFFF_FFFF


@native
def port_read(s, port, size):
    """Read a port."""
    if unlikely(s.watch_port != 0):
        match_port(s, port, size)
    return outside(s, u32(EXIT_IO), port, u64(0), size, u32(0))


@native
def port_write(s, port, value, size):
    """Write a port."""
    if unlikely(s.watch_port != 0):
        match_port(s, port, size)
    outside(s, u32(EXIT_IO), port, value, size, u32(1))
