"""A small assembler for ACPI Machine Language (ACPI 6.3, chapter 20): each function returns the bytes of one term.

Only terms that a board here emits are present. Names are given as in ASL (`_SB`, `\\_SB.PWRB`); segments shorter than
four characters are padded with underscores.
"""

import re
import struct
from dataclasses import dataclass

SYSTEM_MEMORY, SYSTEM_IO = 0, 1
"""Address spaces of an operation region."""
_SEGMENT = re.compile("[A-Z_][A-Z0-9_]{0,3}")
BYTE_ACCESS, WORD_ACCESS, DWORD_ACCESS = 1, 2, 3


@dataclass(frozen=True)
class Resources:
    """Where the board put a device: the base of each region in port or memory space, and its interrupt."""

    ports: tuple[int, ...] = ()
    mmio: tuple[int, ...] = ()
    gsi: int = 0


def name_string(path: str) -> bytes:
    """NameString: an optional root prefix and one or more segments (20.2.2)."""
    root, path = (b"\\", path[1:]) if path.startswith("\\") else (b"", path)
    segments = [_segment(segment) for segment in path.split(".")] if path else []
    prefix = {0: b"\0", 1: b"", 2: b"\x2e"}.get(len(segments), b"\x2f" + bytes((len(segments),)))
    return root + prefix + b"".join(segments)


def _segment(text: str) -> bytes:
    if not _SEGMENT.fullmatch(text):
        raise ValueError(f"{text!r} is not an AML name segment")
    return text.ljust(4, "_").encode("ascii")


def _package(content: bytes) -> bytes:
    """`content` after its PkgLength (20.2.4), which counts itself: 6 bits in one byte, else 4 and up to three bytes."""
    if len(content) + 1 < 1 << 6:
        return bytes((len(content) + 1,)) + content
    for extra in (1, 2, 3):
        length = len(content) + 1 + extra
        if length < 1 << (4 + 8 * extra):
            return bytes((extra << 6 | length & 15,)) + (length >> 4).to_bytes(extra, "little") + content
    raise ValueError("an AML package must be shorter than 256 MiB")


def integer(value: int) -> bytes:
    """The shortest encoding of an unsigned integer (20.2.3)."""
    if value in (0, 1):
        return bytes((value,))
    for prefix, size in ((0x0A, 1), (0x0B, 2), (0x0C, 4), (0x0E, 8)):
        if value < 1 << 8 * size:
            return bytes((prefix,)) + value.to_bytes(size, "little")
    raise ValueError(f"{value:#x} does not fit an AML integer")


def string(text: str) -> bytes:
    """A string of ASCII characters."""
    return b"\x0d" + text.encode("ascii") + b"\0"


def eisa_id(text: str) -> bytes:
    """EISAID("PNP0501"): three letters and four hexadecimal digits packed into a dword (19.3.4)."""
    letters = [ord(letter) - 0x40 for letter in text[:3]]
    packed = letters[0] << 26 | letters[1] << 21 | letters[2] << 16 | int(text[3:7], 16)
    return b"\x0c" + packed.to_bytes(4, "big")


def name(path: str, value: bytes) -> bytes:
    """Name(path, value)."""
    return b"\x08" + name_string(path) + value


def scope(path: str, terms: bytes) -> bytes:
    """Scope(path) { terms }."""
    return b"\x10" + _package(name_string(path) + terms)


def device(path: str, terms: bytes) -> bytes:
    """Device(path) { terms }."""
    return b"\x5b\x82" + _package(name_string(path) + terms)


def method(path: str, arguments: int, terms: bytes, *, serialized: bool = False) -> bytes:
    """Method(path, arguments, Serialized | NotSerialized) { terms }."""
    return b"\x14" + _package(name_string(path) + bytes((arguments | serialized << 3,)) + terms)


def package(elements: tuple[bytes, ...]) -> bytes:
    """Package() { elements }."""
    return b"\x12" + _package(bytes((len(elements),)) + b"".join(elements))


def buffer(content: bytes) -> bytes:
    """Buffer() { content }."""
    return b"\x11" + _package(integer(len(content)) + content)


def operation_region(path: str, space: int, offset: int, length: int) -> bytes:
    """OperationRegion(path, space, offset, length)."""
    return b"\x5b\x80" + name_string(path) + bytes((space,)) + integer(offset) + integer(length)


def field(region: str, access: int, fields: tuple[tuple[str, int], ...]) -> bytes:
    """Field(region, access, NoLock, WriteAsZeros) { name, bits ... }."""
    write_as_zeros = 2 << 5
    entries = b"".join(_segment(path) + _field_bits(bits) for path, bits in fields)
    return b"\x5b\x81" + _package(name_string(region) + bytes((access | write_as_zeros,)) + entries)


def _field_bits(bits: int) -> bytes:
    """A field's width has the form of a PkgLength, but does not count itself."""
    if bits < 1 << 6:
        return bytes((bits,))
    return bytes((0x40 | bits & 15, bits >> 4))


def local(index: int) -> bytes:
    """Local0 to Local7."""
    return bytes((0x60 + index,))


def store(source: bytes, target: bytes) -> bytes:
    """Store(source, target)."""
    return b"\x70" + source + target


def and_(left: bytes, right: bytes) -> bytes:
    """And(left, right), with no target."""
    return b"\x7b" + left + right + b"\0"


def equal(left: bytes, right: bytes) -> bytes:
    """LEqual(left, right)."""
    return b"\x93" + left + right


def if_(condition: bytes, terms: bytes) -> bytes:
    """If(condition) { terms }."""
    return b"\xa0" + _package(condition + terms)


def notify(path: str, value: int) -> bytes:
    """Notify(path, value)."""
    return b"\x86" + name_string(path) + integer(value)


def resource_template(*descriptors: bytes) -> bytes:
    """ResourceTemplate() { descriptors }: a buffer with the end tag (6.4)."""
    return buffer(b"".join(descriptors) + b"\x79\0")


def io_ports(base: int, length: int, *, alignment: int = 0) -> bytes:
    """IO(Decode16, base, base, alignment, length) (6.4.2.5)."""
    return struct.pack("<BBHHBB", 0x47, 1, base, base, alignment, length)


def irq(number: int) -> bytes:
    """IRQNoFlags() { number }: edge-triggered, active high, as ISA interrupts are (6.4.2.1)."""
    return struct.pack("<BH", 0x22, 1 << number)


def interrupt(gsi: int, *, edge: bool) -> bytes:
    """Interrupt(ResourceConsumer, Edge | Level, ActiveHigh, Exclusive) { gsi } (6.4.3.6)."""
    return struct.pack("<BHBBI", 0x89, 6, 1 | edge << 1, 1, gsi)
