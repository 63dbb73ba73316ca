"""Memory transactions: many changes to the tree, one new flat view.

Every change of a region opens a transaction around itself. Open one around several, and the address spaces that they
touch are rendered once, and their listeners called once, when the outermost block ends. The state is the thread's own:
the big lock lets one thread at a time change a machine's tree, and a process may hold several machines.
"""

import threading
from types import TracebackType
from typing import Protocol


class Topology(Protocol):
    """What a transaction updates: an address space."""

    def begin_update(self) -> None:
        """Tell the listeners that changes come."""
        ...

    def update_topology(self) -> None:
        """Render anew and tell the listeners the differences."""
        ...

    def commit_update(self) -> None:
        """Tell the listeners that all changes have come."""
        ...


class _State(threading.local):
    def __init__(self) -> None:
        self.depth = 0
        self.dirty: dict[Topology, None] = {}


_state = _State()


def mark_dirty(space: Topology) -> None:
    """Have `space` updated when the transaction that is open on this thread ends."""
    assert _state.depth, "the memory tree changes inside transactions only"
    _state.dirty[space] = None


class MemoryTransaction:
    """`with MemoryTransaction():` changes inside become visible together, at the end of the outermost block.

    They become visible even when the block ends with an exception: the changes have been made.
    """

    __slots__ = ()

    def __enter__(self) -> "MemoryTransaction":
        _state.depth += 1
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if _state.depth == 1:
            try:
                # A listener may itself change the tree; what it dirties is updated in a further round.
                while _state.dirty:
                    _commit()
            finally:
                _state.dirty.clear()
                _state.depth = 0
        else:
            _state.depth -= 1


def _commit() -> None:
    spaces = list(_state.dirty)
    _state.dirty.clear()
    for space in spaces:
        space.begin_update()
    for space in spaces:
        space.update_topology()
    for space in spaces:
        space.commit_update()
