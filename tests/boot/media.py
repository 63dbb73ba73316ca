"""Media that GRUB starts a kernel from: an ISO image as grub-mkrescue makes it, and a disk with an MBR and a FAT."""

import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from shutil import which

import pytest

GRUB_FOLDER = Path("/usr/lib/grub/i386-pc")
PACKAGES = {"grub-mkrescue": "grub-common", "grub-mkimage": "grub-common", "xorriso": "xorriso", "mformat": "mtools",
            "mcopy": "mtools", "mmd": "mtools"}  # fmt: skip
MODULES = ("biosdisk", "part_msdos", "fat", "normal", "linux", "serial", "terminal", "echo", "boot", "configfile")
MENU = """\
serial --unit=0 --speed=115200
terminal_input serial
terminal_output serial
set timeout=0
menuentry Debian {{
    echo GRUB loads the kernel
    linux /boot/vmlinuz {append}
    initrd /boot/initrd
}}
"""
SECTOR, PARTITION_START, DISK_SIZE = 512, 2048, 64 << 20


def need(*programs: str) -> None:
    """Skip the test where a program or GRUB itself is missing, with the package that has it."""
    for program in programs:
        if which(program) is None:
            pytest.skip(f"needs {program} (Debian: {PACKAGES[program]})")
    if not (GRUB_FOLDER / "boot.img").is_file():
        pytest.skip("needs GRUB for BIOS machines (Debian: grub-pc-bin)")


def run(words: Sequence[str | Path]) -> None:
    subprocess.run([str(word) for word in words], check=True, capture_output=True, timeout=120)


def tree(folder: Path, kernel: Path, initrd: Path, append: str) -> Path:
    """A folder with what is to be on the medium."""
    root = folder / "medium"
    (root / "boot" / "grub").mkdir(parents=True)
    (root / "boot" / "vmlinuz").write_bytes(kernel.read_bytes())
    (root / "boot" / "initrd").write_bytes(initrd.read_bytes())
    (root / "boot" / "grub" / "grub.cfg").write_text(MENU.format(append=append))
    return root


def grub_iso(folder: Path, kernel: Path, initrd: Path, append: str) -> Path:
    """An ISO image."""
    need("grub-mkrescue", "xorriso", "mformat")
    path = folder / "grub.iso"
    run(["grub-mkrescue", "-d", GRUB_FOLDER, "-o", path, tree(folder, kernel, initrd, append)])
    return path


def grub_disk(folder: Path, kernel: Path, initrd: Path, append: str) -> Path:
    """A disk: GRUB's boot sector, its core in the gap behind, and a FAT partition; made without a loop device."""
    need("grub-mkimage", "mformat", "mcopy", "mmd")
    root = tree(folder, kernel, initrd, append)
    path, partition, core = folder / "disk.img", folder / "partition", folder / "core.img"
    sectors = DISK_SIZE // SECTOR - PARTITION_START
    with partition.open("wb") as out:
        out.truncate(sectors * SECTOR)
    run(["mformat", "-i", partition, "-F", "-h", "16", "-s", "63", "-T", str(sectors), "::"])
    run(["mmd", "-i", partition, "::/boot", "::/boot/grub"])
    for file in ("boot/vmlinuz", "boot/initrd", "boot/grub/grub.cfg"):
        run(["mcopy", "-i", partition, root / file, f"::/{file}"])
    run(["grub-mkimage", "-O", "i386-pc", "-o", core, "-p", "(hd0,msdos1)/boot/grub", *MODULES])
    with path.open("wb") as disk:
        disk.write(_boot_sector(sectors))
        disk.write(_with_block_list(core.read_bytes()))
        disk.seek(PARTITION_START * SECTOR)
        disk.write(partition.read_bytes())
    return path


def _boot_sector(sectors: int) -> bytes:
    """GRUB's first stage, told to go on at sector 1, and a partition table."""
    sector = bytearray((GRUB_FOLDER / "boot.img").read_bytes()[:SECTOR].ljust(SECTOR, b"\0"))
    sector[0x5C:0x64] = (1).to_bytes(8, "little")
    sector[0x66:0x68] = b"\x90\x90"
    entry = struct.pack("<B3sB3sII", 0x80, b"\x20\x21\0", 0x0C, b"\xfe\xff\xff", PARTITION_START, sectors)
    sector[446:] = entry + bytes(48) + b"\x55\xaa"
    return bytes(sector)


def _with_block_list(core: bytes) -> bytes:
    """GRUB's core; the end of its first sector says where the others are and where they go."""
    patched = bytearray(core)
    patched[500:512] = struct.pack("<QHH", 2, -(-len(core) // SECTOR) - 1, 0x820)
    return bytes(patched)
