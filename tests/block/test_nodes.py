"""The drivers: files of every size, the raw format and what it refuses, the overlay; random programs and a model."""

import errno
import os
import random
from pathlib import Path

import pytest

from pellucid.block import FOR_READING, FOR_WRITING, FileNode, RawNode, TemporaryOverlay, probe
from pellucid.block.node import BlockNode
from pellucid.block.overlay import CLUSTER
from pellucid.block.vectors import batches, fill_zero, part, total, zeroes
from tests.block.helpers import image

SEED = int(os.environ.get("PELLUCID_SEED", "1"))


def read(node: BlockNode, offset: int, length: int) -> bytes:
    content = bytearray(b"\xee" * length)
    node.read(offset, [memoryview(content)])
    return bytes(content)


def raw(path: Path, *, read_only: bool = False, probed: bool = False) -> RawNode:
    permissions = FOR_READING if read_only else FOR_WRITING
    return RawNode(FileNode(str(path), read_only=read_only, permissions=permissions), probed=probed)


def test_vectors() -> None:
    buffers = [memoryview(bytearray(range(at, at + 10))) for at in (0, 10, 20)]
    assert total(buffers) == 30 and b"".join(part(buffers, 7, 15)) == bytes(range(7, 22))
    assert part(buffers, 30, 5) == [] and [len(b) for b in batches(buffers, 2)] == [2, 1]
    fill_zero(buffers[1:2])
    assert b"".join(buffers) == bytes(range(10)) + bytes(10) + bytes(range(20, 30))
    assert total(zeroes(200_001)) == 200_001


SIZES = [(0, 0), (1, 512), (511, 512), (512, 512), (513, 1024), (3_000_000, 3_000_320)]


@pytest.mark.parametrize(("size", "seen"), SIZES)
def test_sizes_count_up_to_a_sector(tmp_path: Path, size: int, seen: int) -> None:
    path = image(tmp_path, b"\xaa" * size)
    node = raw(path)
    assert node.size == seen
    assert read(node, 0, seen) == (b"\xaa" * size).ljust(seen, b"\0")
    if seen:
        node.write(seen - 512, [memoryview(b"\x55" * 512)])
        assert path.stat().st_size == seen and read(node, seen - 512, 512) == b"\x55" * 512
    node.close()


def test_many_small_buffers_make_one_request(tmp_path: Path) -> None:
    content = random.Random(SEED).randbytes(5000 * 512)
    node = raw(image(tmp_path, content))
    buffers = [memoryview(bytearray(512)) for _ in range(5000)]
    node.read(0, buffers)
    assert b"".join(buffers) == content
    node.write(512, buffers[:3000])
    assert read(node, 512, 3000 * 512) == content[: 3000 * 512]
    node.close()


def test_a_file_cut_short_behind_our_back_reads_zeros(tmp_path: Path) -> None:
    path = image(tmp_path, b"\xaa" * 8192)
    node = raw(path)
    os.truncate(path, 1000)
    assert read(node, 0, 8192) == (b"\xaa" * 1000).ljust(8192, b"\0")
    node.close()


def test_discard_and_write_zeroes(tmp_path: Path) -> None:
    path = image(tmp_path, b"\xaa" * (1 << 20))
    node = raw(path)
    before = node.allocated_size()
    node.write_zeroes(0, 1 << 19, unmap=True)
    node.write_zeroes(1 << 19, 1000)
    assert read(node, 0, (1 << 19) + 1001) == bytes((1 << 19) + 1000) + b"\xaa"
    node.discard(0, 1 << 19)
    assert node.allocated_size() <= before and path.stat().st_size == 1 << 20
    node.close()


def test_a_read_only_image_is_not_written(tmp_path: Path) -> None:
    node = raw(image(tmp_path, size=4096), read_only=True)
    with pytest.raises(OSError):
        node.write(0, [memoryview(bytes(512))])
    node.flush()
    node.close()


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    device = Path("/dev/null")
    for path, number in ((tmp_path, errno.EISDIR), (tmp_path / "absent", errno.ENOENT), (device, errno.EINVAL)):
        with pytest.raises(OSError) as caught:
            FileNode(str(path), read_only=False, permissions=FOR_WRITING)
        assert caught.value.errno == number


def test_a_probed_image_stays_raw(tmp_path: Path) -> None:
    """A guest cannot turn its raw disk into an image that would be opened as another format the next time."""
    node = raw(image(tmp_path, size=1 << 16), probed=True)
    header = memoryview(b"QFI\xfb\0\0\0\x03".ljust(1024, b"\0"))
    for buffers in ([header], [header[:4], header[4:]]):
        with pytest.raises(PermissionError):
            node.write(0, buffers)
    node.write(0, [header[:4]])
    with pytest.raises(PermissionError):
        node.write(4, [header[4:12]])
    node.write(0, [memoryview(b"\x55" * 512)])
    node.write(512, [header])
    node.close()
    free = raw(image(tmp_path, size=1 << 16, name="other"))
    free.write(0, [header])
    free.close()


@pytest.mark.parametrize(
    ("header", "name"),
    [
        (b"", "raw"),
        (bytes(512), "raw"),
        (b"QFI\xfb\0\0\0\x02", "qcow2"),
        (b"QFI\xfb\0\0\0\x03", "qcow2"),
        (b"QFI\xfb\0\0\0\x01", "qcow"),
        (b"QFI\xfb\0\0\0\x09", "raw"),
        (b"KDMV\1\0\0\0", "vmdk"),
        (bytes(64) + b"\x7f\x10\xda\xbe", "vdi"),
        (b"vhdxfile", "vhdx"),
        (b"LUKS\xba\xbe\0\1", "luks"),
    ],
)
def test_probing(header: bytes, name: str) -> None:
    assert probe(header) == name


def test_probing_random_bytes_is_total() -> None:
    rng = random.Random(SEED)
    for _ in range(2000):
        head = rng.choice([b"", b"QFI\xfb", b"QED", b"KDM", b"vhdx", b"LUKS"])
        assert isinstance(probe(head + rng.randbytes(rng.randrange(600))), str)


def overlay(path: Path) -> TemporaryOverlay:
    return TemporaryOverlay(raw(path, read_only=True))


@pytest.mark.parametrize("make", [raw, overlay])
def test_random_programs(tmp_path: Path, make: object) -> None:
    """Every driver behaves as an array of bytes does."""
    rng = random.Random(SEED)
    size = 5 * CLUSTER + 1024
    model = bytearray(rng.randbytes(size))
    path = image(tmp_path, bytes(model))
    assert make is raw or make is overlay
    node: BlockNode = make(path)
    for _ in range(300):
        length = rng.choice([0, 1, 512, 4096, CLUSTER, 2 * CLUSTER, rng.randrange(size)])
        offset = rng.choice([0, CLUSTER, rng.randrange(size)])
        length = min(length, size - offset)
        action = rng.randrange(6)
        if action < 3:
            assert read(node, offset, length) == model[offset : offset + length]
        elif action < 5:
            content = rng.randbytes(length)
            cut = rng.randrange(length + 1)
            node.write(offset, [memoryview(p) for p in (content[:cut], content[cut:]) if p])
            model[offset : offset + length] = content
        else:
            node.write_zeroes(offset, length, unmap=bool(rng.randrange(2)))
            model[offset : offset + length] = bytes(length)
    assert read(node, 0, size) == model
    node.close()


def test_the_overlay_leaves_the_image_alone(tmp_path: Path) -> None:
    content = random.Random(SEED).randbytes(3 * CLUSTER)
    path = image(tmp_path, content)
    node = overlay(path)
    node.write(100, [memoryview(b"guest")])
    node.write(CLUSTER - 2, [memoryview(b"across")])
    node.flush()
    assert read(node, 98, 9) == content[98:100] + b"guest" + content[105:107]
    at = CLUSTER - 3
    assert read(node, at, 8) == content[at : at + 1] + b"across" + content[at + 7 : at + 8]
    assert path.read_bytes() == content
    node.close()
    assert list(tmp_path.iterdir()) == [path]
