"""Small guest programs, and a processor that compiles regions only when a test says so."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from pellucid.cpu.code_cache import Block, Op
from pellucid.engine import handlers
from pellucid.engine.processor import Processor
from pellucid.engine.region import CompiledRegion, Piece, compile_region, region_program
from pellucid.native.image import Root
from tests.cpu.bare import Bare

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
CODE = 0x1000


@functools.cache
def roots() -> Mapping[str, Root]:
    return handlers.roots()


_number = 0


def compile_block(processor: Processor, ops: int) -> list[Piece]:
    """Compile and install the region that begins with the block at `ops`, of a processor without the sampler."""
    global _number
    _number += 1
    hot = processor.hot
    pieces = hot.source.region(ops)
    assert pieces
    name = f"test_region{_number}"
    layout = compile_region(region_program(), roots(), pieces, name)
    region = CompiledRegion(layout, name, processor.engine.image.code)
    hot._install(hot.generation, pieces, region)
    assert Op.view(pieces[0].ops).handler == region.address
    return pieces


class Compiled(Bare):
    """A processor without the sampler: `compile` makes a region of the hot blocks from an address on."""

    def __init__(self, bits: int = 64, beside: Bare | None = None) -> None:
        super().__init__(bits, beside=beside)
        self.processor.hot.close()

    def block(self, rip: int) -> int:
        """The first op of the translated block at `rip`."""
        self.state.rip = rip
        ops = self.processor.current_block()
        assert ops, "executed before"
        return ops

    def compile(self, rip: int) -> list[Piece]:
        """Compile and install the region that begins at `rip`."""
        return compile_block(self.processor, self.block(rip))

    @staticmethod
    def dead(piece: Piece) -> bool:
        """Whether the translation of this block was thrown away."""
        return bool(Block.view(piece.ops - Block.size).dead)
