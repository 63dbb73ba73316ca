"""Who answers at an address of a region tree, on which way it is reached, and why every other region does not.

The tree is walked in the order in which the renderer walks it; but where the renderer leaves out what cannot be seen,
this walk goes on and notes the reason. The answer is the flat view's, by another way.
"""

from collections.abc import Iterator, Sequence

from pellucid.memory.address_space import AddressSpace
from pellucid.memory.flat_view import FlatRange
from pellucid.memory.region import MemoryRegion, RegionKind
from pellucid.records import dataclass

_MOST_CANDIDATES = 500
"""What is worth reading, and a bound for trees whose aliases show each other over and over."""


@dataclass(frozen=True)
class Step:
    """One region on the way from the root, and the offset in it at which the address lies."""

    region: MemoryRegion
    offset: int


@dataclass(frozen=True)
class Candidate:
    """A region that lies at the address, or would: the steps to it, itself the last, and why it does not answer.

    `reason` is empty for the one that does. `equal`: it lost by the order of two equal priorities.
    """

    steps: tuple[Step, ...]
    reason: str
    equal: bool = False

    @property
    def region(self) -> MemoryRegion:
        return self.steps[-1].region

    @property
    def offset(self) -> int:
        return self.steps[-1].offset

    @property
    def through(self) -> list[str]:
        """The aliases on the way."""
        return [step.region.name for step in self.steps[:-1] if step.region.alias_target is not None]


@dataclass(frozen=True)
class Explanation:
    """What is at `address` of `space`: the answer (None: nothing answers) and the others, as they were looked at."""

    space: AddressSpace
    address: int
    answer: Candidate | None
    others: tuple[Candidate, ...]

    @property
    def readonly(self) -> bool:
        """Something on the way drops writes."""
        return self.answer is not None and any(step.region.readonly for step in self.answer.steps)


def explain(space: AddressSpace, address: int) -> Explanation:
    """Say who answers at `address`, and why the others do not."""
    walk = _Walk(address)
    root = space.root
    walk.visit(root, -root.addr, (), "")
    answer = next((found for found in walk.found if not found.reason), None)
    others = [found for found in (*walk.found, *walk.missed()) if found is not answer]
    if answer is not None:
        others = [found if found.reason else _behind(answer.steps, found.steps) for found in others]
    return Explanation(space, address, answer, tuple(others))


def ways(space: AddressSpace) -> Iterator[tuple[FlatRange, Candidate | None]]:
    """Every range of the space's flat view with the way to it."""
    for found in space.view.ranges:
        yield found, explain(space, found.start).answer


class _Walk:
    """Collects the candidates for one address; the first of those without a reason answers."""

    def __init__(self, address: int) -> None:
        self._address = address
        self.found: list[Candidate] = []
        self._missed: dict[tuple[MemoryRegion, int], list[Candidate]] = {}
        """By what would answer: the ways through aliases whose windows do not reach the address."""

    def visit(self, region: MemoryRegion, base: int, steps: tuple[Step, ...], hidden: str) -> bool:
        """Look at `region` in a container that begins at `base`; `hidden` says why nothing in there can be seen.

        Returns whether something in it answers.
        """
        if len(self.found) >= _MOST_CANDIDATES:
            return False
        base += region.addr
        offset = self._address - base
        if not 0 <= offset < region.size:
            self._miss(region, offset, steps)
            return False
        steps = (*steps, Step(region, offset))
        if not region.enabled and not hidden:
            hidden = f"'{region.name}' is disabled"
        target = region.alias_target
        if target is not None:
            inside = offset + region.alias_offset
            if not 0 <= inside < target.size:
                self._add(steps, hidden or f"beyond the end of '{target.name}', which it shows")
                return False
            return self.visit(target, base - target.addr - region.alias_offset, steps, hidden)
        answered = False
        for below in region.subregions:
            answered |= self.visit(below, base, steps, hidden)
        if region.terminates:
            self._add(steps, hidden)
            return not hidden
        if not answered and (hidden or not region.subregions):
            self._add(steps, hidden or "an empty container")
        return answered

    def _miss(self, region: MemoryRegion, offset: int, steps: tuple[Step, ...]) -> None:
        """An alias whose window ends before the address, or begins behind it, though what it shows would be there."""
        target = region.alias_target
        if target is None or not target.terminates or not region.enabled:
            return
        inside = offset + region.alias_offset
        if 0 <= inside < target.size:
            way = (*steps, Step(region, offset), Step(target, inside))
            start = self._address - offset
            window = f"{start:#x}-{start + max(region.size - 1, 0):#x}"
            reason = f"not covered by the window of the alias '{region.name}', {window}"
            self._missed.setdefault((target, inside), []).append(Candidate(way, reason))

    def missed(self) -> Iterator[Candidate]:
        """Of what lies at the address through no window, the way through the widest one."""
        seen = {(found.region, found.offset) for found in self.found}
        for place, ways_there in self._missed.items():
            if place not in seen:
                yield max(ways_there, key=lambda way: way.steps[-2].region.size)

    def _add(self, steps: tuple[Step, ...], reason: str) -> None:
        self.found.append(Candidate(steps, reason))


def _behind(answer: Sequence[Step], other: tuple[Step, ...]) -> Candidate:
    """`other`, which could be seen, with the reason why it is not: where the two ways part, one sibling wins."""
    for ours, theirs in zip(answer, other, strict=False):
        if ours.region is theirs.region:
            continue
        mine, their = theirs.region, ours.region
        if mine.priority == their.priority:
            reason = f"has priority {mine.priority} as '{their.name}', which is looked at first"
            return Candidate(other, reason, equal=True)
        whose = "" if mine is other[-1].region else f" of '{mine.name}'"
        return Candidate(other, f"priority {mine.priority}{whose} is below {their.priority} of '{their.name}'")
    return Candidate(other, f"answers only where nothing in it does, and '{answer[len(other)].region.name}' is in it")


def effects(found: Explanation) -> tuple[str, str]:
    """(what a read does, what a write does) at an address, in words."""
    if found.answer is None:
        return "nothing is there: 0, or all ones in port space", "dropped"
    region = found.answer.region
    if region.kind is RegionKind.ROM_DEVICE and region.is_romd:
        return "from its memory", "to the device"
    if region.kind is RegionKind.RAM or region.kind is RegionKind.RAM_DEVICE:
        return "from its memory", "dropped: read-only" if found.readonly else "to its memory"
    return "from the device", "to the device"
