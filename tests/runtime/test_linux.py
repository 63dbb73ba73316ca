"""The Linux calls: a timer descriptor, names in /proc."""

import os
import select
import threading
import time

import pytest

from pellucid.runtime.linux import TimerFd, set_process_name, set_thread_name


def comm(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read().rstrip("\n")


def test_process_and_thread_names_are_cut_to_15_bytes() -> None:
    before = comm("/proc/self/comm")
    try:
        set_process_name("a-guest-with-a-long-name")
        assert comm("/proc/self/comm") == "a-guest-with-a-"
    finally:
        set_process_name(before)
    names: list[str] = []

    def name_myself() -> None:
        set_thread_name("CPU 10/PLD and more")
        names.append(comm(f"/proc/self/task/{threading.get_native_id()}/comm"))

    thread = threading.Thread(target=name_myself)
    thread.start()
    thread.join()
    assert names == ["CPU 10/PLD and "] and comm("/proc/self/comm") == before


def test_timer_descriptor_expires_is_set_again_and_disarmed() -> None:
    timer = TimerFd()

    def readable(timeout: float) -> bool:
        return bool(select.select([timer.fd], [], [], timeout)[0])

    assert not readable(0)
    timer.set(0)  # long ago
    assert readable(60)
    timer.set(time.monotonic_ns() + 3600 * 10**9)
    assert not readable(0)
    deadline = time.monotonic_ns() + 1_000_000
    timer.set(deadline)
    assert os.read(timer.fd, 8) == (1).to_bytes(8, "little")
    assert time.monotonic_ns() >= deadline
    timer.set(0)
    timer.disarm()
    assert not readable(0)
    timer.close()
    with pytest.raises(OSError, match="timerfd_settime"):
        timer.set(0)
