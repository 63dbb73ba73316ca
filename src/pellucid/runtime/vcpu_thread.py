"""A host thread that runs one guest CPU.

The vCPU's `run()` returns a typed exit; `outcome_of`, a pure function, says what kind of thing it asks for; the thread
does it. Port and memory accesses, nearly all exits, are done here under the big lock; everything else goes to
`on_event`. The thread leaves its loop to look at its mail (pause, work, end) only when `_attention` is set, so the
exit path pays one attribute read for all of it.

Who may touch what: the flags `_stop`, `_holds`, `_ending`, `_work` and `_attention` change only under the big lock.
`_in_guest` belongs to the thread and is read by `hold` without the lock. The order "say that I enter, then look for
mail" here and "leave mail, then look whether it entered" there makes sure that one of the two sees the other; a kick
that comes between the look and `run()` is kept by the vCPU (`Vcpu.kick`).
"""

import collections
import enum
import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Generic, Protocol, TypeVar

from pellucid.errors import PellucidError
from pellucid.kvm.api import (
    DebugExit,
    ExclusiveExit,
    Exit,
    FailEntryExit,
    FerrExit,
    HltExit,
    InternalErrorExit,
    IntrExit,
    IoExit,
    MmioExit,
    ShutdownExit,
    SystemEventExit,
    Vcpu,
)
from pellucid.kvm.coalesced import CoalescedRing
from pellucid.runtime.bql import BigLock
from pellucid.runtime.linux import set_thread_name

_log = logging.getLogger("pellucid.runtime.vcpu")

T = TypeVar("T")


class Bus(Protocol):
    """What the thread dispatches accesses to; `pellucid.memory.AddressSpace` is one. Sizes are 1 to 8 bytes."""

    def read(self, addr: int, size: int) -> int:
        """The little-endian value of `size` bytes at `addr`."""
        ...

    def read_string(self, addr: int, size: int, count: int) -> bytes:
        """One or more elements of `size` bytes, at most `count`, all read at `addr`."""
        ...

    def write(self, addr: int, size: int, value: int) -> None:
        """Store the low `size` bytes of `value` at `addr`."""
        ...


class Outcome(enum.Enum):
    """What an exit asks of the thread."""

    PORT_IO = "port I/O"
    MEMORY_IO = "memory-mapped I/O"
    LOCKED_IO = "memory-mapped I/O by an instruction with LOCK"
    REENTER = "nothing: go on"
    HALT = "wait for an interrupt"
    COPROCESSOR_ERROR = "the FERR# line: an x87 exception for the interrupt controller"
    RESET = "reset the machine: the CPU shut down (triple fault)"
    SYSTEM_EVENT = "an event of the whole machine"
    DEBUG = "a breakpoint or single step"
    FAIL = "the CPU cannot go on"


_OUTCOMES: dict[type, Outcome] = {
    IoExit: Outcome.PORT_IO,
    MmioExit: Outcome.MEMORY_IO,
    ExclusiveExit: Outcome.LOCKED_IO,
    IntrExit: Outcome.REENTER,
    HltExit: Outcome.HALT,
    FerrExit: Outcome.COPROCESSOR_ERROR,
    ShutdownExit: Outcome.RESET,
    SystemEventExit: Outcome.SYSTEM_EVENT,
    DebugExit: Outcome.DEBUG,
    FailEntryExit: Outcome.FAIL,
    InternalErrorExit: Outcome.FAIL,
}

def outcome_of(exit: Exit) -> Outcome:
    """What the thread must do about `exit`."""
    return _OUTCOMES[type(exit)]


class VcpuGone(PellucidError):
    """Work was given to a vCPU thread that is not running."""


class VcpuThread:
    """The thread of one vCPU. It starts paused: `start()`, then `resume()`.

    `on_event(thread, outcome, exit)` is called on this thread, under the big lock, for every exit that is neither an
    access nor a plain re-entry; for RESET and FAIL the thread has paused itself before, so that the guest does not go
    on until the machine has decided. `smm_memory` answers what is accessed in system-management mode, where that sees
    other memory. `alone` is a context in which no other vCPU executes guest code (`VcpuGroup.exclusive`).

    `coalesced` is the VM's ring of writes that made no exit: they are delivered before the next exit is handled.
    """

    def __init__(
        self,
        vcpu: Vcpu,
        ports: Bus,
        memory: Bus,
        bql: BigLock,
        on_event: Callable[["VcpuThread", Outcome, Exit], None],
        *,
        coalesced: CoalescedRing | None = None,
        index: int = 0,
        debug_threads: bool = False,
        smm_memory: Bus | None = None,
        alone: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.vcpu = vcpu
        self.index = index
        self.name = f"CPU {index}/PLD"
        self.halted = False
        """In HLT without in-kernel interrupt chips (with them, HLT never leaves `run`); `wake` ends it."""
        self._wake_pending = False
        self._ports = ports
        self._memory = memory
        self._smm_memory = smm_memory if smm_memory is not None else memory
        self._bql = bql
        self._on_event = on_event
        self._alone = alone
        self._coalesced = CoalescedRing() if coalesced is None else coalesced
        self._debug_threads = debug_threads
        self._changed = bql.condition()
        self._work: collections.deque[Callable[[], None]] = collections.deque()
        self._stop = True
        self._stopped = False
        self._holds = 0
        self._ending = False
        self._ended = False
        self._attention = True
        self._in_guest = False
        self._left_guest = threading.Event()
        self._thread = threading.Thread(target=self._main, name=self.name, daemon=True)

    def start(self) -> None:
        """Start the thread; it waits, paused, until `resume`."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread has started and not ended."""
        return self._thread.is_alive()

    @property
    def thread_id(self) -> int:
        """The kernel's number of the thread; 0 before it has started."""
        return self._thread.native_id or 0

    @property
    def is_current(self) -> bool:
        """Whether the calling thread is this one."""
        return self._thread.ident == threading.get_ident()

    @property
    def paused(self) -> bool:
        """Whether the vCPU is paused and outside guest code."""
        return self._stopped

    def pause(self) -> None:
        """Ask the vCPU to stop executing; `wait_paused` tells when it has. From any thread."""
        with self._bql:
            self._stop = True
            self._call_attention()

    def wait_paused(self) -> None:
        """Wait, giving up the big lock, until the vCPU is paused. Not on the vCPU's own thread."""
        with self._bql:
            while self.alive and not self._stopped:
                self._changed.wait()

    def resume(self) -> None:
        """Go on after `pause`. From any thread."""
        with self._bql:
            self._stop = self._stopped = False
            self._changed.notify_all()

    def wake(self) -> None:
        """There is an interrupt: end a halt, or the one that is about to begin. From any thread."""
        with self._bql:
            self._wake_pending = True
            self.halted = False
            self._changed.notify_all()

    def end(self) -> None:
        """End the thread and wait for it, giving up the big lock. Not on the vCPU's own thread."""
        with self._bql:
            self._ending = True
            self._call_attention()
            while self.alive and not self._ended:
                self._changed.wait()
        # `_ended` is the last thing that an ending thread sets under the lock: joining it cannot deadlock.
        if self._thread.ident is not None:
            self._thread.join()

    def async_run_on_cpu(self, work: Callable[[], None]) -> None:
        """Have the vCPU's thread call `work`, under the big lock and outside guest code, in order. Does not wait."""
        with self._bql:
            if not self.alive or self._ending:
                raise VcpuGone(f"{self.name} is not running: it cannot be given work")
            self._work.append(work)
            self._call_attention()

    def run_on_cpu(self, work: Callable[[], T]) -> T:
        """`work`'s result, computed on the vCPU's thread under the big lock; its exceptions come out here.

        Waits without the big lock (given up whole). On the vCPU's own thread it is a plain call.
        """
        if self.is_current:
            return work()
        item = _WorkItem(work)
        with self._bql:
            self.async_run_on_cpu(item.run)
            while not item.done:
                if self._ended:
                    raise VcpuGone(f"{self.name} ended before it did the work it was given")
                self._changed.wait()
        if item.error is not None:
            raise item.error
        return item.results[0]

    def hold(self) -> None:
        """Keep the vCPU out of guest code until `release_hold`; counts. The big lock is held and not given up.

        A vCPU that handles an exit meanwhile is out of guest code already, so two threads that hold each other do not
        wait for each other. On the vCPU's own thread nothing needs doing.
        """
        if self.is_current:
            return
        self._holds += 1
        self._left_guest.clear()
        self._call_attention()
        while self._in_guest:
            self._left_guest.wait()

    def release_hold(self) -> None:
        """Take one `hold` back."""
        if self.is_current:
            return
        self._holds -= 1
        self._changed.notify_all()

    def _call_attention(self) -> None:
        self._attention = True
        self._changed.notify_all()
        self.vcpu.kick()

    def _main(self) -> None:
        if self._debug_threads:
            set_thread_name(self.name)
        try:
            while self._wait_io_event():
                self._execute_guarded()
        finally:
            with self._bql:
                self._stopped = self._ending = self._ended = True
                self._changed.notify_all()

    def _execute_guarded(self) -> None:
        """`_execute`; what a device or the hypervisor raises becomes a failed vCPU instead of a silent dead thread."""
        try:
            self._execute()
        except Exception as error:
            _log.exception("%s: failed while it handled an exit", self.name)
            self._in_guest = False
            self._left_guest.set()
            self._rare_exit(Outcome.FAIL, InternalErrorExit(f"{type(error).__name__}: {error}"))

    def _wait_io_event(self) -> bool:
        """Do queued work and sleep while there is nothing to execute; False when the thread is to end."""
        with self._bql:
            while True:
                while self._work:
                    self._do_work(self._work.popleft())
                if self._ending:
                    return False
                self._stopped = self._stop
                if not (self._stop or self._holds or self.halted):
                    self._attention = False
                    return True
                self._changed.notify_all()
                self._changed.wait()

    def _do_work(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:
            _log.exception("%s: queued work failed", self.name)
        self._changed.notify_all()

    def _execute(self) -> None:
        """Run the guest and handle its exits until something calls for attention."""
        run = self.vcpu.run
        while True:
            self._in_guest = True
            if self._attention:
                self._in_guest = False
                self._left_guest.set()
                return
            exit = run()
            self._in_guest = False
            if self._attention:
                self._left_guest.set()
            if self._coalesced:
                self._deliver_coalesced()
            if type(exit) is IoExit:
                self._port_io(exit)
            elif type(exit) is MmioExit:
                self._memory_io(exit)
            elif (outcome := outcome_of(exit)) is not Outcome.REENTER:
                self._rare_exit(outcome, exit)

    def _deliver_coalesced(self) -> None:
        """Writes that any vCPU made before this exit and that made no exit themselves."""
        with self._bql:
            for pio, address, size, value in self._coalesced.take():
                (self._ports if pio else self._memory).write(address, size, value)

    def _port_io(self, exit: IoExit) -> None:
        bql = self._bql
        bql.acquire()
        try:
            if exit.is_write:
                assert exit.data is not None
                self._ports.write(exit.port, exit.size, exit.data)
            elif exit.count > 1:
                self.vcpu.complete_read_string(self._ports.read_string(exit.port, exit.size, exit.count))
            else:
                self.vcpu.complete_read(self._ports.read(exit.port, exit.size))
        finally:
            bql.release()

    def _memory_io(self, exit: MmioExit) -> None:
        bql = self._bql
        memory = self._smm_memory if exit.smm else self._memory
        bql.acquire()
        try:
            if exit.is_write:
                assert exit.data is not None
                memory.write(exit.gpa, exit.size, exit.data)
            else:
                self.vcpu.complete_read(memory.read(exit.gpa, exit.size))
        finally:
            bql.release()

    def _rare_exit(self, outcome: Outcome, exit: Exit) -> None:
        with self._bql:
            if outcome is Outcome.LOCKED_IO:
                with self._alone():
                    ended = self.vcpu.run_exclusive(self._memory_io)
                if ended is None or (outcome := outcome_of(ended)) is Outcome.REENTER:
                    return
                exit = ended
            if outcome is Outcome.HALT:
                # The interrupt may have come between the HLT and this lock; one needless turn is harmless.
                self.halted = self._attention = not self._wake_pending
                self._wake_pending = False
                return
            if outcome is Outcome.RESET or outcome is Outcome.FAIL:
                self._stop = self._attention = True
            self._on_event(self, outcome, exit)


class _WorkItem(Generic[T]):
    """Work of `run_on_cpu` with what came of it: one result, or an error."""

    __slots__ = ("_work", "done", "error", "results")

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self.done = False
        self.error: Exception | None = None
        self.results: list[T] = []

    def run(self) -> None:
        try:
            self.results.append(self._work())
        except Exception as error:
            self.error = error
        self.done = True
