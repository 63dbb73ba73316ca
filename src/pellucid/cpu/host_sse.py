"""SSE arithmetic by the host's own instructions: exact by construction, under the guest's MXCSR.

Rounding, denormals, NaN payloads, the choice between two NaNs and the flags are then those of a processor. A port
to another host replaces this file. Operand order matters: the first operand's NaN wins. Every value is a vector of
u32 lanes, whatever the instruction takes them for.
"""

from pellucid.cpu.host import load_mxcsr, store_mxcsr
from pellucid.native import asm, native, ref, u32, u64, vec

F = vec[u32, 4]


@native
def host_unary(name, a):
    """name(a): every lane of the result is new."""
    return asm(F, f"{name} $1, $0", "=x,x", a)


@native
def host_binary(name, a, b):
    """name(a, b): a is what the instruction's destination held."""
    return asm(F, f"{name} $2, $0", "=x,0,x", a, b)


@native
def host_immediate(name, immediate, a, b):
    """name(a, b) with an immediate byte known at compile time."""
    return asm(F, f"{name} $${immediate}, $2, $0", "=x,0,x", a, b)


@native
def host_compare_flags(name, a, b):
    """CF, PF and ZF of COMISS and its kin, at their places in RFLAGS."""
    return (asm(u64, f"{name} $2, $1\n\tlahf", "={rax},x,x,~{flags}", a, b) >> 8) & 0x45


@native
def host_from_integer(name, a, value):
    """CVTSI2SS and CVTSI2SD: the low lane of `a` replaced by an integer, converted."""
    return asm(F, f"{name} $2, $0", "=x,0,r", a, value)


@native
def host_to_integer(name, a, T):
    """CVTSS2SI and its kin."""
    return asm(T, f"{name} $1, $0", "=r,x", a)


@native
def guest_mxcsr(s):
    """The guest's MXCSR: its controls stand in the state, its flags in the host's register too."""
    store_mxcsr(ref(s, "guest_mxcsr"))
    return s.mxcsr | (s.guest_mxcsr & 0x3F)


@native
def set_guest_mxcsr(s, value):
    """Replace the guest's MXCSR, in the state and, every exception masked, in the host's register."""
    s.mxcsr = value
    s.guest_mxcsr = value | 0x1F80
    load_mxcsr(ref(s, "guest_mxcsr"))
