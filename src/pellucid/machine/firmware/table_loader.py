"""The script by which firmware puts tables into memory: fw_cfg's file `etc/table-loader` (QEMU's table loader, which
SeaBIOS and OVMF carry out). Commands have 128 bytes: a little-endian number, then names of fw_cfg files (56 bytes,
zero-terminated) and little-endian operands.

Firmware chooses the addresses, so tables come with offsets where pointers belong; ADD_POINTER adds the address that the
file they point into has got, and ADD_CHECKSUM makes the bytes of a table sum to 0 afterwards.
"""

import struct

COMMAND_SIZE = 128
ALLOCATE, ADD_POINTER, ADD_CHECKSUM, WRITE_POINTER = 1, 2, 3, 4
ZONE_HIGH, ZONE_FSEG = 1, 2
"""Where a file is put: anywhere below 4 GiB, or in 0xE0000-0xFFFFF, where a guest looks for an RSDP."""
LOADER_UNIT = 4096
"""The script is padded with commands of 0, which end it, to a multiple of this: its size must not change later."""
LONGEST_FILE_NAME = 55


def _file(name: str) -> bytes:
    encoded = name.encode("ascii")
    if not 0 < len(encoded) <= LONGEST_FILE_NAME:
        raise ValueError(f"a table loader's file name has 1 to {LONGEST_FILE_NAME} characters, not {name!r}")
    return encoded


class TableLoader:
    """Commands in the order in which firmware carries them out."""

    def __init__(self) -> None:
        self.commands: list[bytes] = []

    def _add(self, content: bytes) -> None:
        self.commands.append(content.ljust(COMMAND_SIZE, b"\0"))

    def allocate(self, file: str, alignment: int, zone: int) -> None:
        """Read `file` into memory of its own. Comes before every other command about that file."""
        self._add(struct.pack("<I56sIB", ALLOCATE, _file(file), alignment, zone))

    def add_pointer(self, file: str, target: str, offset: int, size: int) -> None:
        """Add the address of `target` to the number of `size` bytes at `offset` of `file`."""
        self._add(struct.pack("<I56s56sIB", ADD_POINTER, _file(file), _file(target), offset, size))

    def add_checksum(self, file: str, offset: int, start: int, length: int) -> None:
        """Subtract the sum of `length` bytes from `start` on from the byte at `offset`, all of `file`."""
        self._add(struct.pack("<I56sIII", ADD_CHECKSUM, _file(file), offset, start, length))

    def write_pointer(self, file: str, target: str, offset: int, target_offset: int, size: int) -> None:
        """Tell the device: write the address of `target` plus `target_offset` into the writable fw_cfg file `file`."""
        command = struct.pack(
            "<I56s56sIIB", WRITE_POINTER, _file(file), _file(target), offset, target_offset, size
        )
        self._add(command)

    def content(self) -> bytes:
        """The file."""
        script = b"".join(self.commands)
        return script.ljust(-(-max(len(script), 1) // LOADER_UNIT) * LOADER_UNIT, b"\0")
