"""Which program this is, and which QEMU it answers as."""

QEMU_VERSION = (7, 2, 22)
"""The QEMU whose commands and texts these are; management programs decide by it what they may ask."""


def version() -> str:
    """Pellucid's own version."""
    from importlib import metadata  # a thirtieth of a start

    try:
        return metadata.version("pellucid")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def package() -> str:
    """What stands behind QEMU's version."""
    return f"Pellucid {version()}"
