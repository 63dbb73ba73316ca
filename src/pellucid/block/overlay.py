"""The overlay of `-snapshot`: a guest's writes go to an anonymous file and vanish with the process.

The file is sparse and laid out as the disk is; a bit for each cluster of 64 KiB says whether its bytes are here or in
the image below. A write that covers part of a cluster first copies the rest of it up.
"""

import os
import threading

from pellucid.block.node import BlockNode
from pellucid.block.vectors import Buffers, batches, part, total

CLUSTER = 64 << 10
MOST_BUFFERS = 1000


class TemporaryOverlay(BlockNode):
    """Over the child `backing`, which is never written. Raises OSError when there is no room for the file."""

    driver = "overlay"

    def __init__(self, backing: BlockNode) -> None:
        super().__init__(backing.filename, backing.size, read_only=False, children={"backing": backing})
        self._backing = backing
        import tempfile  # which no other node needs

        # QEMU's place too: /tmp is often memory, and a disk's worth of writes would not fit.
        folder = os.environ.get("TMPDIR") or "/var/tmp"
        self._file = tempfile.TemporaryFile(dir=folder if os.path.isdir(folder) else None, buffering=0)
        self._fd = self._file.fileno()
        self._here = bytearray(-(-backing.size // CLUSTER))
        self._lock = threading.Lock()

    def read(self, offset: int, buffers: Buffers) -> None:
        done, length = 0, total(buffers)
        while done < length:
            here, size = self._run(offset + done, length - done)
            piece = part(buffers, done, size)
            if here:
                self._transfer(os.preadv, offset + done, piece)
            else:
                self._backing.read(offset + done, piece)
            done += size

    def write(self, offset: int, buffers: Buffers) -> None:
        length = total(buffers)
        if not length:
            return
        first, last = offset // CLUSTER, (offset + length - 1) // CLUSTER
        with self._lock:  # A second writer may not take a cluster for whole that is being copied up.
            for cluster in sorted({first, last}):
                covered = offset <= cluster * CLUSTER and offset + length >= self._end(cluster)
                if not self._here[cluster] and not covered:
                    self._copy_up(cluster)
            self._transfer(os.pwritev, offset, buffers)
            self._here[first : last + 1] = b"\1" * (last + 1 - first)

    def flush(self) -> None:
        """Nothing is to survive."""

    def allocated_size(self) -> int:
        return os.fstat(self._fd).st_blocks * 512

    def close(self) -> None:
        super().close()
        self._file.close()

    def _end(self, cluster: int) -> int:
        return min((cluster + 1) * CLUSTER, self.size)

    def _run(self, offset: int, length: int) -> tuple[bool, int]:
        """Whether the byte at `offset` is here, and how many bytes from it on are in the same place, up to `length`."""
        cluster = offset // CLUSTER
        here = self._here[cluster]
        last = (offset + length - 1) // CLUSTER
        other = self._here.find(1 - here, cluster, last + 1)
        return bool(here), length if other < 0 else other * CLUSTER - offset

    def _copy_up(self, cluster: int) -> None:
        content = bytearray(self._end(cluster) - cluster * CLUSTER)
        self._backing.read(cluster * CLUSTER, [memoryview(content)])
        self._transfer(os.pwritev, cluster * CLUSTER, [memoryview(content)])
        self._here[cluster] = 1

    def _transfer(self, call: object, offset: int, buffers: Buffers) -> None:
        assert call is os.preadv or call is os.pwritev
        for batch in batches(buffers, MOST_BUFFERS):
            left = batch
            while left:
                count: int = call(self._fd, left, offset)
                if count == 0:
                    raise OSError(5, "the temporary overlay has been cut short")
                offset += count
                left = part(left, count, total(left))
