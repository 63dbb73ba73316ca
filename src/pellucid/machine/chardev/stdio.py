"""The process's own standard input and output (`-serial stdio`, `-serial mon:stdio`, `-nographic`).

On a terminal every key belongs to the guest, so the terminal is made raw; it is put back at close(), when the process
exits in any way that Python sees, and around a stop by job control. Output processing stays on, as with QEMU, so
that messages of our own do not run down the screen in steps.
"""

import atexit
import contextlib
import os
import sys
import termios

from pellucid.errors import UserError
from pellucid.machine.chardev.fd import Descriptor, FdChardev
from pellucid.runtime import MainLoop

_IFLAG, _OFLAG, _CFLAG, _LFLAG, _CC = 0, 1, 2, 3, 6


class RawTerminal:
    """Raw mode of the terminal on `fd`; nothing at all when it is none. `signals` keeps Ctrl-C a signal."""

    def __init__(self, fd: int, *, signals: bool) -> None:
        self._fd = fd
        self._signals = signals
        self._saved: list[object] | None = None
        self.is_terminal = os.isatty(fd)

    def enter(self) -> None:
        """Make the terminal raw; a process in the background leaves it alone."""
        if not self.is_terminal or self._saved is not None or not self._in_foreground():
            return
        saved = termios.tcgetattr(self._fd)
        raw = [*saved[:_CC], list(saved[_CC])]
        raw[_IFLAG] &= ~(
            termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP
            | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON
        )  # fmt: skip
        raw[_OFLAG] |= termios.OPOST
        raw[_LFLAG] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.IEXTEN)
        if not self._signals:
            raw[_LFLAG] &= ~termios.ISIG
        raw[_CFLAG] = raw[_CFLAG] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
        raw[_CC][termios.VMIN], raw[_CC][termios.VTIME] = 1, 0
        termios.tcsetattr(self._fd, termios.TCSANOW, raw)
        self._saved = saved
        atexit.register(self.restore)

    def restore(self) -> None:
        """Put the terminal back as it was. Harmless when it was never changed."""
        if self._saved is None:
            return
        saved, self._saved = self._saved, None
        atexit.unregister(self.restore)
        with contextlib.suppress(termios.error):  # The terminal may be gone by now.
            termios.tcsetattr(self._fd, termios.TCSADRAIN, saved)  # type: ignore[arg-type]

    def _in_foreground(self) -> bool:
        try:
            return os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError:
            return True  # Not our controlling terminal, so job control does not apply.


class StdioChardev(FdChardev):
    """Standard input and output. There is one terminal, so there is one of these in a process at a time."""

    _in_use = False

    def __init__(self, loop: MainLoop, *, signals: bool = True, fds: tuple[int, int] = (0, 1)) -> None:
        if StdioChardev._in_use:
            raise UserError("stdio is already used by another character device; use mon:stdio to share it")
        try:
            source, sink = Descriptor(fds[0], os.O_RDONLY), Descriptor(fds[1], os.O_WRONLY)
        except OSError as error:
            raise UserError(f"stdio: standard input or output cannot be used: {error.strerror}") from None
        StdioChardev._in_use = True
        # What Python still buffers must come before the guest's first byte.
        sys.stdout.flush()
        super().__init__("stdio", loop, source, sink)
        self.terminal = RawTerminal(fds[0], signals=signals)
        self.terminal.enter()

    def resume(self) -> None:
        """After SIGCONT: the shell has put its own mode back meanwhile."""
        self.terminal.restore()
        self.terminal.enter()

    def close(self) -> None:
        super().close()
        self.terminal.restore()
        StdioChardev._in_use = False
