"""Guest RAM that is larger than what the host gives to it: the pages used least are in the RAM block's file.

Pages come in three ways. One that was never touched has nothing to be read, so it is in at once, with those around it.
One that was put out, or was in the file when the machine was made, is read by a worker thread while its vCPU does
something else or waits. And a device, the monitor or a page walk just touches the memory, whereupon the kernel reads
it; such a page is not counted before a vCPU fills a TLB from it.

The worker keeps the number of pages below the limit by the clock algorithm: filling a TLB marks a page as used; a hand
goes round, takes such marks away, and puts out what has none. Since it has the TLBs flushed before it looks, a page
that is used on gets its mark again. Batches keep the stops of the vCPUs rare.
"""

import logging
import re
import threading
from collections import deque
from contextlib import suppress
from typing import Protocol

from pellucid.kvm.api import Pager, Residency
from pellucid.memory.ram_block import PAGE_SIZE, RamBlock

_log = logging.getLogger("pellucid.memory.pager")

LEAST_LIMIT = 4 << 20
"""Bytes. One instruction may need a dozen pages at once, on each vCPU; far below this nothing would get done."""
FRESH_PAGES = 64
"""Pages without content that come in together, aligned."""
READ_PAGES = 32
"""Pages that are read together, aligned: what Linux reads ahead in a file."""
BATCH = 16
"""A batch is this part of the limit."""
PROBES = 3
"""Times that a page is put out to see whether it goes: something else may hold it for a moment."""
CHUNK = 256
"""Pages that the hand looks at in one step."""

# Bytes of the table: Residency's bits, and one of ours.
_PRESENT, _USED, _TOUCHED = 1, 2, 4
_VICTIMS = re.compile(b"[\x01\x05]+")
_KEPT = re.compile(b"\x05+")
_SWEPT = bytes.maketrans(b"\x01\x05\x03\x07", bytes((0, 0, _PRESENT | _TOUCHED, _PRESENT | _TOUCHED)))


class PagedVm(Protocol):
    """The part of `kvm.api.Vm` that lets pages be out."""

    def page_memory(self, hva: int, size: int, pager: Pager) -> Residency:
        """See there."""
        ...


class FilePager:
    """Keeps at most `limit` bytes of a block, which has a file, in host memory; see `RamBlock.put_out`.

    A part of a sixteenth more may be in while a batch goes out. Close it before the VM.
    """

    def __init__(self, block: RamBlock, limit: int, vm: PagedVm) -> None:
        self._block = block
        self._pages = block.max_size // PAGE_SIZE
        self._limit = max(limit, LEAST_LIMIT) // PAGE_SIZE
        self._batch = self._limit // BATCH
        self._held = bytearray(self._pages)  # 1: the file has content of the page
        self._present = 0  # no less than there are; counted anew by every batch
        self._hand = 0
        self.read = self.written = 0
        """Pages read back and put out so far."""
        self._asked: deque[int] = deque()
        self._work, self._closed = threading.Event(), False
        self.residency = vm.page_memory(block.hva, block.max_size, self)
        with self.residency.exclusive() as table:
            table[:] = bytes(self._pages)
        if block.kept:
            self._held[:] = b"\x01" * self._pages
        if not self._leaves_memory():
            _log.warning("%s keeps its files in memory: RAM that is put out there takes no less of it", block.path)
        self._thread = threading.Thread(target=self._main, name="RAM pager", daemon=True)
        self._thread.start()

    def _leaves_memory(self) -> bool:
        """Whether pages that are put out leave the host's memory; those of a tmpfs do not."""
        self._block.view[0] = self._block.view[0]  # a page that was only read may not be there at all
        for _ in range(PROBES):
            with suppress(OSError):
                self._block.put_out(0, PAGE_SIZE)
            if self._block.resident_size(PAGE_SIZE) == 0:
                return True
        return False

    def missing(self, page: int) -> bool:
        """Part of `Pager`."""
        if self._held[page] or self._present >= self._limit + self._batch:
            self._asked.append(page)
            self._work.set()
            return False
        first = page - page % FRESH_PAGES
        count = min(FRESH_PAGES, self._pages - first)
        if any(self._held[first : first + count]):
            first, count = page, 1
        self._present += count
        if self._present > self._limit:
            self._work.set()
        self.residency.arrived(first, count)
        return True

    @property
    def present(self) -> int:
        """Pages that vCPUs may use now."""
        return self._pages - bytes(self.residency.table).count(0)

    def close(self) -> None:
        """End the worker."""
        self._closed = True
        self._work.set()
        self._thread.join()

    def _main(self) -> None:
        while not self._closed:
            self._work.wait()
            self._work.clear()
            while not self._closed:
                if self._present > self._limit:
                    self._put_out_batch()
                if not self._asked:
                    break
                self._bring_in(self._asked.popleft())

    def _bring_in(self, page: int) -> None:
        first = page - page % READ_PAGES
        count = min(READ_PAGES, self._pages - first)
        if not self._held[page]:
            first, count = page, 1
        elif not self.residency.is_present(page):
            try:
                self._block.fetch(first * PAGE_SIZE, count * PAGE_SIZE)
            except OSError as error:  # who waits goes on, and meets the disk's error himself
                _log.error("cannot read RAM back from %s: %s", self._block.path, error.strerror)
            self.read += count
        self._present += count
        self.residency.arrived(first, count)

    def _put_out_batch(self) -> None:
        with self.residency.exclusive() as table:
            self._present = self._pages - bytes(table).count(0)
            victims = self._sweep(table, self._present - self._limit + self._batch)
        for first, last in victims:
            self._present -= last - first
            with suppress(OSError):  # it stays in the kernel's cache then, which is as good
                self._block.put_out(first * PAGE_SIZE, (last - first) * PAGE_SIZE)
            self.written += last - first

    def _sweep(self, table: memoryview, wanted: int) -> list[tuple[int, int]]:
        """Move the hand on until `wanted` pages or more are marked out, at most twice around; them, as (first, end)."""
        victims: list[tuple[int, int]] = []
        looked = 0
        while wanted > 0 and looked < 2 * self._pages + CHUNK:
            at = self._hand
            chunk = bytes(table[at : at + CHUNK])
            for found in _VICTIMS.finditer(chunk):
                victims.append((at + found.start(), at + found.end()))
                wanted -= found.end() - found.start()
            for found in _KEPT.finditer(chunk):
                self._held[at + found.start() : at + found.end()] = b"\x01" * (found.end() - found.start())
            table[at : at + len(chunk)] = chunk.translate(_SWEPT)
            self._hand = (at + len(chunk)) % self._pages
            looked += len(chunk)
        return victims
