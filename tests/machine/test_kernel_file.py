"""Which kernel a file is, and what it is called when it is none; the processor states and their tables."""

import struct
from pathlib import Path

import pytest

from pellucid.errors import UserError
from pellucid.machine.boot import read_kernel
from pellucid.machine.boot.cpu_state import descriptor, identity_page_tables, long_mode
from pellucid.machine.boot.linux import BzImage
from pellucid.machine.boot.pvh import PvhKernel
from tests.machine.kernels import bzimage, vmlinux


def test_kinds_of_kernels(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(bzimage())
    assert isinstance(read_kernel(path), BzImage)
    path.write_bytes(vmlinux())
    assert isinstance(read_kernel(path), PvhKernel)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "it is empty;"),
        (b"\x1f\x8b\x08" + bytes(20), "it is a gzip file;"),
        (b"070701" + b"0" * 104, "it is a cpio archive: an initrd?;"),
        (b"#!/bin/sh\n", "it is a script;"),
        (b"hello, world\n", "it is a text file;"),
        (bytes(0x8001) + b"CD001", "it is an ISO 9660 image;"),
        (bytes(510) + b"\x55\xaa" + bytes(1000), "it is a disk image or boot sector;"),
        (b"MZ" + bytes(54) + b"ARM\x64" + bytes(1000), "it is an ARM64 kernel;"),
        (b"\x00\x01\x02\x03\xff\xfe", "it is a file of 6 bytes that begins with 00 01 02 03 ff fe;"),
        (vmlinux(note_type=1) + b"\x02\xb0\xad\x1b", "without a PVH entry note"),
    ],
)
def test_what_is_no_kernel_is_named(tmp_path: Path, content: bytes, found: str) -> None:
    path = tmp_path / "thing"
    path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        read_kernel(path)
    assert found in str(raised.value) and str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the kernel .*/none: No such file or directory"):
        read_kernel(tmp_path / "none")
    with pytest.raises(UserError, match="cannot read the kernel .*: Is a directory"):
        read_kernel(tmp_path)


def test_gdt_holds_the_segments_that_are_loaded() -> None:
    segments, _, sregs = long_mode(0x1000, 0x7000)
    gdt = dict(segments)[sregs.gdt.base]
    assert len(gdt) == sregs.gdt.limit + 1
    entries = struct.unpack(f"<{len(gdt) // 8}Q", gdt)
    # Flat 4 GiB code (64-bit) and data, as the processor decodes them (SDM vol. 3, figure 3-8).
    assert entries[0x10 >> 3] == 0x00AF_9B00_0000_FFFF
    assert entries[0x18 >> 3] == 0x00CF_9300_0000_FFFF
    assert descriptor(sregs.cs) == entries[sregs.cs.selector >> 3]
    assert descriptor(sregs.tr) == entries[sregs.tr.selector >> 3]
    assert sregs.cr0 & 0x8000_0001 == 0x8000_0001 and sregs.cr4 & 0x20 and sregs.efer == 0x500


@pytest.mark.parametrize("address", [0, 0x1000, 0x1234567, 0x3FFF_FFFF, 0x4000_0000, 0xFEC0_0010, 0xFFFF_FFFF])
def test_page_tables_map_the_first_4_gib_to_themselves(address: int) -> None:
    base = 0x9000
    tables = identity_page_tables(base)

    def entry(table: int, index: int) -> int:
        value: int = struct.unpack_from("<Q", tables, table - base + 8 * index)[0]
        assert value & 3 == 3
        return value

    directory_pointer = entry(base, address >> 39) & ~0xFFF
    directory = entry(directory_pointer, address >> 30 & 511) & ~0xFFF
    page = entry(directory, address >> 21 & 511)
    assert page & 0x80 and (page & ~0x1F_FFFF) | (address & 0x1F_FFFF) == address
