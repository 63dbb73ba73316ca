"""Firmware configuration device (`fw_cfg`, docs/specs/fw_cfg of QEMU): named blobs that firmware and the kernel read.

Region 0 is the traditional pair of ports: a 16-bit selector at offset 0 and a byte-wide data port at offset 1 that
walks through the selected item. Region 1 is the DMA address register, big-endian, whose low half starts a transfer
described by a control block in guest memory.

Item numbers below 0x20 are fixed; files get numbers from 0x20 in the order of their names and are listed in the
directory item. Reading past an item's end gives zeros. Items are the board's business, made anew at every start, so the
saved state is only where the guest has got to.
"""

import struct
from collections.abc import Callable
from typing import Protocol

from pellucid.errors import UserError
from pellucid.machine.device import Device, Region, Register, State
from pellucid.machine.firmware import aml
from pellucid.machine.state import U32, U64
from pellucid.memory.access import AccessSizes, Endianness, MemTxResult

SIGNATURE, INTERFACE_ID, FILE_DIRECTORY, FIRST_FILE = 0x0000, 0x0001, 0x0019, 0x0020
HAS_TRADITIONAL, HAS_DMA = 0x01, 0x02
KEY_MASK = 0x3FFF
"""The selector's item number; bit 14 asks for the write pointer and bit 15 for architecture-local items."""
ARCH_LOCAL = 0x8000
DMA_ERROR, DMA_READ, DMA_SKIP, DMA_SELECT, DMA_WRITE = 0x01, 0x02, 0x04, 0x08, 0x10
DMA_SIGNATURE = int.from_bytes(b"QEMU CFG", "big")
LONGEST_NAME = 55
CHUNK = 1 << 16
"""Bytes moved at a time, so that a guest asking for 4 GiB makes no 4 GiB object."""


class DmaSpace(Protocol):
    """The memory that a device's transfers reach: a `pellucid.memory.AddressSpace`."""

    def try_read_bytes(self, addr: int, length: int) -> tuple[bytearray, MemTxResult]:
        """The bytes, zeros where nothing answered, and whether all of it did."""
        ...

    def write_bytes(self, addr: int, data: bytes) -> MemTxResult:
        """Whether all of it was taken."""
        ...


class FwCfg(Device):
    """The device; the board fills it with add_item() and add_file() before the guest starts."""

    kind = "fw_cfg"
    regions = (
        Region("fwcfg", 2, valid=AccessSizes(1, 2), impl=AccessSizes(1, 2)),
        Region("fwcfg.dma", 8, valid=AccessSizes(1, 8), impl=AccessSizes(4, 8), endianness=Endianness.BIG),
    )

    selector = Register(0, size=2, access="wo", exact=True, doc="item number")
    data = Register(1, access="ro", stored=False, doc="next byte of the item")
    data_at_selector = Register(0, access="ro", stored=False, doc="the data port answers reads of either port")
    dma_high = Register(0, size=4, region=1, exact=True, doc="control block address, upper half")
    dma_low = Register(4, size=4, region=1, exact=True, stored=False, doc="lower half; starts the transfer")
    dma_both = Register(0, size=8, region=1, exact=True, stored=False, doc="the whole address; starts the transfer")

    position = State(U32, 0, doc="offset of the next byte in the selected item")
    last_control_block = State(U64, 0, doc="address of the last DMA control block, for people")

    def __init__(self, memory: DmaSpace) -> None:
        self._memory = memory
        self._items: dict[int, bytes | memoryview] = {}
        self._files: dict[str, bytes | memoryview] = {}
        self._on_select: dict[str, Callable[[], None]] = {}
        self._selected_file: dict[int, Callable[[], None]] = {}
        super().__init__()
        self.add_item(SIGNATURE, b"QEMU")
        self.add_item(INTERFACE_ID, struct.pack("<I", HAS_TRADITIONAL | HAS_DMA))
        self._write_directory()

    def add_item(self, key: int, content: bytes) -> None:
        """Set the item with a fixed number."""
        self._items[key] = content

    def add_file(
        self, name: str, content: bytes | memoryview, on_select: Callable[[], None] | None = None
    ) -> None:
        """Add or replace a named file. Raises UserError when the name does not fit the directory.

        A view is read when the guest reads.

        `on_select` is called when the guest selects the file, before it reads: it may replace files' contents, not add
        any. Firmware has the directory by then, so a size that changes is not seen.
        """
        if not 0 < len(name.encode()) <= LONGEST_NAME:
            raise UserError(f"fw_cfg: file name {name!r} must have 1 to {LONGEST_NAME} bytes")
        self._files[name] = content
        if on_select is not None:
            self._on_select[name] = on_select
        self._write_directory()

    @property
    def files(self) -> dict[str, bytes]:
        """The files by name, as they are now."""
        return {name: bytes(content) for name, content in self._files.items()}

    def _write_directory(self) -> None:
        entries = []
        for key, name in enumerate(sorted(self._files), FIRST_FILE):
            self._items[key] = content = self._files[name]
            entries.append(struct.pack(">IHH56s", len(content), key, 0, name.encode()))
            if name in self._on_select:
                self._selected_file[key] = self._on_select[name]
            else:
                self._selected_file.pop(key, None)
        self._items[FILE_DIRECTORY] = struct.pack(">I", len(entries)) + b"".join(entries)

    def acpi(self, where: aml.Resources) -> bytes:
        """The device under the name that Linux's qemu_fw_cfg driver knows."""
        return aml.device(
            "FWCF",
            aml.name("_HID", aml.string("QEMU0002"))
            + aml.name("_STA", aml.integer(0x0B))
            + aml.name("_CRS", aml.resource_template(aml.io_ports(where.ports[0], 12, alignment=1))),
        )

    # The traditional interface.

    @selector.on_write
    def _write_selector(self, value: int) -> None:
        self.selector = value
        self.position = 0
        if value & ~KEY_MASK == 0 and value in self._selected_file:
            self._selected_file[value]()

    @data.on_read
    @data_at_selector.on_read
    def _read_data(self) -> int:
        return self._take(1)[0]

    def _take(self, size: int) -> bytes:
        """The next bytes of the item, zeros where it has ended; moves the position."""
        item = self._items.get(self.selector & (KEY_MASK | ARCH_LOCAL), b"")
        taken = bytes(item[self.position : self.position + size]).ljust(size, b"\0")
        self._skip(size)
        return taken

    def _skip(self, size: int) -> None:
        self.position = min(self.position + size, 0xFFFF_FFFF)

    # The DMA interface.

    @dma_high.on_read
    def _read_dma_high(self) -> int:
        return DMA_SIGNATURE >> 32

    @dma_low.on_read
    def _read_dma_low(self) -> int:
        return DMA_SIGNATURE & 0xFFFF_FFFF

    @dma_both.on_read
    def _read_dma_both(self) -> int:
        return DMA_SIGNATURE

    @dma_low.on_write
    def _write_dma_low(self, value: int) -> None:
        high, self.dma_high = self.dma_high, 0
        self._transfer(high << 32 | value)

    @dma_both.on_write
    def _write_dma_both(self, value: int) -> None:
        self._transfer(value)

    def _transfer(self, control_block: int) -> None:
        self.last_control_block = control_block
        fields, result = self._memory.try_read_bytes(control_block, 16)
        if result is not MemTxResult.OK:
            return  # Nowhere to report the error to.
        control, length, address = struct.unpack(">IIQ", fields)
        if control & DMA_SELECT:
            self._write_selector(control >> 16)
        done = True
        if control & DMA_READ:
            done = self._copy_to_guest(address, length)
        elif control & DMA_WRITE:
            done = False  # No item takes writes.
        elif control & DMA_SKIP:
            self._skip(length)
        self._memory.write_bytes(control_block, struct.pack(">I", 0 if done else DMA_ERROR))

    def _copy_to_guest(self, address: int, length: int) -> bool:
        while length:
            size = min(length, CHUNK)
            if self._memory.write_bytes(address, self._take(size)) is not MemTxResult.OK:
                return False
            address = (address + size) & 0xFFFF_FFFF_FFFF_FFFF
            length -= size
        return True
