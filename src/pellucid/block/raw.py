"""The `raw` format: the image's bytes are the disk's bytes."""

import errno

from pellucid.block.node import SECTOR_SIZE, BlockNode
from pellucid.block.probe import PROBE_SIZE, probe
from pellucid.block.vectors import Buffers, part, total


class RawNode(BlockNode):
    """All of the child `file`.

    `probed`: nobody said that the format is raw, it was guessed. A guest could then write another format's header into
    the first sector, and at the next start have that format's driver open any file of the host for it; such a write
    fails with EPERM, as it does in QEMU.
    """

    driver = "raw"

    def __init__(self, file: BlockNode, *, probed: bool) -> None:
        super().__init__(file.filename, file.size, read_only=file.read_only, children={"file": file})
        self._file = file
        self._probed = probed

    def read(self, offset: int, buffers: Buffers) -> None:
        self._file.read(offset, buffers)

    def read_cached(self, offset: int, buffers: Buffers) -> bool:
        return self._file.read_cached(offset, buffers)

    def write(self, offset: int, buffers: Buffers) -> None:
        if self._probed and offset < PROBE_SIZE:
            self._check_header(offset, buffers)
        self._file.write(offset, buffers)

    def _check_header(self, offset: int, buffers: Buffers) -> None:
        header = bytearray(SECTOR_SIZE)
        self._file.read(0, [memoryview(header)])
        new = b"".join(part(buffers, 0, min(total(buffers), PROBE_SIZE - offset)))
        header[offset : offset + len(new)] = new
        if (found := probe(bytes(header))) != "raw":
            raise OSError(errno.EPERM, f"would turn the image into {found}: say format=raw if it is to be raw")

    def discard(self, offset: int, length: int) -> None:
        self._file.discard(offset, length)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = False) -> None:
        self._file.write_zeroes(offset, length, unmap=unmap)
