"""Segmentation: limits and types of an access outside 64-bit mode, and what follows from a segment change."""

from pellucid.cpu.faults import general_protection, stack_fault
from pellucid.cpu.lbr import records_branches
from pellucid.cpu.memory import select_tlb
from pellucid.cpu.state import (
    ATTR_DB, ATTR_L, ATTR_P, ATTR_S, ATTR_UNUSABLE, CET_SHADOW, CET_TRACK, CET_WAIT, CR0_EM, CR0_PE, CR0_TS, CR4_CET,
    CR4_OSFXSR, CR4_OSXSAVE, CS, DS, EFER_LMA, ES, MODE_16, MODE_32, MODE_64, MODE_AVX_UD, MODE_COUNTED,
    MODE_FPU_TRAP, MODE_FP_STRICT, MODE_LBR, MODE_SEGMENTED, MODE_SIZE, MODE_SSE_UD, MODE_ENDBRANCH, MODE_SHADOW,
    MODE_STACK32, MODE_STEP, MODE_TRACK, MODE_VEX_UD, RFLAGS_TF, RFLAGS_VM, SS, XCR0_AVX, XCR0_SSE)
from pellucid.native import native, static, u32, u64, unlikely


@native
def beyond_limit(attr, limit, offset, size):
    """Whether `size` bytes at `offset` reach out of a segment; an expand-down one lies above its limit."""
    last = offset + size - 1
    bad = last > limit
    if (attr & (ATTR_S | 0xC)) == ATTR_S | 4:
        top: u64 = 0xFFFF
        if (attr & ATTR_DB) != 0:
            top = 0xFFFF_FFFF
        bad = offset <= limit or last > top
    return bad


@native(inline=False)
def check_segment(s, segment: u32, offset: u64, size: u64, write: bool) -> None:
    """Limit and type check of a data access (SDM vol. 3, 5.3): #SS(0) through SS, else #GP(0)."""
    attr = s.seg_attr[segment]
    bad = (attr & ATTR_UNUSABLE) != 0 or (attr & ATTR_P) == 0
    bad = bad or beyond_limit(attr, u64(s.seg_limit[segment]), offset, size)
    kind = attr & 15
    if (s.cr0 & CR0_PE) != 0:
        if write:
            bad = bad or (kind & 8) != 0 or (kind & 2) == 0
        else:
            bad = bad or ((kind & 8) != 0 and (kind & 2) == 0)
    if bad:
        if segment == SS:
            stack_fault(s, 0)
        general_protection(s, 0)


@native
def check_stack(s, offset, size):
    """Limit check of a stack access, skipped while every segment is flat."""
    if (s.mode & MODE_SEGMENTED) != 0:
        check_segment(s, u32(SS), offset, u64(size), True)


@native
def is_flat(s, segment):
    """Whether accesses through a segment need no check: all 4 GiB, and for data writable."""
    attr = s.seg_attr[segment]
    fits = (attr & 0xE) == 2
    if segment == CS:
        fits = (attr & 8) != 0
    return (fits and s.seg_base[segment] == 0 and s.seg_limit[segment] == 0xFFFF_FFFF
            and (attr & (ATTR_UNUSABLE | ATTR_P)) == ATTR_P)


@native
def linear_ip(s):
    """The linear address of the instruction at RIP."""
    lin = s.rip + s.cs_base
    return lin if (s.mode & MODE_SIZE) == MODE_64 else lin & 0xFFFF_FFFF


@native
def branch_target(source, offset, f):
    """RIP after a near transfer, truncated to the operand size outside 64-bit mode."""
    to = source + offset
    if f.m64:
        return to
    if f.w == 2:
        return to & 0xFFFF
    return to & 0xFFFF_FFFF


@native
def check_near(s, f, to):
    """#GP(0) for the target of a near transfer beyond the limit of CS; 64-bit code has none."""
    if not f.m64:
        if unlikely(to > u64(s.seg_limit[CS])):
            general_protection(s, 0)


@native
def cet_control(s, cpl):
    """IA32_U_CET or IA32_S_CET, which holds at level `cpl`."""
    control = s.s_cet
    if cpl == 3:
        control = s.u_cet
    return control


@native(inline=False)
def cet_mode(s) -> u32:
    """The bits of the mode for control-flow enforcement, with CR4.CET set (SDM vol. 1, 17.1.1)."""
    mode: u32 = 0
    if (s.cr0 & CR0_PE) != 0 and (s.flags & RFLAGS_VM) == 0:
        control = cet_control(s, s.cpl)
        if (control & CET_SHADOW) != 0:
            mode = MODE_SHADOW
        if (control & CET_TRACK) != 0:
            mode = mode | MODE_TRACK
            if (control & CET_WAIT) != 0:
                mode = mode | MODE_ENDBRANCH
    return mode


@native(inline=False)
def update_mode(s) -> None:
    """Recompute what translated code depends on; call after a change of CR0, CR4, EFER, a segment, TF or CPL."""
    mode: u32 = MODE_16
    cs = s.seg_attr[CS]
    if (s.efer & EFER_LMA) != 0 and (cs & ATTR_L) != 0:
        mode = MODE_64
        s.cs_base = 0
        s.ss_base = 0
        s.sp_mask = ~u64(0)
    else:
        s.cs_base = s.seg_base[CS]
        s.ss_base = s.seg_base[SS]
        s.sp_mask = 0xFFFF
        if (cs & ATTR_DB) != 0:
            mode = MODE_32
        if (s.seg_attr[SS] & ATTR_DB) != 0:
            mode = mode | MODE_STACK32
            s.sp_mask = 0xFFFF_FFFF
        flat: bool = True
        for segment in static((CS, SS, DS, ES)):
            flat = flat and is_flat(s, segment)
        if not flat or (s.cr0 & CR0_PE) == 0:
            mode = mode | MODE_SEGMENTED
    if (s.flags & RFLAGS_TF) != 0:
        mode = mode | MODE_STEP
    if (s.cr0 & (CR0_EM | CR0_TS)) != 0:
        mode = mode | MODE_FPU_TRAP
    if (s.cr4 & CR4_OSFXSR) == 0 or (s.cr0 & CR0_EM) != 0:
        mode = mode | MODE_SSE_UD
    if (s.cr4 & CR4_OSXSAVE) == 0 or (s.xcr0 & (XCR0_SSE | XCR0_AVX)) != XCR0_SSE | XCR0_AVX:
        mode = mode | MODE_AVX_UD
    if (s.cr0 & CR0_PE) == 0 or (s.flags & RFLAGS_VM) != 0:
        mode = mode | MODE_VEX_UD
    if unlikely((s.cr4 & CR4_CET) != 0):
        mode = mode | cet_mode(s)
    if (s.mxcsr >> 7) & 0x3F != 0x3F:
        mode = mode | MODE_FP_STRICT
    if s.counted != 0:
        mode = mode | MODE_COUNTED
    if unlikely(records_branches(s)):
        mode = mode | MODE_LBR
    s.mode = mode
    select_tlb(s)
