"""-daemonize and -pidfile: a machine that goes to the background, and the file that says which process it is."""

import contextlib
import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

from pellucid.errors import UserError


def go_to_background() -> Callable[[], None]:
    """Fork. The parent waits and ends here, with the child's fate; in the child, the result says that all is made.

    Call it before any thread is started. Until the result is called, errors still reach the terminal.
    """
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        _await(read, child)
    os.close(read)
    os.setsid()

    def ready() -> None:
        null = os.open(os.devnull, os.O_RDWR)
        sys.stdout.flush()
        for number in (0, 1, 2):
            os.dup2(null, number)
        os.close(null)
        os.chdir("/")
        os.write(write, b"ready")
        os.close(write)

    return ready


def _await(read: int, child: int) -> NoReturn:
    word = os.read(read, 16)
    if word:
        os._exit(0)
    _, status = os.waitpid(child, 0)
    os._exit(os.waitstatus_to_exitcode(status) or 1)


@contextlib.contextmanager
def pidfile(path: str | None) -> Iterator[None]:
    """The file, locked, with this process's number in it, for the time of the block. UserError: it cannot be had."""
    if path is None:
        yield
        return
    where = os.path.abspath(path)  # A daemon changes to the root folder.
    try:
        fd = os.open(where, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UserError(f"-pidfile {path}: cannot create PID file: {error.strerror}") from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"-pidfile {path}: cannot lock pid file: the process that it names still runs") from None
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())
        yield
        with contextlib.suppress(OSError):
            os.unlink(where)
    finally:
        os.close(fd)
