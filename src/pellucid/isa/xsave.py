"""FXSAVE, FXRSTOR and the XSAVE family (SDM vol. 1, 10.5 and chapter 13).

State components are x87, SSE, AVX and PKRU. The first three lie where the standard format has them in the compacted
format too; PKRU follows them there. The state is written after every fault that the instruction may take.
"""

from pellucid.cpu.faults import general_protection, not_available, undefined
from pellucid.cpu.host_sse import guest_mxcsr, set_guest_mxcsr
from pellucid.cpu.memory import flush_tlb, linear_wrap, load, probe_read, probe_write, store
from pellucid.cpu.operands import address
from pellucid.cpu.segments import update_mode
from pellucid.cpu.state import (
    CR0_TS, CR4_OSFXSR, CR4_OSXSAVE, FEATURE_ERROR_POINTERS, FEATURES_SYSTEM, MODE_64, MODE_SIZE, XMM_BYTES, slot_of)
from pellucid.cpu.x87 import ST, high, place, put, reset_x87, set_control, set_status, status_word
from pellucid.isa.table import LEAVE, instruction
from pellucid.native import at, native, u16, u32, u64

XMM = slot_of("xmm")
MXCSR_MASK, MXCSR_INITIAL = 0xFFFF, 0x1F80
X87, SSE, AVX, PKRU = 1, 2, 4, 1 << 9
LEGACY_BYTES, HEADER, HEADER_BYTES, AVX_OFFSET, AVX_BYTES = 512, 512, 64, 576, 256
PKRU_OFFSET, PKRU_BYTES = 2688, 8
COMPACTED = 1 << 63


@native
def field(s, lin, where, T):
    return load(s, linear_wrap(s, lin + where), T)


@native
def put_field(s, lin, where, value, T):
    store(s, linear_wrap(s, lin + where), value, T)


@native
def vector(s, number, half):
    """64 bits number `half` of a vector register."""
    return at(s, u64(XMM) + u64(number) * XMM_BYTES + half * 8, u64)


@native
def vectors(s):
    """How many vector registers the mode has."""
    return u64(16) if (s.mode & MODE_SIZE) == MODE_64 else u64(8)


# --- components ----------------------------------------------------------------------------------------


@native(inline=False)
def save_x87(s, lin: u64, wide: bool) -> None:
    """Bytes 0 to 23 and the registers; `wide` pointers have 64 bits and no selector."""
    put_field(s, lin, 0, s.fpu_cw, u16)
    put_field(s, lin, 2, status_word(s), u16)
    put_field(s, lin, 4, u16(s.fpu_tags), u16)
    if keeps_pointers(s, status_word(s)):
        save_pointers(s, lin, wide)
    for i in range(u32(8)):
        p = place(s, i)
        put_field(s, lin, 32 + u64(i) * 16, p[0], u64)
        put_field(s, lin, 40 + u64(i) * 16, u64(high(p)[0]), u64)


@native
def keeps_pointers(s, status):
    """Whether an image with this status word has the last instruction's opcode and pointers.

    AMD's older processors leave them alone unless an exception is pending (APM vol. 2, 11.4.4).
    """
    return (s.features[FEATURES_SYSTEM] & FEATURE_ERROR_POINTERS) != 0 or (status & 0x80) != 0


@native
def save_pointers(s, lin, wide):
    put_field(s, lin, 6, u16(s.fpu_opcode), u16)
    if wide:
        put_field(s, lin, 8, s.fpu_ip, u64)
        put_field(s, lin, 16, s.fpu_dp, u64)
    else:
        put_field(s, lin, 8, (s.fpu_ip & 0xFFFF_FFFF) | (u64(s.fpu_cs) << 32), u64)
        put_field(s, lin, 16, (s.fpu_dp & 0xFFFF_FFFF) | (u64(s.fpu_ds) << 32), u64)


@native(inline=False)
def restore_x87(s, lin: u64, wide: bool) -> None:
    if keeps_pointers(s, field(s, lin, 2, u16)):
        restore_pointers(s, lin, wide)
    s.fpu_tags = u32(field(s, lin, 4, u16)) & 0xFF
    set_control(s, field(s, lin, 0, u16))
    set_status(s, field(s, lin, 2, u16))
    for i in range(u32(8)):
        put(place(s, i), field(s, lin, 32 + u64(i) * 16, u64), field(s, lin, 40 + u64(i) * 16, u16))


@native
def restore_pointers(s, lin, wide):
    s.fpu_opcode = u32(field(s, lin, 6, u16)) & 0x7FF
    s.fpu_ip = field(s, lin, 8, u64)
    s.fpu_dp = field(s, lin, 16, u64)
    s.fpu_cs = 0
    s.fpu_ds = 0
    if not wide:
        s.fpu_cs = u16(s.fpu_ip >> 32)
        s.fpu_ds = u16(s.fpu_dp >> 32)
        s.fpu_ip = s.fpu_ip & 0xFFFF_FFFF
        s.fpu_dp = s.fpu_dp & 0xFFFF_FFFF


@native
def save_mxcsr(s, lin):
    put_field(s, lin, 24, guest_mxcsr(s), u32)
    put_field(s, lin, 28, u32(MXCSR_MASK), u32)


@native
def checked_mxcsr(s, lin):
    """The image's MXCSR; #GP(0) for reserved bits."""
    value = field(s, lin, 24, u32)
    if (value & ~u32(MXCSR_MASK)) != 0:
        general_protection(s, 0)
    return value


@native(inline=False)
def save_halves(s, lin: u64, first: u64) -> None:
    """Two quadwords of each vector register, `first` and the next: XMM registers (0), upper halves of YMM (2)."""
    for i in range(vectors(s)):
        put_field(s, lin, i * 16, vector(s, i, first)[0], u64)
        put_field(s, lin, i * 16 + 8, vector(s, i, first)[1], u64)


@native(inline=False)
def restore_halves(s, lin: u64, first: u64, present: bool) -> None:
    """Load what `save_halves` wrote, or zeros."""
    for i in range(vectors(s)):
        p = vector(s, i, first)
        if present:
            p[0] = field(s, lin, i * 16, u64)
            p[1] = field(s, lin, i * 16 + 8, u64)
        else:
            p[0] = 0
            p[1] = 0


@native(inline=False)
def initial_x87(s) -> None:
    """The initial configuration of the x87 component: as FNINIT, and every register zero."""
    reset_x87(s)
    for i in range(u32(8)):
        put(place(s, i), u64(0), u16(0))


# --- FXSAVE --------------------------------------------------------------------------------------------


def _wide(code: str) -> int:
    """1 with REX.W: 64-bit pointers in the image."""
    return int("64_" in code)


@native
def aligned(s, o, size):
    """The address of an image; #GP(0) where it is not aligned."""
    lin = address(s, o)
    if (lin & (size - 1)) != 0:
        general_protection(s, 0)
    return lin


@instruction("FXSAVE", "FXSAVE64", extra=_wide, fpu=True, mmx=True)
@native
def fxsave(s, o, f):
    lin = aligned(s, o, 16)
    probe_write(s, lin, u64(LEGACY_BYTES))
    save_x87(s, lin, f.extra == 1)
    save_mxcsr(s, lin)
    if (s.cr4 & CR4_OSFXSR) != 0:
        save_halves(s, lin + 160, u64(0))


@instruction("FXRSTOR", "FXRSTOR64", extra=_wide, fpu=True, mmx=True, ends=LEAVE)
@native
def fxrstor(s, o, f):
    lin = aligned(s, o, 16)
    probe_read(s, lin, u64(LEGACY_BYTES))
    mxcsr = checked_mxcsr(s, lin)
    restore_x87(s, lin, f.extra == 1)
    if (s.cr4 & CR4_OSFXSR) != 0:
        set_guest_mxcsr(s, mxcsr)
        restore_halves(s, lin + 160, u64(0), True)
    update_mode(s)


# --- XSAVE ---------------------------------------------------------------------------------------------


@native
def requested(s):
    """The components that EDX:EAX asks for, of those enabled; #UD and #NM first."""
    if (s.cr4 & CR4_OSXSAVE) == 0:
        undefined(s)
    if (s.cr0 & CR0_TS) != 0:
        not_available(s)
    return s.xcr0 & ((s.gpr[2] << 32) | (s.gpr[0] & 0xFFFF_FFFF))


@native
def pkru_offset(layout):
    """Where PKRU stands: `layout` is XCOMP_BV of the compacted format, or 0 for the standard one."""
    offset: u64 = PKRU_OFFSET
    if (layout & COMPACTED) != 0:
        offset = AVX_OFFSET + AVX_BYTES if (layout & AVX) != 0 else u64(AVX_OFFSET)
    return offset


@native
def image_bytes(wanted, layout):
    """How far an image with these components reaches; `layout` as for `pkru_offset`."""
    size: u64 = AVX_OFFSET
    if (wanted & AVX) != 0:
        size = AVX_OFFSET + AVX_BYTES
    if (wanted & PKRU) != 0:
        size = pkru_offset(layout) + PKRU_BYTES
    return size


@native(inline=False)
def x87_in_use(s) -> bool:
    """Whether the x87 component is out of its initial configuration."""
    used = s.fpu_cw != 0x37F or s.fpu_sw != 0 or s.fpu_top != 0 or s.fpu_tags != 0
    used = used or s.fpu_ip != 0 or s.fpu_dp != 0 or s.fpu_opcode != 0
    bits: u64 = 0
    for n in range(u64(8)):
        p = at(s, u64(ST) + n * 16, u64)
        bits = bits | p[0] | u64(high(p)[0])
    return used or bits != 0


@native
def halves_in_use(s, first):
    bits: u64 = 0
    for i in range(vectors(s)):
        p = vector(s, i, first)
        bits = bits | p[0] | p[1]
    return bits != 0


@native(inline=False)
def components_in_use(s) -> u64:
    """XINUSE: components that are not in their initial configuration (SDM vol. 1, 13.6)."""
    found: u64 = 0
    if x87_in_use(s):
        found = X87
    if halves_in_use(s, u64(0)) or guest_mxcsr(s) != MXCSR_INITIAL:
        found = found | SSE
    if halves_in_use(s, u64(2)):
        found = found | AVX
    if s.pkru != 0:
        found = found | PKRU
    return found


@native(inline=False)
def save_components(s, lin: u64, wanted: u64, layout: u64, wide: bool) -> None:
    if (wanted & X87) != 0:
        save_x87(s, lin, wide)
    if (wanted & SSE) != 0:
        save_halves(s, lin + 160, u64(0))
    if (wanted & AVX) != 0:
        save_halves(s, lin + AVX_OFFSET, u64(2))
    if (wanted & PKRU) != 0:
        put_field(s, lin, pkru_offset(layout), u64(s.pkru), u64)


@instruction("XSAVE", "XSAVE64", extra=_wide)
@native
def xsave(s, o, f):
    wanted = requested(s)
    lin = aligned(s, o, 64)
    probe_write(s, lin, image_bytes(wanted, u64(0)))
    used = components_in_use(s)
    save_components(s, lin, wanted, u64(0), f.extra == 1)
    if (wanted & (SSE | AVX)) != 0:
        save_mxcsr(s, lin)
    put_field(s, lin, HEADER, (field(s, lin, HEADER, u64) & ~wanted) | (used & wanted), u64)


@instruction("XSAVEOPT", "XSAVEOPT64", extra=_wide)
@native
def xsaveopt(s, o, f):
    """XSAVE without the components that are in their initial configuration."""
    wanted = requested(s)
    lin = aligned(s, o, 64)
    probe_write(s, lin, image_bytes(wanted, u64(0)))
    used = components_in_use(s)
    save_components(s, lin, wanted & used, u64(0), f.extra == 1)
    if (wanted & (SSE | AVX)) != 0:
        save_mxcsr(s, lin)
    put_field(s, lin, HEADER, (field(s, lin, HEADER, u64) & ~wanted) | (used & wanted), u64)


@instruction("XSAVEC", "XSAVEC64", extra=_wide)
@native
def xsavec(s, o, f):
    """The compacted format: what is not in use is not written (SDM vol. 1, 13.10)."""
    wanted = requested(s)
    lin = aligned(s, o, 64)
    layout = wanted | COMPACTED
    probe_write(s, lin, image_bytes(wanted, layout))
    saved = wanted & components_in_use(s)
    save_components(s, lin, saved, layout, f.extra == 1)
    if (saved & SSE) != 0:
        save_mxcsr(s, lin)
    put_field(s, lin, HEADER, saved, u64)
    put_field(s, lin, HEADER + 8, layout, u64)


@native(inline=False)
def restore_pkru(s, lin: u64, present: bool, layout: u64) -> None:
    """Load PKRU, or make it 0: every key allows everything."""
    rights: u32 = 0
    if present:
        rights = field(s, lin, pkru_offset(layout), u32)
    if rights != s.pkru:
        s.pkru = rights
        flush_tlb(s, True)


@native(inline=False)
def check_header(s, lin: u64) -> None:
    """#GP(0) for a header that no XSAVE writes (SDM vol. 1, 13.8.1 and 13.8.2)."""
    present = field(s, lin, HEADER, u64)
    layout = field(s, lin, HEADER + 8, u64)
    bad = (present & ~s.xcr0) != 0 or field(s, lin, HEADER + 16, u64) != 0
    if (layout & COMPACTED) != 0:
        bad = bad or (layout & ~s.xcr0 & ~u64(COMPACTED)) != 0 or (present & ~layout) != 0
        for i in range(u64(5)):
            bad = bad or field(s, lin, HEADER + 24 + i * 8, u64) != 0
    else:
        bad = bad or layout != 0
    if bad:
        general_protection(s, 0)


@instruction("XRSTOR", "XRSTOR64", extra=_wide, ends=LEAVE)
@native
def xrstor(s, o, f):
    wanted = requested(s)
    lin = aligned(s, o, 64)
    probe_read(s, lin, image_bytes(wanted & (X87 | SSE), u64(0)))
    check_header(s, lin)
    present = field(s, lin, HEADER, u64)
    layout = field(s, lin, HEADER + 8, u64)
    compacted = (layout & COMPACTED) != 0
    if (wanted & present & (AVX | PKRU)) != 0:
        probe_read(s, lin, image_bytes(wanted & present, layout))
    mxcsr = guest_mxcsr(s)
    if compacted:
        if (wanted & SSE) != 0:
            mxcsr = checked_mxcsr(s, lin) if (present & SSE) != 0 else u32(MXCSR_INITIAL)
    elif (wanted & (SSE | AVX)) != 0:
        mxcsr = checked_mxcsr(s, lin)
    if (wanted & X87) != 0:
        if (present & X87) != 0:
            restore_x87(s, lin, f.extra == 1)
        else:
            initial_x87(s)
    if (wanted & SSE) != 0:
        restore_halves(s, lin + 160, u64(0), (present & SSE) != 0)
    if (wanted & AVX) != 0:
        restore_halves(s, lin + AVX_OFFSET, u64(2), (present & AVX) != 0)
    if (wanted & PKRU) != 0:
        restore_pkru(s, lin, (present & PKRU) != 0, layout)
    set_guest_mxcsr(s, mxcsr)
    update_mode(s)
