"""The Linux/x86 boot protocol for a bzImage (Documentation/x86/boot.rst and zero-page.rst).

The real-mode setup code is not run: what it would have asked the firmware for is written straight into the boot
parameters ("zero page"), and the kernel is entered at its 64-bit entry point, or at the 32-bit one when it has no other
or the processor has no long mode.

A relocatable kernel is loaded at the address it prefers. Its initrd goes as high as the kernel's own limit and RAM
below 4 GiB allow, because the kernel spreads out upwards from where it is loaded.
"""

import struct

from pellucid.errors import UserError
from pellucid.machine.boot import cpu_state
from pellucid.machine.boot.plan import (
    BOOT_PARAMS_ADDRESS,
    COMMAND_LINE_ADDRESS,
    LONGEST_COMMAND_LINE,
    PAGE_SIZE,
    SETUP_DATA_ADDRESS,
    BootPlan,
    GuestRam,
    MemoryMapEntry,
    in_units,
    page_down,
    page_up,
)
from pellucid.records import dataclass

HEADER_MAGIC = b"HdrS"
HEADER_START, HEADER_JUMP_TARGET = 0x1F1, 0x202
OLDEST_PROTOCOL = 0x0202
"""Linux 2.4.0: the first with a command line pointer, which the 32-bit entry needs."""
LOADED_HIGH, CAN_USE_HEAP = 0x01, 0x80
XLF_KERNEL_64 = 0x0001
UNDEFINED_LOADER = 0xFF
DEFAULT_INITRD_MAX = 0x37FF_FFFF
DEFAULT_COMMAND_LINE_SIZE = 255
ENTRY_64_OFFSET = 0x200
E820_OFFSET, E820_COUNT_OFFSET, E820_MOST = 0x2D0, 0x1E8, 128
ACPI_RSDP_OFFSET = 0x070
EXT_RAMDISK_IMAGE, EXT_RAMDISK_SIZE, EXT_COMMAND_LINE = 0x0C0, 0x0C4, 0x0C8
SETUP_RNG_SEED = 9
"""setup_data type of a seed for the kernel's random number generator (Linux 6.0; older kernels skip it)."""


@dataclass(frozen=True)
class SetupHeader:
    """The fields of the setup header that a loader reads; those that an old protocol lacks have its defaults."""

    setup_sectors: int
    protocol: int
    loadflags: int
    code32_start: int
    initrd_addr_max: int
    relocatable: bool
    xloadflags: int
    command_line_size: int
    """Longest command line, the closing zero byte not counted."""
    pref_address: int
    init_size: int
    """Bytes that the kernel needs from its load address on before it looks at the memory map; 0 when not told."""

    @property
    def protocol_text(self) -> str:
        """As the kernel's documentation writes it: 2.15."""
        return f"{self.protocol >> 8}.{self.protocol & 0xFF:02}"

    @property
    def payload_offset(self) -> int:
        """Where in the file the protected-mode kernel begins."""
        return (self.setup_sectors + 1) * 512


def is_bzimage(content: bytes) -> bool:
    """Whether the file has a Linux/x86 setup header."""
    return content[0x202:0x206] == HEADER_MAGIC and content[0x1FE:0x200] == b"\x55\xaa"


def parse_header(content: bytes, name: str) -> SetupHeader:
    """The header of a file that is_bzimage(). Raises UserError, naming the file, for what cannot be booted."""
    content = content.ljust(0x268, b"\0")
    (protocol,) = struct.unpack_from("<H", content, 0x206)

    def field(format: str, offset: int, since: int, default: int) -> int:
        value: int = struct.unpack_from("<" + format, content, offset)[0]
        return value if protocol >= since else default

    header = SetupHeader(
        setup_sectors=content[HEADER_START] or 4,
        protocol=protocol,
        loadflags=content[0x211],
        code32_start=field("I", 0x214, 0x0200, 0),
        initrd_addr_max=field("I", 0x22C, 0x0203, DEFAULT_INITRD_MAX),
        relocatable=bool(field("B", 0x234, 0x0205, 0)),
        xloadflags=field("H", 0x236, 0x020C, 0),
        command_line_size=field("I", 0x238, 0x0206, DEFAULT_COMMAND_LINE_SIZE),
        pref_address=field("Q", 0x258, 0x020A, 0),
        init_size=field("I", 0x260, 0x020A, 0),
    )
    if protocol < OLDEST_PROTOCOL:
        raise UserError(
            f"{name}: its boot protocol {header.protocol_text} is too old; give a kernel of Linux 2.4 or later"
        )
    if not header.loadflags & LOADED_HIGH:
        raise UserError(f"{name}: is a zImage, which loads below 1 MiB; build a bzImage")
    if header.payload_offset >= len(content):
        raise UserError(f"{name}: the kernel is truncated: its code should begin at byte {header.payload_offset}")
    return header


@dataclass(frozen=True)
class BzImage:
    """A bzImage as read from `name`."""

    name: str
    content: bytes
    header: SetupHeader

    @classmethod
    def parse(cls, content: bytes, name: str) -> "BzImage":
        """From a whole file. Raises UserError."""
        return cls(name, content, parse_header(content, name))

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
        """Where everything goes. `long_mode`: the processor has it. Raises UserError for what does not fit."""
        header, payload = self.header, memoryview(self.content)[self.header.payload_offset :]
        _check_command_line(command_line, min(header.command_line_size, LONGEST_COMMAND_LINE - 1))
        load_address = self._load_address()
        kernel_end = load_address + max(header.init_size, len(payload))
        if kernel_end > ram.below_4g:
            raise UserError(
                f"{self.name}: needs {in_units(kernel_end)} of RAM just to unpack itself, "
                f"but the guest has {in_units(ram.below_4g)} below 4 GiB; give more with -m"
            )
        initrd_address = self._initrd_address(ram, kernel_end, len(initrd))
        use_64 = long_mode and bool(header.xloadflags & XLF_KERNEL_64)
        if use_64:
            segments, regs, sregs = cpu_state.long_mode(load_address + ENTRY_64_OFFSET, BOOT_PARAMS_ADDRESS)
        else:
            segments, regs, sregs = cpu_state.protected_mode(load_address, rsi=BOOT_PARAMS_ADDRESS)
        params = self._boot_params(load_address, ram.memory_map, (initrd_address, len(initrd)), rsdp_address)
        if rng_seed:
            put(params, 0x250, "Q", SETUP_DATA_ADDRESS)
            segments.append((SETUP_DATA_ADDRESS, struct.pack("<QII", 0, SETUP_RNG_SEED, len(rng_seed)) + rng_seed))
        segments += [
            (BOOT_PARAMS_ADDRESS, bytes(params)),
            (COMMAND_LINE_ADDRESS, command_line + b"\0"),
            (load_address, bytes(payload)),
        ]
        if initrd:
            segments.append((initrd_address, initrd))
        how = f"boot protocol {header.protocol_text}, {64 if use_64 else 32}-bit entry at {regs.rip:#x}"
        return BootPlan(segments, regs, sregs, how + (f", initrd at {initrd_address:#x}" if initrd else ""))

    def _load_address(self) -> int:
        header = self.header
        if header.relocatable and header.pref_address:
            return header.pref_address
        return header.code32_start or 0x10_0000

    def _initrd_address(self, ram: GuestRam, kernel_end: int, size: int) -> int:
        highest_end = min(self.header.initrd_addr_max + 1, ram.below_4g)
        address = page_down(highest_end - size)
        if size and address < page_up(kernel_end):
            room = max(page_down(highest_end) - page_up(kernel_end), 0)
            raise UserError(
                f"the initrd of {in_units(size)} does not fit: beside the kernel there is room for {in_units(room)} "
                f"below {highest_end:#x}; give more memory with -m or a smaller initrd"
            )
        return address if size else 0

    def _boot_params(
        self, load_address: int, memory_map: tuple[MemoryMapEntry, ...], initrd: tuple[int, int], rsdp_address: int
    ) -> bytearray:
        params = bytearray(PAGE_SIZE)
        # The header ends where the jump at 0x200 leads.
        end = min(HEADER_JUMP_TARGET + self.content[0x201], 0x290)
        params[HEADER_START:end] = self.content[HEADER_START:end]
        params[0x210] = UNDEFINED_LOADER
        params[0x211] |= CAN_USE_HEAP
        put(params, 0x214, "I", load_address)
        put(params, 0x224, "H", 0xFE00)  # heap_end_ptr; only setup code would look at it.
        put(params, 0x228, "I", COMMAND_LINE_ADDRESS)
        put(params, EXT_COMMAND_LINE, "I", COMMAND_LINE_ADDRESS >> 32)
        put(params, 0x250, "Q", 0)
        for low, ext, value in ((0x218, EXT_RAMDISK_IMAGE, initrd[0]), (0x21C, EXT_RAMDISK_SIZE, initrd[1])):
            put(params, low, "I", value & 0xFFFF_FFFF)
            put(params, ext, "I", value >> 32)
        put(params, ACPI_RSDP_OFFSET, "Q", rsdp_address)
        params[E820_COUNT_OFFSET] = len(memory_map)
        assert len(memory_map) <= E820_MOST
        for index, entry in enumerate(memory_map):
            put(params, E820_OFFSET + 20 * index, "QQI", entry.address, entry.size, entry.type)
        return params


def put(params: bytearray, offset: int, format: str, *values: int) -> None:
    """Write little-endian fields at `offset`."""
    struct.pack_into("<" + format, params, offset, *values)


def _check_command_line(command_line: bytes, longest: int) -> None:
    if len(command_line) > longest:
        raise UserError(f"-append is {len(command_line)} bytes long; this kernel takes at most {longest}")
