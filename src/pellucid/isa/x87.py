"""x87 control: initialization, control and status words, environments, and waiting."""

from pellucid.cpu.faults import not_available
from pellucid.cpu.memory import linear_wrap, load, probe_read, probe_write, store
from pellucid.cpu.operands import address, read, write
from pellucid.cpu.state import CR0_MP, CR0_PE, CR0_TS, RFLAGS_VM
from pellucid.cpu.x87 import (
    CONTROL_DEFINED, begin_x87, follow_masks, high, place, put, reset_x87, set_control, set_status, set_tag_word,
    status_word, tag_word)
from pellucid.isa.table import instruction
from pellucid.native import native, u16, u32, u64, uint


@instruction("FNINIT", fpu=True)
@native
def fninit(s, o, f):
    reset_x87(s)


@instruction("FNCLEX", fpu=True)
@native
def fnclex(s, o, f):
    s.fpu_sw = s.fpu_sw & 0x7F00


@instruction("FNENI", "FNDISI", "FNSETPM", fpu=True, name="old_x87")
@native
def old_x87(s, o, f):
    """Interrupt masks of the 8087 and the 80287's protected mode: no-operations since."""


@instruction("WAIT")
@native
def wait(s, o, f):
    """Unlike other x87 instructions it traps on CR0.TS only with CR0.MP (SDM vol. 3, table 9-3)."""
    if (s.cr0 & (CR0_MP | CR0_TS)) == CR0_MP | CR0_TS:
        not_available(s)
    begin_x87(s)


@instruction("FNSTSW", fpu=True)
@native
def fnstsw(s, o, f):
    write(s, o, f, 0, status_word(s))


@instruction("FNSTCW", fpu=True)
@native
def fnstcw(s, o, f):
    write(s, o, f, 0, s.fpu_cw)


@instruction("FLDCW", fpu=True)
@native
def fldcw(s, o, f):
    begin_x87(s)
    set_control(s, read(s, o, f, 0))


# --- environments (SDM vol. 1, figures 8-9 to 8-12) ------------------------------------------------------


@native
def protected_format(s):
    """Whether environments hold selectors and offsets, rather than linear addresses."""
    return (s.cr0 & CR0_PE) != 0 and (s.flags & RFLAGS_VM) == 0


@native
def word_at(s, lin, number, f):
    """Word `number` of an environment: two bytes each, or four by operand size."""
    T = uint(f.w)
    return u32(load(s, linear_wrap(s, lin + number * f.w), T))


@native
def put_word(s, lin, number, f, value):
    T = uint(f.w)
    store(s, linear_wrap(s, lin + number * f.w), T(value), T)


@native(inline=False)
def store_environment(s, lin: u64, f) -> None:
    """The seven words; reserved upper halves read as ones."""
    upper = 0xFFFF_0000
    put_word(s, lin, 0, f, u32(s.fpu_cw) | upper)
    put_word(s, lin, 1, f, u32(status_word(s)) | upper)
    put_word(s, lin, 2, f, tag_word(s) | upper)
    ip = u32(s.fpu_ip)
    dp = u32(s.fpu_dp)
    if protected_format(s):
        put_word(s, lin, 3, f, ip)
        put_word(s, lin, 4, f, u32(s.fpu_cs) | (s.fpu_opcode << 16))
        put_word(s, lin, 5, f, dp)
        put_word(s, lin, 6, f, u32(s.fpu_ds) | upper)
    else:
        ip = ip + u32(s.fpu_cs) * 16
        dp = dp + u32(s.fpu_ds) * 16
        mask = 0xFFFF_F000 if f.w == 4 else 0xF000
        put_word(s, lin, 3, f, (ip & 0xFFFF) | upper)
        put_word(s, lin, 4, f, s.fpu_opcode | ((ip >> 4) & mask))
        put_word(s, lin, 5, f, (dp & 0xFFFF) | upper)
        put_word(s, lin, 6, f, (dp >> 4) & mask)


@native(inline=False)
def load_environment(s, lin: u64, f) -> None:
    """All seven words, or none where one faults."""
    control = word_at(s, lin, 0, f)
    status = word_at(s, lin, 1, f)
    tags = word_at(s, lin, 2, f)
    ip = word_at(s, lin, 3, f)
    code = word_at(s, lin, 4, f)
    dp = word_at(s, lin, 5, f)
    ds = word_at(s, lin, 6, f)
    s.fpu_cs = 0
    s.fpu_ds = 0
    if protected_format(s):
        s.fpu_cs = u16(code)
        s.fpu_ds = u16(ds)
        if f.w == 4:
            s.fpu_opcode = (code >> 16) & 0x7FF
    else:
        mask = 0xFFFF_F000 if f.w == 4 else 0xF000
        ip = (ip & 0xFFFF) | ((code & mask) << 4)
        dp = (dp & 0xFFFF) | ((ds & mask) << 4)
        s.fpu_opcode = code & 0x7FF
    s.fpu_ip = u64(ip)
    s.fpu_dp = u64(dp)
    s.fpu_cw = (u16(control) & CONTROL_DEFINED) | 0x40
    set_tag_word(s, tags)
    set_status(s, u16(status))


@instruction("FNSTENV", fpu=True)
@native
def fnstenv(s, o, f):
    lin = address(s, o)
    probe_write(s, lin, u64(f.widths[0]))
    store_environment(s, lin, f)
    s.fpu_cw = s.fpu_cw | 0x3F
    follow_masks(s)


@instruction("FLDENV", fpu=True)
@native
def fldenv(s, o, f):
    begin_x87(s)
    lin = address(s, o)
    probe_read(s, lin, u64(f.widths[0]))
    load_environment(s, lin, f)


@instruction("FNSAVE", fpu=True)
@native
def fnsave(s, o, f):
    """Environment and registers, then FNINIT."""
    lin = address(s, o)
    probe_write(s, lin, u64(f.widths[0]))
    store_environment(s, lin, f)
    for i in range(u32(8)):
        p = place(s, i)
        to = lin + u64(7 * f.w) + u64(i) * 10
        store(s, linear_wrap(s, to), p[0], u64)
        store(s, linear_wrap(s, to + 8), high(p)[0], u16)
    reset_x87(s)


@instruction("FRSTOR", fpu=True)
@native
def frstor(s, o, f):
    begin_x87(s)
    lin = address(s, o)
    probe_read(s, lin, u64(f.widths[0]))
    load_environment(s, lin, f)
    for i in range(u32(8)):
        at = linear_wrap(s, lin + u64(7 * f.w) + u64(i) * 10)
        put(place(s, i), load(s, at, u64), load(s, linear_wrap(s, at + 8), u16))
