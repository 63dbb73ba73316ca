"""Images, and a block backend whose completions run when a test says so."""

import collections
from collections.abc import Callable
from pathlib import Path

from pellucid.block import BlockBackend, BlockNode, Policy, WorkerPool


def image(folder: Path, content: bytes = b"", size: int = 0, name: str = "disk.img") -> Path:
    """A file of `content`, and zeros up to `size` that take no room."""
    path = folder / name
    with path.open("wb") as out:
        out.write(content)
        out.truncate(max(size, len(content)))
    return path


class Pool(WorkerPool):
    """Its main loop is `calls`; `drain` completes what is under way."""

    def __init__(self) -> None:
        self.calls: collections.deque[Callable[[], None]] = collections.deque()
        super().__init__(self.calls.append)


def backend(pool: WorkerPool, node: BlockNode | None, policy: Policy | None = None, **options: bool) -> BlockBackend:
    return BlockBackend("disk", pool, node, policy or Policy(), **options)


def wait(start: Callable[[Callable[[int], None]], None], pool: WorkerPool) -> int:
    """The errno with which a request ends."""
    ended: list[int] = []
    start(ended.append)
    pool.drain()
    assert len(ended) == 1, "a request is completed once"
    return ended[0]
