"""A small assembler for ACPI Machine Language (ACPI 6.3, chapter 20): each function returns the bytes of one term.

Only terms that a board here emits are present. Names are given as in ASL (`_SB`, `\\_SB.PWRB`); segments shorter than
four characters are padded with underscores. Where ASL takes an operand, `Term` says what may be given: ready bytes, a
number (the shortest constant), or a name (the object's value). So `aml.add("CNT", 1, aml.local(0))` is
`Add (CNT, One, Local0)`. Lists of terms are passed as bytes, one term after the other.
"""

import re
import struct
from collections.abc import Sequence
from uuid import UUID

from pellucid.records import dataclass

SYSTEM_MEMORY, SYSTEM_IO, PCI_CONFIG = 0, 1, 2
"""Address spaces of an operation region."""
_SEGMENT = re.compile("[A-Z_][A-Z0-9_]{0,3}")
BYTE_ACCESS, WORD_ACCESS, DWORD_ACCESS = 1, 2, 3
LOCK = 1 << 4
PRESERVE, WRITE_AS_ZEROS = 0, 2 << 5
"""What a field's write does to the bits of the access unit that belong to other fields."""
NO_TIMEOUT = 0xFFFF

Term = bytes | int | str


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


def term(value: Term) -> bytes:
    """The encoding of an operand: bytes as they are, a number as a constant, a text as a name."""
    if isinstance(value, bytes):
        return value
    return integer(value) if isinstance(value, int) else name_string(value)


def uuid(text: str) -> bytes:
    """ToUUID("...") as the compiler folds it: a buffer of 16 bytes, the first three groups little-endian (19.6.142)."""
    return buffer(UUID(text).bytes_le)


# Objects.


def name(path: str, value: Term) -> bytes:
    """Name(path, value)."""
    return b"\x08" + name_string(path) + term(value)


def scope(path: str, terms: bytes) -> bytes:
    """Scope(path) { terms }."""
    return b"\x10" + _package(name_string(path) + terms)


def device(path: str, terms: bytes) -> bytes:
    """Device(path) { terms }."""
    return b"\x5b\x82" + _package(name_string(path) + terms)


def processor(path: str, uid: int, terms: bytes) -> bytes:
    """Processor(path, uid, 0, 0) { terms }: no processor register block."""
    return b"\x5b\x83" + _package(name_string(path) + struct.pack("<BIB", uid, 0, 0) + terms)


def method(path: str, arguments: int, terms: bytes, *, serialized: bool = False) -> bytes:
    """Method(path, arguments, Serialized | NotSerialized) { terms }."""
    return b"\x14" + _package(name_string(path) + bytes((arguments | serialized << 3,)) + terms)


def mutex(path: str) -> bytes:
    """Mutex(path, 0)."""
    return b"\x5b\x01" + name_string(path) + b"\0"


def package(elements: Sequence[Term], count: int | None = None) -> bytes:
    """Package(count) { elements }; by default as many as are given."""
    number = len(elements) if count is None else count
    return b"\x12" + _package(bytes((number,)) + b"".join(term(element) for element in elements))


def buffer(content: bytes) -> bytes:
    """Buffer() { content }."""
    return b"\x11" + _package(integer(len(content)) + content)


def operation_region(path: str, space: int, offset: int, length: int) -> bytes:
    """OperationRegion(path, space, offset, length)."""
    return b"\x5b\x80" + name_string(path) + bytes((space,)) + integer(offset) + integer(length)


def field(region: str, access: int, fields: Sequence[tuple[str, int]], flags: int = WRITE_AS_ZEROS) -> bytes:
    """Field(region, access, ...) { name, bits ... }; an empty name leaves that many bits out. `flags`: lock, update."""
    entries = b"".join((_segment(path) if path else b"\0") + _field_bits(bits) for path, bits in fields)
    return b"\x5b\x81" + _package(name_string(region) + bytes((access | flags,)) + entries)


def _field_bits(bits: int) -> bytes:
    """A field's width has the form of a PkgLength, but does not count itself."""
    if bits < 1 << 6:
        return bytes((bits,))
    for extra in (1, 2, 3):
        if bits < 1 << (4 + 8 * extra):
            return bytes((extra << 6 | bits & 15,)) + (bits >> 4).to_bytes(extra, "little")
    raise ValueError("an AML field must be shorter than 2**28 bits")


def dword_field(source: Term, offset: Term, path: str) -> bytes:
    """CreateDWordField(source, offset, path)."""
    return b"\x8a" + term(source) + term(offset) + name_string(path)


# Operands.

DEBUG = b"\x5b\x31"


def local(index: int) -> bytes:
    """Local0 to Local7."""
    return bytes((0x60 + index,))


def arg(index: int) -> bytes:
    """Arg0 to Arg6."""
    return bytes((0x68 + index,))


# Operators. A target of b"\0" is none: the result is the term's value.

NOWHERE = b"\0"


def store(source: Term, target: Term) -> bytes:
    """Store(source, target)."""
    return b"\x70" + term(source) + term(target)


def add(left: Term, right: Term, target: Term = NOWHERE) -> bytes:
    """Add(left, right, target)."""
    return b"\x72" + term(left) + term(right) + term(target)


def subtract(left: Term, right: Term, target: Term = NOWHERE) -> bytes:
    """Subtract(left, right, target)."""
    return b"\x74" + term(left) + term(right) + term(target)


def increment(target: Term) -> bytes:
    """Increment(target)."""
    return b"\x75" + term(target)


def shift_left(value: Term, count: Term, target: Term = NOWHERE) -> bytes:
    """ShiftLeft(value, count, target)."""
    return b"\x79" + term(value) + term(count) + term(target)


def shift_right(value: Term, count: Term, target: Term = NOWHERE) -> bytes:
    """ShiftRight(value, count, target)."""
    return b"\x7a" + term(value) + term(count) + term(target)


def and_(left: Term, right: Term, target: Term = NOWHERE) -> bytes:
    """And(left, right, target)."""
    return b"\x7b" + term(left) + term(right) + term(target)


def or_(left: Term, right: Term, target: Term = NOWHERE) -> bytes:
    """Or(left, right, target)."""
    return b"\x7d" + term(left) + term(right) + term(target)


def deref_of(source: Term) -> bytes:
    """DerefOf(source)."""
    return b"\x83" + term(source)


def size_of(source: Term) -> bytes:
    """SizeOf(source)."""
    return b"\x87" + term(source)


def index(source: Term, position: Term) -> bytes:
    """Index(source, position): a reference, for store() and deref_of()."""
    return b"\x88" + term(source) + term(position) + NOWHERE


def to_buffer(source: Term, target: Term) -> bytes:
    """ToBuffer(source, target)."""
    return b"\x96" + term(source) + term(target)


def to_hex_string(source: Term, target: Term) -> bytes:
    """ToHexString(source, target)."""
    return b"\x98" + term(source) + term(target)


def both(left: Term, right: Term) -> bytes:
    """LAnd(left, right)."""
    return b"\x90" + term(left) + term(right)


def either(left: Term, right: Term) -> bytes:
    """LOr(left, right)."""
    return b"\x91" + term(left) + term(right)


def not_(value: Term) -> bytes:
    """LNot(value)."""
    return b"\x92" + term(value)


def equal(left: Term, right: Term) -> bytes:
    """LEqual(left, right)."""
    return b"\x93" + term(left) + term(right)


def greater(left: Term, right: Term) -> bytes:
    """LGreater(left, right)."""
    return b"\x94" + term(left) + term(right)


def less(left: Term, right: Term) -> bytes:
    """LLess(left, right)."""
    return b"\x95" + term(left) + term(right)


def call(path: str, *arguments: Term) -> bytes:
    """path(arguments): the number of arguments is the method's, which the interpreter knows."""
    return name_string(path) + b"".join(term(argument) for argument in arguments)


# Statements.


def if_(condition: Term, terms: bytes) -> bytes:
    """If(condition) { terms }."""
    return b"\xa0" + _package(term(condition) + terms)


def else_(terms: bytes) -> bytes:
    """Else { terms }, right behind an if_()."""
    return b"\xa1" + _package(terms)


def while_(condition: Term, terms: bytes) -> bytes:
    """While(condition) { terms }."""
    return b"\xa2" + _package(term(condition) + terms)


BREAK = b"\xa5"


def return_(value: Term) -> bytes:
    """Return(value)."""
    return b"\xa4" + term(value)


def notify(path: str, value: Term) -> bytes:
    """Notify(path, value)."""
    return b"\x86" + name_string(path) + term(value)


def acquire(path: str) -> bytes:
    """Acquire(path, 0xFFFF): wait as long as it takes."""
    return b"\x5b\x23" + name_string(path) + struct.pack("<H", NO_TIMEOUT)


def release(path: str) -> bytes:
    """Release(path)."""
    return b"\x5b\x27" + name_string(path)


# Resource descriptors (6.4).


def resource_template(*descriptors: bytes) -> bytes:
    """ResourceTemplate() { descriptors }: a buffer with the end tag (6.4)."""
    return buffer(b"".join(descriptors) + b"\x79\0")


def io_ports(base: int, length: int, *, alignment: int = 0) -> bytes:
    """IO(Decode16, base, base, alignment, length) (6.4.2.5)."""
    return struct.pack("<BBHHBB", 0x47, 1, base, base, alignment, length)


def irq(number: int) -> bytes:
    """IRQNoFlags() { number }: edge-triggered, active high, as ISA interrupts are (6.4.2.1)."""
    return struct.pack("<BH", 0x22, 1 << number)


def dma(channel: int) -> bytes:
    """DMA(Compatibility, NotBusMaster, Transfer8) { channel } (6.4.2.2)."""
    return struct.pack("<BBB", 0x2A, 1 << channel, 0)


def interrupt(*gsis: int, edge: bool, shared: bool = False) -> bytes:
    """Interrupt(ResourceConsumer, Edge | Level, ActiveHigh, Exclusive | Shared) { gsis } (6.4.3.6)."""
    flags = 1 | edge << 1 | shared << 3
    return struct.pack(f"<BHBB{len(gsis)}I", 0x89, 2 + 4 * len(gsis), flags, len(gsis), *gsis)


def memory32_fixed(base: int, length: int, *, writable: bool) -> bytes:
    """Memory32Fixed(ReadWrite | ReadOnly, base, length) (6.4.3.4)."""
    return struct.pack("<BHBII", 0x86, 9, writable, base, length)


_MEMORY, _IO, _BUS_NUMBERS = 0, 1, 2
_FIXED_RANGE = 0x0C
"""General flags: minimum and maximum fixed, positive decode, the bridge produces the range for what is behind it."""
_READ_WRITE, _CACHEABLE, _ENTIRE_RANGE = 0x01, 0x02, 0x03


def _address_space(tag: int, format: str, kind: int, flags: int, low: int, high: int) -> bytes:
    """A word, dword or qword address space descriptor of the fixed range low to high, both included (6.4.3.5)."""
    body = struct.pack(f"<BBB5{format}", kind, _FIXED_RANGE, flags, 0, low, high, 0, high - low + 1)
    return struct.pack("<BH", tag, len(body)) + body


def bus_numbers(low: int, high: int) -> bytes:
    """WordBusNumber of a bridge."""
    return _address_space(0x88, "H", _BUS_NUMBERS, 0, low, high)


def io_window(low: int, high: int) -> bytes:
    """WordIO of a bridge."""
    return _address_space(0x88, "H", _IO, _ENTIRE_RANGE, low, high)


def memory_window(low: int, high: int, *, cacheable: bool = False) -> bytes:
    """DWordMemory of a bridge, or QWordMemory for a range from 4 GiB on."""
    flags = _READ_WRITE | (_CACHEABLE if cacheable else 0)
    if high < 1 << 32:
        return _address_space(0x87, "I", _MEMORY, flags, low, high)
    return _address_space(0x8A, "Q", _MEMORY, flags, low, high)
