"""The default guest's initial RAM disk, built in memory: a cpio archive in the "new ASCII" format, gzip-compressed.

Format: Linux Documentation/driver-api/early-userspace/buffer-format.rst. The result depends on its inputs alone (no
times, no inode numbers of this machine), so equal inputs give equal bytes.
"""

import gzip
import stat
from collections.abc import Mapping

from pellucid.records import dataclass

CPIO_MAGIC = b"070701"
CPIO_TRAILER = "TRAILER!!!"

FOLDERS = ("bin", "dev", "etc", "proc", "root", "run", "sbin", "sys", "tmp", "usr", "usr/bin", "usr/sbin", "var")
ACCOUNTS = {"passwd": b"root:x:0:0:root:/root:/bin/sh\n", "group": b"root:x:0:\n"}


@dataclass(frozen=True)
class InitrdFile:
    """One regular file of the archive: its bytes and permission bits."""

    content: bytes
    mode: int = 0o755


@dataclass(frozen=True)
class _Entry:
    path: str
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


def cpio_archive(entries: list[_Entry]) -> bytes:
    """The newc archive of `entries` in order, each header and each content padded to 4 bytes."""
    out = bytearray()
    for inode, entry in enumerate([*entries, _Entry(CPIO_TRAILER, 0)], start=1):
        name = entry.path.encode() + b"\0"
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        major, minor = entry.device
        # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        fields = (inode, entry.mode, 0, 0, links, 0, len(entry.content), 0, 0, major, minor, len(name), 0)
        out += CPIO_MAGIC + b"".join(b"%08X" % field for field in fields) + name
        out += bytes(-len(out) % 4)
        out += entry.content
        out += bytes(-len(out) % 4)
    return bytes(out)


def build_initrd(init: str, busybox: bytes, files: Mapping[str, InitrdFile] | None = None) -> bytes:
    """An initrd whose /init is the script `init`, run by `busybox` as /bin/sh.

    `files` adds files by their path in the guest, such as "bench/loop"; their folders are made. The kernel opens
    /dev/console for /init before anything is mounted, so the archive brings that node itself.
    """
    extra = files or {}
    folders = dict.fromkeys(FOLDERS)
    for path in extra:
        parts = path.strip("/").split("/")[:-1]
        folders.update(dict.fromkeys("/".join(parts[: depth + 1]) for depth in range(len(parts))))
    entries = [_Entry(folder, stat.S_IFDIR | 0o755) for folder in folders]
    entries += [
        _Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
        _Entry("dev/null", stat.S_IFCHR | 0o666, device=(1, 3)),
        _Entry("bin/busybox", stat.S_IFREG | 0o755, busybox),
        _Entry("bin/sh", stat.S_IFLNK | 0o777, b"busybox"),
        _Entry("init", stat.S_IFREG | 0o755, init.encode()),
    ]
    entries += [_Entry(f"etc/{name}", stat.S_IFREG | 0o644, text) for name, text in ACCOUNTS.items()]
    entries += [_Entry(path.strip("/"), stat.S_IFREG | file.mode, file.content) for path, file in extra.items()]
    return gzip.compress(cpio_archive(entries), compresslevel=6, mtime=0)
