"""Bus locks: locked accesses that no cache line can hold, and what software has done about them.

A locked access takes a bus lock where it crosses a cache line, or where the memory is not write-back. MSR_MEMORY_CTRL
makes either a fault before the access: #AC(0) for the first, #GP(0) for the second, as IA32_CORE_CAPABILITIES tells
(SDM vol. 3, 9.1.2.3); IA32_DEBUGCTL.BUS_LOCK_DETECT makes any a #DB behind the instruction outside CPL 0, with DR6.BLD
clear (17.3.1.6). While memory types matter to that (CpuState.lock_types) no TLB entry allows fast stores to a page that
is not write-back, so `memory.prepare_lock` meets every such access, and nothing else looks.
"""

from pellucid.cpu.breakpoints import note_hits
from pellucid.cpu.faults import general_protection
from pellucid.cpu.state import CR0_CD, CR0_PG, DEBUGCTL_BUS_LOCK, DR6_BLD, PAGE_MASK
from pellucid.native import native, static, u8, u64

WRITE_BACK = 6
ENABLED, FIXED_ENABLED, VALID = 1 << 11, 1 << 10, 1 << 11   # IA32_MTRR_DEF_TYPE.E and .FE; IA32_MTRR_PHYSMASKn.V
VARIABLE_RANGES = 8
MEGABYTE = 1 << 20


@native
def fixed_type(s, gpa):
    """The type that the fixed ranges give an address below 1 MiB (SDM vol. 3, table 12-9), in the MSRs' order."""
    number = gpa >> 16
    if gpa >= 0xC_0000:
        number = 24 + ((gpa - 0xC_0000) >> 12)
    elif gpa >= 0x8_0000:
        number = 8 + ((gpa - 0x8_0000) >> 14)
    return u8(s.mtrr_fixed[number >> 3] >> ((number & 7) << 3))


@native(inline=False)
def write_back_range(s, gpa: u64) -> bool:
    """Whether the MTRRs call an address write-back: where several ranges match, all must (SDM vol. 3, 12.11.4.1)."""
    control = s.mtrr_def_type
    if (control & ENABLED) == 0:
        return False
    if gpa < MEGABYTE and (control & FIXED_ENABLED) != 0:
        return fixed_type(s, gpa) == WRITE_BACK
    address = ((u64(1) << s.maxphyaddr) - 1) & PAGE_MASK
    matched: bool = False
    for n in static(range(VARIABLE_RANGES)):
        base = s.mtrr_variable[2 * n]
        mask = s.mtrr_variable[2 * n + 1]
        if (mask & VALID) != 0 and ((gpa ^ base) & mask & address) == 0:
            if (base & 0xFF) != WRITE_BACK:
                return False
            matched = True
    return matched or (control & 0xFF) == WRITE_BACK


@native
def write_back(s, gpa, pat_bits):
    """Whether an access is to write-back memory: by CR0.CD, PAT and MTRRs alike (SDM vol. 3, table 12-7)."""
    cached = (s.cr0 & CR0_CD) == 0
    if (s.cr0 & CR0_PG) != 0:
        cached = cached and (s.pat >> (u64(pat_bits) << 3)) & 7 == WRITE_BACK
    return cached and write_back_range(s, gpa)


@native(inline=False)
def note_bus_lock(s) -> None:
    """The access takes a bus lock: a #DB is due behind the instruction where that is asked for."""
    if (s.debugctl & DEBUGCTL_BUS_LOCK) != 0 and s.cpl != 0:
        note_hits(s, u64(DR6_BLD))


@native(inline=False)
def lock_uncached(s) -> None:
    """LOCK on memory that is not write-back."""
    if s.uc_lock != 0:
        general_protection(s, 0)
    note_bus_lock(s)
