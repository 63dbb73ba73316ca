"""Reading Debian binary packages: an `ar` archive that holds a compressed tar of the files (deb(5), ar(5)).

Only named members are read, into memory; nothing is unpacked by the archive's own paths, so no path in it is trusted.
"""

import gzip
import io
import lzma
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, cast

import zstandard

from pellucid.errors import UserError

AR_MAGIC = b"!<arch>\n"
AR_HEADER_SIZE = 60
AR_HEADER_END = b"`\n"


def ar_members(archive: IO[bytes]) -> Iterator[tuple[str, int]]:
    """Yields (name, size in bytes) of each member, with `archive` placed at the member's first byte.

    Raises ValueError when the bytes are not an ar archive or are cut short.
    """
    if archive.read(len(AR_MAGIC)) != AR_MAGIC:
        raise ValueError("no ar archive")
    while header := archive.read(AR_HEADER_SIZE):
        if len(header) < AR_HEADER_SIZE or not header.endswith(AR_HEADER_END):
            raise ValueError("damaged ar header")
        name = header[:16].decode("ascii", "replace").rstrip().rstrip("/")
        size_text = header[48:58].strip()
        if not size_text.isdigit():
            raise ValueError("damaged ar header")
        size = int(size_text)
        start = archive.tell()
        yield name, size
        archive.seek(start + size + (size & 1))  # members start at even offsets


def _open_zstd(stream: IO[bytes]) -> IO[bytes]:
    return zstandard.ZstdDecompressor().stream_reader(stream)


def _open_xz(stream: IO[bytes]) -> IO[bytes]:
    return lzma.LZMAFile(stream)


def _open_gzip(stream: IO[bytes]) -> IO[bytes]:
    return cast(IO[bytes], gzip.GzipFile(fileobj=stream))


DECOMPRESSORS: dict[str, Callable[[IO[bytes]], IO[bytes]]] = {
    "": lambda stream: stream,
    ".xz": _open_xz,
    ".zst": _open_zstd,
    ".gz": _open_gzip,
}


HOW_TO_BRING_ONE = "pass your own file with -kernel and -initrd"
DAMAGED = (ValueError, EOFError, tarfile.TarError, lzma.LZMAError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError)


def package_file(package: Path, pattern: str) -> tuple[str, bytes]:
    """(path, content) of the first regular file in a .deb whose path without leading `./` matches `pattern` whole.

    Raises UserError when the package is damaged or has no such file.
    """
    found = next(package_files(package, pattern), None)
    if found is None:
        raise UserError(f"{package.name}: no file in it matches {pattern}: {HOW_TO_BRING_ONE}")
    return found


def package_files(package: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """(path, content) of each regular file in a .deb whose path without leading `./` matches `pattern` whole.

    Raises UserError when the package is damaged.
    """
    try:
        with package.open("rb") as archive:
            yield from _find_in_tar(_data(archive), re.compile(pattern))
    except DAMAGED as error:
        raise UserError(f"{package.name}: damaged package ({error}): remove it and try again") from error
    except LookupError as error:
        raise UserError(f"{package.name}: {error.args[0]}: {HOW_TO_BRING_ONE}") from error


def _data(archive: IO[bytes]) -> IO[bytes]:
    """The package's files as a tar stream."""
    for name, size in ar_members(archive):
        if not name.startswith("data.tar"):
            continue
        suffix = name.removeprefix("data.tar")
        if suffix not in DECOMPRESSORS:
            raise LookupError(f"data compressed as {suffix!r}, which is not one of xz, zst, gz")
        return DECOMPRESSORS[suffix](io.BytesIO(archive.read(size)))
    raise ValueError("no data.tar in it")


def _find_in_tar(stream: IO[bytes], wanted: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            path = member.name.removeprefix("./")
            if not member.isreg() or not wanted.fullmatch(path):
                continue
            content = tar.extractfile(member)
            if content is not None:
                yield path, content.read()
