"""Signals of the process while a machine runs: asked to end, it goes down; stopped, the terminal is given back.

Python runs handlers on the main thread between two instructions, perhaps while that thread holds a lock; so a
handler only leaves a call for the main loop. The kernel may give the signal to another thread (it does so with
SIGCONT), which does not end the main thread's sleep; the wake-up pipe does.
"""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

from pellucid.machine.chardev import StdioChardev
from pellucid.runtime import MainLoop

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class SignalHandlers:
    """`with SignalHandlers(...)`: in effect inside the block, as before after it. Nothing off the main thread."""

    def __init__(self, loop: MainLoop, stdio: StdioChardev | None, end: Callable[[signal.Signals], None]) -> None:
        self._loop = loop
        self._stdio = stdio
        self._end = end
        self._before: dict[signal.Signals, object] = {}
        self._wakeup_before = -1
        self._pipe: tuple[int, int] | None = None

    def __enter__(self) -> "SignalHandlers":
        if threading.current_thread() is threading.main_thread():
            self._pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            self._loop.add_reader(self._pipe[0], self._drain)
            self._wakeup_before = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            for number in ENDING:
                self._install(number, self._ended)
            if self._stdio is not None:
                self._install(signal.SIGTSTP, self._stopped)
                self._install(signal.SIGCONT, self._continued)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before.clear()
        if self._pipe is not None:
            signal.set_wakeup_fd(self._wakeup_before)
            self._loop.remove_reader(self._pipe[0])
            for fd in self._pipe:
                os.close(fd)
            self._pipe = None

    def _drain(self) -> None:
        assert self._pipe is not None
        os.read(self._pipe[0], 4096)

    def _install(self, number: signal.Signals, handler: Callable[[int, FrameType | None], None]) -> None:
        # An ignored SIGHUP (nohup) or SIGINT (a shell's background job) stays ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            self._before[number] = signal.signal(number, handler)

    def _ended(self, number: int, _: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(lambda: self._end(signal.Signals(number)))

    def _stopped(self, *_: object) -> None:
        if self._stdio is not None:
            self._stdio.terminal.restore()
        os.kill(os.getpid(), signal.SIGSTOP)

    def _continued(self, *_: object) -> None:
        if self._stdio is not None:
            self._loop.call_soon_threadsafe(self._stdio.resume)
