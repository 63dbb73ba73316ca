"""Vector extensions beyond x86-64-v3: against the host where it has them, else against the manual's arithmetic."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator

import pytest

from pellucid.isa import forms
from pellucid.isa.all import TABLE

from .guest import NativeGuest, PythonGuest
from .oracle import EXTRA, X86_64_V3, HostCpu, UserState, catalog, instructions, run_family, unavailable
from .oracle.catalog import FEATURE

needs_host = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
FEATURES = frozenset((FEATURE.GFNI, FEATURE.VAES, FEATURE.VPCLMULQDQ, FEATURE.SSE4A))
Guest = NativeGuest | PythonGuest


@pytest.fixture(scope="module")
def host() -> Iterator[HostCpu]:
    with HostCpu() as cpu:
        yield cpu


@pytest.fixture(scope="module")
def native() -> Iterator[NativeGuest]:
    guest = NativeGuest()
    yield guest
    guest.close()


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
