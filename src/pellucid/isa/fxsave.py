"""FXSAVE, FXRSTOR, and the legacy region that the XSAVE family shares with them (SDM vol. 1, 10.5 and 13.4.1).

The state is written after every fault that the instruction may take.
"""

from pellucid.cpu.faults import general_protection
from pellucid.cpu.host_sse import guest_mxcsr, set_guest_mxcsr
from pellucid.cpu.memory import linear_wrap, load, probe_read, probe_write, store
from pellucid.cpu.operands import address
from pellucid.cpu.segments import update_mode
from pellucid.cpu.state import (
    CR4_OSFXSR, EFER_FFXSR, FEATURE_ERROR_POINTERS, FEATURES_SYSTEM, MODE_64, MODE_SIZE, XMM_BYTES, slot_of)
from pellucid.cpu.x87 import ST, high, place, put, reset_x87, set_control, set_status, status_word
from pellucid.isa.sse_control import mxcsr_mask
from pellucid.isa.table import LEAVE, instruction
from pellucid.native import at, native, u16, u32, u64

XMM = slot_of("xmm")
LEGACY_BYTES = 512


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
    put_field(s, lin, 28, mxcsr_mask(s), u32)


@native
def checked_mxcsr(s, lin):
    """The image's MXCSR; #GP(0) for reserved bits."""
    value = field(s, lin, 24, u32)
    if (value & ~mxcsr_mask(s)) != 0:
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


# --- FXSAVE --------------------------------------------------------------------------------------------


def wide_pointers(code: str) -> int:
    """1 with REX.W: 64-bit pointers in the image."""
    return int("64_" in code)


@native
def aligned(s, o, size):
    """The address of an image; #GP(0) where it is not aligned."""
    lin = address(s, o)
    if (lin & (size - 1)) != 0:
        general_protection(s, 0)
    return lin


@native
def with_vectors(s):
    """Whether an image has XMM registers: not without CR4.OSFXSR, nor in AMD's fast form (APM vol. 2, 11.4.4)."""
    fast = (s.efer & EFER_FFXSR) != 0 and s.cpl == 0 and (s.mode & MODE_SIZE) == MODE_64
    return (s.cr4 & CR4_OSFXSR) != 0 and not fast


@instruction("FXSAVE", "FXSAVE64", extra=wide_pointers, fpu=True, mmx=True)
@native
def fxsave(s, o, f):
    lin = aligned(s, o, 16)
    probe_write(s, lin, u64(LEGACY_BYTES))
    save_x87(s, lin, f.extra == 1)
    save_mxcsr(s, lin)
    if with_vectors(s):
        save_halves(s, lin + 160, u64(0))


@instruction("FXRSTOR", "FXRSTOR64", extra=wide_pointers, fpu=True, mmx=True, ends=LEAVE)
@native
def fxrstor(s, o, f):
    lin = aligned(s, o, 16)
    probe_read(s, lin, u64(LEGACY_BYTES))
    mxcsr = checked_mxcsr(s, lin)
    restore_x87(s, lin, f.extra == 1)
    if (s.cr4 & CR4_OSFXSR) != 0:
        set_guest_mxcsr(s, mxcsr)
    if with_vectors(s):
        restore_halves(s, lin + 160, u64(0), True)
    update_mode(s)
