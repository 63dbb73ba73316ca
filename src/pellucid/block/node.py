"""The nodes of the block graph: what a disk's bytes come from.

A node is one opened image or protocol: `file` reads and writes a file of the host, `raw` is an image format on top of
it, a temporary overlay keeps what a guest writes apart from the image below. A node's children have roles ("file",
"backing"); a guest's drive holds the node on top. Every method here may block and is called on worker threads, several
at a time, without the big lock; a node with metadata of its own locks it itself. Errors are OSError with their errno.
"""

import itertools
from abc import ABC, abstractmethod
from typing import ClassVar

from pellucid.block.vectors import Buffers, zeroes

SECTOR_SIZE = 512

_numbers = itertools.count(1)


class BlockNode(ABC):
    """One node. `size` is what a guest sees, in bytes, a multiple of 512; `filename` names the image to people."""

    driver: ClassVar[str]
    """QEMU's name of the driver: `file`, `raw`, ..."""

    def __init__(self, filename: str, size: int, *, read_only: bool, children: dict[str, "BlockNode"] | None = None):
        self.node_name = f"#block{next(_numbers):03}"
        self.filename = filename
        self.size = size
        self.read_only = read_only
        self.children = children or {}

    @abstractmethod
    def read(self, offset: int, buffers: Buffers) -> None:
        """Fill `buffers` from `offset` on; bytes past the end of the image are zeros."""

    def read_cached(self, offset: int, buffers: Buffers) -> bool:
        """`read`, if it can be done without waiting for a disk; else False, and the buffers hold anything."""
        return False

    @abstractmethod
    def write(self, offset: int, buffers: Buffers) -> None:
        """Store the bytes of `buffers` from `offset` on."""

    def flush(self) -> None:
        """Make every finished write survive a crash of this computer."""
        for child in self.children.values():
            child.flush()

    def discard(self, offset: int, length: int) -> None:
        """The bytes are not needed any more; what they read as is undefined. A node that cannot do it does nothing."""
        return

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = False) -> None:
        """Make the bytes zero, giving their place back to the host with `unmap`."""
        self.write(offset, zeroes(length))

    def allocated_size(self) -> int:
        """Bytes that the image takes on the host's disk."""
        return sum(child.allocated_size() for child in self.children.values())

    def close(self) -> None:
        """Give everything back. Nothing is under way any more."""
        for child in self.children.values():
            child.close()
