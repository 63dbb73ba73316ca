"""Random page tables: low memory onto itself, with everything in them that a guest can put there."""

from __future__ import annotations

import random

from tests.cpu.guests.tables import NX, PS, A, D, G, P, U, W

TABLES, TABLES_END, DEVICE, HIGH, SHADOW = 0x40000, 0xC0000, 0xC8000, 1 << 32, 0x9000
_MAPPED = 0x10_0000
_EVERY_TABLE = _TOP, _LEVEL4, _POINTERS, _DIRECTORY, _TABLE = tuple(TABLES + 0x1000 * n for n in range(5))


def build_tables(rng: random.Random, memory: dict[int, bytes], levels: int, user: bool, odds: float,
                 wild: bool = True) -> tuple[int, list[int]]:
    """Write tables of `levels` levels (2: 32-bit, 3: PAE) into `memory`: CR3, and PAE's four pointers.

    The first MiB is mapped onto itself; `odds` is the share of entries that are spoilt. Without `wild`, the tables
    themselves cannot be reached by the guest.
    """
    size = 4 if levels == 2 else 8
    flags = P | W | (U if user else 0)
    leaf = [_leaf(rng, page, flags, odds, levels, wild) for page in range(0, _MAPPED, 0x1000)]
    memory[_TABLE] = _pack(leaf, size)
    wide = P | W | U
    directory = {0: _TABLE | wide}
    top = 1023 if levels == 2 else 511
    for n in range(1, 12):
        directory[n] = _entry(rng, flags, levels, wild)
    directory[rng.randrange(top - 8, top)] = _entry(rng, flags, levels, wild)
    if wild:
        directory[top] = (_DIRECTORY if levels > 2 else _TOP) | wide
    if levels == 2:
        return _write(memory, _TOP, directory, size), [0] * 4
    _write(memory, _DIRECTORY, directory, size)
    pointers = {0: _DIRECTORY | (P if levels == 3 else wide)}
    if levels == 3:
        pointers |= {n: rng.choice((0, _DIRECTORY | P, rng.choice((DEVICE, HIGH)) | P)) for n in range(1, 4)}
        if not wild:
            pointers = {0: pointers[0]}
        return _write(memory, _POINTERS, pointers, size), [pointers.get(n, 0) for n in range(4)]
    pointers |= {n: _entry(rng, flags, levels, wild) for n in range(1, 4)}
    return _build_upper(rng, memory, pointers, levels, flags, wild), [0] * 4


def _build_upper(rng: random.Random, memory: dict[int, bytes], pointers: dict[int, int], levels: int, flags: int,
                 wild: bool) -> int:
    """The tables of four or five levels from the third on; CR3."""
    size, wide = 8, P | W | U
    pointers[511] = _DIRECTORY | wide
    if wild:
        pointers[510] = rng.choice(_EVERY_TABLE) | wide
    _write(memory, _POINTERS, pointers, size)
    fourth = {0: _POINTERS | wide, 255: _POINTERS | wide, 256: _POINTERS | wide, 511: _POINTERS | wide}
    if wild:
        fourth |= {510: _LEVEL4 | wide, 257: _entry(rng, flags, levels, wild)}
    _write(memory, _LEVEL4, fourth, size)
    if levels == 4:
        return _LEVEL4
    fifth = {0: _LEVEL4 | wide, 511: _LEVEL4 | wide}
    if wild:
        fifth[256] = _TOP | wide
    return _write(memory, _TOP, fifth, size)


def _pack(entries: list[int], size: int) -> bytes:
    return b"".join((entry & (1 << 8 * size) - 1).to_bytes(size, "little") for entry in entries)


def _write(memory: dict[int, bytes], at: int, entries: dict[int, int], size: int) -> int:
    memory[at] = _pack([entries.get(n, 0) for n in range(4096 // size)], size)
    return at


def _leaf(rng: random.Random, page: int, flags: int, odds: float, levels: int, wild: bool) -> int:
    """The entry of one page of low memory."""
    if TABLES <= page < TABLES + 0x8000 and not wild:
        return 0
    entry = page | flags | rng.choice((0, A, A | D)) | rng.choice((0, 0, G))
    if page == SHADOW and rng.randrange(4):
        entry = page | flags & ~W | A | D
    if rng.random() >= odds:
        return entry
    change = rng.randrange(11)
    if change == 0:
        return entry & ~P
    if change in (1, 2):
        return entry & ~W
    if change == 3:
        return entry ^ U
    if change == 4 and levels > 2:
        return entry | NX
    if change == 5 and levels > 2:
        return entry | 1 << rng.randrange(40, 63)
    if change == 6:
        return entry & 0xFFF | DEVICE & ~0xFFF
    if change == 7 and wild:
        return entry & 0xFFF | rng.choice(_EVERY_TABLE)
    if change == 8 and wild:
        return entry & 0xFFF | rng.randrange(0, 0x100) << 12
    if change == 9 and levels > 3:
        return entry | rng.randrange(16) << 59
    return entry & 0xFFF | (HIGH if levels > 2 else 0xE0000)


def _entry(rng: random.Random, flags: int, levels: int, wild: bool) -> int:
    """An entry of an upper table: absent, a huge page, a table somewhere, noise."""
    choice = rng.randrange(8)
    if choice < 2 or not wild:
        return rng.getrandbits(32) & ~P
    if choice < 5:
        large = 22 if levels == 2 else 21
        place = rng.choice((0, 0, 1 << large, HIGH if levels > 2 else 3 << large))
        return place | flags | PS | rng.choice((0, A, A | D, G)) | (rng.randrange(3) == 0) << 12
    if choice == 5:
        return rng.choice((DEVICE & ~0xFFF, 0xE0000, HIGH)) & ((1 << 32) - 1 if levels == 2 else -1) | flags
    if choice == 6:
        return rng.choice(_EVERY_TABLE) | flags
    return rng.getrandbits(32 if levels == 2 else 64)
