"""Learned shapes as bytes for the disk: templates, their ops and the trie's edges, and back.

The cache folder's checksums tell a torn or altered file from a whole one. What is read is checked once more, since
native code follows every number in it without a look: whatever the bytes, it never leaves its arrays. (It is no
barrier against someone who may write to the folder; the handler image beside it is machine code.)
"""

from __future__ import annotations

import ctypes
import struct
from array import array
from itertools import compress, repeat
from operator import add, and_, le
from typing import Any

from pellucid.cpu.flags import CC_KINDS, CC_SAME, CC_UNKNOWN
from pellucid.cpu.code_cache import (
    MAX_TEMPLATE_OPS, MAX_TEMPLATES, OP_TAKES_CC, T_JCC, TRIE_EDGES, TRIE_TERMINAL, Op, Template, TrieEdge,
)
from pellucid.cpu.state import MODE_SHAPE
from pellucid.records import dataclass

_HEAD = struct.Struct("<6I")
_INDEX, _WORD = 4, 8   # bytes of an edge: its place in the trie, and what stands there
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
    """The arrays of a CodeCache as bytes: the edges column by column, those to nodes before those to templates."""
    trie = memoryview(ctypes.string_at(cache.trie, TRIE_EDGES * TrieEdge.size)).cast("Q")
    used = [i for i, word in enumerate(trie) if word]
    inner = [i for i in used if not trie[i] >> 32 & TRIE_TERMINAL]
    places = array("I", inner + [i for i in used if trie[i] >> 32 & TRIE_TERMINAL])
    return b"".join((
        _HEAD.pack(counts.nodes, counts.templates, counts.ops, len(inner), len(used) - len(inner), 0),
        ctypes.string_at(cache.templates, counts.templates * Template.size),
        ctypes.string_at(cache.template_ops, counts.ops * Op.size),
        array("Q", [trie[i] for i in places]).tobytes(), places.tobytes()))


def unpack(cache: Any, raw: bytes, handlers: int) -> Counts | None:
    """Fill the (empty) arrays from what `pack` gave; None, nothing changed, where it is not sound.

    `handlers` is how many the image has.
    """
    if len(raw) < _HEAD.size:
        return None
    nodes, templates, many, inner, leaves, _ = _HEAD.unpack_from(raw)
    counts = Counts(nodes, templates, many, inner + leaves)
    too_many = (templates > MAX_TEMPLATES or many > MAX_TEMPLATE_OPS
                or counts.edges > TRIE_EDGES // 2 + 16 or not FIRST_NODE <= nodes < TRIE_TERMINAL)
    ops = _HEAD.size + templates * Template.size
    edges = ops + many * Op.size
    places = edges + counts.edges * _WORD
    if too_many or len(raw) != places + counts.edges * _INDEX:
        return None
    words, indices = array("Q", raw[edges:places]), array("I", raw[places:])
    if not (_ops_are_sound(raw[ops:edges], handlers) and _edges_are_sound(words, indices, inner, counts)
            and _templates_are_sound(raw[_HEAD.size:ops], raw[ops:edges], counts)):
        return None
    ctypes.memmove(cache.templates, raw[_HEAD.size:ops], ops - _HEAD.size)
    ctypes.memmove(cache.template_ops, raw[ops:edges], edges - ops)
    trie = (ctypes.c_uint64 * TRIE_EDGES).from_address(cache.trie)
    for i, word in zip(indices, words):
        trie[i] = word
    return counts


def _templates_are_sound(raw: bytes, ops: bytes, counts: Counts) -> bool:
    """Column by column, so that tens of thousands take milliseconds of a start."""
    length, count, disp_at, disp_size, imm_at, imm_size = (raw[n::Template.size] for n in range(6))
    words = memoryview(raw).cast("I")
    first, kinds, without = (words[Template.fields[name].offset // 4::Template.size // 4]
                             for name in ("first", "cc_out", "without"))
    conditions = memoryview(ops).cast("H")[Op.fields["src"].offset // 2::Op.size // 2]
    return (_within(length, 1, 15) and _within(count, 1, MAX_OPS) and _within(disp_size, 0, 8)
            and _within(imm_size, 0, 8) and all(map(le, map(add, disp_at, disp_size), length))
            and all(map(le, map(add, imm_at, imm_size), length))
            and all(map(le, map(add, first, count), repeat(counts.ops)))
            and max(without, default=0) < max(counts.templates, 1)
            and set(kinds) <= {*range(CC_KINDS), CC_SAME, CC_UNKNOWN}
            and max(map(conditions.__getitem__, compress(first, map(and_, raw[6::Template.size], repeat(T_JCC)))),
                    default=0) < 16)


def _within(values: bytes, low: int, high: int) -> bool:
    return not values or low <= min(values) and max(values) <= high


def _ops_are_sound(raw: bytes, handlers: int) -> bool:
    """Handler numbers are within the table; those that depend on the kind of flags have all kinds behind them."""
    numbers = memoryview(raw).cast("Q")[::Op.size // 8]
    flags = memoryview(raw).cast("I")[Op.fields["flags"].offset // 4::Op.size // 4]
    flagged = compress(numbers, map(and_, flags, repeat(OP_TAKES_CC)))
    return max(numbers, default=0) < handlers and max(flagged, default=-CC_KINDS) + CC_KINDS <= handlers


def _edges_are_sound(words: array[int], indices: array[int], inner: int, counts: Counts) -> bool:
    """Keys are not 0, which is a free place's; the first `inner` edges lead to nodes, the others to templates."""
    if not words:
        return True
    halves = memoryview(words).cast("B").cast("I")
    keys, nodes, leaves = halves[::2], halves[1:2 * inner:2], halves[2 * inner + 1::2]
    return (max(indices) < TRIE_EDGES and min(keys) > 0 and max(nodes, default=0) < counts.nodes
            and min(leaves, default=TRIE_TERMINAL) >= TRIE_TERMINAL
            and max(leaves, default=0) < TRIE_TERMINAL + counts.templates)
