"""Keeping two writers off one image: advisory locks on single bytes of it, the ones that QEMU and qemu-img take.

Each permission has a byte at 100 + n, locked (shared) by whoever uses the permission, and one at 200 + n, locked by
whoever forbids it to others. After taking its own locks a process looks whether somebody uses what it forbids, or
forbids what it uses. The locks are those of an open file description, so they go with the last descriptor: a killed
process leaves none behind. A file system without locks is used without them, as QEMU does.
"""

import errno
import fcntl
import struct

from pellucid.records import dataclass

USED_BASE, FORBIDDEN_BASE = 100, 200
CONSISTENT_READ, WRITE, WRITE_UNCHANGED, RESIZE = range(4)
"""Numbers of the permissions."""
NAMES = {CONSISTENT_READ: "consistent read", WRITE: "write", WRITE_UNCHANGED: "write unchanged", RESIZE: "resize"}

F_OFD_GETLK, F_OFD_SETLK = 36, 37
_FLOCK = struct.Struct("hhqqi4x")
_UNLOCKABLE = (errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class ImageLocked(OSError):
    """Somebody else has the image; `lock` is what could not be had, in QEMU's words."""

    def __init__(self, lock: str) -> None:
        super().__init__(errno.EAGAIN, f"Failed to get {lock} lock")
        self.lock = lock


@dataclass(frozen=True)
class Permissions:
    """What an opener of an image does with it, and what it forbids others to do."""

    used: frozenset[int]
    forbidden: frozenset[int]


FOR_WRITING = Permissions(frozenset({CONSISTENT_READ, WRITE}), frozenset({WRITE}))
FOR_READING = Permissions(frozenset({CONSISTENT_READ}), frozenset({WRITE, RESIZE}))
UNATTACHED = Permissions(frozenset({CONSISTENT_READ}), frozenset())
"""Of an image that no device uses: others may do with it what they like."""


def lock_image(fd: int, permissions: Permissions) -> None:
    """Take the locks of `permissions` on an open image. Raises ImageLocked; the locks taken go with the descriptor."""
    places = [USED_BASE + number for number in permissions.used]
    places += [FORBIDDEN_BASE + number for number in permissions.forbidden]
    for place in places:
        try:
            fcntl.fcntl(fd, F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, 0, place, 1, 0))
        except OSError as error:
            if error.errno in _UNLOCKABLE:
                return
            raise
    for number in sorted(permissions.used):
        if _locked_by_others(fd, FORBIDDEN_BASE + number):
            raise ImageLocked(f'"{NAMES[number]}"')
    for number in sorted(permissions.forbidden):
        if _locked_by_others(fd, USED_BASE + number):
            raise ImageLocked(f'shared "{NAMES[number]}"')


def _locked_by_others(fd: int, place: int) -> bool:
    answer = fcntl.fcntl(fd, F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, 0, place, 1, 0))
    kind: int = _FLOCK.unpack(answer)[0]
    return kind != fcntl.F_UNLCK
