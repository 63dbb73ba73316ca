"""A Linux kernel handed to firmware: QEMU's `linuxboot_dma.bin` option ROM fetches it through fw_cfg and starts it.

The ROM enters the kernel's real-mode setup code, as a boot loader does (Linux's Documentation/x86/boot.rst, "Running
the kernel"): setup code at 0x10000, command line at 0x20000, the rest at 1 MiB. It places the initrd itself, by what
the firmware says about memory, and writes its address into the setup header.
"""

import struct
from pathlib import Path

from pellucid.errors import UserError
from pellucid.machine.boot.linux import CAN_USE_HEAP, UNDEFINED_LOADER, BzImage
from pellucid.machine.devices.fw_cfg import FwCfg

ROM_FILE = Path("/usr/share/qemu/linuxboot_dma.bin")
ROM_NAME = "genroms/linuxboot_dma.bin"
ROM_PACKAGE = "qemu-system-data"
ROM_MAGIC, ROM_LARGEST = b"\x55\xaa", 0x2_0000
SETUP_AT, COMMAND_LINE_AT, KERNEL_AT = 0x1_0000, 0x2_0000, 0x10_0000

KERNEL_ADDR, KERNEL_SIZE, KERNEL_DATA = 0x07, 0x08, 0x11
INITRD_ADDR, INITRD_SIZE, INITRD_DATA = 0x0A, 0x0B, 0x12
CMDLINE_ADDR, CMDLINE_SIZE, CMDLINE_DATA = 0x13, 0x14, 0x15
SETUP_ADDR, SETUP_SIZE, SETUP_DATA = 0x16, 0x17, 0x18


def read_linuxboot_rom(path: Path = ROM_FILE) -> bytes:
    """The option ROM. Raises UserError that names its package where it is not there."""
    try:
        content = path.read_bytes()
    except OSError:
        raise UserError(
            f"-kernel under firmware needs the option ROM {path}: install the Debian package '{ROM_PACKAGE}', "
            "or use -M microvm, which starts kernels without firmware"
        ) from None
    if not content.startswith(ROM_MAGIC) or len(content) > ROM_LARGEST:
        raise UserError(f"{path} is no option ROM: install the Debian package '{ROM_PACKAGE}' anew")
    return content


def offer_kernel(fw_cfg: FwCfg, kernel: BzImage, command_line: bytes, initrd: bytes, rom: bytes) -> None:
    """Add the ROM, first in the boot order, and all that it asks for. Raises UserError for a command line too long."""
    if len(command_line) > kernel.header.command_line_size:
        raise UserError(
            f"-append: {len(command_line)} characters; {kernel.name} takes {kernel.header.command_line_size}"
        )
    setup, rest = setup_code(kernel, len(initrd)), kernel.content[kernel.header.payload_offset :]
    items = (
        (SETUP_ADDR, SETUP_SIZE, SETUP_DATA, SETUP_AT, setup),
        (KERNEL_ADDR, KERNEL_SIZE, KERNEL_DATA, KERNEL_AT, rest),
        (CMDLINE_ADDR, CMDLINE_SIZE, CMDLINE_DATA, COMMAND_LINE_AT, command_line + b"\0"),
        (INITRD_ADDR, INITRD_SIZE, INITRD_DATA, 0, initrd),
    )
    for address_key, size_key, data_key, address, content in items:
        fw_cfg.add_item(address_key, struct.pack("<I", address))
        fw_cfg.add_item(size_key, struct.pack("<I", len(content)))
        fw_cfg.add_item(data_key, content)
    fw_cfg.add_file(ROM_NAME, rom)
    fw_cfg.add_file("bootorder", f"/rom@{ROM_NAME}".encode() + b"\0")


def setup_code(kernel: BzImage, initrd_size: int) -> bytes:
    """The real-mode part of the image, with what a loader fills in (boot.rst, "write" fields)."""
    setup = bytearray(kernel.content[: kernel.header.payload_offset])
    setup[0x210] = UNDEFINED_LOADER
    setup[0x211] |= CAN_USE_HEAP
    struct.pack_into("<H", setup, 0x224, COMMAND_LINE_AT - SETUP_AT - 0x200)
    struct.pack_into("<I", setup, 0x21C, initrd_size)
    struct.pack_into("<I", setup, 0x228, COMMAND_LINE_AT)
    return bytes(setup)
