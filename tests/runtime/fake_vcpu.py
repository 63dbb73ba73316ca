"""A vCPU made of a script of exits, with KVM's rule for kicks: one that comes early is kept."""

import queue
import threading
from collections.abc import Callable

from pellucid.kvm.api import Exit, IntrExit

Step = Exit | Callable[[], Exit]


class FakeVcpu:
    """`run` returns the exits given to `script`, in order, and waits, "in the guest", when there is none."""

    def __init__(self) -> None:
        self.script: queue.SimpleQueue[Step | None] = queue.SimpleQueue()
        self.reads: list[int] = []
        self.entries = 0
        self.in_guest = threading.Event()
        self._kick_lock = threading.Lock()
        self._kicked = False

    def run(self) -> Exit:
        self.entries += 1
        self.in_guest.set()
        step = self.script.get()
        self.in_guest.clear()
        if step is None:
            with self._kick_lock:
                self._kicked = False
            return IntrExit()
        return step() if callable(step) else step

    def complete_read(self, value: int) -> None:
        self.reads.append(value)

    def complete_read_string(self, data: bytes) -> None:
        self.reads.append(int.from_bytes(data, "little"))

    def kick(self) -> None:
        with self._kick_lock:
            if not self._kicked:
                self._kicked = True
                self.script.put(None)


class FakeBus:
    """Remembers accesses; a read gives the address plus one. `locked` says whether the big lock was held each time."""

    def __init__(self, locked_by_me: Callable[[], bool]) -> None:
        self.log: list[tuple[str, int, int, int]] = []
        self.locked: set[bool] = set()
        self._locked_by_me = locked_by_me

    def read(self, addr: int, size: int) -> int:
        self.locked.add(self._locked_by_me())
        self.log.append(("read", addr, size, 0))
        return addr + 1

    def write(self, addr: int, size: int, value: int) -> None:
        self.locked.add(self._locked_by_me())
        self.log.append(("write", addr, size, value))
