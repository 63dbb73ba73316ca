"""Control and debug registers: MOV to and from them, LMSW, SMSW, CLTS."""

from pellucid.cpu.breakpoints import debug_exception, update_breakpoints, valid_dr6
from pellucid.cpu.control import write_cr0, write_cr3, write_cr4, write_cr8
from pellucid.cpu.faults import Stop, general_protection, undefined
from pellucid.cpu.memory import flush_tlb, store
from pellucid.cpu.operands import address, read, write
from pellucid.cpu.privilege import require_cpl0, require_umip
from pellucid.cpu.segments import update_mode
from pellucid.cpu.state import CR0_TS, CR4_DE, DEBUG_FAULT, DR6_BD, DR7_FIXED, DR7_GD
from pellucid.isa.table import LEAVE, instruction
from pellucid.native import native, u16, u32, u64, uint


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
    if (s.dr[7] & DR7_GD) != 0:
        debug_exception(s, u64(DR6_BD), u32(DEBUG_FAULT))
        raise Stop
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
        value = valid_dr6(s, value)
    if n == 7:
        value = (value & 0xFFFF_23FF) | DR7_FIXED
    s.dr[n] = value
    if update_breakpoints(s):
        flush_tlb(s, True)


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
