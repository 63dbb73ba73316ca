"""Firmware images: where distributions put them, and what is wrong with a file that is none."""

from collections.abc import Sequence
from pathlib import Path

from pellucid.errors import UserError

FOLDERS = (
    Path("/usr/share/seabios"),
    Path("/usr/share/qemu"),
    Path("/usr/local/share/qemu"),
    Path("/usr/share/seabios/qemu"),
)
PACKAGES = {"bios-256k.bin": "seabios", "bios.bin": "seabios"}
UNIT = 0x1_0000
LARGEST, LARGEST_ROM = 16 << 20, 128 << 10
ROM_MARK = b"\x55\xaa"


def find_firmware(name: str, first: Sequence[Path] = ()) -> Path:
    """The file of that name in the folders of -L or the usual ones, or the path itself when it has a slash or exists.

    Raises UserError that names the Debian package when there is one.
    """
    given = Path(name)
    if "/" in name or given.is_file():
        return given
    folders = (*first, *FOLDERS)
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    package = PACKAGES.get(name)
    remedy = f"install the Debian package '{package}'" if package else "give the path of a firmware image"
    raise UserError(f"firmware {name} is in none of {', '.join(map(str, folders))}: {remedy}")


def option_rom(name: str) -> bytes | None:
    """An option ROM that QEMU's packages install; None where it is not, or is no ROM."""
    for folder in FOLDERS:
        path = folder / name
        if path.is_file() and path.stat().st_size <= LARGEST_ROM:
            content = path.read_bytes()
            return content if content[:2] == ROM_MARK else None
    return None


def read_firmware(path: Path) -> bytes:
    """A BIOS image. Raises UserError for a file that cannot be one: it must be whole units of 64 KiB."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the firmware {path}: {error.strerror}") from None
    if not content or len(content) % UNIT or len(content) > LARGEST:
        raise UserError(
            f"{path} is no BIOS image: it has {len(content)} bytes, not a multiple of 64 KiB up to 16 MiB; "
            "is the file whole?"
        )
    return content
