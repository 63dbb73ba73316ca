"""SSE arithmetic by the host's own instructions: exact by construction, under the guest's MXCSR.

Rounding, denormals, NaN payloads, the choice between two NaNs and the flags are then those of a processor. A port
to another host replaces this file. Operand order matters: the first operand's NaN wins. Every vector is one of u32
lanes, whatever the instruction takes it for.

While native code runs, the host's MXCSR holds the guest's controls with every exception masked. Where the guest
unmasks one (MODE_FP_STRICT), each operation runs with clear flags, and its own flags decide about #XM.
"""

from typing import Any

from pellucid.cpu.faults import fault_plain
from pellucid.cpu.host import MXCSR_HOST, load_mxcsr, store_mxcsr
from pellucid.cpu.state import CR4_OSXMMEXCPT, MODE_FP_STRICT, UD, XM
from pellucid.native import asm, native, ref, static, u32, u64, unlikely, vec
from pellucid.native.host import flags
from pellucid.records import dataclass

F: Any = vec[u32, 4]
HOST = flags()

MXCSR_FLAGS, MXCSR_MASKS, MXCSR_UM, MXCSR_FTZ = 0x3F, 0x1F80, 1 << 11, 1 << 15
MXCSR_IE, MXCSR_DE, MXCSR_ZE, MXCSR_OE, MXCSR_UE, MXCSR_PE = (1 << n for n in range(6))
BEFORE = MXCSR_IE | MXCSR_DE | MXCSR_ZE   # found before the operation is computed (SDM vol. 1, 4.9.2)

UNARY, BINARY, FROM_INTEGER, TO_INTEGER, IMMEDIATE, COMPARE, TERNARY = range(7)


@dataclass(frozen=True, slots=True)
class HostOp:
    """One host instruction, at compile time: its shape, its AT&T name, and the type or range that it needs beside."""

    shape: int
    name: str
    detail: Any = None
    result: Any = F
    vex: bool = False

    @property
    def sources(self) -> str:
        """The sources of an IMMEDIATE with VEX: packed roundings and narrowings have but one."""
        return "$2" if self.name.startswith(("vroundp", "vcvtps2ph")) else "$2, $1"


@native
def host_run(op, a, b, imm):
    """The instruction itself; `a` is what its destination held, where the shape reads it, `imm` a third source."""
    if op.shape == UNARY:
        r = asm(op.result, f"{op.name} $1, $0", "=x,x", b)
    elif op.shape == BINARY and op.vex:
        r = asm(op.result, f"{op.name} $2, $1, $0", "=x,x,x", a, b)
    elif op.shape == BINARY:
        r = asm(F, f"{op.name} $2, $0", "=x,0,x", a, b)
    elif op.shape == TERNARY:
        r = asm(op.result, f"{op.name} $3, $2, $0", "=x,0,x,x", a, b, imm)
    elif op.shape == FROM_INTEGER:
        r = asm(F, f"{op.name} $2, $0", "=x,0,r", a, b)
    elif op.shape == TO_INTEGER:
        r = asm(op.detail, f"{op.name} $1, $0", "=r,x", b)
    elif op.shape == COMPARE:
        r = (asm(u64, f"{op.name} $2, $1\n\tlahf", "={rax},x,x,~{flags}", a, b) >> 8) & 0x45
    else:
        r = host_immediate(op, a, b, imm)
    return r


@native
def host_immediate(op, a, b, imm):
    """One of op.detail instructions, by an immediate that the host wants in the instruction."""
    r = op.result(0)
    for i in static(range(op.detail)):
        if imm == i:
            if op.vex:
                r = asm(op.result, f"{op.name} $${i}, {op.sources}, $0", "=x,x,x", a, b)
            else:
                r = asm(F, f"{op.name} $${i}, $2, $0", "=x,0,x", a, b)
    return r


@native
def host_float(s, op, a, b, imm):
    """Run it for the guest; #XM for an exception that the guest unmasked."""
    if unlikely((s.mode & MODE_FP_STRICT) != 0):
        return strict_float(s, op, a, b, imm)
    return host_run(op, a, b, imm)


def wide(shape, name, V, detail=None):
    """The operation on vectors V: by its VEX form where those are wider than an XMM register."""
    return HostOp(shape, "v" + name, detail, V, True) if V.size == 32 else HostOp(shape, name, detail)


@native
def host_unary(s, name, b, V=F):
    """name(b): every lane of the result is new. V is the wider of both types."""
    return host_float(s, wide(UNARY, name, V), b, b, u64(0))


@native
def host_vector_truncate(s, kind, b, V):
    """Every lane of `kind` (ps or pd) rounded towards zero; a loss of precision goes unreported."""
    return host_float(s, wide(UNARY, "round" + kind + " $$11,", V), b, b, u64(0))


@native
def host_vex_unary(s, name, b, V):
    """Likewise for a VEX form, whose result is a V."""
    return host_float(s, HostOp(UNARY, name, None, V), b, b, u64(0))


@native
def host_binary(s, name, a, b, V=F):
    """name(a, b): a is what the instruction's destination held."""
    return host_float(s, wide(BINARY, name, V), a, b, u64(0))


@native
def host_ternary(s, name, a, b, c, V):
    """A fused multiply-add: the mnemonic says which of the three are multiplied."""
    return host_float(s, HostOp(TERNARY, name, None, V), a, b, c)


@native
def host_from_integer(s, name, a, value):
    """CVTSI2SS and CVTSI2SD: the low lane of `a` replaced by an integer, converted."""
    return host_float(s, HostOp(FROM_INTEGER, name), a, value, u64(0))


@native
def host_to_integer(s, name, b, T):
    """CVTSS2SI and its kin."""
    return host_float(s, HostOp(TO_INTEGER, name, T), b, b, u64(0))


@native(inline=False)
def host_by_immediate(s, name, count, a, b, imm: u64, V=F):
    """name(a, b) with an immediate below `count`."""
    return host_float(s, wide(IMMEDIATE, name, V, count), a, b, imm)


@native(inline=False)
def host_vex_by_immediate(s, name, count, a, b, imm: u64, V):
    """Likewise for an instruction that has a VEX form only, whose result is a V."""
    return host_float(s, HostOp(IMMEDIATE, name, count, V, True), a, b, imm)


@native
def host_compare(s, name, a, b):
    """CF, PF and ZF of COMISS and its kin, at their places in RFLAGS."""
    return host_float(s, HostOp(COMPARE, name), a, b, u64(0))


# --- unmasked exceptions -------------------------------------------------------------------------------


@native(inline=False, spares_registers=True)
def strict_float(s, op, a, b, imm):
    """Run with clear flags; raise #XM, the state unchanged but for MXCSR, when an unmasked one appears.

    Underflow unmasked is tininess even without loss (SDM vol. 1, 4.9.1.5): a second run that flushes to zero shows it.
    """
    s.mxcsr = guest_mxcsr(s)
    quiet = (s.mxcsr & ~u32(MXCSR_FLAGS)) | MXCSR_MASKS
    if (s.mxcsr & MXCSR_UM) == 0:
        quiet = quiet & ~u32(MXCSR_FTZ)
    set_host(s, quiet)
    r = host_run(op, a, b, imm)
    flags = host_flags(s)
    if (s.mxcsr & MXCSR_UM) == 0:
        set_host(s, quiet | MXCSR_FTZ)
        host_run(op, a, b, imm)
        flags = flags | (host_flags(s) & MXCSR_UE)
    set_host(s, quiet)
    settle(s, flags)
    return r


@native(inline=False)
def settle(s, flags: u32) -> None:
    """Add an operation's flags to MXCSR, and fault for an unmasked one.

    What is found before the computation, unmasked, keeps the computation's own flags from appearing. One bit is not
    exact: overflow and underflow set PE, where unmasked ones do so only if precision was lost besides.
    """
    raised = flags & ~((s.mxcsr & MXCSR_MASKS) >> 7)
    reported = flags
    if (raised & BEFORE) != 0:
        reported = flags & BEFORE
    s.mxcsr = s.mxcsr | reported
    if raised != 0:
        if (s.cr4 & CR4_OSXMMEXCPT) != 0:
            fault_plain(s, u32(XM))
        fault_plain(s, u32(UD))


@native
def host_flags(s):
    """The exception flags in the host's register."""
    store_mxcsr(ref(s, "guest_mxcsr"))
    return s.guest_mxcsr & MXCSR_FLAGS


@native
def set_host(s, value):
    s.guest_mxcsr = value & MXCSR_HOST
    load_mxcsr(ref(s, "guest_mxcsr"))


@native
def guest_mxcsr(s):
    """The guest's MXCSR: its controls stand in the state, its flags in the host's register too."""
    return s.mxcsr | host_flags(s)


@native
def set_guest_mxcsr(s, value):
    """Replace the guest's MXCSR, in the state and, every exception masked, in the host's; update_mode comes after."""
    s.mxcsr = value
    set_host(s, value | MXCSR_MASKS)
