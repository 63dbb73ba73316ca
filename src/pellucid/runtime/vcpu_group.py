"""All vCPU threads of one machine: pausing and resuming them, and keeping them out of guest code for a moment."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pellucid.runtime.bql import BigLock
from pellucid.runtime.vcpu_thread import VcpuThread


class VcpuGroup:
    """The vCPU threads in the order of their index. Calls are made with the big lock held."""

    def __init__(self, bql: BigLock) -> None:
        self._bql = bql
        self.threads: list[VcpuThread] = []

    def add(self, thread: VcpuThread) -> None:
        """Take `thread` in. It is not started."""
        self.threads.append(thread)

    def current(self) -> VcpuThread | None:
        """The vCPU thread that calls, None when the caller is another thread."""
        return next((thread for thread in self.threads if thread.is_current), None)

    def stop_current(self) -> None:
        """Pause the calling vCPU once its exit is handled; nothing on any other thread."""
        if thread := self.current():
            thread.pause()

    def pause_all(self) -> None:
        """Pause every vCPU and wait, giving up the big lock, until all are outside guest code.

        Called on a vCPU thread, that one pauses only after its exit and is not waited for.
        """
        for thread in self.threads:
            thread.pause()
        for thread in self.threads:
            if not thread.is_current:
                thread.wait_paused()

    def resume_all(self) -> None:
        """Let every vCPU go on."""
        for thread in self.threads:
            thread.resume()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """No vCPU but the caller's executes guest code inside the block. The big lock is held and not given up.

        For changes that a running vCPU must not see half done, such as memory slots that are cut and joined again.
        """
        held: list[VcpuThread] = []
        try:
            for thread in self.threads:
                thread.hold()
                held.append(thread)
            yield
        finally:
            for thread in held:
                thread.release_hold()

    def async_safe_run_on_cpu(self, thread: VcpuThread, work: Callable[[], None]) -> None:
        """Have `thread` call `work`, under the big lock, while no vCPU is in guest code. Does not wait.

        Raises:
            VcpuGone: the thread is not running.
        """

        def alone() -> None:
            with self.exclusive():
                work()

        thread.async_run_on_cpu(alone)

    def end(self) -> None:
        """End every thread and wait for it. Not on a vCPU thread."""
        for thread in self.threads:
            thread.pause()
        for thread in self.threads:
            thread.end()
