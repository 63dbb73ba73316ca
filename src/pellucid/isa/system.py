"""System instructions: CLI, STI, HLT, RSM, INVLPG, caches, protection keys, segment bases, time."""

from pellucid.cpu.faults import general_protection, undefined
from pellucid.cpu.host import wait_for_earlier
from pellucid.cpu.memory import check_base, flush_page, flush_tlb, select_tlb
from pellucid.cpu.operands import address, read, register, write
from pellucid.cpu.privilege import above_iopl, require_cpl0
from pellucid.cpu.retire import instruction_time, not_done
from pellucid.cpu.simd import load_vector
from pellucid.cpu.state import (
    CR4_FSGSBASE, CR4_PCIDE, CR4_PKE, CR4_TSD, EXIT_HLT, EXIT_HYPERCALL, EXIT_PAUSE, EXIT_RSM, FS, GS,
    MODE_64, MODE_SIZE, RFLAGS_AC, RFLAGS_IF, SHADOW_STI, TSC_FRACTION)
from pellucid.cpu.virtual import write_virtual_if
from pellucid.isa.table import LEAVE, instruction
from pellucid.native import native, rdtsc, u32, u64, u128, uint, unlikely, vec

RAX, RCX, RDX = 0, 1, 2


@instruction("CLI")
@native
def cli(s, o, f):
    if unlikely(above_iopl(s)):
        write_virtual_if(s, False)
    else:
        s.flags = s.flags & ~u64(RFLAGS_IF)


@instruction("STI", ends=LEAVE)
@native
def sti(s, o, f):
    if unlikely(above_iopl(s)):
        write_virtual_if(s, True)
    else:
        if (s.flags & RFLAGS_IF) == 0:
            s.shadow = SHADOW_STI
        s.flags = s.flags | RFLAGS_IF


@instruction("HLT", ends=LEAVE)
@native
def hlt(s, o, f):
    require_cpl0(s)
    s.exit_reason = EXIT_HLT


PAUSE_GAP = 2000
"""TSC ticks between two PAUSEs beyond which they are of two loops."""


@instruction("PAUSE", ends=LEAVE)
@native
def pause(s, o, f):
    """A loop that waits for another processor longer than its window leaves (PAUSE-loop exiting, SDM vol. 3, 25.1.3).

    Whom it waits for may need the host's CPU. By the instruction clock the vCPUs take turns: each PAUSE leaves.
    """
    if s.pause_window != 0 and s.clock_on != 0:
        s.exit_reason = EXIT_PAUSE
    elif s.pause_window != 0:
        now = rdtsc()
        if now - s.pause_last > PAUSE_GAP:
            s.pause_first = now
        elif now - s.pause_first > s.pause_window:
            s.exit_reason = EXIT_PAUSE
        s.pause_last = now


@instruction("RSM", ends=LEAVE)
@native
def rsm(s, o, f):
    """#UD outside system-management mode; what it restores is `pellucid.cpu.smm`'s to do."""
    if s.smm == 0:
        undefined(s)
    s.exit_reason = EXIT_RSM


@instruction("VMCALL", "VMMCALL", ends=LEAVE)
@native
def hypercall(s, o, f):
    """To the hypervisor, from any mode and privilege; which of the two a guest takes, does not matter."""
    s.exit_reason = EXIT_HYPERCALL


@instruction("INVLPG", ends=LEAVE, address_only=True)
@native
def invlpg(s, o, f):
    require_cpl0(s)
    flush_page(s, address(s, o))


@instruction("INVPCID", ends=LEAVE)
@native
def invpcid(s, o, f):
    """Types 0 to 3: an address, a context, everything, everything but global pages; no translation here has a PCID.

    The address must be canonical by the width that CPUID tells, whatever CR4.LA57.
    """
    require_cpl0(s)
    kind = register(s, o.dst, u64)
    if (s.mode & MODE_SIZE) != MODE_64:
        kind = kind & 0xFFFF_FFFF
    both = load_vector(s, address(s, o), vec[u64, 2])
    if kind > 3 or both[0] >> 12 != 0:
        general_protection(s, 0)
    if kind < 2 and (s.cr4 & CR4_PCIDE) == 0 and both[0] != 0:
        general_protection(s, 0)
    if kind == 0:
        check_base(s, both[1])
        flush_page(s, both[1])
    else:
        flush_tlb(s, kind == 2)


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


@native
def require_keys(s):
    """#UD without CR4.PKE; #GP(0) for an ECX that is not 0."""
    if (s.cr4 & CR4_PKE) == 0:
        undefined(s)
    if u32(s.gpr[RCX]) != 0:
        general_protection(s, 0)


@instruction("RDPKRU")
@native
def rdpkru(s, o, f):
    require_keys(s)
    set_edx_eax(s, u64(s.pkru))


@instruction("WRPKRU", ends=LEAVE)
@native
def wrpkru(s, o, f):
    require_keys(s)
    if u32(s.gpr[RDX]) != 0:
        general_protection(s, 0)
    rights = u32(s.gpr[RAX])
    if rights != s.pkru:
        s.pkru = rights
        flush_tlb(s, True)


@instruction("RDFSBASE", "RDGSBASE", extra=lambda c: FS if c.startswith("RDFS") else GS)
@native
def rdbase(s, o, f):
    if (s.cr4 & CR4_FSGSBASE) == 0:
        undefined(s)
    write(s, o, f, 0, uint(f.widths[0])(s.seg_base[f.extra]))


@instruction("WRFSBASE", "WRGSBASE", extra=lambda c: FS if c.startswith("WRFS") else GS)
@native
def wrbase(s, o, f):
    if (s.cr4 & CR4_FSGSBASE) == 0:
        undefined(s)
    value = u64(read(s, o, f, 0))
    check_base(s, value)
    s.seg_base[f.extra] = value


# --- time ----------------------------------------------------------------------------------------------


@native
def guest_tsc(s, ahead):
    """The guest's time-stamp counter: the host's cycles, or the instruction clock's time, scaled and offset.

    `ahead`: see `instruction_time`.
    """
    source = instruction_time(s, ahead) if s.clock_on != 0 else rdtsc()
    return u64((u128(source) * u128(s.tsc_scale)) >> TSC_FRACTION) + s.tsc_offset


@native
def set_edx_eax(s, value):
    s.gpr[RAX] = value & 0xFFFF_FFFF
    s.gpr[RDX] = value >> 32


@native
def require_tsc(s):
    if (s.cr4 & CR4_TSD) != 0 and s.cpl != 0:
        general_protection(s, 0)


@instruction("RDTSC", name="rdtsc")
@native
def rdtsc_(s, o, f):
    require_tsc(s)
    set_edx_eax(s, guest_tsc(s, not_done(s, o)))


@instruction("RDTSCP")
@native
def rdtscp(s, o, f):
    """RDTSC that earlier instructions are done before (SDM vol. 2)."""
    require_tsc(s)
    wait_for_earlier()
    set_edx_eax(s, guest_tsc(s, not_done(s, o)))
    s.gpr[RCX] = s.tsc_aux & 0xFFFF_FFFF


@instruction("RDPID")
@native
def rdpid(s, o, f):
    write(s, o, f, 0, uint(f.widths[0])(s.tsc_aux))
