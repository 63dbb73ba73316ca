"""The big lock: recursive, knows its holder, given up whole by a condition."""

import threading

from pellucid.runtime import BigLock


def test_recursive_and_knows_its_holder() -> None:
    bql = BigLock()
    assert not bql.locked_by_me()
    with bql:
        with bql:
            assert bql.locked_by_me()
        assert bql.locked_by_me()
        seen: list[bool] = []
        thread = threading.Thread(target=lambda: seen.append(bql.locked_by_me()))
        thread.start()
        thread.join()
        assert seen == [False]
    assert not bql.locked_by_me()


def test_waiting_on_its_condition_gives_it_up_whole() -> None:
    bql = BigLock()
    changed = bql.condition()
    order: list[str] = []

    def other() -> None:
        with bql:
            order.append("other")
            changed.notify_all()

    with bql, bql:
        thread = threading.Thread(target=other)
        thread.start()
        while not order:
            changed.wait()
        order.append("me")
        assert bql.locked_by_me()
    thread.join()
    assert order == ["other", "me"]
