"""XOP and FMA4 by AMD's manual (APM vol. 4), in plain integers and fractions: what no host of today can be asked for.

A vector is an integer, lane 0 in its low bits. Each model takes the three sources in the manual's order.
"""

from __future__ import annotations

from collections.abc import Callable

Model = Callable[[int, int, int, int], int]
"""First, second and third source of 128 bits, and the immediate."""


def split(value: int, bits: int, signed: bool = True, total: int = 128) -> list[int]:
    """A vector's lanes, the lowest first."""
    found = [value >> at & (1 << bits) - 1 for at in range(0, total, bits)]
    return [n - (1 << bits) if signed and n >> bits - 1 else n for n in found]


def join(lanes: list[int], bits: int) -> int:
    """The vector of these lanes, each cut to its width."""
    return sum((n & (1 << bits) - 1) << at * bits for at, n in enumerate(lanes))


def fit(n: int, bits: int, saturate: bool) -> int:
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    return max(low, min(n, high)) if saturate else n


def macs(source: int, total: int, picks: Callable[[int], list[int]], saturate: bool) -> Model:
    """VPMACS and VPMADCS: products of the picked source lanes, added to the third source's lane."""

    def compute(a: int, b: int, c: int, _: int) -> int:
        x, y = split(a, source), split(b, source)
        sums = [fit(base + sum(x[k] * y[k] for k in picks(lane)), total, saturate)
                for lane, base in enumerate(split(c, total))]
        return join(sums, total)

    return compute


def horizontal(source: int, total: int, signed: bool, sign: int = 1) -> Model:
    """VPHADD (`sign` 1) and VPHSUB (-1) of neighbours in the first source."""

    def compute(a: int, b: int, c: int, _: int) -> int:
        x, count = split(a, source, signed), total // source
        return join([x[at] + sign * sum(x[at + 1:at + count]) for at in range(0, len(x), count)], total)

    return compute


def compare(bits: int, signed: bool) -> Model:
    def compute(a: int, b: int, c: int, imm: int) -> int:
        tests: list[Callable[[int, int], bool]] = [
            lambda x, y: x < y, lambda x, y: x <= y, lambda x, y: x > y, lambda x, y: x >= y,
            lambda x, y: x == y, lambda x, y: x != y, lambda x, y: False, lambda x, y: True]
        holds = tests[imm & 7]
        return join([-1 if holds(x, y) else 0
                     for x, y in zip(split(a, bits, signed), split(b, bits, signed), strict=True)], bits)

    return compute


def counts_of(b: int, bits: int) -> list[int]:
    """The low byte of every lane, signed."""
    return [(n & 0xFF) - 0x100 * (n >> 7 & 1) for n in split(b, bits, signed=False)]


def rotate(bits: int, by_immediate: bool) -> Model:
    def compute(a: int, b: int, c: int, imm: int) -> int:
        counts = [imm] * (128 // bits) if by_immediate else counts_of(b, bits)
        lanes = zip(split(a, bits, False), counts, strict=True)
        return join([n << k % bits | n >> bits - k % bits for n, k in lanes], bits)

    return compute


def shift(bits: int, signed: bool) -> Model:
    """By a count's magnitude, modulo the lane's width; to the right where it is negative."""

    def compute(a: int, b: int, c: int, imm: int) -> int:
        return join([n >> -k % bits if k < 0 else n << k % bits
                     for n, k in zip(split(a, bits, signed), counts_of(b, bits), strict=True)], bits)

    return compute


def conditional_move(a: int, b: int, c: int, imm: int) -> int:
    return a & c | b & ~c & (1 << 128) - 1


def permute_bytes(a: int, b: int, c: int, imm: int) -> int:
    pool = split(a, 8, False) + split(b, 8, False)

    def byte(control: int) -> int:
        n = pool[control & 31]
        sign = 0xFF if n & 0x80 else 0
        back = int(f"{n:08b}"[::-1], 2)
        return (n, ~n, back, ~back, 0, 0xFF, sign, ~sign)[control >> 5]

    return join([byte(control) for control in split(c, 8, False)], 8)


def permute_two(bits: int) -> Model:
    """VPERMIL2PS and VPERMIL2PD within 128 bits; the immediate's bits 1:0 are M2Z."""

    def compute(a: int, b: int, c: int, imm: int) -> int:
        both = (split(a, bits, False), split(b, bits, False))
        out = []
        for control in split(c, bits, False):
            number = control & 3 if bits == 32 else control >> 1 & 1
            match, zero = control >> 3 & 1, imm & 3
            cleared = zero == 2 and match == 1 or zero == 3 and match == 0
            out.append(0 if cleared else both[control >> 2 & 1][number])
        return join(out, bits)

    return compute


def _odd(lane: int) -> list[int]:
    return [2 * lane + 1]


MACS: dict[str, Model] = {}
for _name, _source, _total, _picks in (
        ("WW", 16, 16, lambda n: [n]), ("DD", 32, 32, lambda n: [n]), ("WD", 16, 32, _odd), ("DQH", 32, 64, _odd),
        ("DQL", 32, 64, lambda n: [2 * n])):
    MACS["VPMACS" + _name] = macs(_source, _total, _picks, False)
    MACS["VPMACSS" + _name] = macs(_source, _total, _picks, True)
for _name, _saturate in (("VPMADCSWD", False), ("VPMADCSSWD", True)):
    MACS[_name] = macs(16, 32, lambda n: [2 * n, 2 * n + 1], _saturate)

WIDTHS = {"B": 8, "W": 16, "D": 32, "Q": 64}
ONE_SOURCE: dict[str, Model] = {}
for _sizes in ("BW", "BD", "BQ", "WD", "WQ", "DQ"):
    for _sign in ("", "U"):
        ONE_SOURCE[f"VPHADD{_sign}{_sizes}"] = horizontal(WIDTHS[_sizes[0]], WIDTHS[_sizes[1]], not _sign)
for _sizes in ("BW", "WD", "DQ"):
    ONE_SOURCE["VPHSUB" + _sizes] = horizontal(WIDTHS[_sizes[0]], WIDTHS[_sizes[1]], True, -1)

TWO_SOURCES: dict[str, Model] = {}
BY_IMMEDIATE: dict[str, Model] = {}
for _size, _bits in WIDTHS.items():
    TWO_SOURCES["VPROT" + _size] = rotate(_bits, False)
    TWO_SOURCES["VPSHL" + _size] = shift(_bits, False)
    TWO_SOURCES["VPSHA" + _size] = shift(_bits, True)
    BY_IMMEDIATE["VPROT" + _size] = rotate(_bits, True)
    BY_IMMEDIATE["VPCOM" + _size] = compare(_bits, True)
    BY_IMMEDIATE["VPCOMU" + _size] = compare(_bits, False)

THREE_SOURCES: dict[str, Model] = {
    **MACS, "VPCMOV": conditional_move, "VPPERM": permute_bytes, "VPERMIL2PS": permute_two(32),
    "VPERMIL2PD": permute_two(64)}
