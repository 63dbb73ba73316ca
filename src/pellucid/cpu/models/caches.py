"""What a model says of its caches, in the four ways in which CPUID can (SDM vol. 2, CPUID; APM vol. 3, appendix E.4).

The numbers are those that QEMU 7.2's models give; nothing is cached here. Its older models say one thing in Intel's
leaves and another in AMD's; AMD's newer ones have caches of their own.
"""

from __future__ import annotations

from pellucid.records import dataclass

LINE = 64
"""Bytes of a line."""
NOT_BY_INVD, INCLUSIVE, COMPLEX = 1, 2, 4
"""EDX of leaf 4: WBINVD leaves lower caches of sharing threads alone; holds what lower ones do; a hashed index."""


@dataclass(frozen=True, slots=True)
class Cache:
    """A cache as leaf 4 tells of it: kind 1 is data, 2 instructions, 3 both."""

    kind: int
    level: int
    kib: int
    ways: int
    shared: bool = False
    flags: int = NOT_BY_INVD
    self_initializing: bool = True

    @property
    def sets(self) -> int:
        return self.kib * 1024 // (self.ways * LINE)


@dataclass(frozen=True, slots=True)
class CacheSet:
    """A model's caches: data, instructions, second and third level.

    `described` is for leaf 2, `listed` for leaves 4 and 0x8000001D, `amd` for leaves 0x80000005 and 0x80000006.
    """

    described: tuple[Cache, ...]
    listed: tuple[Cache, ...]
    amd: tuple[Cache, ...]


_DATA, _CODE = Cache(1, 1, 32, 8), Cache(2, 1, 32, 8)
_L2 = Cache(3, 2, 4096, 16)
_L3 = Cache(3, 3, 16384, 16, shared=True, flags=INCLUSIVE | COMPLEX)
LEGACY = CacheSet(
    described=(_DATA, _CODE, Cache(3, 2, 2048, 8), _L3), listed=(_DATA, _CODE, _L2, _L3),
    amd=(Cache(1, 1, 64, 2), Cache(2, 1, 64, 2), Cache(3, 2, 512, 16), _L3))


def _zen(code_kib: int, code_ways: int, l3_kib: int) -> CacheSet:
    caches = (_DATA, Cache(2, 1, code_kib, code_ways), Cache(3, 2, 512, 8, flags=0, self_initializing=False),
              Cache(3, 3, l3_kib, 16, shared=True, flags=INCLUSIVE | COMPLEX))
    return CacheSet(caches, caches, caches)


CACHE_SETS = {"": LEGACY, "zen": _zen(64, 4, 8192), "zen2": _zen(32, 8, 16384), "zen3": _zen(32, 8, 32768)}
"""By the name that a model gives them."""

_DESCRIPTORS = {(1, 1, 32, 8): 0x2C, (2, 1, 32, 8): 0x30, (3, 2, 2048, 8): 0x7D, (3, 2, 512, 8): 0x80,
                (3, 3, 16384, 16): 0x4D, (3, 3, 8192, 16): 0x4B}
_BY_LEAF_4 = 0xFF
_WAYS = {0: 0, 1: 1, 2: 2, 4: 4, 8: 6, 16: 8}
"""Leaf 0x80000006's codes of associativity."""
_ONE_LINE = 1 << 8
"""Lines for each tag."""


def descriptors(caches: CacheSet, has_l3: bool) -> tuple[int, int, int, int]:
    """Leaf 2: a byte for each cache, by the table of the SDM; 0xFF for one that is not in it."""
    data, code, l2, l3 = (_DESCRIPTORS.get((c.kind, c.level, c.kib, c.ways), _BY_LEAF_4) for c in caches.described)
    return 1, 0, l3 * has_l3, data << 16 | code << 8 | l2


def first_level(caches: CacheSet) -> tuple[int, int]:
    """Leaf 0x80000005, ECX and EDX: data and code."""
    data, code = (c.kib << 24 | c.ways << 16 | _ONE_LINE | LINE for c in caches.amd[:2])
    return data, code


def upper_levels(caches: CacheSet, has_l3: bool) -> tuple[int, int]:
    """Leaf 0x80000006, ECX and EDX: second and third level, the latter in units of 512 KiB."""
    l2, l3 = caches.amd[2:]
    return (l2.kib << 16 | _WAYS[l2.ways] << 12 | _ONE_LINE | LINE,
            (l3.kib // 512 << 18 | _WAYS[l3.ways] << 12 | _ONE_LINE | LINE) * has_l3)


def listed(cache: Cache, sharing: int, cores: int = 0) -> tuple[int, int, int, int]:
    """A subleaf of leaf 4 or 0x8000001D; `sharing` and `cores` are the fields of EAX, one less than the numbers."""
    eax = cache.kind | cache.level << 5 | int(cache.self_initializing) << 8 | sharing << 14 | cores << 26
    return eax, LINE - 1 | cache.ways - 1 << 22, cache.sets - 1, cache.flags
