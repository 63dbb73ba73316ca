"""The main loop: descriptors, timers, calls from other threads, all under the big lock."""

import os
import select
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from pellucid.runtime import BigLock, MainLoop


@pytest.fixture
def loop() -> Iterator[MainLoop]:
    main_loop = MainLoop(BigLock())
    yield main_loop
    main_loop.close()


def test_readers_and_writers(loop: MainLoop) -> None:
    read_fd, write_fd = os.pipe()
    log: list[str] = []

    def readable() -> None:
        assert loop.bql.locked_by_me()
        log.append(os.read(read_fd, 100).decode())
        loop.stop()

    def writable() -> None:
        log.append("writable")
        os.write(write_fd, b"hello")
        loop.remove_writer(write_fd)

    loop.add_reader(read_fd, readable)
    loop.add_writer(write_fd, writable)
    loop.run()
    assert log == ["writable", "hello"]
    loop.remove_reader(read_fd)
    loop.remove_reader(read_fd)
    os.close(read_fd)
    os.close(write_fd)
    loop.run_once(0)


def test_reader_and_writer_of_one_descriptor_are_separate(loop: MainLoop) -> None:
    left, right = socket.socketpair()
    log: list[str] = []
    loop.add_reader(left.fileno(), lambda: log.append("old reader"))
    loop.add_reader(left.fileno(), lambda: log.append("r" + left.recv(1).decode()))
    loop.add_writer(left.fileno(), lambda: log.append("w"))
    right.send(b"x")
    loop.run_once(0)
    assert log == ["rx", "w"]
    loop.remove_writer(left.fileno())
    right.send(b"y")
    loop.run_once(0)
    assert log == ["rx", "w", "ry"]
    loop.remove_reader(left.fileno())
    left.close()
    right.close()


def test_a_callback_may_remove_another_that_is_ready(loop: MainLoop) -> None:
    pipes = [os.pipe() for _ in range(2)]
    log: list[int] = []

    def ready(index: int) -> None:
        log.append(index)
        for read_fd, _ in pipes:
            loop.remove_reader(read_fd)

    for index, (read_fd, write_fd) in enumerate(pipes):
        loop.add_reader(read_fd, lambda index=index: ready(index))  # type: ignore[misc]
        os.write(write_fd, b"x")
    loop.run_once()
    loop.run_once(0)
    assert len(log) == 1
    for pair in pipes:
        for fd in pair:
            os.close(fd)


def test_timers_in_order_and_cancelled(loop: MainLoop) -> None:
    log: list[str] = []
    now = time.monotonic_ns()

    def second() -> None:
        log.append("second")
        loop.stop()

    loop.call_at(now + 2_000_000, second)
    loop.call_at(now + 1_000_000, lambda: log.append("first"))
    cancelled = loop.call_at(now + 500_000, lambda: log.append("cancelled"))
    cancelled.cancel()
    loop.call_later(-1, lambda: log.append("overdue"))
    loop.run()
    assert log == ["overdue", "first", "second"]
    assert select.select([loop._timer_fd.fd], [], [], 0)[0] == []  # a loop without timers sleeps
    cancelled.cancel()


def test_a_timer_armed_by_a_callback_of_the_same_turn(loop: MainLoop) -> None:
    log: list[str] = []

    def start() -> None:
        loop.call_later(0, first)

    def first() -> None:
        log.append("first")
        loop.call_later(0, second)

    def second() -> None:
        log.append("second")
        loop.stop()

    loop.call_soon_threadsafe(start)
    loop.run()
    assert log == ["first", "second"]


def test_calls_from_other_threads_come_in_order_on_the_loops_thread(loop: MainLoop) -> None:
    log: list[tuple[int, int]] = []

    def send(who: int) -> None:
        for number in range(500):
            loop.call_soon_threadsafe(lambda number=number: log.append((who, number)))  # type: ignore[misc]

    senders = [threading.Thread(target=send, args=(who,)) for who in range(3)]
    for sender in senders:
        sender.start()
    while len(log) < 1500:
        loop.run_once()
    for sender in senders:
        sender.join()
    for who in range(3):
        assert [number for w, number in log if w == who] == list(range(500))


def test_calls_made_by_calls_wait_for_the_next_turn(loop: MainLoop) -> None:
    log: list[str] = []

    def outer() -> None:
        log.append("outer")
        loop.call_soon_threadsafe(lambda: log.append("inner"))

    loop.call_soon_threadsafe(outer)
    loop.run_once()
    assert log == ["outer"]
    loop.run_once()
    assert log == ["outer", "inner"]


def test_the_lock_is_free_while_the_loop_sleeps(loop: MainLoop) -> None:
    got = threading.Event()

    def other() -> None:
        with loop.bql:
            got.set()
        loop.stop()

    thread = threading.Thread(target=other)
    thread.start()
    loop.run()
    thread.join()
    assert got.is_set()


def test_stop_before_run_and_run_again(loop: MainLoop) -> None:
    loop.stop()
    loop.run()
    loop.call_soon_threadsafe(loop.stop)
    loop.run()
