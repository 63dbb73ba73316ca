"""The user's cache folder: where the default guest is kept between runs.

A thing in the cache is a folder that appears whole or not at all: it is filled under a private name beside its final
one and then renamed, so two processes that fetch the same thing at once both end with a good copy, and a kill or a
full disk leaves nothing half-written behind the final name.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pellucid.errors import UserError
from pellucid.native.cache import folder


def guest_cache() -> Path:
    """The folder of the default guest's parts, beside those of compiled code."""
    return folder("guest")


def folder_size(folder: Path) -> int:
    """Bytes held by the regular files under `folder`; 0 where there is none. Files that vanish meanwhile count 0."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue
    return total


@contextmanager
def scratch_folder(beside: Path) -> Iterator[Path]:
    """A private folder next to `beside`, on the same file system; removed at the end unless renamed away."""
    beside.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{beside.name}.", dir=beside.parent))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def publish_folder(final: Path, fill: Callable[[Path], None]) -> Path:
    """`final`, filled by `fill(folder)` unless it is there already.

    Raises UserError when the disk is full or the cache folder cannot be written.
    """
    if final.is_dir():
        return final
    try:
        with scratch_folder(final) as scratch:
            content = scratch / "content"
            content.mkdir()
            fill(content)
            _rename_folder(content, final)
    except OSError as error:
        raise cache_write_error(final.parent, error) from error
    return final


def publish_file(final: Path, content: bytes) -> Path:
    """`final` holding `content`: written under a private name, then renamed. Raises UserError as publish_folder."""
    try:
        with scratch_folder(final) as scratch:
            (scratch / "content").write_bytes(content)
            os.replace(scratch / "content", final)
    except OSError as error:
        raise cache_write_error(final.parent, error) from error
    return final


def cache_write_error(folder: Path, error: OSError) -> UserError:
    """The one line for a cache that cannot be written."""
    reason = error.strerror or str(error)
    return UserError(
        f"cannot write the cache folder {folder}: {reason}: make room or rights there, or set XDG_CACHE_HOME to another"
    )


def _rename_folder(content: Path, final: Path) -> None:
    try:
        os.rename(content, final)
    except OSError:
        # rename(2) refuses a target folder that is not empty: another process published the same thing first.
        if not final.is_dir():
            raise
