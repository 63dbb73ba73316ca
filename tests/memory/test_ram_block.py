"""RAM blocks: real memory at `hva`, lazily touched, given back; and the list with QEMU's offsets."""

import ctypes
import os
import resource

import pytest

from pellucid.errors import UserError
from pellucid.memory import RamBlock, RamList, info_ramblock
from pellucid.memory.ram_block import format_size, host_memory_size


def test_hva_view_and_fd_are_the_same_memory() -> None:
    block = RamBlock("ram", 0x3000)
    assert block.hva % 4096 == 0
    block.view[0x1234] = 0x5A
    assert ctypes.c_ubyte.from_address(block.hva + 0x1234).value == 0x5A
    assert os.pread(block.fd, 1, 0x1234) == b"\x5a"
    ctypes.c_uint32.from_address(block.hva + 0x2000).value = 0xDDCCBBAA
    assert bytes(block.view[0x2000:0x2004]) == b"\xaa\xbb\xcc\xdd"
    assert block.units[4][0][0x2000 >> 2] == 0xDDCCBBAA
    block.close()


def test_size_is_rounded_up_to_pages() -> None:
    block = RamBlock("ram", 1)
    assert block.size == block.max_size == len(block.view) == 4096
    block.close()


def test_memory_is_touched_lazily_and_discarded() -> None:
    block = RamBlock("ram", 1 << 30)
    assert block.resident_size() == 0
    block.view[0] = block.view[0x10000] = 1
    touched = block.resident_size()
    assert 8192 <= touched <= 4 << 20  # two pages, huge ones where the host gives those
    block.discard(0, 4096)
    assert block.view[0x10000] == 1
    assert block.resident_size() <= touched
    assert block.view[0] == 0
    block.discard(0, 1 << 30)
    assert block.resident_size() == 0
    block.close()


def test_resize_within_maximum_clears_what_is_cut_off() -> None:
    block = RamBlock("acpi", 0x1000, 0x3000)
    block.resize(0x3000)
    block.view[0x2000] = 7
    block.resize(0x1000)
    block.resize(0x3000)
    assert block.view[0x2000] == 0
    with pytest.raises(ValueError, match="maximum is 0x3000"):
        block.resize(0x4000)
    block.close()


def test_close_releases_descriptor_and_keeps_views_of_others_alive() -> None:
    block = RamBlock("ram", 0x1000)
    fd = block.fd
    mine = block.view[:4]
    block.close()
    block.close()
    assert block.closed
    with pytest.raises(OSError):
        os.fstat(fd)
    mine[0] = 9  # must not fault: the mapping lives as long as this slice
    assert mine[0] == 9


def test_more_than_the_machine_has_is_one_clear_line() -> None:
    with pytest.raises(
        UserError, match=r"guest memory 'pc\.ram' of .*: this machine has .*; give a smaller size with -m"
    ):
        RamBlock("pc.ram", host_memory_size() * 2)
    with pytest.raises(UserError, match="positive size"):
        RamBlock("pc.ram", 0)


def test_file_size_limit_is_named() -> None:
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, old[1]))
    try:
        with pytest.raises(UserError, match=r"ulimit -f\) is 1 MiB"):
            RamBlock("ram", 2 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_failed_mapping_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(os.listdir("/proc/self/fd"))

    def refuse(fd: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "ftruncate", refuse)
    with pytest.raises(UserError, match="No space left on device"):
        RamBlock("ram", 4096)
    assert set(os.listdir("/proc/self/fd")) <= before


def test_write_hooks() -> None:
    block = RamBlock("ram", 0x2000)
    heard: list[tuple[int, int]] = []

    hook = heard.extend
    block.add_write_hook(hook)
    block.written(5, 3)
    block.discard(0x1000, 0x1000)
    block.pieces_written([(8, 1), (16, 2)])
    block.remove_write_hook(hook)
    block.written(0, 1)
    assert heard == [(5, 3), (0x1000, 0x1000), (8, 1), (16, 2)]
    block.close()


def test_info_ramblock_as_qemu_prints_it_for_microvm() -> None:
    # Blocks in the order in which QEMU 7.2 makes them for `-M microvm -m 256`.
    ram = RamList()
    ram.new("microvm.ram", 256 << 20)
    ram.new("pc.bios", 0x10000)
    ram.new("/rom@etc/acpi/tables", 0x1000, 0x200000)
    ram.new("/rom@etc/table-loader", 0x1000, 0x10000)
    ram.new("/rom@etc/acpi/rsdp", 0x1000)
    assert info_ramblock(ram) == (
        "              Block Name    PSize              Offset               Used              Total\n"
        "             microvm.ram    4 KiB  0x0000000000000000 0x0000000010000000 0x0000000010000000\n"
        "    /rom@etc/acpi/tables    4 KiB  0x0000000010040000 0x0000000000001000 0x0000000000200000\n"
        "                 pc.bios    4 KiB  0x0000000010000000 0x0000000000010000 0x0000000000010000\n"
        "   /rom@etc/table-loader    4 KiB  0x0000000010240000 0x0000000000001000 0x0000000000010000\n"
        "      /rom@etc/acpi/rsdp    4 KiB  0x0000000010280000 0x0000000000001000 0x0000000000001000\n"
    )
    with pytest.raises(ValueError, match="exists already"):
        ram.new("pc.bios", 0x1000)
    ram.close()


def test_ram_list_uses_the_smallest_gap_again() -> None:
    ram = RamList()
    blocks = [ram.new(name, size) for name, size in (("a", 0x1000), ("b", 0xC0000), ("c", 0x1000), ("d", 0x40000))]
    assert [block.offset for block in blocks] == [0, 0x40000, 0x100000, 0x140000]
    ram.remove(blocks[1])
    ram.remove(blocks[3])
    assert ram.new("e", 0x1000).offset == 0x40000  # the gap of b is smaller than the endless one behind c
    for block in blocks:
        block.close()
    ram.close()


@pytest.mark.parametrize(
    ("size", "text"),
    [(512, "512 bytes"), (4096, "4 KiB"), (3 << 19, "1.5 MiB"), (1 << 30, "1 GiB"), (1 << 43, "8 TiB")],
)
def test_format_size(size: int, text: str) -> None:
    assert format_size(size) == text
