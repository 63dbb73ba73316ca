"""Which program this is, and which QEMU it answers as."""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version

QEMU_VERSION = (7, 2, 22)
"""The QEMU whose commands and texts these are; management programs decide by it what they may ask."""


def version() -> str:
    """Pellucid's own version."""
    try:
        return package_version("pellucid")
    except PackageNotFoundError:
        return "(not installed)"


def package() -> str:
    """What stands behind QEMU's version."""
    return f"Pellucid {version()}"
