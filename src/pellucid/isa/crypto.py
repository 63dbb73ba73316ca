"""AES, SHA, carry-less products, random numbers (SDM vol. 2); rows exist where the host has the instructions."""

from pellucid.cpu.flags import CC_UNKNOWN, set_eflags
from pellucid.cpu.host_crypto import host_mix, host_mix_by, host_mix_by_xmm0, host_mix_one, host_random
from pellucid.cpu.host_sse import F, HOST
from pellucid.cpu.operands import write
from pellucid.cpu.simd import left, operand, put, right, xmm
from pellucid.isa.simd import avx, is_sse, numbered
from pellucid.isa.table import instruction
from pellucid.native import array, bitcast, local, native, u32, u64, uint, vec


def either(*mnemonics, needs, **more):
    """Rows for the SSE and AVX encodings on XMM registers of mnemonics that the host can execute."""

    def register(fn):
        if needs in HOST:
            instruction(*mnemonics, codes=is_sse, fpu=True, sse=True, **more)(fn)
            avx(*mnemonics, codes=lambda code: "YMM" not in code, **more)(fn)
        return fn

    return register


# --- AES -----------------------------------------------------------------------------------------------

ROUNDS = ("AESENC", "AESENCLAST", "AESDEC", "AESDECLAST")


@either(*ROUNDS, needs="aes", extra=numbered(ROUNDS))
@native
def aes_round(s, o, f):
    put(s, o, f, F, host_mix(ROUNDS[f.extra].lower(), left(s, o, f, F), right(s, o, f, F)))


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


# --- carry-less products -------------------------------------------------------------------------------


@either("PCLMULQDQ", needs="pclmulqdq")
@native
def pclmulqdq(s, o, f):
    """Bits 0 and 4 of the immediate choose the halves."""
    V = vec[u64, 2]
    a = left(s, o, f, V)[o.imm & 1]
    b = right(s, o, f, V)[(o.imm >> 4) & 1]
    put(s, o, f, F, host_mix("pclmulqdq $$0,", bitcast(F, V([a, u64(0)])), bitcast(F, V([b, u64(0)]))))


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
