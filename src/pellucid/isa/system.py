"""System instructions: control and debug registers, TLB, HLT, STI and CLI, fast system calls, time."""

from pellucid.cpu.control import write_cr0, write_cr3, write_cr4, write_cr8
from pellucid.cpu.descriptors import in_64bit, in_long_mode, in_real_mode, in_v86, set_flat
from pellucid.cpu.faults import fault_plain, general_protection, undefined
from pellucid.cpu.flags import get_rflags, set_rflags
from pellucid.cpu.memory import check_canonical, flush_page, select_tlb, store
from pellucid.cpu.operands import address, read, write
from pellucid.cpu.segments import update_mode
from pellucid.cpu.state import (
    CR0_TS, CR4_DE, CR4_PCE, CR4_TSD, CR4_UMIP, CS, EFER_SCE, EXIT_HLT, RFLAGS_AC, RFLAGS_IF, RFLAGS_RF, SHADOW_STI,
    SS)
from pellucid.isa.table import LEAVE, LEAVE_JUMP, instruction
from pellucid.native import native, rdtsc, u16, u32, u64, u128, uint

RSP, RCX, R11 = 4, 1, 11
CODE64, CODE32, DATA = 0xA09B, 0xC09B, 0xC093


@native
def require_cpl0(s):
    """#GP(0) outside privilege level 0."""
    if s.cpl != 0:
        general_protection(s, 0)


@native
def require_protected(s):
    """#UD in real and virtual-8086 mode."""
    if in_real_mode(s) or in_v86(s):
        undefined(s)


@native
def require_umip(s):
    """#GP(0) for SGDT, SIDT, SLDT, SMSW and STR outside CPL 0 with CR4.UMIP."""
    if (s.cr4 & CR4_UMIP) != 0 and s.cpl != 0:
        general_protection(s, 0)


# --- control and debug registers -----------------------------------------------------------------------


@instruction("MOV", codes=lambda c: c in ("MOV_R64_CR", "MOV_R32_CR"), name="mov_from_cr")
@native
def mov_from_cr(s, o, f):
    require_cpl0(s)
    number = o.src
    value: u64 = 0
    if number == 0:
        value = s.cr0
    elif number == 2:
        value = s.cr2
    elif number == 3:
        value = s.cr3
    elif number == 4:
        value = s.cr4
    elif number == 8:
        value = s.cr8
    else:
        undefined(s)
    write(s, o, f, 0, uint(f.widths[0])(value))


@instruction("MOV", codes=lambda c: c in ("MOV_CR_R64", "MOV_CR_R32"), ends=LEAVE, name="mov_to_cr")
@native
def mov_to_cr(s, o, f):
    require_cpl0(s)
    value = u64(read(s, o, f, 1))
    number = o.dst
    if number == 0:
        write_cr0(s, value)
    elif number == 2:
        s.cr2 = value
    elif number == 3:
        write_cr3(s, value)
    elif number == 4:
        write_cr4(s, value)
    elif number == 8:
        write_cr8(s, value)
    else:
        undefined(s)


@native
def debug_register(s, number):
    """DR4 and DR5 are DR6 and DR7 unless CR4.DE makes them undefined; general detect raises #DB."""
    n = u64(number)
    if n == 4 or n == 5:
        if (s.cr4 & CR4_DE) != 0:
            undefined(s)
        n = n + 2
    require_cpl0(s)
    if (s.dr[7] & 0x2000) != 0:
        s.dr[6] = s.dr[6] | 0x2000
        s.dr[7] = s.dr[7] & ~u64(0x2000)
        fault_plain(s, u32(1))
    return n


@instruction("MOV", codes=lambda c: c in ("MOV_R64_DR", "MOV_R32_DR"), name="mov_from_dr")
@native
def mov_from_dr(s, o, f):
    n = debug_register(s, o.src)
    write(s, o, f, 0, uint(f.widths[0])(s.dr[n]))


@instruction("MOV", codes=lambda c: c in ("MOV_DR_R64", "MOV_DR_R32"), ends=LEAVE, name="mov_to_dr")
@native
def mov_to_dr(s, o, f):
    n = debug_register(s, o.dst)
    value = u64(read(s, o, f, 1))
    if n >= 6 and value >> 32 != 0:
        general_protection(s, 0)
    if n == 6:
        value = (value & 0xE00F) | 0xFFFF0FF0
    if n == 7:
        value = (value & 0xFFFF2FFF) | 0x400
    s.dr[n] = value


@instruction("LMSW", ends=LEAVE)
@native
def lmsw(s, o, f):
    require_cpl0(s)
    value = u64(read(s, o, f, 0)) & 15
    write_cr0(s, (s.cr0 & ~u64(14)) | value)


@instruction("SMSW")
@native
def smsw(s, o, f):
    require_umip(s)
    if f.kinds[0] == "m":
        store(s, address(s, o), u16(s.cr0), u16)
    else:
        write(s, o, f, 0, uint(f.widths[0])(s.cr0))


@instruction("CLTS", ends=LEAVE)
@native
def clts(s, o, f):
    require_cpl0(s)
    s.cr0 = s.cr0 & ~u64(CR0_TS)
    update_mode(s)


# --- interrupts flag, HLT, TLB -------------------------------------------------------------------------


@instruction("CLI")
@native
def cli(s, o, f):
    if not in_real_mode(s) and s.cpl > u32(s.flags >> 12) & 3:
        general_protection(s, 0)
    s.flags = s.flags & ~u64(RFLAGS_IF)


@instruction("STI", ends=LEAVE)
@native
def sti(s, o, f):
    if not in_real_mode(s) and s.cpl > u32(s.flags >> 12) & 3:
        general_protection(s, 0)
    if (s.flags & RFLAGS_IF) == 0:
        s.shadow = SHADOW_STI
    s.flags = s.flags | RFLAGS_IF


@instruction("HLT", ends=LEAVE)
@native
def hlt(s, o, f):
    require_cpl0(s)
    s.exit_reason = EXIT_HLT


@instruction("INVLPG", ends=LEAVE, address_only=True)
@native
def invlpg(s, o, f):
    require_cpl0(s)
    flush_page(s, address(s, o))


@instruction("WBINVD", "INVD", "WBNOINVD")
@native
def wbinvd(s, o, f):
    require_cpl0(s)


@instruction("STAC", "CLAC", ends=LEAVE, extra=lambda c: int(c == "STAC"))
@native
def stac(s, o, f):
    if s.cpl != 0:
        undefined(s)
    if f.extra == 1:
        s.flags = s.flags | RFLAGS_AC
    else:
        s.flags = s.flags & ~u64(RFLAGS_AC)
    select_tlb(s)


# --- fast system calls ---------------------------------------------------------------------------------


@instruction("SYSCALL", ends=LEAVE_JUMP)
@native
def syscall(s, o, f):
    if (s.efer & EFER_SCE) == 0 or not in_64bit(s):
        undefined(s)
    flags = get_rflags(s)
    s.gpr[RCX] = s.rip + u64(o.next_ip)
    s.gpr[R11] = flags & ~u64(RFLAGS_RF)
    selector = u32(s.star >> 32) & 0xFFFC
    s.rip = s.lstar
    s.cpl = 0
    set_flat(s, CS, selector, u32(CODE64))
    set_flat(s, SS, selector + 8, u32(DATA))
    set_rflags(s, flags & ~s.sfmask & ~u64(RFLAGS_RF))
    update_mode(s)


@instruction("SYSRET", "SYSRETQ", "SYSRETD", ends=LEAVE_JUMP, width=lambda c: 8 if c.endswith("Q") else 4)
@native
def sysret(s, o, f):
    if (s.efer & EFER_SCE) == 0 or not in_64bit(s):
        undefined(s)
    require_cpl0(s)
    base = u32(s.star >> 48)
    if f.w == 8:
        check_canonical(s, s.gpr[RCX])
        s.rip = s.gpr[RCX]
        set_flat(s, CS, (base + 16) | 3, u32(CODE64 | 0x60))
    else:
        s.rip = s.gpr[RCX] & 0xFFFF_FFFF
        set_flat(s, CS, base | 3, u32(CODE32 | 0x60))
    set_flat(s, SS, (base + 8) | 3, u32(DATA | 0x60))
    s.cpl = 3
    set_rflags(s, (s.gpr[R11] & 0x3C7FD7) | 2)
    update_mode(s)


@instruction("SYSENTER", ends=LEAVE_JUMP)
@native
def sysenter(s, o, f):
    if in_real_mode(s) or (s.sysenter_cs & 0xFFFC) == 0:
        general_protection(s, 0)
    selector = u32(s.sysenter_cs) & 0xFFFC
    s.flags = s.flags & ~u64(0x20200)
    attr: u32 = CODE32
    s.rip = s.sysenter_eip
    s.gpr[RSP] = s.sysenter_esp
    if in_long_mode(s):
        attr = CODE64
    else:
        s.rip = s.rip & 0xFFFF_FFFF
        s.gpr[RSP] = s.gpr[RSP] & 0xFFFF_FFFF
    s.cpl = 0
    set_flat(s, CS, selector, attr)
    set_flat(s, SS, selector + 8, u32(DATA))
    update_mode(s)


@instruction("SYSEXIT", "SYSEXITQ", "SYSEXITD", ends=LEAVE_JUMP, width=lambda c: 8 if c.endswith("Q") else 4)
@native
def sysexit(s, o, f):
    if in_real_mode(s) or (s.sysenter_cs & 0xFFFC) == 0 or s.cpl != 0:
        general_protection(s, 0)
    selector = u32(s.sysenter_cs) & 0xFFFC
    if f.w == 8:
        check_canonical(s, s.gpr[2])
        check_canonical(s, s.gpr[RCX])
        s.rip = s.gpr[2]
        s.gpr[RSP] = s.gpr[RCX]
        set_flat(s, CS, (selector + 32) | 3, u32(CODE64 | 0x60))
        set_flat(s, SS, (selector + 40) | 3, u32(DATA | 0x60))
    else:
        s.rip = s.gpr[2] & 0xFFFF_FFFF
        s.gpr[RSP] = s.gpr[RCX] & 0xFFFF_FFFF
        set_flat(s, CS, (selector + 16) | 3, u32(CODE32 | 0x60))
        set_flat(s, SS, (selector + 24) | 3, u32(DATA | 0x60))
    s.cpl = 3
    update_mode(s)


@instruction("SWAPGS")
@native
def swapgs(s, o, f):
    require_cpl0(s)
    old = s.seg_base[5]
    s.seg_base[5] = s.kernel_gs_base
    s.kernel_gs_base = old


@instruction("RDFSBASE", "RDGSBASE", extra=lambda c: 4 if c.startswith("RDFS") else 5)
@native
def rdbase(s, o, f):
    if (s.cr4 & (1 << 16)) == 0:
        undefined(s)
    write(s, o, f, 0, uint(f.widths[0])(s.seg_base[f.extra]))


@instruction("WRFSBASE", "WRGSBASE", extra=lambda c: 4 if c.startswith("WRFS") else 5)
@native
def wrbase(s, o, f):
    if (s.cr4 & (1 << 16)) == 0:
        undefined(s)
    value = u64(read(s, o, f, 0))
    check_canonical(s, value)
    s.seg_base[f.extra] = value


# --- time ----------------------------------------------------------------------------------------------


@native
def guest_tsc(s):
    """The guest's time-stamp counter: host cycles scaled (32.32) and offset."""
    return u64((u128(rdtsc()) * u128(s.tsc_scale)) >> 32) + s.tsc_offset


@native
def set_edx_eax(s, value):
    s.gpr[0] = value & 0xFFFF_FFFF
    s.gpr[2] = value >> 32


@native
def require_tsc(s):
    if (s.cr4 & CR4_TSD) != 0 and s.cpl != 0:
        general_protection(s, 0)


@instruction("RDTSC", name="rdtsc")
@native
def rdtsc_(s, o, f):
    require_tsc(s)
    set_edx_eax(s, guest_tsc(s))


@instruction("RDTSCP")
@native
def rdtscp(s, o, f):
    require_tsc(s)
    set_edx_eax(s, guest_tsc(s))
    s.gpr[RCX] = s.tsc_aux & 0xFFFF_FFFF


@instruction("RDPID")
@native
def rdpid(s, o, f):
    write(s, o, f, 0, uint(f.widths[0])(s.tsc_aux))


@instruction("RDPMC")
@native
def rdpmc(s, o, f):
    if (s.cr4 & CR4_PCE) == 0 and s.cpl != 0:
        general_protection(s, 0)
    general_protection(s, 0)


