"""The on-disk cache of compiled code: bounded, shared between processes, never trusted when damaged.

A file appears whole, by rename; it ends in the SHA-256 of what precedes, so a torn or altered one is
ignored and made again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import time
from pathlib import Path

log = logging.getLogger("pellucid.cache")
BOUND = 256 << 20
_NEW = ".new"        # a file that is being written; its writer may have died
_ABANDONED = 3600    # seconds
_told = False


def folder(kind: str) -> Path:
    """Where this kind of file is kept: $PELLUCID_CACHE, else $XDG_CACHE_HOME/pellucid, else ~/.cache/pellucid."""
    own = os.environ.get("PELLUCID_CACHE")
    if own:
        return Path(own) / kind
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "pellucid" / kind


def key(*parts: str | bytes) -> str:
    """A name for what depends on `parts`."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()[:40]


def get(kind: str, name: str) -> bytes | None:
    """The stored bytes, or None where there are none that are whole."""
    path = folder(kind) / name
    try:
        raw = path.read_bytes()
    except OSError:
        return None
    body, digest = raw[:-32], raw[-32:]
    if hashlib.sha256(body).digest() != digest:
        return None
    try:
        os.utime(path)
    except OSError:
        pass  # a read-only cache still serves
    return body


def put(kind: str, name: str, body: bytes, bound: int = BOUND) -> bool:
    """Store; False where the folder cannot be written or the disk is full (the caller goes on without).

    The first failure is told, since from then on every start does the work again.
    """
    global _told
    place = folder(kind)
    temporary = ""
    try:
        place.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=place, prefix=_NEW)
        with os.fdopen(handle, "wb") as out:
            out.write(body + hashlib.sha256(body).digest())
        os.replace(temporary, place / name)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        if not _told:
            _told = True
            log.warning("%s: %s: nothing is kept for the next start; make it writable, or set PELLUCID_CACHE to a "
                        "folder that is", place, error.strerror)
        return False
    _prune(place, bound)
    return True


def _prune(place: Path, bound: int) -> None:
    """Remove the files used longest ago until the folder fits `bound` bytes; others may do so at the same time."""
    files = []
    try:
        for path in place.iterdir():
            try:
                status = path.stat()
            except OSError:
                continue  # another process removed it
            if not path.name.startswith(_NEW) or status.st_mtime < time.time() - _ABANDONED:
                files.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= bound:
                return
            path.unlink(missing_ok=True)
            total -= size
    except OSError:
        return  # a folder that cannot be listed or changed stays as it is
