"""Scatter lists: the pieces of guest memory that a device's transfer goes to or comes from.

What is RAM is used in place, so the host's preadv reads a disk's bytes straight into it. What is not (a device's
registers, nothing at all, ROM) goes through a copy, and only there can a hostile list cost more than its own length.
"""

from collections.abc import Iterable, Iterator

from pellucid.memory import AddressSpace, DirectRange, RamBlock

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
        self._direct: dict[RamBlock, list[tuple[int, int]]] = {}
        self._last: RamBlock | None = None
        """The block of the last view; None where that is a copy."""
        self._copies: list[tuple[int, memoryview]] = []
        self._copied = 0
        self._add_all(iter(pieces), most)

    def _add_all(self, pieces: Iterator[tuple[int, int]], most: int) -> None:
        piece = next(pieces, None)
        while piece is not None and self.size < most and self._copied < MOST_COPIED:
            address, length = piece[0], min(piece[1], most - self.size)
            memory = self._space.direct_range(address, self._to_memory)
            if memory is not None and address + length <= memory.end:
                piece = self._add_within(memory, piece, pieces, most)
            else:
                self._add(address, length)
                piece = next(pieces, None)

    def _add_within(
        self, memory: DirectRange, piece: tuple[int, int] | None, pieces: Iterator[tuple[int, int]], most: int
    ) -> tuple[int, int] | None:
        """Add pieces as long as they lie in `memory`; the first that does not, or None.

        Drivers give a buffer page by page, nearly always all in one range: this loop is what a transfer costs. What
        lies side by side becomes one view.
        """
        block, start, end, delta = memory
        views, done, left = self.views, self._direct.setdefault(block, []), most - self.size
        first = last = -1
        while piece is not None and left > 0:
            address, length = piece
            if length > left:
                length = left
            if address < start or address + length > end:
                break
            offset = address - delta
            if offset != last:
                if first >= 0:
                    done.append((first, last - first))
                    views.append(block.view[first:last])
                first = offset
            last = offset + length
            left -= length
            piece = next(pieces, None)
        done.append((first, last - first))
        views.append(block.view[first:last])
        self.size = most - left
        self._last = block
        return piece

    def _add(self, address: int, length: int) -> None:
        """A piece that is no memory, of more than one kind, or behind an IOMMU, where pages often lie side by side."""
        while length > 0:
            found = self._space.map(address, length, self._to_memory)
            if found is None:
                self._add_copy(address, length)
                return
            block, offset, size = found
            self.size += size
            done, first = self._direct.setdefault(block, []), offset
            if self._last is block and sum(done[-1]) == offset:
                first = done.pop()[0]
                self.views.pop()
            done.append((first, offset + size - first))
            self.views.append(block.view[first : offset + size])
            self._last = block
            address, length = address + size, length - size

    def _add_copy(self, address: int, length: int) -> None:
        length = min(length, MOST_COPIED - self._copied)
        if length <= 0:
            return
        self._copied += length
        self._last = None
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
        for block, pieces in self._direct.items():
            block.pieces_written(pieces)
        for address, content in self._copies:
            self._space.write_bytes(address, content)
