"""What the translator learned, kept on disk: the round trip, and every way a file can be wrong."""

from __future__ import annotations

import ctypes
import random
import struct
from pathlib import Path

import pytest

from pellucid.cpu.code_cache import (
    MAX_TEMPLATE_OPS, MAX_TEMPLATES, TRIE_EDGES, TRIE_TERMINAL, CodeCache, Op, Template, TrieEdge,
)
from pellucid.cpu.state import EXIT_HLT
from pellucid.engine import image, shapes
from pellucid.engine.arrays import Array
from pellucid.engine.learn import Learner, NeedMoreBytes
from pellucid.engine.processor import Engine
from pellucid.native import cache as disk
from tests.cpu.bare import Bare

RAX, RCX = 0, 1
LOOP = bytes.fromhex("b800000000 b90a000000 4801c8 48894500 4883e901 75f3 f4")
"""RAX = 10 + 9 + ... + 1, stored at [RBP] on the way."""
MODE_64 = 2
TEMPLATE, OP, EDGE = Template.size, 64, 12


class Shapes:
    """A learner on arrays of its own."""

    def __init__(self) -> None:
        self.code = Array(CodeCache.size)
        self.arrays = [Array(TRIE_EDGES * TrieEdge.size), Array(MAX_TEMPLATES * Template.size),
                       Array(MAX_TEMPLATE_OPS * Op.size)]
        cache = CodeCache.view(self.code.address)
        cache.trie, cache.templates, cache.template_ops = (array.address for array in self.arrays)
        self.learner = Learner(self.code.address, Engine.get().numbers)

    def content(self) -> list[bytes]:
        return [ctypes.string_at(array.address, array.size) for array in self.arrays]


@pytest.fixture(scope="module")
def learned() -> Shapes:
    made = Shapes()
    for mode in (0, 1, 2):
        made.learner.learn(LOOP, mode)
    made.learner.learn(bytes.fromhex("480fafc8 7402 90 c3"), MODE_64)
    made.learner.learn(bytes.fromhex("7402"), MODE_64)
    return made


def test_round_trip(learned: Shapes) -> None:
    raw = learned.learner.save()
    other = Shapes()
    assert other.learner.restore(raw)
    assert other.content() == learned.content()
    assert other.learner.save() == raw
    before = other.learner.templates
    other.learner.learn(LOOP, MODE_64)
    assert other.learner.templates == before, "what is known is not learned again"


def test_a_truncated_or_extended_body_is_refused(learned: Shapes) -> None:
    raw = learned.learner.save()
    other = Shapes()
    for size in {0, 1, 15, 16, 17, 40, len(raw) // 2, len(raw) - OP, len(raw) - 1}:
        assert not other.learner.restore(raw[:size])
    assert not other.learner.restore(raw + b"\0")
    assert other.content() == Shapes().content() and other.learner.templates == 0


def patched(raw: bytes, at: int, format: str, value: int) -> bytes:
    return raw[:at] + struct.pack("<" + format, value) + raw[at + struct.calcsize("<" + format):]


def test_wrong_numbers_are_refused(learned: Shapes) -> None:
    """Native code looks at none of them: each would lead out of an array."""
    raw, learner = learned.learner.save(), learned.learner
    ops = 24 + learner.templates * TEMPLATE
    edges = ops + learner.ops * OP
    inner, leaves = struct.unpack_from("<2I", raw, 12)
    places = edges + 8 * (inner + leaves)
    too_far = len(learner.handlers)
    cases = {
        "nodes": (0, "I", 3), "templates": (4, "I", MAX_TEMPLATES + 1), "ops": (8, "I", MAX_TEMPLATE_OPS + 1),
        "edges": (12, "I", TRIE_EDGES), "leaves": (16, "I", TRIE_EDGES),
        "length": (24, "B", 16), "no length": (24, "B", 0), "count": (25, "B", 200),
        "no ops": (25, "B", 0), "displacement": (26, "B", 14), "immediate": (24 + 5, "B", 9),
        "first op": (24 + 8, "I", learner.ops), "kind of flags": (24 + 12, "I", 1000),
        "other template": (24 + Template.fields["without"].offset, "I", learner.templates),
        "handler": (ops, "Q", too_far), "handler, far": (ops, "Q", 1 << 60),
        "edge": (places, "I", TRIE_EDGES), "key": (edges, "I", 0), "node": (edges + 4, "I", learner.nodes),
        "leaf for a node": (edges + 4, "I", TRIE_TERMINAL), "node for a leaf": (edges + 8 * inner + 4, "I", 0),
        "template": (edges + 8 * inner + 4, "I", TRIE_TERMINAL | learner.templates)}
    other = Shapes()
    for name, (at, format, value) in cases.items():
        assert not other.learner.restore(patched(raw, at, format, value)), name
    assert other.content() == Shapes().content()


def test_random_damage_never_raises(learned: Shapes) -> None:
    raw, other = learned.learner.save(), Shapes()
    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    for _ in range(200):
        body = bytearray(raw)
        for _ in range(dice.randrange(1, 5)):
            body[dice.randrange(len(body))] = dice.randrange(256)
        counts = shapes.unpack(other.learner.cache, bytes(body), len(other.learner.handlers))
        assert counts is None or counts.templates <= MAX_TEMPLATES, f"seed {seed}"
        assert shapes.unpack(other.learner.cache, dice.randbytes(dice.randrange(300)), 10) is None, f"seed {seed}"


def test_full_arrays_start_again(learned: Shapes, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Shapes()
    monkeypatch.setattr("pellucid.engine.learn.MAX_TEMPLATES", 4)
    for number in range(8):
        other.learner.learn(bytes([0x48, 0x01, 0xC0 + number]), MODE_64)
        assert other.learner.templates < 4
    assert other.learner.learn(bytes.fromhex("4801c7"), MODE_64) == 3


def test_an_instruction_that_goes_on_in_the_next_page() -> None:
    with pytest.raises(NeedMoreBytes):
        Shapes().learner.learn(bytes.fromhex("48b80011"), MODE_64)


def test_bytes_that_are_no_instruction() -> None:
    assert Shapes().learner.learn(bytes.fromhex("06") + bytes(20), MODE_64) == 0


# --- in a processor, through the disk --------------------------------------------------------------------


def run_loop(machine: Bare) -> None:
    machine.load(0x1000, LOOP)
    machine.state.gpr[5] = 0x3000
    assert machine.run(0x1000) == EXIT_HLT
    assert machine.state.gpr[RAX] == 55 and machine.bytes(0x3000, 8) == (55).to_bytes(8, "little")


def test_the_next_process_knows_what_this_one_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Engine.get()
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path))
    first = Bare(64)
    run_loop(first)
    first.processor.close()
    second = Bare(64)
    assert second.processor.learner.templates == first.processor.learner.templates > 0

    def teach(raw: bytes, mode: int) -> int:
        raise AssertionError(f"{raw[:4].hex()} was known")

    monkeypatch.setattr(second.processor.learner, "learn", teach)
    run_loop(second)
    second.processor.close()


@pytest.mark.parametrize("body", [b"", b"junk", bytes(16), bytes(100_000)])
def test_a_file_that_is_whole_but_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    Engine.get()
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path))
    assert disk.put("translations", image.key(), body)
    machine = Bare(64)
    run_loop(machine)
    machine.processor.close()
    again = Bare(64)
    assert again.processor.learner.templates == machine.processor.learner.templates, "replaced by a sound one"
    again.processor.close()


def test_a_torn_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Engine.get()
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path))
    machine = Bare(64)
    run_loop(machine)
    machine.processor.close()
    path = tmp_path / "translations" / image.key()
    path.write_bytes(path.read_bytes()[:-100])
    again = Bare(64)
    assert again.processor.learner.templates == 0
    run_loop(again)
    again.processor.close()


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Engine.get()
    in_the_way = tmp_path / "file"
    in_the_way.write_bytes(b"")
    monkeypatch.setenv("PELLUCID_CACHE", str(in_the_way))
    machine = Bare(64)
    run_loop(machine)
    machine.processor.close()
    assert in_the_way.read_bytes() == b""
