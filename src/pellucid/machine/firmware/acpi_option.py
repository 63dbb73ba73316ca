"""-acpitable: a table of the user's own, from a whole file or from fields and data. Names and defaults are QEMU's."""

import struct
from collections.abc import Sequence
from pathlib import Path

from pellucid.errors import UserError
from pellucid.machine.firmware.acpi import HEADER, HEADER_SIZE, checksum

Pairs = Sequence[tuple[str, str]]
NAMES = ("sig", "rev", "oem_id", "oem_table_id", "oem_rev", "asl_compiler_id", "asl_compiler_rev", "data", "file")
WIDTHS = {"sig": 4, "oem_id": 6, "oem_table_id": 8, "asl_compiler_id": 4}
DEFAULTS = {"sig": "QEMU", "oem_id": "QEMUQE", "oem_table_id": "QEMUQEMU", "asl_compiler_id": "QEMU"}
LARGEST = 0xFFFF
"""In bytes: the length goes into 16 bits of the item that firmware reads."""


def user_tables(options: Sequence[Pairs]) -> list[bytes]:
    """The tables in order. Raises UserError."""
    return [_table(dict(pairs)) for pairs in options]


def _table(given: dict[str, str]) -> bytes:
    for name in given:
        if name not in NAMES:
            raise UserError(f"-acpitable {name}=: no such field; there are: {', '.join(NAMES)}")
    if ("file" in given) == ("data" in given):
        raise UserError("-acpitable: give either data=FILE[:FILE...] or file=FILE[:FILE...]")
    content = b"".join(_read(Path(name)) for name in (given.get("file") or given["data"]).split(":"))
    header = list(struct.unpack("<4sIBB6s8sI4sI", _default_header()))
    body = content
    if "file" in given:
        if len(content) < HEADER_SIZE:
            raise UserError(f"-acpitable file={given['file']}: {len(content)} bytes, less than a table's header")
        header, body = list(HEADER.unpack_from(content)), content[HEADER_SIZE:]
    header[1] = HEADER_SIZE + len(body)
    for index, name in ((0, "sig"), (4, "oem_id"), (5, "oem_table_id"), (7, "asl_compiler_id")):
        if name in given:
            header[index] = _text(name, given[name])
    for index, name, most in ((2, "rev", 0xFF), (6, "oem_rev", 0xFFFF_FFFF), (8, "asl_compiler_rev", 0xFFFF_FFFF)):
        if name in given:
            header[index] = _number(name, given[name], most)
    header[3] = 0
    whole = bytearray(HEADER.pack(*header) + body)
    whole[9] = checksum(whole)
    if len(whole) > LARGEST:
        raise UserError(f"-acpitable: {len(whole)} bytes; a table has at most {LARGEST}")
    return bytes(whole)


def _default_header() -> bytes:
    texts = {name: text.encode() for name, text in DEFAULTS.items()}
    ids = (texts["oem_id"], texts["oem_table_id"], 1, texts["asl_compiler_id"], 1)
    return HEADER.pack(texts["sig"], 0, 1, 0, *ids)


def _text(name: str, text: str) -> bytes:
    content = text.encode()
    if not 0 < len(content) <= WIDTHS[name]:
        raise UserError(f"-acpitable {name}={text}: give 1 to {WIDTHS[name]} characters")
    return content.ljust(WIDTHS[name], b"\0")


def _number(name: str, text: str, most: int) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if not 0 <= value <= most:
        raise UserError(f"-acpitable {name}={text}: give a number from 0 to {most}")
    return value


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(LARGEST + 1)
    except OSError as error:
        raise UserError(f"-acpitable: {path}: {error.strerror}") from None
