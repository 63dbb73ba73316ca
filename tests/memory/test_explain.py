"""Who answers and why: against the flat view on random trees, and word for word on small ones."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.memory import AddressSpace, MemoryRegion, RamBlock, RegionKind, info_mtree
from pellucid.memory.explain import effects, explain, ways
from pellucid.memory.mtree_reader import read_mtree
from tests.memory.helpers import ByteDevice
from tests.memory.random_trees import SPAN, random_spaces


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False))
def test_a_tree_printed_and_read_back_shows_what_the_live_one_shows(rng: random.Random) -> None:
    live = random_spaces(rng)
    text = info_mtree(live, disabled=True, owner=True)
    back = read_mtree(text)
    assert info_mtree(back, disabled=True, owner=True) == text

    def flat(spaces: list[AddressSpace]) -> list[str]:
        # Address spaces may come in another order: those with one root stand together in the dump.
        order = sorted(spaces, key=lambda space: space.name)
        return [info_mtree([space], flat=True, owner=True) for space in order]

    assert flat(back) == flat(live)


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_answer_is_the_flat_view_s(rng: random.Random) -> None:
    for space in random_spaces(rng):
        for address in rng.sample(range(SPAN), 40):
            found, seen = explain(space, address), space.view.lookup(address)
            if seen.region.name == "unassigned":
                assert found.answer is None
            else:
                assert found.answer is not None and found.answer.region is seen.region
                assert (found.answer.offset, found.readonly) == (address - seen.delta, seen.readonly)
            assert all(other.reason for other in found.others)
            assert all(step.offset >= 0 for other in found.others for step in other.steps[:-2])
        for seen, way in ways(space):
            assert way is not None and way.region is seen.region and way.offset == seen.offset


def board() -> AddressSpace:
    system = MemoryRegion.new_container("system")
    ram = MemoryRegion.new_ram("pc.ram", RamBlock("pc.ram", 0x8000))
    bios = MemoryRegion.new_rom("pc.bios", RamBlock("pc.bios", 0x2000))
    pci = MemoryRegion.new_container("pci")
    system.add_subregion(0, MemoryRegion.new_alias("ram-below-4g", ram, 0, 0x6000))
    system.add_subregion_overlap(0, pci, -1)
    pci.add_subregion(0x5000, bios)
    shadow = MemoryRegion.new_alias("pam-pci", pci, 0x5000, 0x1000)
    system.add_subregion_overlap(0x5000, shadow, 1)
    off = MemoryRegion.new_alias("pam-ram", ram, 0x5000, 0x1000)
    off.set_enabled(False)
    system.add_subregion_overlap(0x5000, off, 1)
    rtc = MemoryRegion.new_io("rtc", 2, ByteDevice(2))
    rtc.add_subregion(0, MemoryRegion.new_io("rtc-index", 1, ByteDevice(1)))
    system.add_subregion(0x9000, rtc)
    return AddressSpace("memory", system)


@pytest.mark.parametrize(
    ("address", "answer", "through", "reads_and_writes", "reasons"),
    [
        (
            0x5010,
            "pc.bios+0x10",
            ["pam-pci"],
            ("from its memory", "dropped: read-only"),
            [
                "pc.ram: 'pam-ram' is disabled",
                "pc.ram: priority 0 of 'ram-below-4g' is below 1 of 'pam-pci'",
                "pc.bios: priority -1 of 'pci' is below 1 of 'pam-pci'",
            ],
        ),
        (
            0x7000,
            None,
            [],
            ("nothing is there: 0, or all ones in port space", "dropped"),
            ["pc.ram: not covered by the window of the alias 'ram-below-4g', 0x0-0x5fff"],
        ),
        (0x6010, "pc.bios+0x1010", [], ("from its memory", "dropped: read-only"), ["pc.ram: not covered by the"]),
        (0x10, "pc.ram+0x10", ["ram-below-4g"], ("from its memory", "to its memory"), []),
        (
            0x9000,
            "rtc-index+0x0",
            [],
            ("from the device", "to the device"),
            ["rtc: answers only where nothing in it does, and 'rtc-index' is in it"],
        ),
    ],
)
def test_reasons(
    address: int, answer: str | None, through: list[str], reads_and_writes: tuple[str, str], reasons: list[str]
) -> None:
    found = explain(board(), address)
    got = None if found.answer is None else f"{found.answer.region.name}+{found.answer.offset:#x}"
    assert got == answer and effects(found) == reads_and_writes
    assert found.answer is None or found.answer.through == through
    others = [f"{other.region.name}: {other.reason}" for other in found.others]
    assert len(others) == len(reasons) and all(o.startswith(r) for o, r in zip(others, reasons, strict=True)), others


def test_equals_and_aliases_that_show_too_much() -> None:
    root = MemoryRegion.new_container("root", 0x1000)
    small = MemoryRegion(RegionKind.IO, "small", 0x10)
    root.add_subregion_overlap(0x100, MemoryRegion.new_alias("wide", small, 0, 0x100), 2)
    root.add_subregion_overlap(0x100, MemoryRegion(RegionKind.IO, "old", 0x100), 0)
    root.add_subregion_overlap(0x100, MemoryRegion(RegionKind.IO, "new", 0x100), 0)
    root.add_subregion(0x800, MemoryRegion.new_container("hollow", 0x10))
    space = AddressSpace("as", root)
    found = explain(space, 0x120)
    assert found.answer is not None and found.answer.region.name == "new"
    assert [other.reason for other in found.others] == [
        "beyond the end of 'small', which it shows",
        "has priority 0 as 'new', which is looked at first",
    ]
    assert [other.equal for other in found.others] == [False, True]
    assert [other.reason for other in explain(space, 0x800).others] == ["an empty container"]


def test_aliases_over_and_over_are_cut_short() -> None:
    region = MemoryRegion(RegionKind.IO, "leaf", 0x10)
    for level in range(12):
        above = MemoryRegion.new_container(f"level{level}", 0x10)
        for side in range(2):
            above.add_subregion_overlap(0, MemoryRegion.new_alias(f"a{level}{side}", region, 0, 0x10), side)
        region = above
    found = explain(AddressSpace("as", region), 0)
    assert found.answer is not None and 400 < len(found.others) <= 500
