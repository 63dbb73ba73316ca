"""Somebody who looks on at a processor, as -d does."""

from __future__ import annotations

from pellucid.cpu.observe import CodeBlock, Event


class OnLooker:
    """Hears events, and with `blocks` also of every block; `told` are the events."""

    def __init__(self, *, blocks: bool = False) -> None:
        self.new_blocks = self.blocks = blocks
        self.events = True
        self.told: list[Event] = []

    def block(self, block: CodeBlock, fresh: bool) -> None: ...

    def event(self, event: Event) -> None:
        self.told.append(event)

    def reset(self) -> None: ...
