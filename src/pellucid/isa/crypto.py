"""AES, GFNI, SHA, carry-less products, random numbers (SDM vol. 2); rows exist where the host has the instructions."""

from pellucid.cpu.flags import CC_UNKNOWN, set_eflags
from pellucid.cpu.host_crypto import host_mix, host_mix_by, host_mix_by_xmm0, host_mix_one, host_random
from pellucid.cpu.host_sse import F, HOST
from pellucid.cpu.operands import write
from pellucid.cpu.simd import lanes, left, operand, put, right, xmm
from pellucid.isa.simd import avx, is_sse, numbered
from pellucid.isa.table import instruction
from pellucid.native import array, local, native, shuffle, u32, u64, uint


def either(*mnemonics, needs, **more):
    """Rows for the SSE and AVX encodings of mnemonics that the host can execute on XMM registers."""

    def register(fn):
        if needs in HOST:
            instruction(*mnemonics, codes=is_sse, fpu=True, sse=True, **more)(fn)
            avx(*mnemonics, **more)(fn)
        return fn

    return register


@native
def by_halves(name, a, b, V):
    """name(a, b) on each 16 bytes of two V, vectors of u32."""
    if V.size == 32:
        low = host_mix(name, shuffle(a, a, [0, 1, 2, 3]), shuffle(b, b, [0, 1, 2, 3]))
        high = host_mix(name, shuffle(a, a, [4, 5, 6, 7]), shuffle(b, b, [4, 5, 6, 7]))
        return shuffle(low, high, [0, 1, 2, 3, 4, 5, 6, 7])
    return host_mix(name, a, b)


# --- AES -----------------------------------------------------------------------------------------------

ROUNDS = ("AESENC", "AESENCLAST", "AESDEC", "AESDECLAST")


@either(*ROUNDS, needs="aes", extra=numbered(ROUNDS))
@native
def aes_round(s, o, f):
    V = lanes(f, u32)
    put(s, o, f, V, by_halves(ROUNDS[f.extra].lower(), left(s, o, f, V), right(s, o, f, V), V))


@either("AESIMC", needs="aes")
@native
def aesimc(s, o, f):
    put(s, o, f, F, host_mix_one("aesimc", operand(s, o, f, 1, F)))


@either("AESKEYGENASSIST", needs="aes")
@native
def aeskeygenassist(s, o, f):
    """The immediate is xored into the second lane of what the instruction gives for 0: lanes 1 and 3 (SDM vol. 2)."""
    a = host_mix_one("aeskeygenassist $$0,", operand(s, o, f, 1, F))
    r = u32(o.imm & 0xFF)
    put(s, o, f, F, a ^ F([u32(0), r, u32(0), r]))


# --- GFNI ----------------------------------------------------------------------------------------------

AFFINE = ("GF2P8AFFINEQB", "GF2P8AFFINEINVQB")


@either("GF2P8MULB", needs="gfni")
@native
def gf2p8mulb(s, o, f):
    V = lanes(f, u32)
    put(s, o, f, V, by_halves("gf2p8mulb", left(s, o, f, V), right(s, o, f, V), V))


@either(*AFFINE, needs="gfni", extra=numbered(AFFINE))
@native
def gf2p8affine(s, o, f):
    """The immediate is added to every byte of what the instruction gives for 0 (SDM vol. 2)."""
    V = lanes(f, u32)
    r = by_halves(f"{AFFINE[f.extra].lower()} $$0,", left(s, o, f, V), right(s, o, f, V), V)
    put(s, o, f, V, r ^ V(u32(o.imm & 0xFF) * 0x01010101))


# --- carry-less products -------------------------------------------------------------------------------


@either("PCLMULQDQ", needs="pclmulqdq")
@native
def pclmulqdq(s, o, f):
    """Bits 0 and 4 of the immediate choose the halves of every 16 bytes."""
    V = lanes(f, u32)
    a = chosen(left(s, o, f, V), (o.imm & 1) != 0, V)
    b = chosen(right(s, o, f, V), (o.imm & 0x10) != 0, V)
    put(s, o, f, V, by_halves("pclmulqdq $$0,", a, b, V))


@native
def chosen(a, high, V):
    """`a`, or with `high` its high eight bytes in place of the low ones, in every 16 bytes."""
    r = a
    if high:
        r = shuffle(a, a, [lane | 2 for lane in range(V.count)])
    return r


# --- SHA -----------------------------------------------------------------------------------------------

SHA = ("SHA1NEXTE", "SHA1MSG1", "SHA1MSG2", "SHA256MSG1", "SHA256MSG2")


@either(*SHA, needs="sha_ni", extra=numbered(SHA))
@native
def sha_step(s, o, f):
    put(s, o, f, F, host_mix(SHA[f.extra].lower(), left(s, o, f, F), right(s, o, f, F)))


@either("SHA256RNDS2", needs="sha_ni")
@native
def sha256rnds2(s, o, f):
    put(s, o, f, F, host_mix_by_xmm0("sha256rnds2", left(s, o, f, F), right(s, o, f, F), xmm(s, 0, F)))


@either("SHA1RNDS4", needs="sha_ni")
@native
def sha1rnds4(s, o, f):
    put(s, o, f, F, host_mix_by("sha1rnds4", 4, left(s, o, f, F), right(s, o, f, F), o.imm & 3))


# --- random numbers ------------------------------------------------------------------------------------


def random(mnemonic, needs):
    """A row for RDRAND or RDSEED where the host has it."""

    def register(fn):
        if needs in HOST:
            instruction(mnemonic, cc_out=CC_UNKNOWN, extra=lambda code: int(code.startswith("RDSEED")))(fn)
        return fn

    return register


@random("RDRAND", "rdrand")
@random("RDSEED", "rdseed")
@native
def rdrand(s, o, f):
    """CF says whether there was a number; without one the operand is 0."""
    T = uint(f.widths[0])
    number = local(array[u64, 1])
    got = host_random("rdseed" if f.extra else "rdrand", number)
    write(s, o, f, 0, T(number[0]))
    set_eflags(s, got & 1)
