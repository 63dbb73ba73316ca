"""RAM blocks: the host memory behind guest RAM and ROM, and the list that `info ramblock` shows.

A block is one memfd, mapped once and shared, so that native code, Python, /dev/kvm and other processes can all have it.
A page exists from the first touch; a block of 64 GiB costs nothing until the guest writes to it. Or it is a file on a
disk (`-mem-path`), of which pages may be out of memory (see `file_pager`).

SAFETY: `hva` is a raw address that native code and KVM keep. Close a block only after the memory slots that name it are
gone. Python's views cannot dangle: the mapping lives until the last of them is dropped.
"""

import ctypes
import mmap
import os
import resource
from collections.abc import Callable, Sequence
from pathlib import Path

from pellucid.errors import UserError
from pellucid.memory.ram_file import open_ram_file, resident_pages, write_out

PAGE_SIZE = 4096
"""The guest's page, and the unit of memory slots; on x86 also the host's."""

_RAM_ADDR_ALIGN = PAGE_SIZE * 64
"""QEMU aligns blocks in ram_addr_t space so that one 64-bit word of a dirty bitmap covers one block's pages only."""

WriteHook = Callable[[Sequence[tuple[int, int]]], None]
ResizeHook = Callable[[int, int], None]


def format_size(size: int) -> str:
    """`size` bytes for people: "4 KiB", "1.5 GiB", or plain bytes where no unit fits."""
    for shift, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >= 1 << shift:
            return f"{size / (1 << shift):.4g} {unit}"
    return f"{size} bytes"


def host_memory_size() -> int:
    """RAM and swap of this machine in bytes: more than that, no guest can touch."""
    total = 0
    with open("/proc/meminfo", encoding="ascii") as meminfo:
        for line in meminfo:
            if line.startswith(("MemTotal:", "SwapTotal:")):
                total += int(line.split()[1]) * 1024
    return total


class RamBlock:
    """`size` bytes of zeroed, shared, lazily touched memory.

    Attributes:
        name: unique within the machine; it names the block in saved states and to the user.
        size: bytes in use (QEMU's used_length), a multiple of 4096.
        max_size: bytes reserved, what `resize` can grow to.
        hva: host virtual address of the first byte.
        fd: the memfd, or the file.
        path: where the file is: its folder, or its own name (then its content stays, here and behind `close`); or None.
        kept: the file was there before.
        view: all `max_size` bytes; writes to it reach no write hook (see `written`).
        units: by 1, 2, 4 and 8: the same bytes as items of that size, and the shift from offset to index.
        offset: place in ram_addr_t space, given by the `RamList`.

    Raises:
        UserError: this machine cannot have that much memory.
    """

    def __init__(self, name: str, size: int, max_size: int | None = None, path: Path | None = None) -> None:
        self.name, self.path = name, path
        self.kept = path is not None and path.is_file() and path.stat().st_size > 0
        self.size = _page_aligned(name, size)
        self.max_size = _page_aligned(name, size if max_size is None else max_size)
        if self.size > self.max_size:
            raise ValueError(f"RAM block '{name}' is larger than its maximum")
        self.offset = 0
        self.fd = -1
        self._write_hooks: list[WriteHook] = []
        self._resize_hooks: list[ResizeHook] = []
        self._map()

    def _map(self) -> None:
        if self.path is None:
            _check_host_has(self.name, self.max_size)
        try:
            if self.path is None:
                self.fd = os.memfd_create(self.name, os.MFD_CLOEXEC)
                os.ftruncate(self.fd, self.max_size)
            else:
                self.fd = open_ram_file(self.path, self.max_size)
            self._mmap = mmap.mmap(self.fd, self.max_size)
            if self.path is not None:
                self._mmap.madvise(mmap.MADV_RANDOM)  # else a touch may bring in megabytes
            if self.kept:
                self.put_out(0, self.max_size)  # who wrote it may have left all of it in memory
        except (OSError, OverflowError) as error:
            self._close_fd()
            raise _no_memory(self.name, self.max_size, str(error)) from error
        self.view = memoryview(self._mmap)
        self.hva = ctypes.addressof(ctypes.c_char.from_buffer(self._mmap))
        # The same bytes as units of 2, 4 and 8: one aligned load or store each, so that a device and a vCPU that share
        # a word never see half of it.
        view16, view32, view64 = self.view.cast("H"), self.view.cast("I"), self.view.cast("Q")
        self.units = {1: (self.view, 0), 2: (view16, 1), 4: (view32, 2), 8: (view64, 3)}

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self.fd < 0

    def aligned(self, size: int) -> int:
        """`size` in whole pages. Raises ValueError for more than the maximum, UserError for nothing at all."""
        size = _page_aligned(self.name, size)
        if size > self.max_size:
            raise ValueError(f"RAM block '{self.name}' cannot grow to {size:#x}: its maximum is {self.max_size:#x}")
        return size

    def resize(self, size: int) -> None:
        """Change the bytes in use; what is cut off is given back to the host and reads zero when it comes again.

        A block that a region shows is resized through it (`MemoryRegion.resize_ram`).
        """
        size = self.aligned(size)
        if size == self.size:
            return
        before, self.size = self.size, size
        if size < before:
            self.discard(size, before - size)
        for hook in self._resize_hooks:
            hook(before, size)

    def add_resize_hook(self, hook: ResizeHook) -> None:
        """Call `hook(old size, new size)` after each change of the bytes in use."""
        self._resize_hooks.append(hook)

    def discard(self, offset: int, length: int) -> None:
        """Give whole pages back to the host: they read zero afterwards."""
        if length:
            self._mmap.madvise(mmap.MADV_REMOVE, offset, length)
            if self.path is not None:
                os.posix_fallocate(self.fd, offset, length)  # its place on the disk stays ours
            self.written(offset, length)

    def add_write_hook(self, hook: WriteHook) -> None:
        """Call `hook(pieces)`, an (offset, length) each, after each write that did not come from a vCPU.

        A hypervisor that keeps translations of guest code drops those of the bytes written; KVM needs none of it.
        """
        self._write_hooks.append(hook)

    def remove_write_hook(self, hook: WriteHook) -> None:
        """Undo `add_write_hook`."""
        self._write_hooks.remove(hook)

    def written(self, offset: int, length: int) -> None:
        """Tell the write hooks. Whoever writes through `view` calls this; `AddressSpace` does it by itself."""
        self.pieces_written(((offset, length),))

    def pieces_written(self, pieces: Sequence[tuple[int, int]]) -> None:
        """`written` for a transfer of many pieces, an (offset, length) each."""
        for hook in self._write_hooks:
            hook(pieces)

    def resident_size(self, first: int | None = None) -> int:
        """Bytes that exist in host memory now: of the block, or, where it has a file, of its `first` bytes."""
        if self.path is not None:
            return resident_pages(self.hva, self.max_size if first is None else first) * PAGE_SIZE
        return os.stat(self.fd).st_blocks * 512

    def put_out(self, offset: int, length: int) -> None:
        """Whole pages of a block with a file leave host memory; whoever touches them brings them back. OSError."""
        write_out(self.fd, self._mmap, offset, length)

    def fetch(self, offset: int, length: int) -> None:
        """Read pages of the file into host memory: the calling thread waits for the disk, without Python's lock."""
        os.preadv(self.fd, [bytearray(length)], offset)

    def close(self) -> None:
        """Give the memory back. Closing twice changes nothing."""
        if self.closed:
            return
        for view, _ in reversed(self.units.values()):
            view.release()
        self._close_fd()
        try:
            self._mmap.close()
        except BufferError:
            # Somebody still holds a slice of `view`; the mapping goes with the last of them.
            pass

    def _close_fd(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class RamDeviceOps:
    """A block as a device: one host load or store for each access, which is aligned and of 1, 2, 4 or 8 bytes."""

    __slots__ = ("_block",)

    def __init__(self, block: RamBlock) -> None:
        self._block = block

    def read(self, offset: int, size: int) -> int:
        """Part of `IoOps`."""
        view, shift = self._block.units[size]
        return view[offset >> shift]

    def write(self, offset: int, size: int, value: int) -> None:
        """Part of `IoOps`."""
        view, shift = self._block.units[size]
        view[offset >> shift] = value


class RamList:
    """The RAM blocks of one machine and their places in ram_addr_t space."""

    def __init__(self) -> None:
        self.blocks: list[RamBlock] = []
        """Largest first, equals in the order of their coming, as QEMU keeps them."""

    def add(self, block: RamBlock) -> RamBlock:
        """Give `block` its offset and list it; returns it."""
        if any(other.name == block.name for other in self.blocks):
            raise ValueError(f"a RAM block named '{block.name}' exists already")
        block.offset = self._find_offset(block.max_size)
        position = next((i for i, o in enumerate(self.blocks) if o.max_size < block.max_size), len(self.blocks))
        self.blocks.insert(position, block)
        return block

    def new(self, name: str, size: int, max_size: int | None = None, path: Path | None = None) -> RamBlock:
        """Make a block and list it."""
        return self.add(RamBlock(name, size, max_size, path))

    def remove(self, block: RamBlock) -> None:
        """Take `block` off the list; it is not closed."""
        self.blocks.remove(block)

    def close(self) -> None:
        """Close every block."""
        for block in self.blocks:
            block.close()
        self.blocks.clear()

    def _find_offset(self, size: int) -> int:
        """The start of the smallest gap that `size` bytes fit into (the one behind the last block is endless)."""
        if not self.blocks:
            return 0
        end_of_space = 1 << 64
        starts = sorted(block.offset for block in self.blocks)
        candidates = [-(-(block.offset + block.max_size) // _RAM_ADDR_ALIGN) * _RAM_ADDR_ALIGN for block in self.blocks]
        gaps = [(min((s for s in starts if s >= c), default=end_of_space) - c, c) for c in candidates]
        return min((gap, candidate) for gap, candidate in gaps if gap >= size)[1]


def info_ramblock(ram: RamList) -> str:
    """The text of `info ramblock`, in QEMU 7.2's columns."""
    lines = [f"{'Block Name':>24} {'PSize':>8}  {'Offset':>18} {'Used':>18} {'Total':>18}"]
    for block in ram.blocks:
        sizes = f"0x{block.offset:016x} 0x{block.size:016x} 0x{block.max_size:016x}"
        lines.append(f"{block.name:>24} {format_size(PAGE_SIZE):>8}  {sizes}")
    return "\n".join(lines) + "\n"


def _page_aligned(name: str, size: int) -> int:
    if size <= 0:
        raise UserError(f"guest memory '{name}' cannot be {size} bytes: give a positive size")
    return -(-size // PAGE_SIZE) * PAGE_SIZE


def _check_host_has(name: str, size: int) -> None:
    # A memfd is not accounted for until it is touched: without this check a guest larger than the machine would start,
    # and die of SIGBUS or the OOM killer in the middle of its work.
    total = host_memory_size()
    if size > total:
        raise _no_memory(name, size, f"this machine has {format_size(total)} of memory and swap")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY and size > limit:
        raise _no_memory(name, size, f"the limit on file sizes (ulimit -f) is {format_size(limit)}")


def _no_memory(name: str, size: int, reason: str) -> UserError:
    wanted = f"cannot set up guest memory '{name}' of {format_size(size)}"
    return UserError(f"{wanted}: {reason}; give a smaller size with -m")
