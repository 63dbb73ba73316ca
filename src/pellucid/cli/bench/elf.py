"""Writing the ELF files of the benchmark: static 64-bit programs for Linux, and a kernel that starts by PVH.

Layouts: System V ABI, "Object Files"; the PVH note: Xen's docs/misc/pvh, XEN_ELFNOTE_PHYS32_ENTRY.
"""

import struct
from collections.abc import Sequence

from pellucid.records import dataclass

PAGE_SIZE = 4096
NOTE_ALIGNMENT = 4
"""Of a note segment: loaders round a note's name up to it to find what follows."""
HEADER_SIZE, PROGRAM_HEADER_SIZE = 64, 56
ET_EXEC, EM_X86_64 = 2, 62
PT_LOAD, PT_NOTE = 1, 4
PF_X, PF_W, PF_R = 1, 2, 4
XEN_ELFNOTE_PHYS32_ENTRY = 18

TEXT_ADDRESS = 0x40_0000
DATA_ADDRESS = 0x1000_0000
KERNEL_ADDRESS = 0x10_0000


@dataclass(frozen=True)
class Segment:
    """One program header: `content`, and zeros up to `size` bytes, at `address`."""

    type: int
    flags: int
    address: int
    content: bytes
    size: int


def program(code: bytes, entry: int, data_size: int) -> bytes:
    """A static program: `code` at TEXT_ADDRESS, readable and executable, and zeroed memory at DATA_ADDRESS."""
    text = Segment(PT_LOAD, PF_R | PF_X, TEXT_ADDRESS, code, len(code))
    return elf([text, Segment(PT_LOAD, PF_R | PF_W, DATA_ADDRESS, b"", data_size)], entry)


def pvh_kernel(code: bytes) -> bytes:
    """A kernel: 32-bit `code` at KERNEL_ADDRESS, entered at its first byte with paging off."""
    name = b"Xen\0"
    note = struct.pack("<III", len(name), 4, XEN_ELFNOTE_PHYS32_ENTRY) + name + struct.pack("<I", KERNEL_ADDRESS)
    text = Segment(PT_LOAD, PF_R | PF_W | PF_X, KERNEL_ADDRESS, code, len(code))
    return elf([text, Segment(PT_NOTE, PF_R, 0, note, len(note))], KERNEL_ADDRESS)


def elf(segments: Sequence[Segment], entry: int) -> bytes:
    """An executable of these segments; each begins on a page of the file, as those of its address must."""
    headers = HEADER_SIZE + PROGRAM_HEADER_SIZE * len(segments)
    out = bytearray(b"\x7fELF" + bytes((2, 1, 1)) + bytes(9))
    out += struct.pack("<HHIQQQIHHHHHH", ET_EXEC, EM_X86_64, 1, entry, HEADER_SIZE, 0, 0,
                       HEADER_SIZE, PROGRAM_HEADER_SIZE, len(segments), 0, 0, 0)  # fmt: skip
    offset = headers + -headers % PAGE_SIZE
    contents = bytearray()
    for segment in segments:
        alignment = NOTE_ALIGNMENT if segment.type == PT_NOTE else PAGE_SIZE
        out += struct.pack("<IIQQQQQQ", segment.type, segment.flags, offset + len(contents), segment.address,
                           segment.address, len(segment.content), segment.size, alignment)  # fmt: skip
        contents += segment.content
        contents += bytes(-len(contents) % PAGE_SIZE)
    return bytes(out + bytes(offset - len(out)) + contents)
