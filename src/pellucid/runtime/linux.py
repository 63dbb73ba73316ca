"""The three Linux calls that Python 3.11 does not wrap: timerfd, prctl, and a thread's name in /proc.

They go through `ctypes.PyDLL`, which keeps the GIL: each call takes well under a microsecond and never blocks, and
giving the GIL away here would hand it to a waiting thread in the middle of an exit.
"""

import ctypes
import os
import threading

_libc = ctypes.PyDLL(None, use_errno=True)

_CLOCK_MONOTONIC = 1
_TFD_CLOEXEC = 0o2000000
_TFD_TIMER_ABSTIME = 1
_PR_SET_NAME = 15
TASK_COMM_LEN = 16
"""Bytes of a thread's name in the kernel, the closing NUL included."""


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("it_interval", _Timespec), ("it_value", _Timespec))


_timerfd_settime = _libc.timerfd_settime
_timerfd_settime.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.POINTER(_Itimerspec), ctypes.c_void_p)


def _check(result: int, call: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{call}: {os.strerror(error)}")
    return result


class TimerFd:
    """A kernel timer on CLOCK_MONOTONIC that makes `fd` readable when it expires (timerfd_create(2)).

    Unlike a timed wait on a condition variable it can be set again without waking the thread that waits, and the
    kernel's timer slack (50 us by default) does not apply to it. The caller serializes the calls.
    """

    __slots__ = ("_spec", "_spec_ref", "_value", "fd")

    def __init__(self) -> None:
        self.fd = _check(_libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_CLOEXEC), "timerfd_create")
        self._spec = _Itimerspec()
        self._value = self._spec.it_value
        self._spec_ref = ctypes.byref(self._spec)

    def set(self, deadline_ns: int) -> None:
        """Expire once when `time.monotonic_ns()` reaches `deadline_ns`; at once when that has passed."""
        # All zero would disarm, so the earliest deadline is one nanosecond after the machine's start.
        self._value.tv_sec, self._value.tv_nsec = divmod(max(deadline_ns, 1), 1_000_000_000)
        _check(_timerfd_settime(self.fd, _TFD_TIMER_ABSTIME, self._spec_ref, None), "timerfd_settime")

    def disarm(self) -> None:
        """Do not expire."""
        self._value.tv_sec = self._value.tv_nsec = 0
        _check(_timerfd_settime(self.fd, 0, self._spec_ref, None), "timerfd_settime")

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.fd)


def set_thread_name(name: str) -> None:
    """Name the calling thread as `ps -L` and /proc/self/task/TID/comm show it, cut to 15 bytes."""
    with open(f"/proc/self/task/{threading.get_native_id()}/comm", "wb", buffering=0) as comm:
        comm.write(name.encode()[: TASK_COMM_LEN - 1])


def set_process_name(name: str) -> None:
    """Name the process (its main thread must call): `-name guest,process=NAME`, prctl(PR_SET_NAME)."""
    _check(_libc.prctl(_PR_SET_NAME, ctypes.c_char_p(name.encode()[: TASK_COMM_LEN - 1]), 0, 0, 0), "prctl")
