"""Vector extensions beyond x86-64-v3: against the host where it has them, else against the manual's arithmetic."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable
from fractions import Fraction

import pytest

from pellucid.cpu.host_sse import HOST
from pellucid.isa import forms
from pellucid.isa.all import TABLE

from .guest import NativeGuest, PythonGuest
from .oracle import EXTRA, X86_64_V3, HostCpu, UserState, catalog, instructions, layout, run_family, unavailable
from .oracle.catalog import FEATURE

needs_host = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
FEATURES = frozenset((FEATURE.GFNI, FEATURE.VAES, FEATURE.VPCLMULQDQ, FEATURE.SSE4A))
Guest = NativeGuest | PythonGuest


def codes(bits: int) -> list[int]:
    found = instructions(features=X86_64_V3 | EXTRA, bits=bits)
    return [code for code in found if catalog.features_of(code) & FEATURES
            and forms.CODE_NAMES[code].split("_")[0] in ("VEX", "GF2P8MULB", "GF2P8AFFINEQB", "GF2P8AFFINEINVQB",
                                                         "EXTRQ", "INSERTQ", "MOVNTSS", "MOVNTSD")]


def compare(guest: Guest, host: HostCpu, bits: int, per_code: int) -> None:
    seed = int(os.environ.get("PELLUCID_SEED", "12"))
    report = run_family(guest, host, codes(bits), per_code=per_code, seed=seed, bits=bits)
    assert report.ok, f"seed {seed}\n{report}"


@needs_host
def test_every_encoding_is_built() -> None:
    names = [forms.CODE_NAMES[code] for code in codes(64)]
    assert len(names) == 20
    assert not [name for name, code in zip(names, codes(64), strict=True)
                if TABLE.find(catalog.mnemonic_name(code), name) is None]


@needs_host
@pytest.mark.parametrize("bits", [64, 32])
def test_native_agrees_with_the_host(native: NativeGuest, host: HostCpu, bits: int) -> None:
    compare(native, host, bits, 25)


@needs_host
@pytest.mark.parametrize("bits", [64, 32])
def test_plain_python_agrees_with_the_host(host: HostCpu, bits: int) -> None:
    compare(PythonGuest(), host, bits, 1)


# --- what this host has not: the manual's arithmetic -------------------------------------------------------


def parts(value: int, bits: int, signed: bool) -> list[int]:
    """256 bits as numbers of so many bits, the lowest first."""
    found = [value >> at & (1 << bits) - 1 for at in range(0, 256, bits)]
    return [n - (1 << bits) if signed and n >> bits - 1 else n for n in found]


def packed(numbers: list[int], bits: int) -> int:
    return sum((n & (1 << bits) - 1) << at * bits for at, n in enumerate(numbers))


def clamp(n: int, low: int, high: int) -> int:
    return max(low, min(n, high))


def dots(size: int, first: bool, second: bool, saturate: str) -> Callable[[int, int, int], int]:
    """Dot products of `size`-bit numbers, signed or not, added to dwords; `saturate`: "", "s" or "u"."""

    def compute(old: int, a: int, b: int) -> int:
        count = 32 // size
        left, right = parts(a, size, first), parts(b, size, second)
        sums = []
        for lane, base in enumerate(parts(old, 32, saturate != "u")):
            at = lane * count
            total = base + sum(x * y for x, y in zip(left[at:at + count], right[at:at + count], strict=True))
            if saturate == "s":
                total = clamp(total, -(1 << 31), (1 << 31) - 1)
            elif saturate == "u":
                total = clamp(total, 0, (1 << 32) - 1)
            sums.append(total)
        return packed(sums, 32)

    return compute


def wide(shift: int) -> Callable[[int, int, int], int]:
    def compute(old: int, a: int, b: int) -> int:
        low = (1 << 52) - 1
        lanes = zip(parts(old, 64, False), parts(a, 64, False), parts(b, 64, False), strict=True)
        return packed([base + ((x & low) * (y & low) >> shift & low) for base, x, y in lanes], 64)

    return compute


# ymm0, ymm1, ymm2: c4, RXB and map 2, W vvvv L pp, opcode, c2.
ARITHMETIC = {
    "VPDPBUSD": ("c4e27550c2", dots(8, False, True, "")), "VPDPBUSDS": ("c4e27551c2", dots(8, False, True, "s")),
    "VPDPWSSD": ("c4e27552c2", dots(16, True, True, "")), "VPDPWSSDS": ("c4e27553c2", dots(16, True, True, "s")),
    "VPDPBUUD": ("c4e27450c2", dots(8, False, False, "")), "VPDPBUUDS": ("c4e27451c2", dots(8, False, False, "u")),
    "VPDPBSUD": ("c4e27650c2", dots(8, True, False, "")), "VPDPBSUDS": ("c4e27651c2", dots(8, True, False, "s")),
    "VPDPBSSD": ("c4e27750c2", dots(8, True, True, "")), "VPDPBSSDS": ("c4e27751c2", dots(8, True, True, "s")),
    "VPMADD52LUQ": ("c4e2f5b4c2", wide(0)), "VPMADD52HUQ": ("c4e2f5b5c2", wide(52)),
}  # fmt: skip


def rounded_to_bf16(bits: int) -> int:
    """A single's bits to BF16's: nearest, ties to even; denormals are zeros, NaNs quiet."""
    exponent, fraction = bits >> 23 & 0xFF, bits & 0x7F_FFFF
    if exponent == 0xFF:
        return bits >> 16 | (0x40 if fraction else 0)
    return bits >> 16 & 0x8000 if not exponent else round(Fraction(bits, 1 << 16))


def single_of_half(bits: int) -> int:
    if bits & 0x7FFF > 0x7C00:
        return (bits & 0x8000) << 16 | 0x7F80_0000 | (bits & 0x3FF | 0x200) << 13
    return int.from_bytes(struct.pack("<f", struct.unpack("<e", bits.to_bytes(2, "little"))[0]), "little")


def pairs(odd: bool, convert: Callable[[int], int]) -> Callable[[int], int]:
    return lambda a: packed([convert(n) for n in parts(a, 16, False)[odd::2]], 32)


# ymm1, from [rsi]; the first one to xmm1.
CONVERSIONS = {
    "VCVTNEPS2BF16": ("c4e27e720e", lambda a: packed([rounded_to_bf16(n) for n in parts(a, 32, False)], 16)),
    "VCVTNEEPH2PS": ("c4e27db00e", pairs(False, single_of_half)),
    "VCVTNEOPH2PS": ("c4e27cb00e", pairs(True, single_of_half)),
    "VCVTNEEBF162PS": ("c4e27eb00e", pairs(False, lambda n: n << 16)),
    "VCVTNEOBF162PS": ("c4e27fb00e", pairs(True, lambda n: n << 16)),
    "VBCSTNESH2PS": ("c4e27db10e", lambda a: packed([single_of_half(a & 0xFFFF)] * 8, 32)),
    "VBCSTNEBF162PS": ("c4e27eb10e", lambda a: packed([(a & 0xFFFF) << 16] * 8, 32)),
}


@pytest.mark.skipif("f16c" not in HOST, reason="the host has no F16C")
@pytest.mark.parametrize("name", CONVERSIONS)
@pytest.mark.parametrize("executor", ["native", "python"])
def test_conversions_without_exceptions(native: NativeGuest, executor: str, name: str) -> None:
    """MXCSR neither counts (denormals are zeros, exceptions unmasked) nor changes."""
    guest = native if executor == "native" else PythonGuest()
    text, compute = CONVERSIONS[name]
    rng = random.Random(name)
    edges = (0x7F80_0001, 0xFF80_0000, 0x7FFF_FFFF, 0x0000_0001, 0x8040_0000, 0x3F80_8000, 0x3F81_8000, 0x7F7F_FFFF,
             0x7C01_FC00, 0x03FF_8001, 0x7BFF_7E00)
    for _ in range(30 if executor == "native" else 4):
        value = packed([rng.choice(edges) if rng.random() < 0.4 else rng.getrandbits(32) for _ in range(8)], 32)
        state = UserState()
        state.mxcsr = 0x8040
        state.gpr[6] = layout.DATA + 1
        state.write(layout.DATA + 1, value.to_bytes(32, "little"))
        state.set_ymm(1, (1 << 256) - 1)
        for narrow in (False, True):
            code = bytearray.fromhex(text)
            code[2] ^= 4 if narrow else 0
            after = guest.run(bytes(code), state)
            size = 256 >> narrow
            expected = compute(value & (1 << size) - 1)
            if name != "VCVTNEPS2BF16":
                expected &= (1 << size) - 1
            assert after.fault is None and after.state.ymm(1) == expected, (narrow, hex(value))
            assert after.state.mxcsr == 0x8040


CONDITIONS: list[Callable[[bool, bool, bool, bool, bool], bool]] = [
    lambda o, c, z, s, p: o, lambda o, c, z, s, p: c, lambda o, c, z, s, p: z, lambda o, c, z, s, p: c or z,
    lambda o, c, z, s, p: s, lambda o, c, z, s, p: p, lambda o, c, z, s, p: s != o, lambda o, c, z, s, p: s != o or z]
"""Of OF, CF, ZF, SF, PF; the odd conditions are the even ones denied."""


@pytest.mark.parametrize("executor", ["native", "python"])
@pytest.mark.parametrize("bits", [32, 64])
def test_compare_and_add(native: NativeGuest, executor: str, bits: int) -> None:
    guest = native if executor == "native" else PythonGuest()
    rng, top = random.Random(bits), 1 << bits - 1
    values = [0, 1, top, top - 1, 2 * top - 1, *(rng.getrandbits(bits) for _ in range(4))]
    for condition in range(16):
        code = bytes((0xC4, 0xE2, 0x71 | (bits == 64) << 7, 0xE0 + condition, 0x1E))  # [rsi], ebx, ecx
        for memory in values:
            for bound in (values if executor == "native" else values[:2]):
                state = UserState()
                state.gpr[6], state.gpr[3], state.gpr[1] = layout.DATA + 8, bound, 0x1_0000_0005
                state.write(layout.DATA + 8, memory.to_bytes(8, "little"))
                result = (memory - bound) & 2 * top - 1
                signed = [n - 2 * top * (n >> bits - 1) for n in (memory, bound)]
                of = not -top <= signed[0] - signed[1] < top
                cf, zf, sf, pf = memory < bound, not result, result >= top, not (result & 0xFF).bit_count() & 1
                after = guest.run(code, state).state
                holds = CONDITIONS[condition // 2](of, cf, zf, sf, pf) != bool(condition & 1)
                addend = 0x1_0000_0005 if bits == 64 else 5
                kept = int.from_bytes(after.read(layout.DATA + 8, 8), "little")
                assert kept == (memory + addend * holds) & 2 * top - 1, (condition, memory, bound)
                assert after.gpr[3] == memory
                assert after.rflags & 0x8C5 == cf | pf << 2 | zf << 6 | sf << 7 | of << 11


def test_compare_and_add_wants_aligned_memory(native: NativeGuest) -> None:
    state = UserState()
    state.gpr[6] = layout.DATA + 4
    assert native.run(bytes.fromhex("c4e271e01e"), state).fault is None
    refused = native.run(bytes.fromhex("c4e2f1e01e"), state)
    assert refused.fault is not None and refused.fault.vector == 13


@pytest.mark.parametrize("name", ARITHMETIC)
@pytest.mark.parametrize("executor", ["native", "python"])
def test_integer_dot_products(native: NativeGuest, executor: str, name: str) -> None:
    guest = native if executor == "native" else PythonGuest()
    text, compute = ARITHMETIC[name]
    code, rng = bytes.fromhex(text), random.Random(name)
    edges = [0, (1 << 256) - 1, packed([0x8000] * 16, 16), packed([0x7FFF_FFFF] * 8, 32), packed([0x80] * 32, 8)]
    for turn in range(40 if executor == "native" else 6):
        inputs = [rng.choice(edges) if rng.random() < 0.4 else rng.getrandbits(256) for _ in range(3)]
        state = UserState()
        for number, value in enumerate(inputs):
            state.set_ymm(number, value)
        for narrow in (False, True):
            bytes_ = bytearray(code)
            bytes_[2] ^= 4 if narrow else 0
            after = guest.run(bytes(bytes_), state)
            expected = compute(*inputs) & ((1 << 128) - 1 if narrow else (1 << 256) - 1)
            assert after.fault is None and after.state.ymm(0) == expected, (name, turn, narrow)
