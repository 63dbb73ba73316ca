"""A kernel handed to firmware: one of QEMU's option ROMs fetches it through fw_cfg and starts it.

`linuxboot_dma.bin` enters the kernel's real-mode setup code, as a boot loader does (Linux's
Documentation/x86/boot.rst, "Running the kernel"): setup code at 0x10000, command line at 0x20000, the rest at 1 MiB. It
places the initrd itself, by what the firmware says about memory, and writes its address into the setup header.

`multiboot_dma.bin` puts a Multiboot kernel and its information structure where they are to lie, adds to the structure
what the firmware says about memory, and enters the kernel in protected mode.
"""

import os
import struct
from pathlib import Path

from pellucid.errors import NotBuiltError, UserError
from pellucid.machine.boot import KernelImage
from pellucid.machine.boot.image import read_file
from pellucid.machine.boot.linux import CAN_USE_HEAP, UNDEFINED_LOADER, BzImage
from pellucid.machine.boot.multiboot import Module, MultibootKernel
from pellucid.machine.devices.fw_cfg import FwCfg

ROM_FOLDER = Path("/usr/share/qemu")
LINUX_ROM, MULTIBOOT_ROM = "linuxboot_dma.bin", "multiboot_dma.bin"
ROM_PACKAGE = "qemu-system-data"
ROM_MAGIC, ROM_LARGEST = b"\x55\xaa", 0x2_0000
SETUP_AT, COMMAND_LINE_AT, KERNEL_AT = 0x1_0000, 0x2_0000, 0x10_0000

MEMORY_MAP_AT, MULTIBOOT_INFO_AT = 0x9000, 0x9500

KERNEL_ENTRY = 0x10
KERNEL_ADDR, KERNEL_SIZE, KERNEL_DATA = 0x07, 0x08, 0x11
INITRD_ADDR, INITRD_SIZE, INITRD_DATA = 0x0A, 0x0B, 0x12
CMDLINE_ADDR, CMDLINE_SIZE, CMDLINE_DATA = 0x13, 0x14, 0x15
SETUP_ADDR, SETUP_SIZE, SETUP_DATA = 0x16, 0x17, 0x18


def read_option_rom(path: Path) -> bytes:
    """The option ROM. Raises UserError that names its package where it is not there."""
    try:
        content = path.read_bytes()
    except OSError:
        raise UserError(
            f"-kernel under firmware needs the option ROM {path}: install the Debian package '{ROM_PACKAGE}', "
            "or use -M microvm, which starts Linux kernels without firmware"
        ) from None
    if not content.startswith(ROM_MAGIC) or len(content) > ROM_LARGEST:
        raise UserError(f"{path} is no option ROM: install the Debian package '{ROM_PACKAGE}' anew")
    return content


def offer_kernel(fw_cfg: FwCfg, kernel: KernelImage, append: str, initrd: Path | None, roms: Path = ROM_FOLDER) -> None:
    """Have the firmware start `kernel` (-kernel, -append, -initrd) in place of a disk, by an option ROM from `roms`.

    The ROM has to come before all disks in the boot order: `kernel_rom` says its path.

    Raises UserError for what does not fit, NotBuiltError for a kind of kernel that no ROM starts.
    """
    if isinstance(kernel, BzImage):
        content = read_file(initrd, "initrd") if initrd is not None else b""
        offer_linux(fw_cfg, kernel, os.fsencode(append), content, read_option_rom(roms / LINUX_ROM))
    elif isinstance(kernel, MultibootKernel):
        rom = read_option_rom(roms / MULTIBOOT_ROM)
        offer_multiboot(fw_cfg, kernel, os.fsencode(append), read_modules(initrd), rom)
    else:
        raise NotBuiltError(f"{kernel.name}: an ELF kernel with a PVH entry starts without firmware: use -M microvm")


def read_modules(initrd: Path | None) -> list[Module]:
    """The modules that -initrd names: "FILE WORDS,FILE WORDS". Raises UserError for one that cannot be read."""
    parts = str(initrd).split(",") if initrd is not None else []
    return [Module(words, read_file(Path(words.split(" ")[0]), "module")) for words in parts]


def offer_multiboot(fw_cfg: FwCfg, kernel: MultibootKernel, append: bytes, modules: list[Module], rom: bytes) -> None:
    """Add the ROM and all that it asks for."""
    content, info = kernel.load_with(append, modules, MEMORY_MAP_AT)
    fw_cfg.add_item(KERNEL_ENTRY, struct.pack("<I", kernel.entry))
    for address_key, size_key, data_key, address, data in (
        (KERNEL_ADDR, KERNEL_SIZE, KERNEL_DATA, kernel.address, content),
        (INITRD_ADDR, INITRD_SIZE, INITRD_DATA, MULTIBOOT_INFO_AT, info),
    ):
        _add(fw_cfg, address_key, size_key, data_key, address, data)
    fw_cfg.add_file(f"genroms/{MULTIBOOT_ROM}", rom)


def offer_linux(fw_cfg: FwCfg, kernel: BzImage, command_line: bytes, initrd: bytes, rom: bytes) -> None:
    """Add the ROM and all that it asks for. Raises UserError for a command line too long."""
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
        _add(fw_cfg, address_key, size_key, data_key, address, content)
    fw_cfg.add_file(f"genroms/{LINUX_ROM}", rom)


def _add(fw_cfg: FwCfg, address_key: int, size_key: int, data_key: int, address: int, content: bytes) -> None:
    fw_cfg.add_item(address_key, struct.pack("<I", address))
    fw_cfg.add_item(size_key, struct.pack("<I", len(content)))
    fw_cfg.add_item(data_key, content)


def kernel_rom(fw_cfg: FwCfg) -> list[str]:
    """The boot path of the ROM that starts the kernel, where there is one."""
    return [f"/rom@genroms/{name}" for name in (LINUX_ROM, MULTIBOOT_ROM) if f"genroms/{name}" in fw_cfg.files]


def setup_code(kernel: BzImage, initrd_size: int) -> bytes:
    """The real-mode part of the image, with what a loader fills in (boot.rst, "write" fields)."""
    setup = bytearray(kernel.content[: kernel.header.payload_offset])
    setup[0x210] = UNDEFINED_LOADER
    setup[0x211] |= CAN_USE_HEAP
    struct.pack_into("<H", setup, 0x224, COMMAND_LINE_AT - SETUP_AT - 0x200)
    struct.pack_into("<I", setup, 0x21C, initrd_size)
    struct.pack_into("<I", setup, 0x228, COMMAND_LINE_AT)
    return bytes(setup)
