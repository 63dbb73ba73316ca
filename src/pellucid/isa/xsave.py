"""The XSAVE family (SDM vol. 1, chapter 13): components in the standard and the compacted format.

The components beyond x87 and SSE are `STATES`, one row each; where they lie says `cpu.xstate`. The state is written
after every fault that the instruction may take.
"""

from typing import Any

from pellucid.cpu.faults import general_protection, not_available, undefined
from pellucid.cpu.host_sse import guest_mxcsr, set_guest_mxcsr
from pellucid.cpu.memory import flush_tlb, probe_read, probe_write
from pellucid.cpu.segments import update_mode
from pellucid.cpu.shadow import valid_cet, valid_ssp
from pellucid.cpu.state import CR0_TS, CR4_OSXSAVE
from pellucid.cpu.xstate import (
    AREA, AVX, AVX_STATE, CET_SUPERVISOR_STATE, CET_USER_STATE, COMPACTED, COMPONENTS, HEADER, PKRU_STATE, SSE, X87,
    Component, compacted_bytes, compacted_offset, standard_bytes)
from pellucid.isa.features import shows
from pellucid.isa.fxsave import (
    aligned, checked_mxcsr, field, halves_in_use, initial_x87, put_field, restore_halves, restore_x87,
    save_halves, save_mxcsr, save_x87, wide_pointers, x87_in_use)
from pellucid.isa.table import LEAVE, instruction
from pellucid.native import native, static, u32, u64
from pellucid.records import dataclass

MXCSR_INITIAL = 0x1F80


# --- components ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class State:
    """What the XSAVE family does with a component; native functions.

    `in_use(s)` says whether it is out of its initial configuration, `save(s, lin)` writes it at `lin`,
    `restore(s, lin, present)` loads it from there, or makes it initial where it is not present. `check(s, lin)` raises
    the fault of an image that `restore` cannot take.
    """

    component: Component
    in_use: Any
    save: Any
    restore: Any
    check: Any = None


@native
def avx_in_use(s):
    return halves_in_use(s, u64(2))


@native
def save_avx(s, lin):
    save_halves(s, lin, u64(2))


@native
def restore_avx(s, lin, present):
    restore_halves(s, lin, u64(2), present)


@native
def pkru_in_use(s):
    return s.pkru != 0


@native
def save_pkru(s, lin):
    put_field(s, lin, 0, u64(s.pkru), u64)


@native(inline=False)
def restore_pkru(s, lin: u64, present: bool) -> None:
    """Load PKRU, or make it 0: every key allows everything."""
    rights: u32 = 0
    if present:
        rights = field(s, lin, 0, u32)
    if rights != s.pkru:
        s.pkru = rights
        flush_tlb(s, True)


@native
def cet_user_in_use(s):
    return (s.u_cet | s.pl_ssp[3]) != 0


@native
def save_cet_user(s, lin):
    put_field(s, lin, 0, s.u_cet, u64)
    put_field(s, lin, 8, s.pl_ssp[3], u64)


@native(inline=False)
def restore_cet_user(s, lin: u64, present: bool) -> None:
    s.u_cet = 0
    s.pl_ssp[3] = 0
    if present:
        s.u_cet = field(s, lin, 0, u64)
        s.pl_ssp[3] = field(s, lin, 8, u64)


@native(inline=False)
def check_cet_user(s, lin: u64) -> None:
    """#GP(0) for what WRMSR would refuse."""
    if not valid_cet(s, field(s, lin, 0, u64)) or not valid_ssp(s, field(s, lin, 8, u64)):
        general_protection(s, 0)


@native
def cet_supervisor_in_use(s):
    return (s.pl_ssp[0] | s.pl_ssp[1] | s.pl_ssp[2]) != 0


@native
def save_cet_supervisor(s, lin):
    for level in static(range(3)):
        put_field(s, lin, level * 8, s.pl_ssp[level], u64)


@native(inline=False)
def restore_cet_supervisor(s, lin: u64, present: bool) -> None:
    for level in static(range(3)):
        s.pl_ssp[level] = 0
        if present:
            s.pl_ssp[level] = field(s, lin, level * 8, u64)


@native(inline=False)
def check_cet_supervisor(s, lin: u64) -> None:
    """#GP(0) for what WRMSR would refuse."""
    for level in static(range(3)):
        if not valid_ssp(s, field(s, lin, level * 8, u64)):
            general_protection(s, 0)


STATES = (
    State(AVX_STATE, avx_in_use, save_avx, restore_avx),
    State(PKRU_STATE, pkru_in_use, save_pkru, restore_pkru),
    State(CET_USER_STATE, cet_user_in_use, save_cet_user, restore_cet_user, check_cet_user),
    State(CET_SUPERVISOR_STATE, cet_supervisor_in_use, save_cet_supervisor, restore_cet_supervisor,
          check_cet_supervisor),
)
"""One for each of `COMPONENTS`, in the same order."""

assert tuple(state.component for state in STATES) == COMPONENTS


@native(inline=False)
def components_in_use(s) -> u64:
    """XINUSE: components that are not in their initial configuration. SSE's are the registers, not MXCSR (13.6)."""
    found: u64 = 0
    if x87_in_use(s):
        found = X87
    if halves_in_use(s, u64(0)):
        found = found | SSE
    for state in static(STATES):
        if state.in_use(s):
            found = found | state.component.bit
    return found


# --- saving --------------------------------------------------------------------------------------------


@native
def enabled(s):
    """#UD while the operating system has not enabled the family, #NM while CR0.TS is set."""
    if (s.cr4 & CR4_OSXSAVE) == 0:
        undefined(s)
    if (s.cr0 & CR0_TS) != 0:
        not_available(s)


@native
def requested(s):
    """RFBM: the user components that EDX:EAX asks for, of those enabled."""
    enabled(s)
    return s.xcr0 & ((s.gpr[2] << 32) | (s.gpr[0] & 0xFFFF_FFFF))


@native
def requested_of_all(s):
    """RFBM with supervisor components; #GP(0) beyond CPL 0."""
    enabled(s)
    if s.cpl != 0:
        general_protection(s, 0)
    return (s.xcr0 | s.xss) & ((s.gpr[2] << 32) | (s.gpr[0] & 0xFFFF_FFFF))


@native
def component_offset(layout, component):
    """Where a component lies: `layout` is XCOMP_BV, of the standard format 0."""
    offset: u64 = component.offset
    if (layout & COMPACTED) != 0:
        offset = compacted_offset(layout, component)
    return offset


@native(inline=False)
def save_components(s, lin: u64, wanted: u64, layout: u64, wide: bool) -> None:
    if (wanted & X87) != 0:
        save_x87(s, lin, wide)
    if (wanted & SSE) != 0:
        save_halves(s, lin + 160, u64(0))
    for state in static(STATES):
        if (wanted & state.component.bit) != 0:
            state.save(s, lin + component_offset(layout, state.component))


@native(inline=False)
def save_standard(s, lin: u64, wanted: u64, unused: bool, wide: bool) -> None:
    """XSAVE (`unused`: what is in its initial configuration is written too) and XSAVEOPT (13.7 and 13.9)."""
    probe_write(s, lin, standard_bytes(wanted))
    used = components_in_use(s)
    saved = wanted
    if not unused:
        saved = wanted & used
    save_components(s, lin, saved, u64(0), wide)
    if (wanted & (SSE | AVX)) != 0:
        save_mxcsr(s, lin)
    put_field(s, lin, HEADER, (field(s, lin, HEADER, u64) & ~wanted) | (used & wanted), u64)


@native(inline=False)
def save_compacted(s, lin: u64, wanted: u64, wide: bool) -> None:
    """XSAVEC and XSAVES: what is not in use is not written; here MXCSR counts as SSE's (13.10 and 13.11)."""
    layout = wanted | COMPACTED
    probe_write(s, lin, compacted_bytes(wanted))
    used = components_in_use(s)
    if guest_mxcsr(s) != MXCSR_INITIAL:
        used = used | SSE
    saved = wanted & used
    save_components(s, lin, saved, layout, wide)
    if (saved & SSE) != 0:
        save_mxcsr(s, lin)
    put_field(s, lin, HEADER, saved, u64)
    put_field(s, lin, HEADER + 8, layout, u64)


@instruction("XSAVE", "XSAVE64", extra=wide_pointers)
@native
def xsave(s, o, f):
    wanted = requested(s)
    save_standard(s, aligned(s, o, 64), wanted, True, f.extra == 1)


@instruction("XSAVEOPT", "XSAVEOPT64", extra=wide_pointers)
@native
def xsaveopt(s, o, f):
    """XSAVE without the components that are in their initial configuration."""
    wanted = requested(s)
    save_standard(s, aligned(s, o, 64), wanted, False, f.extra == 1)


@instruction("XSAVEC", "XSAVEC64", extra=wide_pointers)
@native
def xsavec(s, o, f):
    wanted = requested(s)
    save_compacted(s, aligned(s, o, 64), wanted, f.extra == 1)


@instruction("XSAVES", "XSAVES64", extra=wide_pointers)
@native
def xsaves(s, o, f):
    wanted = requested_of_all(s)
    save_compacted(s, aligned(s, o, 64), wanted, f.extra == 1)


# --- restoring -----------------------------------------------------------------------------------------


@native(inline=False)
def check_header(s, lin: u64, allowed: u64) -> None:
    """#GP(0) for a header that no XSAVE writes (13.8 and 13.12); `allowed`: components that it may name."""
    present = field(s, lin, HEADER, u64)
    layout = field(s, lin, HEADER + 8, u64)
    bad = (present & ~allowed) != 0 or field(s, lin, HEADER + 16, u64) != 0
    if (layout & COMPACTED) != 0:
        bad = bad or not shows(s, "xsavec")
        bad = bad or (layout & ~allowed & ~u64(COMPACTED)) != 0 or (present & ~layout) != 0
        for i in range(u64(5)):
            bad = bad or field(s, lin, HEADER + 24 + i * 8, u64) != 0
    else:
        bad = bad or layout != 0
    if bad:
        general_protection(s, 0)


@native
def restored_mxcsr(s, lin, wanted, present, compacted):
    """MXCSR after the instruction; #GP(0) for reserved bits in the image."""
    mxcsr = guest_mxcsr(s)
    if compacted:
        if (wanted & SSE) != 0:
            mxcsr = checked_mxcsr(s, lin) if (present & SSE) != 0 else u32(MXCSR_INITIAL)
    elif (wanted & (SSE | AVX)) != 0:
        mxcsr = checked_mxcsr(s, lin)
    return mxcsr


@native(inline=False)
def restore_components(s, lin: u64, wanted: u64, allowed: u64, wide: bool) -> None:
    """XRSTOR and XRSTORS behind their first checks."""
    check_header(s, lin, allowed)
    present = field(s, lin, HEADER, u64)
    layout = field(s, lin, HEADER + 8, u64)
    loaded = wanted & present
    if (layout & COMPACTED) != 0:
        if (loaded & ~u64(X87 | SSE)) != 0:
            probe_read(s, lin, compacted_bytes(layout))
    else:
        probe_read(s, lin, standard_bytes(loaded))
    mxcsr = restored_mxcsr(s, lin, wanted, present, (layout & COMPACTED) != 0)
    for state in static(STATES):
        if state.check is not None:
            if (loaded & state.component.bit) != 0:
                state.check(s, lin + component_offset(layout, state.component))
    if (wanted & X87) != 0:
        if (present & X87) != 0:
            restore_x87(s, lin, wide)
        else:
            initial_x87(s)
    if (wanted & SSE) != 0:
        restore_halves(s, lin + 160, u64(0), (present & SSE) != 0)
    for state in static(STATES):
        if (wanted & state.component.bit) != 0:
            where = lin + component_offset(layout, state.component)
            state.restore(s, where, (present & state.component.bit) != 0)
    set_guest_mxcsr(s, mxcsr)
    update_mode(s)


@instruction("XRSTOR", "XRSTOR64", extra=wide_pointers, ends=LEAVE)
@native
def xrstor(s, o, f):
    wanted = requested(s)
    lin = aligned(s, o, 64)
    probe_read(s, lin, u64(AREA))
    restore_components(s, lin, wanted, s.xcr0, f.extra == 1)


@instruction("XRSTORS", "XRSTORS64", extra=wide_pointers, ends=LEAVE)
@native
def xrstors(s, o, f):
    """Takes the compacted format only."""
    wanted = requested_of_all(s)
    lin = aligned(s, o, 64)
    probe_read(s, lin, u64(AREA))
    if (field(s, lin, HEADER + 8, u64) & COMPACTED) == 0:
        general_protection(s, 0)
    restore_components(s, lin, wanted, s.xcr0 | s.xss, f.extra == 1)
