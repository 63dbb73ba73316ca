"""Scatter lists: the pieces of guest memory that a device's transfer goes to or comes from.

What is RAM is used in place, so the host's preadv reads a disk's bytes straight into it. What is not (a device's
registers, nothing at all, ROM) goes through a copy, and only there can a hostile list cost more than its own length.
"""

from collections.abc import Iterable

from pellucid.memory import AddressSpace, RamBlock

MOST_COPIED = 16 << 20
"""Bytes of one transfer that may go to or come from what is not RAM; the list ends there."""


class ScatterList:
    """Up to `most` bytes of `pieces`, (address, length) each, in order; `to_memory` says which way they go.

    views: the buffers; size: bytes in them. A transfer to memory ends with `finish`.
    """

    def __init__(self, space: AddressSpace, pieces: Iterable[tuple[int, int]], most: int, *, to_memory: bool) -> None:
        self._space, self._to_memory = space, to_memory
        self.views: list[memoryview] = []
        self.size = 0
        self._direct: list[tuple[RamBlock, int, int]] = []
        self._copies: list[tuple[int, memoryview]] = []
        self._copied = 0
        for address, length in pieces:
            self._add(address, min(length, most - self.size))
            if self.size >= most or self._copied >= MOST_COPIED:
                break

    def _add(self, address: int, length: int) -> None:
        while length > 0:
            found = self._space.map(address, length, self._to_memory)
            if found is None:
                self._add_copy(address, length)
                return
            block, offset, size = found
            self._add_direct(block, offset, size)
            address, length = address + size, length - size

    def _add_direct(self, block: RamBlock, offset: int, size: int) -> None:
        self.size += size
        if self._direct and self.views and not self._copies:
            before, start, length = self._direct[-1]
            if before is block and start + length == offset:
                # Drivers give a buffer page by page; one piece for the host is one write hook less for each.
                offset, size = start, length + size
                self._direct.pop()
                self.views.pop()
        self._direct.append((block, offset, size))
        self.views.append(block.view[offset : offset + size])

    def _add_copy(self, address: int, length: int) -> None:
        length = min(length, MOST_COPIED - self._copied)
        if length <= 0:
            return
        self._copied += length
        content = bytearray(length) if self._to_memory else self._space.try_read_bytes(address, length)[0]
        self._copies.append((address, memoryview(content)))
        self.views.append(memoryview(content))
        self.size += length

    def fill(self, content: bytes | bytearray | memoryview) -> int:
        """Put `content` into the buffers and finish; the bytes that found room."""
        done = 0
        for view in self.views:
            size = min(len(view), len(content) - done)
            view[:size] = content[done : done + size]
            done += size
        self.finish()
        return done

    def gather(self) -> bytes:
        """The bytes of the buffers."""
        return b"".join(self.views)

    def finish(self) -> None:
        """The buffers have been written: tell those who must know, and write the copies to where they belong."""
        for block, offset, size in self._direct:
            block.written(offset, size)
        for address, content in self._copies:
            self._space.write_bytes(address, content)
