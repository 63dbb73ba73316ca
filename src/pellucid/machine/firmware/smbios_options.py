"""-smbios: `type=N,field=value,...` and `file=FILE`, checked and gathered for `smbios.py`. Field names are QEMU's."""

import re
from collections.abc import Sequence
from pathlib import Path

from pellucid.errors import NotBuiltError, UserError
from pellucid.machine.firmware.smbios import Fields, SmbiosOptions

Pairs = Sequence[tuple[str, str]]
"""One -smbios option: its NAME=VALUE pairs, in order."""

MADE = ("manufacturer", "version", "serial", "asset")
FIELDS = {
    0: ("vendor", "version", "date", "release", "uefi"),
    1: ("manufacturer", "product", "version", "serial", "uuid", "sku", "family"),
    2: (*MADE, "product", "location"),
    3: (*MADE, "sku"),
    4: ("sock_pfx", *MADE, "part", "max-speed", "current-speed"),
    11: ("value", "path"),
    17: ("loc_pfx", "bank", "manufacturer", "serial", "asset", "part", "speed"),
}
NOT_BUILT = (8, 41)
LARGEST_FILE = 1 << 16
HEADER_SIZE = 4
NUMBERS = {(4, "max-speed"), (4, "current-speed"), (17, "speed")}


def parse_smbios(options: Sequence[Pairs], uuid: bytes = bytes(16)) -> SmbiosOptions:
    """All -smbios options together. Raises UserError and NotBuiltError."""
    fields: dict[int, Fields] = {}
    strings: list[bytes] = []
    structures: list[bytes] = []
    for pairs in options:
        words = dict(pairs)
        if "file" in words:
            structures.append(_structure(pairs))
            continue
        type_ = _type(words)
        values = [(name, value) for name, value in pairs if name != "type"]
        _check(type_, values)
        if type_ == 11:
            strings += [_oem_string(name, value) for name, value in values]
        else:
            fields.setdefault(type_, {}).update(values)
    if "uuid" in fields.get(1, {}):
        uuid = parse_uuid("smbios", fields[1]["uuid"])
    for content in structures:
        if content[0] in fields:
            raise UserError(f"-smbios: type {content[0]} is given both as a file and by its fields: choose one")
    return SmbiosOptions(fields, strings, structures, uuid)


def parse_uuid(option: str, text: str) -> bytes:
    """The 16 bytes of a UUID in its usual form."""
    if not re.fullmatch("[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", text):
        raise UserError(f"-{option} {text}: not a UUID: write it as 550e8400-e29b-41d4-a716-446655440000")
    return bytes.fromhex(text.replace("-", ""))


def _type(words: dict[str, str]) -> int:
    text = words.get("type", "")
    if not text.isdecimal() or int(text) > 0xFF:
        raise UserError(f"-smbios: type={text or '(missing)'}: give type=N with N one of {_known()}, or file=FILE")
    number = int(text)
    if number in NOT_BUILT:
        raise NotBuiltError(f"-smbios type={number}: not built yet: leave it out")
    if number not in FIELDS:
        raise UserError(f"-smbios type={number}: no fields of this type can be set; those of {_known()} can")
    return number


def _known() -> str:
    return ", ".join(map(str, FIELDS))


def _check(type_: int, values: Pairs) -> None:
    for name, value in values:
        where = f"-smbios type={type_},{name}={value}"
        if name not in FIELDS[type_]:
            raise UserError(f"{where}: no such field; there are: {', '.join(FIELDS[type_])}")
        if "\0" in value:
            raise UserError(f"{where}: a string cannot have a zero byte: leave it out")
        if (type_, name) in NUMBERS and not (value.isdecimal() and int(value) <= 0xFFFF):
            raise UserError(f"{where}: give a number from 0 to 65535")
        if name == "uefi" and value not in ("on", "off"):
            raise UserError(f"{where}: give on or off")
        if name == "release" and not re.fullmatch(r"\d{1,3}\.\d{1,3}", value):
            raise UserError(f"{where}: write it as MAJOR.MINOR, both up to 255")
        if name == "release" and max(map(int, value.split("."))) > 0xFF:
            raise UserError(f"{where}: write it as MAJOR.MINOR, both up to 255")


def _oem_string(name: str, value: str) -> bytes:
    content = value.encode() if name == "value" else _read(Path(value))
    if not content or b"\0" in content:
        raise UserError(f"-smbios type=11,{name}={value}: a string must have a character, and no zero byte")
    return content


def _structure(pairs: Pairs) -> bytes:
    """A file with one structure: header, fields, strings, and the two zeros at the end."""
    if len(pairs) > 1:
        raise UserError("-smbios file=FILE takes no further fields")
    name = pairs[0][1]
    content = _read(Path(name))
    fixed = content[1] if len(content) >= HEADER_SIZE else 0
    if fixed < HEADER_SIZE or len(content) < fixed + 2 or not content.endswith(b"\0\0"):
        raise UserError(f"-smbios file={name}: not a whole SMBIOS structure: it must end in two zero bytes")
    return content


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise UserError(f"-smbios: {path}: not a regular file")
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"-smbios: {path}: larger than {LARGEST_FILE >> 10} KiB")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"-smbios: {path}: {error.strerror}") from None
