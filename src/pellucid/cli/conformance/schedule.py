"""Which entries run side by side: each takes as many of the host's CPUs as its guest has, and whoever fits goes first.

Two guest CPUs that share a host CPU wait for each other by turns of milliseconds: a test that hands a flag to and fro
a hundred thousand times then takes minutes instead of seconds.
"""

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def run_side_by_side(items: Sequence[T], weight: Callable[[T], int], room: int, run: Callable[[T], R],
                     done: Callable[[R], None], stop: Callable[[], None]) -> list[R]:  # fmt: skip
    """`run` of each item, on threads, in the order of the items where their weights fit into `room` together.

    One that is heavier than the room takes all of it. `done` hears of each result as it comes, on the caller's thread.
    What `run` raises comes out here, as does an interruption: `stop` has what runs end, and the rest is not begun.
    """
    waiting = [(n, min(weight(item), room), item) for n, item in enumerate(items)]
    results: dict[int, R] = {}
    ended: SimpleQueue[tuple[int, int, R | BaseException]] = SimpleQueue()
    threads: list[threading.Thread] = []

    try:
        left = room
        while len(results) < len(items):
            for one in [*waiting]:
                if one[1] <= left:
                    waiting.remove(one)
                    left -= one[1]
                    threads.append(threading.Thread(target=_work, args=(run, ended, *one), name="entry"))
                    threads[-1].start()
            number, size, came = ended.get()
            if isinstance(came, BaseException):
                raise came
            left += size
            results[number] = came
            done(came)
    except BaseException:
        stop()
        raise
    finally:
        for thread in threads:
            thread.join()
    return [results[n] for n in range(len(items))]


def _work(run: Callable[[T], R], ended: SimpleQueue[tuple[int, int, R | BaseException]], number: int, size: int,
          item: T) -> None:  # fmt: skip
    """Of one thread: what comes of the item, or what is raised, goes on in the caller's."""
    came: R | BaseException
    try:
        came = run(item)
    except BaseException as error:
        came = error
    ended.put((number, size, came))
