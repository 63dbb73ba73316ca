"""The child process of `hostcpu`: maps the layout, installs the handler, runs batches until its input closes.

Run as a script by a bare interpreter (`-I -S`), so it imports nothing but ctypes and takes every address from its
one argument, a JSON object made by `hostcpu`. It writes one byte when ready (`T` when system calls of cases are
trapped, `R` when the kernel cannot), then one byte after each batch.
"""

import ctypes
import json
import os
import signal
import sys
from typing import Any

MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS, MAP_POPULATE, MAP_FIXED_NOREPLACE = 1, 2, 0x20, 0x8000, 0x100000
SA_SIGINFO, SA_RESTORER, SA_ONSTACK, SA_NODEFER = 4, 0x04000000, 0x08000000, 0x40000000
SYS_RT_SIGACTION, SYS_SIGALTSTACK = 13, 131
PR_SET_PDEATHSIG, PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON = 1, 59, 1
EXIT_NO_ROOM = 96

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_size_t]


def words(*values: int) -> Any:
    return (ctypes.c_uint64 * len(values))(*values)


def map_at(address: int, size: int, prot: int, fd: int, offset: int) -> None:
    """Map at exactly this address, populated so that no first access faults; fd < 0 means anonymous memory."""
    flags = MAP_FIXED_NOREPLACE | MAP_POPULATE | (MAP_SHARED if fd >= 0 else MAP_PRIVATE | MAP_ANONYMOUS)
    if libc.mmap(address, size, prot, flags, fd, offset) != address:
        os._exit(EXIT_NO_ROOM)


def install_handler(handler: int, stack: int, stack_size: int) -> None:
    libc.syscall(SYS_SIGALTSTACK, words(stack, 0, stack_size), None)
    flags = SA_SIGINFO | SA_RESTORER | SA_ONSTACK | SA_NODEFER
    action = words(handler, flags, handler, 0)  # the handler never returns: any restorer will do
    for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS):
        if libc.syscall(SYS_RT_SIGACTION, int(number), action, None, ctypes.c_size_t(8)) != 0:
            os._exit(EXIT_NO_ROOM)


def main() -> None:
    config = json.loads(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    for address, size, prot, fd, offset in config["maps"]:
        map_at(address, size, prot, fd, offset)
    install_handler(config["handler"], *config["signal_stack"])
    native, native_size = config["native"]
    long = ctypes.c_ulong
    trapped = libc.prctl(
        PR_SET_SYSCALL_USER_DISPATCH,
        long(PR_SYS_DISPATCH_ON),
        long(native),
        long(native_size),
        long(config["dispatch"]),
    )
    enter = ctypes.CFUNCTYPE(None)(config["enter"])
    os.write(1, b"T" if trapped == 0 else b"R")
    while os.read(0, 1):
        enter()
        os.write(1, b".")


main()
