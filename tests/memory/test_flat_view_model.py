"""Random trees against a model that asks, byte by byte, who answers: it shares no code with the renderer."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.memory import AddressSpace, MemoryRegion, MemoryTransaction, RegionKind
from pellucid.memory.flat_view import FlatRange, _Renderer, flat_view_root, render_flat_view
from pellucid.records import dataclass, field
from tests.memory.helpers import Recorder

SPAN = 48

Answer = tuple[MemoryRegion, int, bool, bool] | None
"""Who answers, at which of its bytes, whether something on the way is read-only, or non-volatile."""


@dataclass
class Tree:
    """Regions in the order of their making, and when each was last put in its place."""

    root: MemoryRegion
    regions: list[MemoryRegion]
    when: dict[MemoryRegion, int] = field(default_factory=dict)
    clock: int = 0

    def placed(self, region: MemoryRegion) -> None:
        self.clock += 1
        self.when[region] = self.clock

    def answer(self, region: MemoryRegion, at: int, readonly: bool = False, nonvolatile: bool = False) -> Answer:
        """Who answers byte `at` of `region`."""
        if not region.enabled or not 0 <= at < region.size:
            return None
        readonly |= region.readonly
        nonvolatile |= region.nonvolatile
        if region.alias_target is not None:
            return self.answer(region.alias_target, at + region.alias_offset, readonly, nonvolatile)
        for child in sorted(region.subregions, key=lambda r: (-r.priority, -self.when[r])):
            found = self.answer(child, at - child.addr, readonly, nonvolatile)
            if found is not None:
                return found
        return None if region.kind is RegionKind.CONTAINER else (region, at, readonly, nonvolatile)


KINDS = {kind.value: kind for kind in RegionKind if kind is not RegionKind.ALIAS}

NODE = st.tuples(
    st.sampled_from([*KINDS, "i/o", "container", "alias", "alias", "alias"]),
    st.integers(0, SPAN),  # size
    st.integers(0, SPAN),  # address
    st.integers(-1, 1),  # priority
    st.integers(0, 99),  # which container
    st.integers(0, 99),  # which alias target
    st.integers(0, SPAN),  # alias offset
    st.booleans(),  # readonly
    st.booleans(),  # nonvolatile
)
Node = tuple[str, int, int, int, int, int, int, bool, bool]

CHANGE = st.tuples(
    st.sampled_from(["enable", "move", "resize", "readonly", "nonvolatile", "romd", "alias", "remove", "add"]),
    st.integers(0, 99),
    st.integers(0, SPAN),
    st.integers(0, 99),
)


def build(nodes: list[Node]) -> Tree:
    root = MemoryRegion.new_container("root", SPAN)
    tree = Tree(root, [root])
    for number, (kind, size, addr, priority, container, target, offset, readonly, nonvolatile) in enumerate(nodes):
        if kind == "alias":
            region = MemoryRegion.new_alias(f"alias{number}", tree.regions[target % len(tree.regions)], offset, size)
        else:
            region = MemoryRegion(KINDS[kind], f"{kind}{number}", size)
        region.set_readonly(readonly)
        region.set_nonvolatile(nonvolatile)
        tree.regions.append(region)
        place(tree, region, container, addr, priority)
    return tree


def place(tree: Tree, region: MemoryRegion, container: int, addr: int, priority: int) -> None:
    parents = [r for r in tree.regions if r is not region]
    parent = parents[container % len(parents)]
    try:
        parent.add_subregion_overlap(addr, region, priority)
    except ValueError:  # a loop, or an alias as container: the tree stays without it
        return
    tree.placed(region)


def change(tree: Tree, what: str, which: int, number: int, other: int) -> None:
    region = tree.regions[which % len(tree.regions)]
    if what == "enable":
        region.set_enabled(not region.enabled)
    elif what == "move" and region.container is not None:
        if region.addr != number:
            tree.placed(region)
        region.set_address(number)
    elif what == "resize":
        region.set_size(number)
    elif what == "readonly":
        region.set_readonly(not region.readonly)
    elif what == "nonvolatile":
        region.set_nonvolatile(not region.nonvolatile)
    elif what == "romd" and region.kind is RegionKind.ROM_DEVICE:
        region.set_romd_mode(not region.romd_mode)
    elif what == "alias" and region.alias_target is not None:
        region.set_alias_offset(number)
    elif what == "remove" and region.container is not None:
        region.container.del_subregion(region)
    elif what == "add" and region.container is None and region is not tree.root:
        place(tree, region, other, number, other % 3 - 1)


def check(tree: Tree, space: AddressSpace, root: MemoryRegion) -> None:
    for at in range(SPAN + 2):
        found = space.view.lookup(at)
        got = (found.region, at - found.delta, found.readonly, found.nonvolatile)
        assert (got if found.region.name != "unassigned" else None) == tree.answer(root, at), f"byte {at}"
        if found.region.name != "unassigned":
            check_directness(found)
    ends = [(r.start, r.end) for r in space.view.ranges]
    assert all(start < end for start, end in ends)
    assert all(before[1] <= after[0] for before, after in zip(ends, ends[1:], strict=False))
    for left, right in zip(space.view.ranges, space.view.ranges[1:], strict=False):
        seamless = left.end == right.start and left.delta == right.delta and left.region is right.region
        same = left.readonly == right.readonly and left.nonvolatile == right.nonvolatile
        assert not (seamless and same), "neighbours that should have been joined"
    whole = render_flat_view(flat_view_root(space.root))
    assert [r.key for r in whole.ranges] == [r.key for r in space.view.ranges], "not what a whole rendering gives"


def check_directness(found: FlatRange) -> None:
    kind = found.region.kind
    assert found.read_direct == (kind is RegionKind.RAM or (kind is RegionKind.ROM_DEVICE and found.region.romd_mode))
    assert found.write_direct == (kind is RegionKind.RAM and not found.readonly)


@settings(max_examples=150, deadline=None)
@given(st.lists(NODE, min_size=1, max_size=10))
def test_rendering_agrees_with_the_byte_model(nodes: list[Node]) -> None:
    tree = build(nodes)
    check(tree, AddressSpace("as", tree.root), tree.root)


@settings(max_examples=80, deadline=None)
@given(st.lists(NODE, min_size=2, max_size=8), st.lists(CHANGE, min_size=1, max_size=8), st.booleans())
def test_changes_and_listeners_agree_with_the_byte_model(
    nodes: list[Node],
    changes: list[tuple[str, int, int, int]],
    together: bool,
) -> None:
    tree = build(nodes)
    window = MemoryRegion.new_alias("window", tree.root, 0, SPAN)
    spaces = [(AddressSpace("memory", tree.root), tree.root), (AddressSpace("dma", window), window)]
    recorders = [Recorder() for _ in spaces]
    for (space, _), recorder in zip(spaces, recorders, strict=True):
        space.add_listener(recorder)
    if together:
        with MemoryTransaction():
            for one in changes:
                change(tree, *one)
    for one in [] if together else changes:
        change(tree, *one)
        for space, root in spaces:
            check(tree, space, root)
    for (space, root), recorder in zip(spaces, recorders, strict=True):
        check(tree, space, root)
        there = {(s.addr, s.addr + s.size, s.region, s.offset, s.readonly) for s in recorder.there}
        assert there == {r.key[:5] for r in space.view.ranges}


def test_a_change_renders_only_what_it_touches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost of a change is that of its own window: not of the view's other ranges, nor of the listeners' slots."""
    system = MemoryRegion.new_container("system")
    bars = [MemoryRegion(RegionKind.IO, f"bar{number}", 0x1000) for number in range(100)]
    for number, bar in enumerate(bars):
        system.add_subregion(0x1_0000 * number, bar)
    window = MemoryRegion(RegionKind.RAM, "pam-ram", 0x4000)
    system.add_subregion_overlap(0x20_0000, window, 1)
    spaces = [AddressSpace("memory", system), AddressSpace("dma", MemoryRegion.new_alias("w", system, 0, 1 << 63))]
    recorder = Recorder()
    spaces[0].add_listener(recorder)
    recorder.log.clear()
    before = spaces[0].view
    filled: list[str] = []
    real_fill = _Renderer._fill

    def count(self: _Renderer, region: MemoryRegion, *rest: Any) -> None:
        filled.append(region.name)
        real_fill(self, region, *rest)

    monkeypatch.setattr(_Renderer, "_fill", count)
    window.set_enabled(False)
    assert sorted(filled) == ["bar32"] * 2, "once in each of the two views, and nothing else"
    assert recorder.log == ["begin", "del pam-ram 0x200000+0x4000", "add bar32 0x200000+0x1000", "commit"]
    kept = {id(found) for found in before.ranges} & {id(found) for found in spaces[0].view.ranges}
    assert len(before.ranges) == 100 and len(kept) == 99
    filled.clear()
    recorder.log.clear()
    system.set_enabled(True)  # as it is: nothing
    with MemoryTransaction():
        window.set_enabled(True)
        window.set_enabled(False)
    assert sorted(filled) == ["bar32"] * 2 and recorder.log == ["begin", "commit"]
    assert spaces[0].view.changes_from(spaces[0].view) == ([], [])
    bars[3].set_enabled(False)
    assert recorder.log[2:] == ["begin", "del bar3 0x30000+0x1000", "commit"]
