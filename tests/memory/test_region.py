"""The region tree: overlap and priority, attributes, and what it refuses."""

import pytest

from pellucid.memory import (
    AddressSpace,
    MemoryRegion,
    MemoryRegionSection,
    MemoryTransaction,
    RamBlock,
    RegionKind,
    memory_access_is_direct,
)
from pellucid.memory.flat_view import flat_view_root
from tests.memory.helpers import ByteDevice, Recorder


def io(name: str, size: int) -> MemoryRegion:
    return MemoryRegion.new_io(name, size, ByteDevice(size))


def ranges(space: AddressSpace) -> list[str]:
    return [f"{r.start:x}-{r.end - 1:x} {r.region.name}@{r.offset:x}" for r in space.view.ranges]


def test_higher_priority_wins_and_newest_of_equals() -> None:
    root = MemoryRegion.new_container("root", 0x100)
    space = AddressSpace("as", root)
    root.add_subregion_overlap(0, io("low", 0x100), -1)
    root.add_subregion_overlap(0x10, io("old", 0x20), 1)
    root.add_subregion_overlap(0x20, io("new", 0x20), 1)
    assert ranges(space) == ["0-f low@0", "10-1f old@0", "20-3f new@0", "40-ff low@40"]


def test_moving_makes_a_region_the_newest() -> None:
    root = MemoryRegion.new_container("root", 0x100)
    space = AddressSpace("as", root)
    first, second = io("first", 0x20), io("second", 0x20)
    root.add_subregion_overlap(0, first, 0)
    root.add_subregion_overlap(0x10, second, 0)
    assert ranges(space) == ["0-f first@0", "10-2f second@0"]
    first.set_address(0x8)
    assert ranges(space) == ["8-27 first@0", "28-2f second@18"]


def test_subregions_cover_their_io_region_and_containers_let_through() -> None:
    root = MemoryRegion.new_container("root", 0x100)
    space = AddressSpace("as", root)
    rtc = io("rtc", 2)
    rtc.add_subregion(0, io("rtc-index", 1))
    root.add_subregion(0x70, rtc)
    empty = MemoryRegion.new_container("empty", 0x100)
    root.add_subregion_overlap(0, empty, 5)
    assert ranges(space) == ["70-70 rtc-index@0", "71-71 rtc@1"]


def test_alias_shows_a_clipped_window_and_its_target_moves_with_it() -> None:
    root = MemoryRegion.new_container("root", 0x1000)
    space = AddressSpace("as", root)
    target = MemoryRegion.new_container("target", 0x100)
    target.add_subregion(0x10, io("dev", 0x20))
    alias = MemoryRegion.new_alias("alias", target, 0x18, 0x1000)
    root.add_subregion(0x200, alias)
    assert ranges(space) == ["200-217 dev@8"]
    alias.set_alias_offset(0)
    assert ranges(space) == ["210-22f dev@0"]
    alias.set_size(0x14)
    assert ranges(space) == ["210-213 dev@0"]


def test_disabled_regions_vanish_with_all_in_them() -> None:
    root = MemoryRegion.new_container("root", 0x100)
    space = AddressSpace("as", root)
    box = MemoryRegion.new_container("box", 0x100)
    device = io("dev", 0x10)
    box.add_subregion(0, device)
    root.add_subregion(0, box)
    box.set_enabled(False)
    assert ranges(space) == []
    recorder = Recorder()
    space.add_listener(recorder)
    recorder.log.clear()
    device.set_address(0x20)
    assert recorder.log == []  # unseen, so nothing is rendered, and yet right once it is seen again
    box.set_enabled(True)
    assert ranges(space) == ["20-2f dev@0"]
    box.del_subregion(device)
    assert ranges(space) == [] and device.container is None


def test_neighbours_are_joined_only_without_a_seam() -> None:
    root = MemoryRegion.new_container("root", 0x100)
    space = AddressSpace("as", root)
    device = io("dev", 0x40)
    for at, offset in ((0, 0), (0x10, 0x10), (0x20, 0x30)):
        root.add_subregion(at, MemoryRegion.new_alias("a", device, offset, 0x10))
    assert ranges(space) == ["0-1f dev@0", "20-2f dev@30"]


def test_readonly_of_an_alias_holds_for_what_it_shows() -> None:
    block = RamBlock("ram", 0x2000)
    ram = MemoryRegion.new_ram("ram", block)
    root = MemoryRegion.new_container("root", 0x4000)
    space = AddressSpace("as", root)
    root.add_subregion(0, ram)
    window = MemoryRegion.new_alias("pam-rom", ram, 0x1000, 0x1000)
    window.set_readonly(True)
    root.add_subregion_overlap(0x1000, window, 1)
    assert [(r.start, r.readonly) for r in space.view.ranges] == [(0, False), (0x1000, True)]
    space.write(0x1000, 4, 1)
    space.write(0x0FFC, 4, 2)
    assert space.read(0x1000, 4) == 0 and space.read(0x0FFC, 4) == 2
    window.set_readonly(False)
    assert ranges(space) == ["0-1fff ram@0"]
    block.close()


def test_transaction_renders_once_at_the_outermost_end() -> None:
    root = MemoryRegion.new_container("root", 0x100)
    space = AddressSpace("as", root)
    recorder = Recorder()
    space.add_listener(recorder)
    recorder.log.clear()
    with MemoryTransaction():
        with MemoryTransaction():
            root.add_subregion(0, io("a", 0x10))
        root.add_subregion(0x10, io("b", 0x10))
        assert space.view.ranges == [] and recorder.log == []
    assert recorder.log == ["begin", "add a 0x0+0x10", "add b 0x10+0x10", "commit"]


def test_transaction_that_fails_shows_what_was_changed() -> None:
    root = MemoryRegion.new_container("root", 0x100)
    space = AddressSpace("as", root)
    with pytest.raises(RuntimeError), MemoryTransaction():
        root.add_subregion(0, io("a", 0x10))
        raise RuntimeError
    assert ranges(space) == ["0-f a@0"]
    root.add_subregion(0x10, io("b", 0x10))
    assert ranges(space) == ["0-f a@0", "10-1f b@0"]


def test_listener_may_change_the_tree() -> None:
    root = MemoryRegion.new_container("root", 0x100)
    space = AddressSpace("as", root)
    follower = io("follower", 0x10)

    class Follow(Recorder):
        def commit(self) -> None:
            super().commit()
            if follower.container is None and space.view.ranges:
                root.add_subregion(0x80, follower)

    recorder = Follow()
    space.add_listener(recorder)
    root.add_subregion(0, io("a", 0x10))
    assert ranges(space) == ["0-f a@0", "80-8f follower@0"]
    assert {s.region.name for s in recorder.there} == {"a", "follower"}


def test_listeners_hear_additions_by_priority_and_deletions_backwards() -> None:
    root = MemoryRegion.new_container("root", 0x100)
    space = AddressSpace("as", root)
    heard: list[str] = []

    class Named(Recorder):
        def __init__(self, name: str, priority: int) -> None:
            super().__init__()
            self.name = name
            self.priority = priority

        def region_add(self, section: MemoryRegionSection) -> None:
            heard.append("+" + self.name)

        def region_del(self, section: MemoryRegionSection) -> None:
            heard.append("-" + self.name)

    for name, priority in (("late", 10), ("early", 0)):
        space.add_listener(Named(name, priority))
    device = io("a", 0x10)
    root.add_subregion(0, device)
    root.del_subregion(device)
    assert heard == ["+early", "+late", "-late", "-early"]


def test_overlap_is_refused_unless_declared() -> None:
    root = MemoryRegion.new_container("root", 0x100)
    root.add_subregion(0x10, io("a", 0x10))
    with pytest.raises(ValueError, match="would overlap"):
        root.add_subregion(0x1F, io("b", 0x10))
    root.add_subregion_overlap(0x1F, io("c", 0x10), 0)
    root.add_subregion(0x20, io("d", 0x10))


def test_impossible_trees_are_refused() -> None:
    root = MemoryRegion.new_container("root", 0x100)
    box = MemoryRegion.new_container("box", 0x100)
    root.add_subregion(0, box)
    with pytest.raises(ValueError, match="already in 'root'"):
        root.add_subregion(0, box)
    with pytest.raises(ValueError, match="cannot therefore contain"):
        box.add_subregion(0, MemoryRegion.new_alias("loop", root, 0, 0x100))
    with pytest.raises(ValueError, match="cannot therefore contain"):
        box.add_subregion(0, root)
    with pytest.raises(ValueError, match="is an alias"):
        MemoryRegion.new_alias("alias", root, 0, 1).add_subregion(0, io("x", 1))
    with pytest.raises(ValueError, match="not in 'box'"):
        box.del_subregion(io("x", 1))
    with pytest.raises(ValueError, match=r"outside 0\.\.2\*\*64"):
        MemoryRegion.new_container("huge", (1 << 64) + 1)
    with pytest.raises(ValueError, match="not an alias"):
        root.set_alias_offset(1)
    with pytest.raises(ValueError, match="not a ROM device"):
        root.set_romd_mode(True)


def test_direct_access_by_kind() -> None:
    block = RamBlock("b", 0x1000)
    ram, rom = MemoryRegion.new_ram("ram", block), MemoryRegion.new_rom("rom", block)
    romd = MemoryRegion.new_rom_device("romd", block, ByteDevice(0x1000))
    ramd = MemoryRegion.new_ram_device("ramd", block)
    both = [(memory_access_is_direct(r, False), memory_access_is_direct(r, True)) for r in (ram, rom, romd, ramd)]
    assert both == [(True, True), (True, False), (True, False), (False, False)]
    assert [r.type_name for r in (ram, rom, romd, ramd)] == ["ram", "rom", "romd", "ramd"]
    romd.set_romd_mode(False)
    assert not memory_access_is_direct(romd, False) and romd.type_name == "i/o"
    assert not memory_access_is_direct(io("io", 1), False)
    assert MemoryRegion.new_alias("a", rom, 0, 1).type_name == "rom"
    block.close()


def test_flat_view_root_looks_through_whole_aliases_and_only_children() -> None:
    system = MemoryRegion.new_container("system")
    assert flat_view_root(system) is None
    system.add_subregion(0, io("a", 8))
    system.add_subregion(8, io("b", 8))
    bus_master = MemoryRegion.new_container("bus master container")
    window = MemoryRegion.new_alias("bus master", system, 0, 1 << 64)
    bus_master.add_subregion(0, window)
    assert flat_view_root(bus_master) is system
    window.set_enabled(False)
    assert flat_view_root(bus_master) is None
    window.set_enabled(True)
    assert AddressSpace("dma", bus_master).view is AddressSpace("memory", system).view
    window.set_size(1 << 32)
    assert flat_view_root(bus_master) is window
    window.set_size(1 << 64)
    window.set_readonly(True)  # then what is seen through it is not what is seen without it
    assert flat_view_root(bus_master) is window


def test_reservation_is_in_the_tree_and_answers_nothing() -> None:
    region = MemoryRegion.new_reservation("psp", 0x1000)
    space = AddressSpace("as", region)
    assert region.kind is RegionKind.RESERVATION and ranges(space) == ["0-fff psp@0"]
    space.write(0, 4, 1)
    assert space.read(0, 4) == 0


def test_set_root_and_close_tell_the_listeners() -> None:
    one, two = io("one", 8), io("two", 8)
    space = AddressSpace("as", one)
    recorder = Recorder()
    space.add_listener(recorder)
    space.set_root(two)
    assert {s.region.name for s in recorder.there} == {"two"}
    space.close()
    assert recorder.there == set() and two.address_spaces == []
