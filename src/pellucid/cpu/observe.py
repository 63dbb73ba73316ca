"""What someone who looks on while a processor executes gets to hear."""

from __future__ import annotations

from typing import Protocol

from pellucid.records import dataclass


@dataclass(frozen=True, slots=True)
class CodeBlock:
    """What is about to be executed: its linear address, CS's base and the bytes (none for an instruction alone).

    `host` says where its translation is, `mode` is CpuState.mode.
    """

    pc: int
    cs_base: int
    code: bytes
    bits: int
    host: int
    mode: int


@dataclass(frozen=True, slots=True)
class Event:
    """An exception or interrupt before its delivery.

    `software`: INT n, INT3 or INTO; `external`: from outside. `during`: the vector whose delivery raised it; `merged`:
    the two become a double fault, which comes next.
    """

    vector: int
    error: int
    software: bool = False
    external: bool = False
    during: int | None = None
    merged: bool = False


class Observer(Protocol):
    """Who looks on. It is called on the processor's thread, outside native code, and may read all state."""

    new_blocks: bool
    blocks: bool
    events: bool

    def block(self, block: CodeBlock, fresh: bool) -> None:
        """`block` comes next; `fresh`: it has just been translated."""
        ...

    def event(self, event: Event) -> None:
        """`event` is about to be delivered."""
        ...

    def reset(self) -> None:
        """The processor is about to be reset; its state is still there."""
        ...
