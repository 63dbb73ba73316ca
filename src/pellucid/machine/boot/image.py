"""Which kind of kernel a file is, and in plain words what it is when it is none."""

from pathlib import Path
from typing import Protocol

from pellucid.errors import UserError
from pellucid.machine.boot.linux import BzImage, is_bzimage
from pellucid.machine.boot.plan import BootPlan, GuestRam

MAGICS = (
    (0, b"\x1f\x8b", "a gzip file"),
    (0, b"\xfd7zXZ\0", "an xz file"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd file"),
    (0, b"BZh", "a bzip2 file"),
    (0, b"\x04\x22\x4d\x18", "an lz4 file"),
    (0, b"070701", "a cpio archive: an initrd?"),
    (0, b"070702", "a cpio archive: an initrd?"),
    (0, b"!<arch>\n", "a Debian package or ar archive"),
    (0, b"QFI\xfb", "a qcow2 disk image"),
    (0, b"#!", "a script"),
    (0, b"PK\x03\x04", "a zip file"),
    (56, b"ARM\x64", "an ARM64 kernel"),
    (0x8001, b"CD001", "an ISO 9660 image"),
    (257, b"ustar", "a tar archive"),
    (510, b"\x55\xaa", "a disk image or boot sector"),
    (0, b"MZ", "a Windows or EFI program"),
)
MULTIBOOT_MAGIC, MULTIBOOT_SEARCHED = (0x1BAD_B002).to_bytes(4, "little"), 8192


class KernelImage(Protocol):
    """A kernel that can plan its own start."""

    @property
    def name(self) -> str:
        """The file."""
        ...

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
        """What to load where, and how to start. Raises UserError for what does not fit."""
        ...


def read_file(path: Path, what: str) -> bytes:
    """A whole file. Raises UserError that says `what` it was to be."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the {what} {path}: {error.strerror}") from None
    except MemoryError:
        raise UserError(f"cannot read the {what} {path}: this machine has too little memory for it") from None


def read_kernel(path: Path) -> KernelImage:
    """The kernel in a file, of whichever kind. Raises UserError that says what the file is instead."""
    content = read_file(path, "kernel")
    if is_bzimage(content):
        return BzImage.parse(content, str(path))
    if content.startswith(b"\x7fELF"):
        # Imported here: the ELF library takes 20 ms to load, and most kernels are bzImages.
        from pellucid.machine.boot.pvh import PvhKernel

        try:
            return PvhKernel.parse(content, str(path))
        except UserError:
            multiboot = _multiboot(content, path)
            if multiboot is None:
                raise
            return multiboot
    multiboot = _multiboot(content, path)
    if multiboot is not None:
        return multiboot
    raise UserError(
        f"{path} is not a Linux kernel: it is {describe(content)}; give a bzImage (vmlinuz) or a PVH vmlinux"
    )


def _multiboot(content: bytes, path: Path) -> KernelImage | None:
    """The Multiboot kernel, None when there is no header of one."""
    if MULTIBOOT_MAGIC not in content[:MULTIBOOT_SEARCHED]:
        return None
    from pellucid.machine.boot.multiboot import MultibootKernel, find_header

    return MultibootKernel.parse(content, str(path)) if find_header(content) is not None else None


def describe(content: bytes) -> str:
    """What a file is, by its first bytes, as a noun."""
    if not content:
        return "empty"
    for offset, magic, meaning in MAGICS:
        if content[offset : offset + len(magic)] == magic:
            return meaning
    if all(byte in b"\t\n\r\f\x1b" or 0x20 <= byte < 0x7F for byte in content[:512]):
        return "a text file"
    return f"a file of {len(content)} bytes that begins with {content[:8].hex(' ')}"
