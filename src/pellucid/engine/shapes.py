"""Learned shapes as bytes for the disk: templates, their ops and the trie's edges, and back.

The cache folder's checksums tell a torn or altered file from a whole one. What is read is checked once more, since
native code follows every number in it without a look: whatever the bytes, it never leaves its arrays. (It is no
barrier against someone who may write to the folder; the handler image beside it is machine code.)
"""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass
from itertools import repeat
from operator import add, le
from typing import Any

from pellucid.cpu.flags import CC_KINDS, CC_SAME, CC_UNKNOWN
from pellucid.cpu.state import (
    MAX_TEMPLATE_OPS, MAX_TEMPLATES, MODE_SHAPE, OP_TAKES_CC, T_JCC, TRIE_EDGES, TRIE_TERMINAL, Op, Template, TrieEdge)

_HEAD = struct.Struct("<4I")
_EDGE = struct.Struct("<III")
FIRST_NODE = MODE_SHAPE + 2
"""Nodes before it are the roots, one for each mode."""
MAX_OPS = 8
"""Ops of one template; far more than any instruction has."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How much of each array is in use."""

    nodes: int
    templates: int
    ops: int
    edges: int


def pack(cache: Any, counts: Counts) -> bytes:
    """The arrays of a CodeCache as bytes."""
    raw = ctypes.string_at(cache.trie, TRIE_EDGES * TrieEdge.size)
    edges = [_EDGE.pack(i, word & 0xFFFF_FFFF, word >> 32) for i, word in enumerate(memoryview(raw).cast("Q")) if word]
    return b"".join((
        _HEAD.pack(counts.nodes, counts.templates, counts.ops, len(edges)),
        ctypes.string_at(cache.templates, counts.templates * Template.size),
        ctypes.string_at(cache.template_ops, counts.ops * Op.size), *edges))


def unpack(cache: Any, raw: bytes, handlers: int) -> Counts | None:
    """Fill the (empty) arrays from what `pack` gave; None, nothing changed, where it is not sound.

    `handlers` is how many the image has.
    """
    if len(raw) < _HEAD.size:
        return None
    counts = Counts(*_HEAD.unpack_from(raw))
    too_many = (counts.templates > MAX_TEMPLATES or counts.ops > MAX_TEMPLATE_OPS
                or counts.edges > TRIE_EDGES // 2 + 16 or not FIRST_NODE <= counts.nodes < TRIE_TERMINAL)
    ops = _HEAD.size + counts.templates * Template.size
    edges = ops + counts.ops * Op.size
    if too_many or len(raw) != edges + counts.edges * _EDGE.size:
        return None
    links = list(_EDGE.iter_unpack(raw[edges:]))
    if not (_ops_are_sound(raw[ops:edges], handlers) and _edges_are_sound(links, counts)
            and _templates_are_sound(raw[_HEAD.size:ops], raw[ops:edges], counts)):
        return None
    ctypes.memmove(cache.templates, raw[_HEAD.size:ops], ops - _HEAD.size)
    ctypes.memmove(cache.template_ops, raw[ops:edges], edges - ops)
    trie = (ctypes.c_uint64 * TRIE_EDGES).from_address(cache.trie)
    for i, key, value in links:
        trie[i] = key | value << 32
    return counts


def _templates_are_sound(raw: bytes, ops: bytes, counts: Counts) -> bool:
    """Column by column, so that tens of thousands take milliseconds of a start."""
    length, count, disp_at, disp_size, imm_at, imm_size = (raw[n::Template.size] for n in range(6))
    words = memoryview(raw).cast("I")
    first, kinds, without = (words[n::Template.size // 4] for n in (2, 3, 6))
    conditions = memoryview(ops).cast("H")[Op.fields["src"].offset // 2::Op.size // 2]
    return (_within(length, 1, 15) and _within(count, 1, MAX_OPS) and _within(disp_size, 0, 8)
            and _within(imm_size, 0, 8) and all(map(le, map(add, disp_at, disp_size), length))
            and all(map(le, map(add, imm_at, imm_size), length))
            and all(map(le, map(add, first, count), repeat(counts.ops)))
            and max(without, default=0) < max(counts.templates, 1)
            and set(kinds) <= {*range(CC_KINDS), CC_SAME, CC_UNKNOWN}
            and all(conditions[number] < 16 for number, flags in zip(first, raw[6::Template.size]) if flags & T_JCC))


def _within(values: bytes, low: int, high: int) -> bool:
    return not values or low <= min(values) and max(values) <= high


def _ops_are_sound(raw: bytes, handlers: int) -> bool:
    """Handler numbers are within the table; those that depend on the kind of flags have all kinds behind them."""
    numbers = memoryview(raw).cast("Q")[::Op.size // 8]
    flags = memoryview(raw).cast("I")[Op.fields["flags"].offset // 4::Op.size // 4]
    return all(number + (CC_KINDS if flag & OP_TAKES_CC else 1) <= handlers for number, flag in zip(numbers, flags))


def _edges_are_sound(links: list[tuple[int, int, int]], counts: Counts) -> bool:
    return all(index < TRIE_EDGES and key and (value - TRIE_TERMINAL < counts.templates
                                               if value & TRIE_TERMINAL else value < counts.nodes)
               for index, key, value in links)
