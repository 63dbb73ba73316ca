"""Guest memory of which pages may be out, as the hypervisor knows it: what KVM learns from get_user_pages.

Somebody above (a *pager*) keeps pages elsewhere: in a file, since memory is scarce or a machine is restored lazily; on
another host, while a migration goes on behind the guest's back. One byte for each page says whether it is in. Only a
vCPU that fills its TLB looks at the byte, so as to leave rather than wait: everyone else touches the memory, which
stays mapped, and waits there until the kernel has the page (from the file; or from userfaultfd, whose handler must not
need Python's lock then). A page that is marked out may thus be in already, which costs a vCPU a needless exit; never
the other way round.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from pellucid.cpu.state import PAGE, PAGE_PRESENT, PAGE_USED

__all__ = ["PAGE_PRESENT", "PAGE_USED", "Pager", "PageWaiter", "Residency"]


class Pager(Protocol):
    """Who brings in the pages of one piece of memory."""

    def missing(self, page: int) -> bool:
        """A vCPU needs a page, by its number in the memory. Whether it is in now, because that took no waiting.

        If not, `Residency.arrived` follows, on any thread, and until then the page is not asked for again. Called on a
        vCPU's thread, outside native code: it does not block.
        """
        ...


class PageWaiter(Protocol):
    """Who asked for a page."""

    def page_arrived(self, residency: Residency, page: int) -> None:
        """It is in. From any thread; does not block."""
        ...


class Residency:
    """The pages of the host memory [hva, hva+size); sizes in bytes, pages by number from 0. All are in at first.

    `table` has a byte of PAGE_* for each page, which vCPUs read and add PAGE_USED to; other bits are the pager's own.
    """

    def __init__(self, hva: int, size: int, pager: Pager, stopped: Callable[[], AbstractContextManager[None]]) -> None:
        self.hva, self.size = hva, size
        self._pager, self._stopped = pager, stopped
        self._lock = threading.Lock()
        self._waiting: dict[int, set[PageWaiter]] = {}
        self._map = mmap.mmap(-1, -(-size // PAGE))
        self.table = memoryview(self._map)
        # SAFETY: native code keeps this address as long as slots show the memory; the VM keeps this object as long.
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self.table[:] = bytes((PAGE_PRESENT,)) * len(self.table)

    def is_present(self, page: int) -> bool:
        """Whether vCPUs may use the page."""
        return bool(self.table[page] & PAGE_PRESENT)

    def ask(self, page: int, waiter: PageWaiter) -> bool:
        """Whether the page is in; if not, it is on its way, and `waiter` will hear of it once."""
        with self._lock:
            if self.is_present(page):
                return True
            waiting = self._waiting.get(page)
            if waiting is not None:
                waiting.add(waiter)
                return False
            self._waiting[page] = {waiter}
        if not self._pager.missing(page):
            return False
        self._arrived(page, 1, waiter)
        return True

    def arrived(self, first: int, count: int = 1) -> None:
        """These pages are in: the memory has their bytes, or its owner would wait for nobody. From any thread."""
        self._arrived(first, count, None)

    def _arrived(self, first: int, count: int, asking: PageWaiter | None) -> None:
        heard: list[tuple[int, PageWaiter]] = []
        with self._lock:
            for page in range(first, first + count):
                self.table[page] |= PAGE_PRESENT
                if page in self._waiting:
                    self.table[page] |= PAGE_USED  # or it might go again before anybody has had it
                    heard += [(page, waiter) for waiter in self._waiting.pop(page) if waiter is not asking]
        for page, waiter in heard:
            waiter.page_arrived(self, page)

    @contextmanager
    def exclusive(self) -> Iterator[memoryview]:
        """The table, while every vCPU is outside native code and has forgotten all addresses: pages may be marked out.

        Not on a vCPU's thread within its `run`.
        """
        with self._stopped(), self._lock:
            yield self.table
