"""The listener that gives RAM to a VM as memory slots, against a VM that checks what KVM checks."""

import contextlib
import os
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.memory import (
    AddressSpace,
    IoEventfd,
    Ioeventfds,
    MemoryRegion,
    MemorySlots,
    MemoryTransaction,
    RamBlock,
    UnassignedIoOps,
)
from tests.memory.helpers import ByteDevice

Slot = tuple[int, int, int, bool]


class StrictVm:
    """Keeps slots as KVM does, and refuses what KVM refuses."""

    def __init__(self) -> None:
        self.slots: dict[int, Slot] = {}
        self.calls: list[str] = []
        self.written: list[tuple[int, int]] = []
        self.bells: list[tuple[int, int, int, bool, int | None]] = []

    def memory_written(self, pieces: Sequence[tuple[int, int]]) -> None:
        self.written.extend(pieces)

    def set_user_memory_region(self, slot: int, gpa: int, size: int, hva: int, readonly: bool = False) -> None:
        assert gpa % 4096 == size % 4096 == hva % 4096 == 0
        if size == 0:
            del self.slots[slot]
            self.calls.append(f"-{slot}")
            return
        assert slot not in self.slots
        others = [other for number, other in self.slots.items() if number >> 16 == slot >> 16]
        assert all(gpa >= g + s or g >= gpa + size for g, s, _, _ in others), "slots overlap"
        self.slots[slot] = (gpa, size, hva, readonly)
        self.calls.append(f"+{slot}")

    def ioeventfd(
        self,
        fd: int,
        address: int,
        length: int,
        *,
        pio: bool = False,
        datamatch: int | None = None,
        assign: bool = True,
    ) -> None:
        bell = (fd, address, length, pio, datamatch)
        if assign:
            self.bells.append(bell)
        else:
            self.bells.remove(bell)


@pytest.fixture
def block() -> Iterator[RamBlock]:
    ram = RamBlock("ram", 0x40000)
    yield ram
    ram.close()


def test_ram_rom_and_aliases_become_slots(block: RamBlock) -> None:
    bios = RamBlock("bios", 0x2000)
    root = MemoryRegion.new_container("system")
    space = AddressSpace("memory", root)
    vm = StrictVm()
    slots = MemorySlots(vm)
    ram, rom = MemoryRegion.new_ram("ram", block), MemoryRegion.new_rom("bios", bios)
    root.add_subregion(0, MemoryRegion.new_alias("low", ram, 0, 0x20000))
    root.add_subregion(0x1_0000_0000, MemoryRegion.new_alias("high", ram, 0x20000, 0x20000))
    root.add_subregion(0xFFFF_E000, rom)
    root.add_subregion(0xFEE0_0000, MemoryRegion.new_io("apic", 0x1000, ByteDevice(0x1000)))
    space.add_listener(slots)
    assert sorted(vm.slots.values()) == [
        (0, 0x20000, block.hva, False),
        (0xFFFF_E000, 0x2000, bios.hva, True),
        (0x1_0000_0000, 0x20000, block.hva + 0x20000, False),
    ]
    assert [slot.gpa for slot in slots.slots] == [0, 0xFFFF_E000, 0x1_0000_0000]
    space.remove_listener(slots)
    assert vm.slots == {} and slots.slots == []
    bios.close()


def test_a_hole_cuts_a_slot_in_two_while_no_vcpu_runs(block: RamBlock) -> None:
    root = MemoryRegion.new_container("system")
    space = AddressSpace("memory", root)
    vm = StrictVm()

    @contextlib.contextmanager
    def exclusive() -> Iterator[None]:
        vm.calls.append("[")
        yield
        vm.calls.append("]")

    space.add_listener(MemorySlots(vm, exclusive))
    root.add_subregion(0, MemoryRegion.new_ram("ram", block))
    vga = MemoryRegion.new_io("vga", 0x1000, ByteDevice(0x1000))
    root.add_subregion_overlap(0x10000, vga, 1)
    assert vm.calls == ["+0", "[", "-0", "+0", "+1", "]"]
    assert vm.slots == {0: (0, 0x10000, block.hva, False), 1: (0x11000, 0x2F000, block.hva + 0x11000, False)}
    vga.set_enabled(False)
    assert vm.slots == {0: (0, 0x40000, block.hva, False)}


def test_numbers_are_used_again(block: RamBlock) -> None:
    root = MemoryRegion.new_container("system")
    space = AddressSpace("memory", root)
    vm = StrictVm()
    space.add_listener(MemorySlots(vm))
    ram = MemoryRegion.new_ram("ram", block)
    windows = [MemoryRegion.new_alias(f"w{i}", ram, 0x1000 * i, 0x1000) for i in range(4)]
    for i, window in enumerate(windows):
        root.add_subregion(0x10000 * i, window)
    windows[1].set_enabled(False)
    windows[3].set_enabled(False)
    assert sorted(vm.slots) == [0, 2]
    windows[3].set_enabled(True)
    assert vm.slots[1][0] == 0x30000


def test_pam_style_redirection_makes_a_readonly_slot(block: RamBlock) -> None:
    root = MemoryRegion.new_container("system")
    space = AddressSpace("memory", root)
    vm = StrictVm()
    space.add_listener(MemorySlots(vm))
    ram = MemoryRegion.new_ram("ram", block)
    root.add_subregion(0, ram)
    shadow = MemoryRegion.new_alias("pam-rom", ram, 0x4000, 0x4000)
    shadow.set_readonly(True)
    root.add_subregion_overlap(0x4000, shadow, 1)
    assert {(gpa, readonly) for gpa, _, _, readonly in vm.slots.values()} == {(0, 0), (0x4000, 1), (0x8000, 0)}


def test_romd_mode_switches_the_slot() -> None:
    flash = RamBlock("flash", 0x1000)
    region = MemoryRegion.new_rom_device("flash", flash, ByteDevice(0x1000))
    space = AddressSpace("memory", region)
    vm = StrictVm()
    space.add_listener(MemorySlots(vm))
    assert vm.slots == {0: (0, 0x1000, flash.hva, True)}
    region.set_romd_mode(False)
    assert vm.slots == {}
    region.set_romd_mode(True)
    assert vm.slots == {0: (0, 0x1000, flash.hva, True)}
    flash.close()


def test_parts_of_pages_are_left_to_dispatch(block: RamBlock) -> None:
    root = MemoryRegion.new_container("system")
    space = AddressSpace("memory", root)
    vm = StrictVm()
    space.add_listener(MemorySlots(vm))
    ram = MemoryRegion.new_ram("ram", block)
    root.add_subregion(0x800, MemoryRegion.new_alias("shifted", ram, 0, 0x3000))
    assert vm.slots == {}  # guest pages would not begin where host pages do
    root.add_subregion(0x10800, MemoryRegion.new_alias("partial", ram, 0x800, 0x2000))
    assert vm.slots == {0: (0x11000, 0x1000, block.hva + 0x1000, False)}
    space.write(0x10800, 4, 5)
    assert block.view[0x800] == 5


WINDOW = st.tuples(st.integers(0, 40), st.integers(0, 20), st.integers(1, 20), st.integers(-1, 2), st.booleans())


@settings(max_examples=60)
@given(st.lists(WINDOW, max_size=6), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40)), max_size=8))
def test_slots_always_show_what_the_flat_view_shows(
    windows: list[tuple[int, int, int, int, bool]], moves: list[tuple[int, int]]
) -> None:
    ram_block = RamBlock("ram", 0x40000)
    ram = MemoryRegion.new_ram("ram", ram_block)
    root = MemoryRegion.new_container("system")
    space = AddressSpace("memory", root)
    vm = StrictVm()
    space.add_listener(MemorySlots(vm))
    aliases = []
    with MemoryTransaction():
        for at, offset, pages, priority, readonly in windows:
            alias = MemoryRegion.new_alias("w", ram, offset << 12, pages << 12)
            alias.set_readonly(readonly)
            root.add_subregion_overlap(at << 12, alias, priority)
            aliases.append(alias)
    for which, to in moves if aliases else ():
        aliases[which % len(aliases)].set_address(to << 12)
    seen = {(r.start, r.end - r.start, ram_block.hva + r.offset, r.readonly) for r in space.view.ranges}
    assert set(vm.slots.values()) == seen
    assert set(vm.slots) == set(range(len(seen))) or len(set(vm.slots)) == len(seen)
    ram_block.close()


def test_doorbells_reach_the_vm() -> None:
    ports = MemoryRegion.new_io("io", 0x10000, UnassignedIoOps())
    space = AddressSpace("I/O", ports)
    device = MemoryRegion.new_io("dev", 0x10, ByteDevice(0x10))
    ports.add_subregion(0x510, device)
    vm = StrictVm()
    fd = os.eventfd(0)
    listener = Ioeventfds(vm, pio=True)
    space.add_listener(listener)
    device.add_ioeventfd(IoEventfd(2, 2, fd, 9))
    assert vm.bells == [(fd, 0x512, 2, True, 9)]
    device.set_address(0x600)
    assert vm.bells == [(fd, 0x602, 2, True, 9)]
    space.remove_listener(listener)
    assert vm.bells == []
    os.close(fd)


def test_a_second_address_space_has_slots_of_its_own_and_tells_writes_once(block: RamBlock) -> None:
    vm = StrictVm()
    ram = MemoryRegion.new_ram("ram", block)
    first, second = MemoryRegion.new_container("first"), MemoryRegion.new_container("second")
    first.add_subregion(0, MemoryRegion.new_alias("low", ram, 0, 0x2000))
    second.add_subregion(0, MemoryRegion.new_alias("all", ram, 0, 0x4000))
    spaces = AddressSpace("first", first), AddressSpace("second", second)
    slots = MemorySlots(vm)
    spaces[0].add_listener(slots)
    spaces[1].add_listener(slots.beside(1))
    assert vm.slots == {0: (0, 0x2000, block.hva, False), 1 << 16: (0, 0x4000, block.hva, False)}
    spaces[1].write_bytes(0x3000, b"abc")
    assert vm.written == [(block.hva + 0x3000, 3)]
    for space in spaces:
        space.close()
    assert vm.slots == {}
