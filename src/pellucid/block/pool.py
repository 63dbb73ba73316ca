"""Worker threads: block requests run on them and are completed on the main loop.

preadv, pwritev and fdatasync release the GIL, so the guest executes on meanwhile. A completion is called under the big
lock, in the order in which requests finished.
"""

import collections
import errno
import logging
import queue
import threading
from collections.abc import Callable

_log = logging.getLogger("pellucid.block")

Work = Callable[[], None]
Done = Callable[[OSError | None], None]
MOST_THREADS = 4


class WorkerPool:
    """`call_soon` has the main loop call something: `MainLoop.call_soon_threadsafe`. Threads start when needed."""

    def __init__(self, call_soon: Callable[[Callable[[], None]], None]) -> None:
        self._call_soon = call_soon
        self._jobs: queue.SimpleQueue[tuple[Work, Done] | None] = queue.SimpleQueue()
        self._finished: collections.deque[tuple[Done, OSError | None]] = collections.deque()
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition()
        self._running = 0
        """Jobs that are submitted and not finished."""

    def submit(self, work: Work, done: Done) -> None:
        """Have a worker call `work`, then the main loop `done` with the OSError that came of it, or None."""
        with self._changed:
            self._running += 1
            if self._running > len(self._threads) < MOST_THREADS:
                name = f"worker-{len(self._threads)}"
                self._threads.append(threading.Thread(target=self._work, name=name, daemon=True))
                self._threads[-1].start()
        self._jobs.put((work, done))

    def drain(self) -> None:
        """Wait until nothing is under way, and complete it all. The big lock is held."""
        while self._running or self._finished:
            with self._changed:
                self._changed.wait_for(lambda: not self._running)
            self._complete()

    def close(self) -> None:
        """End the threads; what is under way is waited for, and not completed any more."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        self._finished.clear()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            work, done = job
            error = None
            try:
                work()
            except OSError as problem:
                error = problem
            except Exception as problem:
                _log.exception("a block request failed")
                error = OSError(errno.EIO, str(problem))
            del work, job
            self._finished.append((done, error))
            with self._changed:
                self._running -= 1
                self._changed.notify_all()
            self._call_soon(self._complete)

    def _complete(self) -> None:
        while self._finished:
            done, error = self._finished.popleft()
            done(error)
