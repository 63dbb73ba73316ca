"""AES, SHA, carry-less products and random numbers by the host's own instructions (`host_sse.HOST`: which it has).

A port to another host replaces this file. Their results depend on no control register and raise no flag.
"""

from pellucid.cpu.host_sse import F
from pellucid.native import asm, native, static, u64


@native
def host_mix(name, a, b):
    """name(a, b): one round or step; a is what the instruction's destination held."""
    return asm(F, f"{name} $2, $0", "=x,0,x", a, b)


@native
def host_mix_by_xmm0(name, a, b, c):
    """Likewise for an instruction that reads XMM0 too."""
    return asm(F, f"{name} $2, $0", "=x,0,x,{xmm0}", a, b, c)


@native
def host_mix_one(name, b):
    """name(b)."""
    return asm(F, f"{name} $1, $0", "=x,x", b)


@native(inline=False)
def host_mix_by(name, count, a: F, b: F, imm: u64):
    """name(a, b) with an immediate below `count`, which the host wants in the instruction."""
    r = a
    for i in static(range(count)):
        if imm == i:
            r = asm(F, f"{name} $${i}, $2, $0", "=x,0,x", a, b)
    return r


@native
def host_random(name, place):
    """RDRAND or RDSEED: 64 bits to `place` (0 where there were none); ~0 where there were, else 0."""
    return asm(u64, f"{name} %rcx\n\tmovq %rcx, ($1)\n\tsbbq $0, $0", "=&r,r,~{rcx},~{memory},~{flags}", place)
