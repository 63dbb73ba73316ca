"""CPUID, RDMSR, WRMSR, XGETBV, XSETBV. MSRs that a context switch touches are native, the rest go to Python."""

from pellucid.cpu.cpuid import cpuid_values
from pellucid.cpu.faults import general_protection, undefined
from pellucid.cpu.memory import check_base
from pellucid.cpu.outside import outside
from pellucid.cpu.segments import update_mode
from pellucid.cpu.state import COUNTERS, CR4_OSXSAVE, CR4_PCE, EXIT_MSR
from pellucid.cpu.privilege import require_cpl0
from pellucid.isa.features import shows
from pellucid.isa.system import set_edx_eax
from pellucid.isa.table import LEAVE, instruction
from pellucid.isa.xsave import components_in_use
from pellucid.native import native, u32, u64

MSR_FS_BASE, MSR_GS_BASE, MSR_KERNEL_GS_BASE = 0xC0000100, 0xC0000101, 0xC0000102


@instruction("CPUID")
@native
def cpuid(s, o, f):
    cpuid_values(s, u32(s.gpr[0]), u32(s.gpr[1]))


@native(inline=False)
def msr_access(s, index: u64, value: u64, write: u32) -> u64:
    """Hand an MSR or a counter to Python once; #GP(0) when it says so."""
    if s.msr_fault != 0:
        s.msr_fault = 0
        general_protection(s, 0)
    return outside(s, u32(EXIT_MSR), index, value, u64(8), write)


@instruction("RDMSR")
@native
def rdmsr(s, o, f):
    require_cpl0(s)
    index = u32(s.gpr[1])
    if index == MSR_FS_BASE:
        set_edx_eax(s, s.seg_base[4])
    elif index == MSR_GS_BASE:
        set_edx_eax(s, s.seg_base[5])
    elif index == MSR_KERNEL_GS_BASE:
        set_edx_eax(s, s.kernel_gs_base)
    else:
        set_edx_eax(s, msr_access(s, u64(index), u64(0), u32(0)))


@instruction("WRMSR", ends=LEAVE)
@native
def wrmsr(s, o, f):
    require_cpl0(s)
    index = u32(s.gpr[1])
    value = (s.gpr[2] << 32) | (s.gpr[0] & 0xFFFF_FFFF)
    if index == MSR_FS_BASE:
        check_base(s, value)
        s.seg_base[4] = value
    elif index == MSR_GS_BASE:
        check_base(s, value)
        s.seg_base[5] = value
    elif index == MSR_KERNEL_GS_BASE:
        check_base(s, value)
        s.kernel_gs_base = value
    else:
        msr_access(s, u64(index), value, u32(1))


@instruction("RDPMC")
@native
def rdpmc(s, o, f):
    """A performance counter, beyond all MSRs (COUNTERS), by the same way (SDM vol. 2, RDPMC)."""
    if (s.cr4 & CR4_PCE) == 0 and s.cpl != 0:
        general_protection(s, 0)
    set_edx_eax(s, msr_access(s, COUNTERS | (s.gpr[1] & 0xFFFF_FFFF), u64(0), u32(0)))


@instruction("XGETBV")
@native
def xgetbv(s, o, f):
    """Register 0 is XCR0; 1, where CPUID tells of it, what of that is in use (SDM vol. 1, 13.2)."""
    if (s.cr4 & CR4_OSXSAVE) == 0:
        undefined(s)
    index = u32(s.gpr[1])
    if index == 1 and shows(s, "xgetbv1"):
        set_edx_eax(s, s.xcr0 & components_in_use(s))
    elif index == 0:
        set_edx_eax(s, s.xcr0)
    else:
        general_protection(s, 0)


@instruction("XSETBV", ends=LEAVE)
@native
def xsetbv(s, o, f):
    if (s.cr4 & CR4_OSXSAVE) == 0:
        undefined(s)
    require_cpl0(s)
    value = (s.gpr[2] << 32) | (s.gpr[0] & 0xFFFF_FFFF)
    if u32(s.gpr[1]) != 0 or (value & 1) == 0 or (value & ~s.xcr0_allowed) != 0 or (value & 6) == 4:
        general_protection(s, 0)
    s.xcr0 = value
    update_mode(s)
