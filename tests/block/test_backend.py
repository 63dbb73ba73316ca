"""Requests: off the main thread, completed once and under nobody's feet; errors by their policy; opening of images."""

import errno
import threading
from pathlib import Path

import pytest

from pellucid.block import BlockNode, Buffers, CacheMode, DriveOptions, ErrorAction, Policy, open_image
from pellucid.errors import NotBuiltError, UserError
from tests.block.helpers import Pool, backend, image, wait


class Faulty(BlockNode):
    """Fails with what `errors` holds, one error for each request, and then works."""

    driver = "faulty"

    def __init__(self, errors: list[int]) -> None:
        super().__init__("faulty", 1 << 20, read_only=False)
        self.errors = errors
        self.calls: list[str] = []

    def _call(self, name: str) -> None:
        self.calls.append(name)
        assert threading.current_thread() is not threading.main_thread()
        if self.errors:
            raise OSError(self.errors.pop(0), "injected")

    def read(self, offset: int, buffers: Buffers) -> None:
        self._call("read")

    def write(self, offset: int, buffers: Buffers) -> None:
        self._call("write")

    def flush(self) -> None:
        self._call("flush")


BUFFER = [memoryview(bytearray(512))]


def test_requests_and_their_bounds(tmp_path: Path) -> None:
    pool = Pool()
    disk = backend(pool, open_image(DriveOptions("-drive", file=str(image(tmp_path, size=4096)), format="raw")))
    data = [memoryview(b"\x5a" * 512)]
    assert wait(lambda done: disk.write(1024, data, done), pool) == 0
    assert wait(disk.flush, pool) == 0
    assert wait(lambda done: disk.read(1024, BUFFER, done), pool) == 0 and bytes(BUFFER[0]) == b"\x5a" * 512
    assert wait(lambda done: disk.write_zeroes(1024, 512, done), pool) == 0
    assert wait(lambda done: disk.discard(0, 4096, done), pool) == 0
    for offset in (4096, 3585, -512):
        assert wait(lambda done, at=offset: disk.read(at, BUFFER, done), pool) == errno.EIO  # type: ignore[misc]
        assert wait(lambda done, at=offset: disk.write(at, BUFFER, done), pool) == errno.EIO  # type: ignore[misc]
    disk.close()
    assert wait(lambda done: disk.read(0, BUFFER, done), pool) == errno.ENOMEDIUM
    pool.close()


def test_completions_come_through_the_main_loop() -> None:
    pool, ended = Pool(), []
    disk = backend(pool, Faulty([]))
    disk.read(0, BUFFER, ended.append)
    while not pool.calls:
        pass
    assert ended == []
    pool.calls.popleft()()
    assert ended == [0]
    pool.close()


@pytest.mark.parametrize(
    ("policy", "errors", "expected", "stops"),
    [
        (Policy(), [errno.EIO], errno.EIO, 0),
        (Policy(), [errno.ENOSPC], 0, 1),
        (Policy(on_write_error=ErrorAction.IGNORE), [errno.EIO], 0, 0),
        (Policy(on_write_error=ErrorAction.STOP), [errno.EIO, errno.EIO], 0, 2),
        (Policy(on_write_error=ErrorAction.REPORT), [errno.ENOSPC], errno.ENOSPC, 0),
    ],
)
def test_errors_by_policy(policy: Policy, errors: list[int], expected: int, stops: int) -> None:
    """A request that stops the machine is tried again when it goes on."""
    pool, ended = Pool(), []
    disk = backend(pool, Faulty(errors), policy)
    stopped: list[str] = []
    disk.on_stop = lambda kind, error: stopped.append(kind)
    disk.write(0, BUFFER, ended.append)
    pool.drain()
    for _ in range(stops):
        assert ended == []
        disk.resume()
        pool.drain()
    assert ended == [expected] and stopped == ["write"] * stops
    pool.close()


def test_cache_modes() -> None:
    for mode, calls in (
        (CacheMode.WRITEBACK, ["write", "flush"]),
        (CacheMode.WRITETHROUGH, ["write", "flush", "flush"]),
        (CacheMode.UNSAFE, ["write"]),
    ):
        pool, node = Pool(), Faulty([])
        disk = backend(pool, node, Policy(cache=mode))
        assert wait(lambda done: disk.write(0, BUFFER, done), pool) == 0  # noqa: B023
        assert wait(disk.flush, pool) == 0
        assert node.calls == calls
        pool.close()


def test_a_work_that_raises_is_an_input_output_error(caplog: pytest.LogCaptureFixture) -> None:
    pool, ended = Pool(), []
    pool.submit(lambda: 1 // 0 and None, ended.append)
    pool.drain()
    assert ended[0].errno == errno.EIO and "a block request failed" in caplog.text
    pool.close()


def test_changing_the_medium(tmp_path: Path) -> None:
    pool = Pool()
    drive = backend(pool, None, removable=True)
    assert not drive.inserted and drive.size == 0 and drive.read_only
    path = image(tmp_path, size=4096)
    drive.change(open_image(DriveOptions("change", file=str(path), media="cdrom")))
    assert drive.inserted and drive.size == 4096 and drive.read_only
    drive.change(None)
    assert drive.node is None
    pool.close()


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"file": "{folder}/none"}, UserError, "Could not open '.*none': No such file or directory: check the path"),
        ({"file": "{folder}"}, UserError, "Could not open '.*': Is a directory"),
        ({"file": ""}, UserError, "A block device must be specified"),
        ({"file": "nbd://host"}, NotBuiltError, "protocol nbd: is not built yet"),
        ({"file": "{folder}/disk.img", "format": "vmdk"}, NotBuiltError, "image format vmdk is not built yet: convert"),
        ({"file": "{folder}/q"}, NotBuiltError, "image format qcow2 is not built yet"),
    ],
)
def test_what_cannot_be_had(tmp_path: Path, options: dict[str, str], error: type[Exception], said: str) -> None:
    image(tmp_path, size=4096)
    image(tmp_path, b"QFI\xfb\0\0\0\x03".ljust(512, b"\0"), name="q")
    filled = {key: value.format(folder=tmp_path) for key, value in options.items()}
    with pytest.raises(error, match=said):
        open_image(DriveOptions("-drive", **filled))  # type: ignore[arg-type]


def test_opening(tmp_path: Path) -> None:
    path, told = image(tmp_path, size=4096), []
    node = open_image(DriveOptions("-hda", file=f"file:{path}"), tell=told.append)
    assert node.driver == "raw" and "write operations on block 0 will be restricted" in told[0]
    with pytest.raises(UserError, match='Failed to get "write" lock. Is another process using the image'):
        open_image(DriveOptions("-hdb", file=str(path), format="raw"))
    node.close()
    told.clear()
    for options in (
        DriveOptions("-hda", file=str(path), format="raw"),
        DriveOptions("-cdrom", file=str(path), media="cdrom"),
        DriveOptions("-hda", file=str(path), snapshot=True),
    ):
        node = open_image(options, tell=told.append)
        node.close()
    assert node.driver == "overlay" and not node.read_only and told == []
    path.chmod(0o444)
    open_image(DriveOptions("-hda", file=str(path), snapshot=True)).close()
