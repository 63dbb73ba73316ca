"""Multiboot kernels (Multiboot Specification 0.6.96): 32-bit images that say themselves where they want to lie.

The loader hands over an information structure with the memory sizes, the command line and the modules; the first
module and its words come from -initrd, the others follow it after commas, as QEMU has it.
"""

import io
import struct

from pellucid.errors import NotBuiltError, UserError
from pellucid.machine.boot.image import MULTIBOOT_MAGIC, MULTIBOOT_SEARCHED
from pellucid.machine.boot.plan import BootPlan, GuestRam
from pellucid.records import dataclass

HEADER_MAGIC = int.from_bytes(MULTIBOOT_MAGIC, "little")
WANTS_VIDEO, HAS_ADDRESSES = 1 << 2, 1 << 16
_PAGE = 4096
_LARGEST = 1 << 30
_WORD, _MODULE = struct.Struct("<I"), struct.Struct("<4I")
INFO_SIZE = 88
MEMORY, BOOT_DEVICE, COMMAND_LINE, MODULES, MEMORY_MAP, LOADER_NAME = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 6, 1 << 9
FIRST_DISK = 0x8000_FFFF
"""The boot device when there is none to speak of: the first hard disk, no partition."""


@dataclass(frozen=True)
class Module:
    """A file beside the kernel, with the words that the kernel gets for it, which begin with the file's name."""

    words: str
    content: bytes


@dataclass(frozen=True)
class MultibootKernel:
    """A kernel as read from `name`: `image` lies from `address` on and is entered at `entry`."""

    name: str
    address: int
    image: bytes
    entry: int

    @classmethod
    def parse(cls, content: bytes, name: str) -> "MultibootKernel":
        """From a whole file whose first 8 KiB hold the header. Raises UserError."""
        found = find_header(content)
        if found is None:
            raise UserError(f"{name}: has no Multiboot header")
        offset, flags = found
        if flags & WANTS_VIDEO:
            raise UserError(f"{name}: asks its loader for a video mode, which a Multiboot kernel does not get here")
        address, image, entry = (_placed_by_header if flags & HAS_ADDRESSES else _placed_by_elf)(content, offset, name)
        if not address <= entry < address + len(image):
            raise UserError(f"{name}: is a damaged Multiboot kernel: its entry {entry:#x} lies outside of it")
        return cls(name, address, image, entry)

    def plan(
        self,
        ram: GuestRam,
        command_line: bytes,
        initrd: bytes,
        *,
        rsdp_address: int = 0,
        rng_seed: bytes = b"",
        long_mode: bool = True,
    ) -> BootPlan:
        """Without firmware nobody asks it for the memory map that the kernel is to be told: raises NotBuiltError."""
        raise NotBuiltError(f"{self.name}: is a Multiboot kernel, which starts under firmware: use -M pc")

    def load_with(self, command_line: bytes, modules: list[Module], memory_map_at: int) -> tuple[bytes, bytes]:
        """(what lies from `address` on, the information structure): the kernel, and behind it what it is told of."""
        texts = bytearray()
        places = []
        for text in (command_line_of(self.name, command_line), b"pellucid", *(m.words.encode() for m in modules)):
            places.append(len(texts))
            texts += text + b"\0"
        image = self.image.ljust(_page_up(len(self.image)), b"\0")
        table_at = self.address + len(image)
        texts_at = table_at + _MODULE.size * len(modules)
        start = _page_up(texts_at + len(texts))
        table, contents = bytearray(), bytearray()
        for module, place in zip(modules, places[2:], strict=True):
            begin = start + len(contents)
            table += _MODULE.pack(begin, begin + len(module.content), texts_at + place, 0)
            contents += module.content.ljust(_page_up(len(module.content)), b"\0")
        whole = image + table + texts + bytes(start - texts_at - len(texts)) + contents
        info = bytearray(INFO_SIZE)
        flags = MEMORY | BOOT_DEVICE | COMMAND_LINE | MODULES | MEMORY_MAP | LOADER_NAME
        for at, value in ((0, flags), (12, FIRST_DISK), (16, texts_at + places[0]), (20, len(modules)),
                          (24, table_at), (48, memory_map_at), (64, texts_at + places[1])):
            _WORD.pack_into(info, at, value)
        return whole, bytes(info)


def command_line_of(name: str, append: bytes) -> bytes:
    """What the kernel gets: its own name before the user's words."""
    return name.encode() + (b" " + append if append else b"")


def find_header(content: bytes) -> tuple[int, int] | None:
    """(offset, flags) of the header: magic, flags and a checksum that add up to nothing, on a 4-byte boundary."""
    for offset in range(0, min(len(content), MULTIBOOT_SEARCHED) - 11, 4):
        magic, flags, checksum = struct.unpack_from("<3I", content, offset)
        if magic == HEADER_MAGIC and (magic + flags + checksum) & 0xFFFF_FFFF == 0:
            return offset, flags
    return None


def _placed_by_header(content: bytes, offset: int, name: str) -> tuple[int, bytes, int]:
    if len(content) < offset + 32:
        raise UserError(f"{name}: is a damaged Multiboot kernel: it ends within its header")
    header, load, load_end, bss_end, entry = struct.unpack_from("<5I", content, offset + 12)
    first = offset - (header - load)
    if first < 0 or header < load or (load_end and load_end < load) or (bss_end and bss_end < load_end):
        raise UserError(f"{name}: is a damaged Multiboot kernel: its header's addresses contradict each other")
    image = content[first : first + load_end - load] if load_end else content[first:]
    if bss_end - load > _LARGEST:
        raise UserError(f"{name}: is a damaged Multiboot kernel: it claims {bss_end - load} bytes")
    return load, image.ljust(max(len(image), bss_end - load), b"\0"), entry


def _placed_by_elf(content: bytes, _: int, name: str) -> tuple[int, bytes, int]:
    from elftools.elf.elffile import ELFFile  # a tenth of a start, which most kernels do not need

    try:
        elf = ELFFile(io.BytesIO(content))
        wide = elf.elfclass != 32
        loads = [(load["p_paddr"], load.data(), load["p_memsz"]) for load in elf.iter_segments("PT_LOAD")]
        entry = elf["e_entry"]
    except Exception as error:
        # pyelftools lets out whatever its parsing trips over: its own errors, construct's, Python's.
        raise UserError(f"{name}: is a damaged ELF file ({type(error).__name__}: {error})") from None
    if wide:
        raise UserError(f"{name}: a Multiboot kernel must be a 32-bit ELF file: objcopy -O elf32-i386 makes it one")
    low, high = min((load[0] for load in loads), default=0), max((load[0] + load[2] for load in loads), default=0)
    if high - low > _LARGEST or any(len(data) > size for _, data, size in loads):
        raise UserError(f"{name}: is a damaged ELF file: its segments take {high - low} bytes")
    image = bytearray(high - low)
    for address, data, _ in loads:
        image[address - low : address - low + len(data)] = data
    return low, bytes(image), entry


def _page_up(value: int) -> int:
    return -(-value // _PAGE) * _PAGE
