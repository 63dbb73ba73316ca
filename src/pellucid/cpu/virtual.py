"""Virtual interrupts: VIF and VIP in the place of IF, and software interrupts redirected (SDM vol. 3, 20.3 and 20.4).

They are in force with IOPL below 3: CR4.VME lets virtual-8086 mode have them, CR4.PVI protected mode at CPL 3, there
for CLI and STI only. Whether INT n of virtual-8086 mode goes to the program's own handler, a map in the TSS says.
"""

from pellucid.cpu.descriptors import in_v86, set_real_code
from pellucid.cpu.faults import general_protection
from pellucid.cpu.flags import get_rflags
from pellucid.cpu.memory import load_sys
from pellucid.cpu.portio import io_map_base, task_state
from pellucid.cpu.segments import update_mode
from pellucid.cpu.stacks import Stack, current_stack, push_onto, stack_pointer
from pellucid.cpu.state import (
    CR4_PVI, CR4_VME, CS, GP, RFLAGS_IF, RFLAGS_IOPL, RFLAGS_RF, RFLAGS_TF, RFLAGS_VIF, RFLAGS_VIP, RFLAGS_VM, TR)
from pellucid.native import local, native, u8, u32, u64, unlikely

RSP = 4
DUE = 2          # CpuState.delivering: not begun
MAP_BYTES = 32   # the redirection map lies right below the I/O permission map
BOTH = RFLAGS_VIF | RFLAGS_VIP


@native
def sensitive(s):
    """Virtual-8086 mode with IOPL below 3, where PUSHF, POPF, IRET and INT n do not touch IF."""
    return (s.flags & RFLAGS_VM) != 0 and (s.flags & RFLAGS_IOPL) != RFLAGS_IOPL


@native(inline=False)
def require_vme(s, w: u32) -> None:
    """#GP(0) for a sensitive PUSHF, POPF or IRET of `w` bytes, unless CR4.VME is set and it has 16 bits."""
    if (s.cr4 & CR4_VME) == 0 or w != 2:
        general_protection(s, 0)


@native
def available(s):
    """Whether VIF stands for IF at this privilege, where CPL is above IOPL (SDM vol. 2, CLI, table 3-7)."""
    wanted: u64 = CR4_PVI
    if in_v86(s):
        wanted = CR4_VME
    return s.cpl == 3 and (s.cr4 & wanted) != 0


@native(inline=False)
def write_virtual_if(s, on: bool) -> None:
    """CLI and STI where CPL is above IOPL: VIF changes; #GP(0) without VME or PVI, and for STI with VIP set."""
    if not available(s) or (on and (s.flags & RFLAGS_VIP) != 0):
        general_protection(s, 0)
    if on:
        s.flags = s.flags | RFLAGS_VIF
    else:
        s.flags = s.flags & ~u64(RFLAGS_VIF)


@native(inline=False)
def shown_flags(s, flags: u64) -> u64:
    """FLAGS as the 8086 program sees them: VIF in IF's place, and an IOPL of 3 (SDM vol. 2, PUSHF)."""
    shown = (flags & ~u64(RFLAGS_IF)) | RFLAGS_IOPL
    if (flags & RFLAGS_VIF) != 0:
        shown = shown | RFLAGS_IF
    return shown


@native(inline=False)
def taken_flags(s, flags: u64) -> u64:
    """FLAGS that the 8086 program loads, with IF moved to VIF.

    #GP(0) where that would let a pending interrupt in, or set TF (SDM vol. 2 and APM vol. 3, POPF).
    """
    if (flags & RFLAGS_TF) != 0 or ((flags & RFLAGS_IF) != 0 and (s.flags & RFLAGS_VIP) != 0):
        general_protection(s, 0)
    taken = flags & ~u64(RFLAGS_VIF)
    if (flags & RFLAGS_IF) != 0:
        taken = taken | RFLAGS_VIF
    return taken


@native
def check_virtual_pending(s):
    """After an IRET or a task switch: #GP(0) at the next instruction where VIF and VIP are both set (20.3.2)."""
    if unlikely((s.flags & BOTH) == BOTH):
        fault_next(s)


@native(inline=False)
def fault_next(s) -> None:
    if available(s) and (s.flags & RFLAGS_IOPL) != RFLAGS_IOPL:
        s.exc_vector = GP
        s.exc_error = 0
        s.exc_has_error = 1
        s.exc_soft = 0
        s.delivering = DUE


# --- software interrupts -------------------------------------------------------------------------------


@native(inline=False)
def redirected(s, vector: u32) -> bool:
    """Whether INT n of virtual-8086 mode goes to the 8086 program's handler: its bit in the map is 0 (table 20-2)."""
    if (s.cr4 & CR4_VME) == 0:
        return False
    at = io_map_base(s) - MAP_BYTES + u64(vector >> 3)
    if at > u64(s.seg_limit[TR]):
        general_protection(s, 0)
    return ((load_sys(s, task_state(s, at), u8) >> u8(vector & 7)) & 1) == 0


@native(inline=False)
def enter_8086_handler(s, vector: u32, back: u64) -> None:
    """Through the vector table at linear address 0, within virtual-8086 mode (methods 5 and 6 of table 20-2)."""
    entry = load_sys(s, u64(vector) * 4, u32)
    flags = get_rflags(s)
    cleared: u64 = RFLAGS_TF | RFLAGS_RF | RFLAGS_IF
    if sensitive(s):
        flags = shown_flags(s, flags)
        cleared = RFLAGS_TF | RFLAGS_RF | RFLAGS_VIF
    k = local(Stack)
    current_stack(s, k, s.cpl, u32(0))
    push_onto(s, k, flags, 2)
    push_onto(s, k, u64(s.seg_selector[CS]), 2)
    push_onto(s, k, back, 2)
    s.gpr[RSP] = stack_pointer(s, k)
    s.flags = s.flags & ~cleared
    s.step_trap = 0
    s.rip = u64(entry & 0xFFFF)
    set_real_code(s, entry >> 16)
    update_mode(s)
