"""Which format an image is in, told by its first sector, as QEMU tells it; what nothing else claims is raw."""

PROBE_SIZE = 512
"""Bytes that a format is recognised by."""

_VDI_SIGNATURE = (0x40, b"\x7f\x10\xda\xbe")
_MAGICS = (
    ("qcow2", 0, b"QFI\xfb\0\0\0\x02"),
    ("qcow2", 0, b"QFI\xfb\0\0\0\x03"),
    ("qcow", 0, b"QFI\xfb\0\0\0\x01"),
    ("qed", 0, b"QED\0"),
    ("vmdk", 0, b"KDMV"),
    ("vmdk", 0, b"COWD"),
    ("vmdk", 0, b"# Disk DescriptorFile"),
    ("vdi", *_VDI_SIGNATURE),
    ("vhdx", 0, b"vhdxfile"),
    ("vpc", 0, b"conectix"),
    ("parallels", 0, b"WithoutFreeSpace"),
    ("parallels", 0, b"WithouFreSpacExt"),
    ("bochs", 0, b"Bochs Virtual HD Image"),
    ("cloop", 0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop"),
    ("luks", 0, b"LUKS\xba\xbe\0\x01"),
)
FORMATS = ("raw", *dict.fromkeys(name for name, _, _ in _MAGICS), "dmg")
"""Every image format that QEMU knows by name."""
BUILT = ("raw",)


def probe(header: bytes) -> str:
    """The format's name, from the first `PROBE_SIZE` bytes of the image, or fewer of a smaller one."""
    for name, offset, magic in _MAGICS:
        if header[offset : offset + len(magic)] == magic:
            return name
    return "raw"
