"""Looking on while a processor runs: every block, every event, at the price of leaving native code for each.

A processor that nobody watches runs another function (`run.run` instead of `run.run_traced`), so this costs it nothing.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from pellucid.cpu.observe import CodeBlock, Event, Observer
from pellucid.cpu.code_cache import Block
from pellucid.cpu.state import (
    DF, EXIT_BLOCK, EXIT_EXCEPTION, EXIT_NONE, EXTERNAL, MODE_64, MODE_SIZE, PF, SOFT_INT, SOFT_NONE, TRACE_BLOCKS,
    TRACE_EVENTS, TRACE_NEW,
)

if TYPE_CHECKING:
    from pellucid.engine.processor import Processor

_BITS = (16, 32, 64)
_HISTORY = 16


class Trace:
    """Runs a processor for an observer."""

    def __init__(self, processor: Processor, observer: Observer) -> None:
        self._processor, self._observer = processor, observer
        self._seen = processor.state.count_translated
        processor.state.announced = 0
        processor.state.trace = (TRACE_NEW * observer.new_blocks | TRACE_BLOCKS * observer.blocks
                                 | TRACE_EVENTS * observer.events)

    def run(self, address: int) -> int:
        """As `Engine.run`."""
        processor = self._processor
        while True:
            reason = processor.engine.run_traced(address)
            if reason == EXIT_BLOCK:
                self._tell_block()
            elif reason == EXIT_EXCEPTION and not processor.state.trap_exceptions:
                reason = self._deliver(address)
                if reason != EXIT_NONE:
                    processor.state.exit_reason = reason
                    return reason
            else:
                return int(reason)

    def interrupt(self, vector: int) -> None:
        """An event from outside is about to be delivered."""
        if self._observer.events:
            self._observer.event(Event(vector, 0, external=True))

    def page_fault(self, address: int) -> None:
        """The hypervisor's own #PF is about to be delivered."""
        if self._observer.events:
            self._processor.state.cr2 = address  # as the delivery does first
            self._observer.event(Event(PF, 0))

    def _tell_block(self) -> None:
        s = self._processor.state
        fresh, self._seen = s.count_translated != self._seen, s.count_translated
        wide = s.mode & MODE_SIZE == MODE_64
        pc = s.rip + s.cs_base & ((1 << 64) - 1 if wide else 0xFFFF_FFFF)
        ops, code = self._processor.current_block(), b""
        if ops:
            header = Block.view(ops - Block.size)
            first = min(header.size, 4096 - (header.host & 0xFFF))
            code = ctypes.string_at(header.host, first)
            if header.host2:
                code += ctypes.string_at(header.host2, header.size - first)
        block = CodeBlock(pc, s.cs_base, code, _BITS[s.mode & MODE_SIZE], ops, s.mode)
        if self._observer.blocks or fresh:
            self._observer.block(block, fresh)

    def _deliver(self, address: int) -> int:
        """Deliver an exception, and tell of those that its delivery raises."""
        s = self._processor.state
        if s.exc_vector == PF and s.exc_soft == SOFT_NONE:
            s.cr2 = s.exc_address  # as the delivery does first
        self._observer.event(Event(s.exc_vector, s.exc_error if s.exc_has_error else 0, s.exc_soft == SOFT_INT,
                                   s.exc_soft == EXTERNAL))
        first = s.history_at
        reason = int(self._processor.engine.deliver(address))
        words = [s.history[(n % _HISTORY) * 4] for n in range(max(first, s.history_at - _HISTORY), s.history_at)]
        for n in range(1, len(words)):
            vector, error = words[n] & 0xFFFF_FFFF, words[n] >> 32
            merged = n + 1 < len(words) and words[n + 1] & 0xFFFF_FFFF == DF and vector != DF
            self._observer.event(Event(vector, error, during=words[n - 1] & 0xFFFF_FFFF, merged=merged))
        return reason
