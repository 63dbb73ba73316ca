"""Accesses: what reaches a device and in which pieces, memory, and what happens where nothing is."""

import ctypes
import logging
import os
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.memory import (
    AccessSizes,
    AddressSpace,
    Endianness,
    IoEventfd,
    MemoryListener,
    MemoryRegion,
    MemTxResult,
    RamBlock,
    UnassignedIoOps,
)
from tests.memory.helpers import ByteDevice

SIZES = (1, 2, 4, 8)


def device_space(
    device: ByteDevice, *, valid: AccessSizes | None = None, impl: AccessSizes | None = None, big: bool = False
) -> AddressSpace:
    root = MemoryRegion.new_container("root", 0x1000)
    endianness = Endianness.BIG if big else Endianness.LITTLE
    region = MemoryRegion.new_io("dev", len(device.bytes), device, valid=valid, impl=impl, endianness=endianness)
    root.add_subregion(0x100, region)
    return AddressSpace("as", root)


def test_device_sees_offsets_and_values_cut_to_size() -> None:
    device = ByteDevice(0x10)
    space = device_space(device)
    space.write(0x104, 2, 0xABCDEF)
    assert device.bytes[4:8] == b"\xef\xcd\0\0"
    assert space.read(0x104, 2) == 0xCDEF
    assert device.calls == [("write", 4, 2), ("read", 4, 2)]


def test_values_wider_than_the_access_are_cut_on_reading() -> None:
    class Wide(ByteDevice):
        def read(self, offset: int, size: int) -> int:
            return -1

    space = device_space(Wide(0x10))
    assert [space.read(0x100, size) for size in (1, 2, 4)] == [0xFF, 0xFFFF, 0xFFFFFFFF]


@pytest.mark.parametrize(
    ("addr", "size", "calls"),
    [
        (0x100, 8, [(0, 4), (4, 4)]),  # no more than valid.max at once
        (0x101, 4, [(1, 1), (2, 2), (4, 1)]),  # no unaligned piece
        (0x102, 4, [(2, 2), (4, 2)]),
        (0x10E, 4, [(0xE, 2)]),  # the rest is behind the device
        (0x0FE, 4, [(0, 2)]),
    ],
)
def test_accesses_are_split_by_alignment_and_valid_maximum(addr: int, size: int, calls: list[tuple[int, int]]) -> None:
    device = ByteDevice(0x10)
    space = device_space(device)
    space.write(addr, size, 0x1122334455667788)
    assert device.calls == [("write", *call) for call in calls]
    device.calls.clear()
    value = space.read(addr, size)
    assert device.calls == [("read", *call) for call in calls]
    inside = [i for i in range(size) if 0x100 <= addr + i < 0x110]
    assert value == sum((0x1122334455667788 >> 8 * i & 0xFF) << 8 * i for i in inside)


@settings(max_examples=200)
@given(
    st.sampled_from([(a, b) for a in SIZES for b in SIZES if a <= b]),
    st.sampled_from([(a, b) for a in SIZES for b in SIZES if a <= b]),
    st.sampled_from(["little", "big"]),
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 31), st.sampled_from(SIZES), st.integers(0, 2**64 - 1)), max_size=8
    ),
)
def test_any_declared_sizes_give_the_bytes_of_memory(
    valid: tuple[int, int],
    impl: tuple[int, int],
    order: Literal["little", "big"],
    accesses: list[tuple[bool, int, int, int]],
) -> None:
    """A device made of bytes looks like bytes, however its methods want to be called."""
    device = ByteDevice(32, order)
    space = device_space(device, valid=AccessSizes(*valid), impl=AccessSizes(*impl), big=order == "big")
    model = bytearray(32)
    for is_write, offset, size, value in accesses:
        offset -= offset % size
        answered = min(size, valid[1]) >= valid[0]
        if is_write:
            if min(size, valid[1]) < impl[0]:
                continue  # a device that cannot store so little loses its neighbours: see the test below
            space.write(0x100 + offset, size, value)
            if answered:
                model[offset : offset + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        else:
            expected = int.from_bytes(model[offset : offset + size], "little") if answered else 0
            assert space.read(0x100 + offset, size) == expected
    assert device.bytes == model
    for _, offset, size in device.calls:
        assert impl[0] <= size <= impl[1] and offset % size == 0


def test_small_store_to_a_device_of_words_arrives_in_its_lanes() -> None:
    for big, offset, expected in ((False, 1, 0x0000AB00), (True, 1, 0x00AB0000)):
        device = ByteDevice(8, "big" if big else "little")
        written: list[tuple[int, int, int]] = []
        device.write = lambda offset, size, value, w=written: w.append((offset, size, value))  # type: ignore[method-assign,misc]
        space = device_space(device, impl=AccessSizes(4, 4), big=big)
        space.write(0x100 + offset, 1, 0xAB)
        assert written == [(0, 4, expected)]


def test_invalid_accesses_read_zero_are_dropped_and_traced(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "pellucid.memory.invalid")
    device = ByteDevice(0x10)
    device.bytes[:] = b"\xff" * 16
    space = device_space(device, valid=AccessSizes(4, 4))
    assert space.load(0x104, 2) == (0, MemTxResult.DECODE_ERROR)
    assert space.store(0x104, 1, 0) == MemTxResult.DECODE_ERROR
    assert device.calls == []
    assert [r.getMessage() for r in caplog.records] == [
        "'dev'+0x4: invalid read of 2 bytes: sizes 4 to 4 only",
        "'dev'+0x4: invalid write of 1 bytes: sizes 4 to 4 only",
    ]
    assert space.load(0x104, 4) == (0xFFFFFFFF, MemTxResult.OK)


def test_accepts_is_a_further_condition() -> None:
    device = ByteDevice(0x10)
    region = MemoryRegion.new_io("dev", 0x10, device, accepts=lambda offset, size, is_write: not is_write)
    space = AddressSpace("as", region)
    assert space.store(0, 4, 1) == MemTxResult.DECODE_ERROR
    assert space.load(0, 4) == (0, MemTxResult.OK)
    assert device.calls == [("read", 0, 4)]


def test_unaligned_devices_get_unaligned_accesses() -> None:
    device = ByteDevice(0x10)
    free = AccessSizes(1, 4, unaligned=True)
    space = device_space(device, valid=free, impl=free)
    space.write(0x101, 4, 0x44332211)
    assert device.calls == [("write", 1, 4)] and device.bytes[1:5] == b"\x11\x22\x33\x44"
    only_impl = device_space(device, impl=free)
    assert only_impl.load(0x101, 4) == (0, MemTxResult.DECODE_ERROR)


def test_unassigned_memory_reads_zero_and_ports_all_ones(caplog: pytest.LogCaptureFixture) -> None:
    # As QEMU 7.2 answers on microvm: inb 0x80, inl 0xfffe, inl 0xffff, readl 0xd0000000, and past the last address.
    caplog.set_level(logging.DEBUG, "pellucid.memory.invalid")
    memory = AddressSpace("memory", MemoryRegion.new_container("system"))
    ports = AddressSpace("I/O", MemoryRegion.new_io("io", 0x10000, UnassignedIoOps()))
    assert ports.read(0x80, 1) == 0xFF
    assert ports.read(0xFFFE, 4) == 0xFFFF
    assert ports.read(0xFFFF, 4) == 0xFF
    assert memory.load(0xD0000000, 4) == (0, MemTxResult.DECODE_ERROR)
    assert memory.read(0xFFFF_FFFF_FFFF_FFFE, 4) == 0
    memory.write(0xD0000000, 4, 1)
    ports.write(0x80, 1, 1)
    assert "port 0x80: read of 1 bytes, nothing is there" in caplog.messages
    assert "memory 0xd0000000: write of 4 bytes, nothing is there" in caplog.messages


def test_ram_is_one_memory_for_python_and_pointers() -> None:
    block = RamBlock("ram", 0x2000)
    space = AddressSpace("as", MemoryRegion.new_ram("ram", block))
    for size in SIZES:
        for at in (0x10, 0x13, 0xFFD):
            space.write(at, size, 0x1122334455667788)
            value = int.from_bytes(ctypes.string_at(block.hva + at, size), "little")
            assert value == space.read(at, size) == 0x1122334455667788 & ((1 << 8 * size) - 1)
    space.write_bytes(0xFF0, bytes(range(32)))
    assert space.read_bytes(0xFF0, 32) == bytes(range(32))
    assert space.read(0x1000, 3) == 0x121110
    block.close()


def test_accesses_run_across_ranges() -> None:
    block = RamBlock("ram", 0x1000)
    device = ByteDevice(0x10)
    root = MemoryRegion.new_container("root", 0x3000)
    space = AddressSpace("as", root)
    root.add_subregion(0, MemoryRegion.new_ram("ram", block))
    root.add_subregion(0x1000, MemoryRegion.new_io("dev", 0x10, device))
    assert space.write_bytes(0xFFE, b"\1\2\3\4\5\6") == MemTxResult.OK
    assert bytes(block.view[0xFFE:]) == b"\1\2" and device.bytes[:4] == b"\3\4\5\6"
    assert space.read(0xFFE, 4) == 0x04030201
    assert device.calls == [("write", 0, 4), ("read", 0, 2)]
    data, result = space.try_read_bytes(0x100E, 4)
    assert data == b"\0\0\0\0" and result == MemTxResult.DECODE_ERROR
    block.close()


def test_rom_drops_writes() -> None:
    block = RamBlock("bios", 0x1000)
    block.view[0:2] = b"\x55\xaa"
    space = AddressSpace("as", MemoryRegion.new_rom("bios", block))
    assert space.store(0, 2, 0) == MemTxResult.DECODE_ERROR
    assert space.write_bytes(0, b"\0" * 16) == MemTxResult.DECODE_ERROR
    assert space.load(0, 2) == (0xAA55, MemTxResult.OK)
    block.close()


def test_rom_device_reads_memory_or_device_and_writes_to_the_device() -> None:
    block = RamBlock("flash", 0x1000)
    block.view[0] = 0x42
    device = ByteDevice(0x1000)
    region = MemoryRegion.new_rom_device("flash", block, device)
    space = AddressSpace("as", region)
    assert space.read(0, 1) == 0x42 and device.calls == []
    space.write(0, 1, 0x90)
    assert device.calls == [("write", 0, 1)] and block.view[0] == 0x42
    region.set_romd_mode(False)
    assert space.read(0, 1) == 0x90 and device.calls[-1] == ("read", 0, 1)
    region.set_romd_mode(True)
    assert space.read(0, 1) == 0x42
    block.close()


def test_ram_device_is_accessed_in_exact_sizes() -> None:
    block = RamBlock("bar", 0x1000)
    region = MemoryRegion.new_ram_device("bar", block)
    space = AddressSpace("as", region)
    space.write(8, 8, 0x1122334455667788)
    space.write(0x11, 2, 0xBEEF)
    assert bytes(block.view[8:16]) == bytes.fromhex("8877665544332211") and bytes(block.view[0x11:0x13]) == b"\xef\xbe"
    assert space.read(8, 8) == 0x1122334455667788
    assert space.direct_view(0, 4, is_write=False) is None
    block.close()


def test_readonly_ram_device_drops_writes() -> None:
    block = RamBlock("bar", 0x1000)
    region = MemoryRegion.new_ram_device("bar", block)
    region.set_readonly(True)
    space = AddressSpace("as", region)
    assert space.write_bytes(0, b"abcd") == MemTxResult.DECODE_ERROR
    assert bytes(block.view[:4]) == b"\0\0\0\0"
    block.close()


def test_a_device_gets_its_access_whole_whatever_lies_over_the_rest() -> None:
    rtc, index = ByteDevice(4), ByteDevice(1)
    region = MemoryRegion.new_io("rtc", 4, rtc)
    region.add_subregion(2, MemoryRegion.new_io("index", 1, index))
    space = AddressSpace("I/O", region)
    space.write(0, 4, 0x12345678)
    assert space.read(0, 4) == 0x12345678 and rtc.calls == [("write", 0, 4), ("read", 0, 4)] and index.calls == []
    space.write(2, 2, 0xABCD)
    assert index.calls == [("write", 0, 2)]
    index.calls.clear()
    # Not aligned: in pieces, each to the region that answers its first byte.
    space.write(1, 4, 0x44332211)
    assert rtc.calls[2:] == [("write", 1, 1)] and index.calls == [("write", 0, 2)]
    assert space.read(4, 1) == 0 and rtc.bytes[1] == 0x11


def test_memory_is_cut_where_its_range_ends() -> None:
    low, high, ramd = (RamBlock(name, 0x1000) for name in ("low", "high", "ramd"))
    root = MemoryRegion.new_container("root")
    root.add_subregion(0, MemoryRegion.new_ram("low", low))
    device = ByteDevice(8)
    root.add_subregion_overlap(0xFFE, MemoryRegion.new_io("over", 2, device), 1)
    root.add_subregion(0x1000, MemoryRegion.new_ram_device("ramd", ramd))
    root.add_subregion(0x2000, MemoryRegion.new_rom("high", high))
    space = AddressSpace("as", root)
    space.write(0xFFC, 4, 0x44332211)
    assert bytes(low.view[0xFFC:]) == b"\x11\x22\0\0" and device.calls == [("write", 0, 2)]
    assert space.read(0xFFC, 4) == 0x44332211
    high.view[:4] = b"\xaa\xbb\xcc\xdd"
    space.write(0x1FFC, 8, 0x8877665544332211)
    assert bytes(ramd.view[0xFFC:]) == b"\x11\x22\x33\x44" and bytes(high.view[:4]) == b"\xaa\xbb\xcc\xdd"
    assert space.read(0x1FFC, 8) == 0xDDCCBBAA44332211
    for block in (low, high, ramd):
        block.close()


def test_an_access_that_begins_in_a_hole_takes_its_aligned_piece_with_it() -> None:
    device = ByteDevice(16)
    root = MemoryRegion.new_container("root", 0x100)
    root.add_subregion(0x12, MemoryRegion.new_io("dev", 0xE, device))
    space = AddressSpace("as", root)
    assert space.load(0x10, 4) == (0, MemTxResult.DECODE_ERROR) and device.calls == []
    assert space.load(0x11, 4)[1] == MemTxResult.DECODE_ERROR
    assert device.calls == [("read", 0, 2), ("read", 2, 1)]
    assert len(space.read_bytes(0, 0x14)) == 0x14 and len(device.calls) == 2
    assert len(space.read_bytes(0, 0x16)) == 0x16 and device.calls[2:] == [("read", 2, 2)]


def test_accesses_past_the_last_address_go_on_at_the_first() -> None:
    block = RamBlock("ram", 0x1000)
    root = MemoryRegion.new_container("system")
    root.add_subregion(0, MemoryRegion.new_ram("ram", block))
    device = ByteDevice(0x10)
    root.add_subregion((1 << 64) - 0x10, MemoryRegion.new_io("top", 0x10, device))
    space = AddressSpace("memory", root)
    space.write((1 << 64) - 2, 4, 0x44332211)
    assert device.bytes[-2:] == b"\x11\x22" and bytes(block.view[:2]) == b"\x33\x44"
    assert space.read((1 << 64) - 2, 4) == 0x44332211
    block.close()


def test_writes_to_ram_reach_the_write_hooks() -> None:
    block = RamBlock("ram", 0x1000)
    space = AddressSpace("as", MemoryRegion.new_ram("ram", block))
    heard: list[tuple[int, int]] = []
    block.add_write_hook(heard.extend)
    space.write(4, 4, 1)
    space.write(1, 2, 1)
    space.write_bytes(0x100, b"abc")
    space.read(0, 4)
    assert heard == [(4, 4), (1, 2), (0x100, 3)]
    block.close()


def test_look_ups_are_remembered_within_bounds_and_forgotten_when_the_tree_changes() -> None:
    root = MemoryRegion.new_container("root")
    first, second = ByteDevice(4), ByteDevice(4)
    root.add_subregion(0, MemoryRegion.new_io("first", 4, first))
    space = AddressSpace("as", root)
    for addr in range(0, 100_000, 8):
        space.read(addr, 4)
    assert len(space.view.hits) <= 4096
    space.read(0, 4)
    root.add_subregion_overlap(0, MemoryRegion.new_io("second", 4, second), 1)
    space.read(0, 4)
    assert first.calls == [("read", 0, 4)] * 2 and second.calls == [("read", 0, 4)]


def test_find_and_direct_view() -> None:
    block = RamBlock("ram", 0x2000)
    ram = MemoryRegion.new_ram("ram", block)
    root = MemoryRegion.new_container("root", 0x10000)
    root.add_subregion(0x4000, MemoryRegion.new_alias("a", ram, 0x1000, 0x1000))
    space = AddressSpace("as", root)
    section = space.find(0x4010)
    assert section is not None
    assert (section.region, section.offset, section.size, section.addr) == (ram, 0x1010, 0xFF0, 0x4010)
    assert section.hva == block.hva + 0x1010
    assert space.find(0x5000) is None
    view = space.direct_view(0x4FF0, 16, is_write=True)
    assert view is not None
    view[0] = 3
    assert space.read(0x4FF0, 1) == 3
    assert space.direct_view(0x4FF1, 16, is_write=True) is None
    view.release()
    block.close()


def test_ioeventfd_rings_instead_of_the_device() -> None:
    device = ByteDevice(0x10)
    root = MemoryRegion.new_container("root", 0x1000)
    region = MemoryRegion.new_io("dev", 0x10, device)
    root.add_subregion(0x100, region)
    space = AddressSpace("as", root)
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    heard: list[tuple[str, int, IoEventfd]] = []

    class Listener(MemoryListener):
        def eventfd_add(self, addr: int, eventfd: IoEventfd) -> None:
            heard.append(("add", addr, eventfd))

        def eventfd_del(self, addr: int, eventfd: IoEventfd) -> None:
            heard.append(("del", addr, eventfd))

    space.add_listener(Listener())
    bell = IoEventfd(4, 2, fd, datamatch=7)
    region.add_ioeventfd(bell)
    space.write(0x104, 2, 7)
    assert os.eventfd_read(fd) == 1 and device.calls == []
    space.write(0x104, 2, 8)
    space.write(0x104, 4, 7)
    assert device.calls == [("write", 4, 2), ("write", 4, 4)]
    region.set_address(0x200)
    region.del_ioeventfd(bell)
    any_write = IoEventfd(0, 0, fd)
    region.add_ioeventfd(any_write)
    space.write(0x200, 1, 99)
    assert os.eventfd_read(fd) == 1
    root.del_subregion(region)
    expected = [("add", 0x104, bell), ("del", 0x104, bell), ("add", 0x204, bell), ("del", 0x204, bell)]
    assert heard == [*expected, ("add", 0x200, any_write), ("del", 0x200, any_write)]
    os.close(fd)


def test_doorbells_outside_the_visible_part_are_not_there() -> None:
    region = MemoryRegion.new_io("dev", 0x10, ByteDevice(0x10))
    heard: list[int] = []

    class Listener(MemoryListener):
        def eventfd_add(self, addr: int, eventfd: IoEventfd) -> None:
            heard.append(addr)

    space = AddressSpace("as", MemoryRegion.new_alias("window", region, 4, 8))
    space.add_listener(Listener())
    for offset in (0, 4, 11, 12):
        region.add_ioeventfd(IoEventfd(offset, 1, 0))
    assert heard == [0, 7]


def test_coalesced_parts_are_told_where_they_are_seen() -> None:
    region = MemoryRegion.new_io("dev", 0x10, ByteDevice(0x10))
    root = MemoryRegion.new_container("root", 0x1000)
    root.add_subregion(0x100, region)
    space = AddressSpace("as", root)
    log: list[tuple[str, int, int]] = []

    class Listener(MemoryListener):
        def coalesced_add(self, addr: int, size: int) -> None:
            log.append(("add", addr, size))

        def coalesced_del(self, addr: int, size: int) -> None:
            log.append(("del", addr, size))

    listener = Listener()
    region.add_coalescing(0, 2)
    space.add_listener(listener)
    region.add_coalescing(8, 8)
    # What lies over a part takes it away; the rest stays.
    over = MemoryRegion.new_io("over", 4, ByteDevice(4))
    root.add_subregion_overlap(0x10C, over, 1)
    root.del_subregion(over)
    region.clear_coalescing()
    region.set_coalescing()
    region.set_address(0x200)
    space.remove_listener(listener)
    assert log == [
        ("add", 0x100, 2),
        ("add", 0x108, 8),
        ("del", 0x108, 8),
        ("add", 0x108, 4),
        ("del", 0x108, 4),
        ("add", 0x108, 8),
        ("del", 0x100, 2),
        ("del", 0x108, 8),
        ("add", 0x100, 16),
        ("del", 0x100, 16),
        ("add", 0x200, 16),
        ("del", 0x200, 16),
    ]


def test_parts_outside_of_a_region_are_not_coalesced() -> None:
    region = MemoryRegion.new_io("dev", 0x10, ByteDevice(0x10))
    for offset, size in ((-1, 2), (0, 0), (15, 2)):
        with pytest.raises(ValueError, match="to coalesce"):
            region.add_coalescing(offset, size)


def test_ram_grows_and_shrinks_with_notice() -> None:
    block = RamBlock("tables", 0x2000, 0x8000)
    region = MemoryRegion.new_rom("tables", block)
    root = MemoryRegion.new_container("root")
    root.add_subregion(0x1000, region)
    space, heard = AddressSpace("as", root), list[tuple[int, int]]()
    block.add_resize_hook(lambda old, new: heard.append((old, new)))
    block.view[0x1000] = 7
    region.resize_ram(0x3001)
    assert (block.size, region.size, heard) == (0x4000, 0x4000, [(0x2000, 0x4000)])
    assert space.find(0x4FFF) is not None and space.find(0x5000) is None
    region.resize_ram(0x1000)
    assert heard[1:] == [(0x4000, 0x1000)] and space.find(0x2000) is None
    region.resize_ram(0x1000)
    region.resize_ram(0x2000)
    assert len(heard) == 3 and space.read(0x2000, 1) == 0, "what was cut off reads zero when it comes again"
    with pytest.raises(ValueError, match="cannot grow"):
        region.resize_ram(0x9000)
    with pytest.raises(ValueError, match="no memory"):
        root.resize_ram(0x1000)
    block.close()
