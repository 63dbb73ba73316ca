"""Kernels made up for tests: the smallest files that the boot protocols call kernels."""

import struct

from pellucid.machine.boards.microvm import memory_map
from pellucid.machine.boot.plan import GuestRam

MiB = 1 << 20


def bzimage(
    payload: bytes = b"KERNEL" * 100,
    *,
    protocol: int = 0x20F,
    setup_sectors: int = 4,
    loadflags: int = 1,
    initrd_addr_max: int = 0x7FFF_FFFF,
    relocatable: int = 1,
    xloadflags: int = 1,
    command_line_size: int = 2047,
    pref_address: int = 16 * MiB,
    init_size: int = 8 * MiB,
) -> bytes:
    """A file with a setup header of these fields, and `payload` as its protected-mode code."""
    image = bytearray((setup_sectors + 1) * 512)
    image[0x1F1] = setup_sectors
    image[0x1FE:0x200] = b"\x55\xaa"
    image[0x200:0x202] = b"\xeb\x6a"  # jmp to 0x26c: the header's end
    image[0x202:0x206] = b"HdrS"
    for format, offset, value in (
        ("H", 0x206, protocol),
        ("B", 0x211, loadflags),
        ("I", 0x214, 0x10_0000),
        ("I", 0x22C, initrd_addr_max),
        ("I", 0x230, 0x20_0000),
        ("B", 0x234, relocatable),
        ("H", 0x236, xloadflags),
        ("I", 0x238, command_line_size),
        ("Q", 0x258, pref_address),
        ("I", 0x260, init_size),
    ):
        struct.pack_into("<" + format, image, offset, value)
    return bytes(image) + payload


def vmlinux(
    code: bytes = b"\xf4" * 64,
    *,
    address: int = 16 * MiB,
    memory_size: int = 0x3000,
    entry: int | None = None,
    note_name: bytes = b"Xen\0",
    note_type: int = 18,
    entry_size: int = 8,
    machine: int = 62,
) -> bytes:
    """A 64-bit ELF file with one PT_LOAD and one PT_NOTE segment."""
    entry = address + 0x10 if entry is None else entry
    descriptor = entry.to_bytes(entry_size, "little")
    note = struct.pack("<III", len(note_name), entry_size, note_type) + note_name + descriptor
    headers = 64 + 2 * 56
    identity = b"\x7fELF" + bytes((2, 1, 1)) + bytes(9)
    header = identity + struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 7, headers + len(note), address, address, len(code), memory_size, 0x1000)
    notes = struct.pack("<IIQQQQQQ", 4, 4, headers, 0, 0, len(note), len(note), 4)
    return header + load + notes + note + code


def ram(size: int = 128 * MiB, above: int = 0) -> GuestRam:
    """RAM of a microvm."""
    return GuestRam(size, above, memory_map(size, above))
