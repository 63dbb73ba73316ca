"""Reads the text of `info mtree` back into regions and address spaces.

From a dump pasted from any QEMU comes a tree with the same names, places, priorities, kinds and aliases; it can be
rendered, looked into and printed again. Nothing answers accesses in it: RAM has no memory and devices are reservations,
because a dump does not hold them. Nor does it say which of two overlapping siblings of equal priority was added last;
the one that stands first is taken to be seen.

Without -D, QEMU leaves out the line of a region that is disabled, and prints those in it all the same, one step further
to the right than they have a reason to be: such a step is read as a disabled container, `UNPRINTED`.
"""

import re
from collections.abc import Iterator

from pellucid.errors import UserError
from pellucid.memory.address_space import AddressSpace
from pellucid.memory.region import ADDRESS_SPACE_SIZE, MemoryRegion, RegionKind
from pellucid.memory.transaction import MemoryTransaction
from pellucid.records import dataclass, field

_HEADER = re.compile(r"(address-space|memory-region): (.*)")
_LINE = re.compile(
    r"(?P<indent> +)(?P<start>[0-9a-f]{16})-(?P<end>[0-9a-f]{16}) "
    r"\(prio (?P<prio>-?\d{1,10}), (?P<nv>nv-)?(?P<kind>[a-z/]+|[R-][W-])\): "
    r"(?:alias (?P<alias>.*) @(?P<target>.*) (?P<offset>[0-9a-f]{16})-[0-9a-f]{16}|(?P<name>.*?))"
    r"(?P<off> \[disabled\])?(?P<orphan> orphan| owner:\{(?P<owner>[^}]*)\})?(?: parent:\{(?P<parent>[^}]*)\})?"
)
_NOISE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\[DETECTED OVERFLOW!\] |\r")
_AROUND = re.compile(r"\(qemu\).*|QEMU [\d.]+ monitor.*|```.*")
"""What is pasted along with a dump: the monitor's prompts and greeting, a web page's fence."""
_MAX_LEVEL = 64
_MAX_LINES = 20_000
_MAX_TREES = 2_000
_MAX_WAYS = 1_000_000
"""Bound on the ways from the roots to all regions: aliases that show each other over and over have no end of them."""
_KINDS = {
    "i/o": RegionKind.RESERVATION,
    "ram": RegionKind.RAM,
    "rom": RegionKind.RAM,
    "romd": RegionKind.ROM_DEVICE,
    "ramd": RegionKind.RAM_DEVICE,
    # QEMU up to 2.7 says what may be done, and not whether by RAM or a device.
    "RW": RegionKind.RESERVATION,
    "-W": RegionKind.RESERVATION,
    "R-": RegionKind.RAM,
    "--": RegionKind.RESERVATION,
}

ANSWERS_BETWEEN_SUBREGIONS = frozenset({"io", "rtc"})
"""Names of I/O regions that answer where no subregion of theirs does. A dump does not tell them from containers."""


CONTAINERS = frozenset({"bus master container", "pci", "smram", "system"})
"""Names of containers that may be printed with nothing in them, since all of it is disabled."""

UNPRINTED = "(disabled, not printed)"
"""Name of a container whose line is not in the dump."""

READ_ONLY_ALIASES = frozenset({"pam-rom"})
"""Names of aliases that drop writes to the RAM they show. A dump tells their target's kind only."""


@dataclass(slots=True)
class _Node:
    """One line of a dump."""

    level: int
    start: int
    addr: int
    """Offset in the container."""
    size: int
    priority: int
    kind: str
    name: str
    target: str | None
    offset: int
    enabled: bool
    nonvolatile: bool
    owner: str | None
    parent: str | None
    children: list["_Node"] = field(default_factory=list)


@dataclass(slots=True)
class _Section:
    """A tree of a dump, with the address spaces that show it; none: an alias shows it, as the region `name`."""

    spaces: list[str]
    name: str
    root: _Node | None = None


def read_mtree(text: str) -> list[AddressSpace]:
    """The address spaces of an `info mtree` dump, in the order of the dump.

    Raises:
        UserError: a line is none of `info mtree`'s, or an alias shows a region that is not in the dump.
    """
    sections = _parse(text)
    if not any(section.spaces for section in sections):
        raise UserError("there is no 'address-space:' with a tree in it; paste what 'info mtree' prints, whole")
    with MemoryTransaction():
        roots = _Builder(sections).build()
        return [
            AddressSpace(name, root) for section, root in zip(sections, roots, strict=True) for name in section.spaces
        ]


def _parse(text: str) -> list[_Section]:
    sections: list[_Section] = []
    path: list[_Node] = []
    lines = text.splitlines()
    if len(lines) > _MAX_LINES:
        raise UserError(f"{len(lines)} lines are more than 'info mtree' prints; at most {_MAX_LINES} are read")
    lines = [_NOISE.sub("", line).rstrip() for line in lines]
    # Pasted text may have been moved to the right as a whole.
    margin = min((len(match["indent"]) for line in lines if (match := _LINE.fullmatch(line))), default=2) - 2
    for number, line in enumerate(lines, 1):
        if header := _HEADER.fullmatch(line):
            kind, name = header.groups()
            # Address spaces that show one tree stand above it, line by line.
            if not (kind == "address-space" and sections and sections[-1].root is None):
                sections.append(_Section([], UNPRINTED if kind == "address-space" else name))
            if kind == "address-space":
                sections[-1].spaces.append(name)
            path = []
        elif match := _LINE.fullmatch(line):
            node = _node(match, margin)
            _place(sections, path, node, number)
        elif line.startswith("FlatView #"):
            raise UserError(f"line {number} is of 'info mtree -f', whose tree is gone; paste 'info mtree' without -f")
        elif line and not _AROUND.fullmatch(line):
            raise UserError(f"line {number} is not a line of 'info mtree': {line.strip()[:60]!r}")
    if len(sections) > _MAX_TREES:
        raise UserError(f"{len(sections)} trees are more than 'info mtree' prints; at most {_MAX_TREES} are read")
    return [section for section in sections if section.root is not None]


def _node(match: re.Match[str], margin: int) -> _Node:
    start, end = int(match["start"], 16), int(match["end"], 16)
    return _Node(
        level=(len(match["indent"]) - margin) // 2,
        start=start,
        addr=start,
        # An empty region and one of one byte look the same; empty ones are disabled windows not yet sized.
        size=end - start + 1 if end != start or not match["off"] else 0,
        priority=int(match["prio"]),
        kind=match["kind"],
        name=match["alias"] if match["alias"] is not None else match["name"],
        target=match["target"],
        offset=int(match["offset"] or "0", 16),
        enabled=not match["off"],
        nonvolatile=bool(match["nv"]),
        owner=match["owner"],
        parent=match["parent"],
    )


def _place(sections: list[_Section], path: list[_Node], node: _Node, number: int) -> None:
    """Hang `node` below the last line that is less indented."""
    if node.level > _MAX_LEVEL:
        raise UserError(f"line {number} is indented by {node.level} levels; is the indentation intact?")
    if not sections:
        raise UserError(f"line {number}: a region before the first 'address-space:' line; paste the dump whole")
    while path and path[-1].level >= node.level:
        path.pop()
    if not path and sections[-1].root is not None:
        raise UserError(f"line {number}: a second tree where one was expected; is the indentation intact?")
    while node.level > (path[-1].level if path else 0) + 1:
        _hang(sections[-1], path, _unprinted(sections[-1], path))
    _hang(sections[-1], path, node)


def _hang(section: _Section, path: list[_Node], node: _Node) -> None:
    if path:
        node.addr = node.start - path[-1].start
        path[-1].children.append(node)
    else:
        section.root = node
    path.append(node)


def _unprinted(section: _Section, path: list[_Node]) -> _Node:
    """A disabled container as large as what it lies in."""
    start, size = (path[-1].start, path[-1].size) if path else (0, ADDRESS_SPACE_SIZE)
    return _Node(
        level=path[-1].level + 1 if path else 1,
        start=start,
        addr=0,
        size=size,
        priority=0,
        kind="i/o",
        name=UNPRINTED if path else section.name,
        target=None,
        offset=0,
        enabled=False,
        nonvolatile=False,
        owner=None,
        parent=None,
    )


class _Builder:
    """Makes the regions of parsed trees."""

    def __init__(self, sections: list[_Section]) -> None:
        self._trees = [section.root for section in sections if section.root is not None]
        self._shown = [bool(section.spaces) for section in sections if section.root is not None]
        self._alike: dict[tuple[object, ...], list[tuple[int, _Node]]] = {}
        """By what makes lines show one region: the number of the tree and the line."""
        for index, tree in enumerate(self._trees):
            for node in _walk(tree):
                self._alike.setdefault(_identity(node), []).append((index, node))
        self._roots = {id(tree) for tree, shown in zip(self._trees, self._shown, strict=True) if shown}
        """The address spaces' own."""
        self._nodes: dict[str, _Node] = {}
        """By name: what an alias shows."""
        self._regions: dict[int, MemoryRegion | None] = {}
        """By identity of the node; None while it is being made."""

    def build(self) -> list[MemoryRegion]:
        """The root region of each tree."""
        # A tree that an alias shows stands in the dump once more where its region lies: that place is the region.
        places = [self._place_of(index) for index in range(len(self._trees))]
        originals = [tree for tree, place in zip(self._trees, places, strict=True) if place is tree]
        # Where an alias and what it shows have one name, the name means what is shown: plain regions come first.
        nodes = sorted((n for tree in originals for n in _walk(tree)), key=lambda n: n.target is not None)
        for node in nodes:
            self._nodes.setdefault(node.name, node)
        ways: dict[int, int] = {}
        if sum(self._ways(tree, ways, 0) for tree in originals) > _MAX_WAYS:
            raise UserError("the dump's aliases show each other over and over; is it a dump of QEMU's?")
        try:
            for node in nodes:
                self._fill(node)
        except ValueError as error:
            raise UserError(f"the dump contradicts itself: {error}") from error
        return [self._region(place) for place in places]

    def _ways(self, node: _Node, known: dict[int, int], depth: int) -> int:
        """How many ways lead from `node` down, aliases followed."""
        if depth > 4 * _MAX_LEVEL:
            raise UserError(f"the dump contradicts itself: '{node.name}' is at the end of too long a chain of aliases")
        count = known.get(id(node))
        if count is None:
            target = self._nodes.get(node.target) if node.target is not None else None
            below = [target] if target is not None else node.children
            known[id(node)] = 1  # until it is known: an alias that shows itself is named later
            count = known[id(node)] = 1 + sum(self._ways(child, known, depth + 1) for child in below)
        return count

    def _place_of(self, index: int, visiting: frozenset[int] = frozenset()) -> _Node:
        """The node that tree `index` repeats; its own root when it is the only place.

        `visiting` are the trees that wait for the answer: no dump of QEMU's has two that stand in each other.
        """
        tree = self._trees[index]
        if self._shown[index] or index in visiting or len(visiting) > _MAX_LEVEL:
            return tree
        for other_index, found in self._alike.get(_identity(tree), ()):
            other = self._trees[other_index]
            if other_index == index or (found is other and not self._shown[other_index]):
                continue
            outer = self._place_of(other_index, visiting | {index})
            if outer is other:
                return found
            return next((node for node in _walk(outer) if _identity(node) == _identity(tree)), tree)
        return tree

    def _region(self, node: _Node) -> MemoryRegion:
        if id(node) in self._regions:
            region = self._regions[id(node)]
            if region is None:
                raise UserError(f"the dump contradicts itself: alias '{node.name}' shows itself")
            return region
        self._regions[id(node)] = None
        region = self._new_alias(node) if node.target is not None else _new_region(node, id(node) in self._roots)
        region.priority = node.priority
        region.addr = node.addr
        region.enabled = node.enabled
        region.nonvolatile = node.nonvolatile
        region.owner, region.parent = node.owner, node.parent
        self._regions[id(node)] = region
        return region

    def _new_alias(self, node: _Node) -> MemoryRegion:
        target = self._nodes.get(node.target or "")
        if target is None or target is node:
            raise UserError(
                f"alias '{node.name}' shows '{node.target}', which is not in the dump; paste the dump whole"
            )
        alias = MemoryRegion.new_alias(node.name, self._region(target), node.offset, node.size)
        alias.readonly = node.name in READ_ONLY_ALIASES
        return alias

    def _fill(self, node: _Node) -> None:
        """Put the subregions in, from the last line to the first: of equals, the first line is seen."""
        region = self._region(node)
        for child in reversed(node.children):
            region.add_subregion_overlap(child.addr, self._region(child), child.priority)


def _new_region(node: _Node, is_root: bool) -> MemoryRegion:
    kind = _KINDS.get(node.kind)
    if kind is None:
        raise UserError(f"region '{node.name}': '{node.kind}' is no kind of memory region")
    holds = node.children or is_root or node.name in CONTAINERS
    if node.kind == "i/o" and holds and node.name not in ANSWERS_BETWEEN_SUBREGIONS:
        kind = RegionKind.CONTAINER
    region = MemoryRegion(kind, node.name, node.size)
    region.readonly = node.kind == "rom"
    return region


def _walk(node: _Node) -> Iterator[_Node]:
    yield node
    for child in node.children:
        yield from _walk(child)


def _identity(node: _Node) -> tuple[object, ...]:
    """What two lines that show one region have in common."""
    return (node.name, node.addr, node.size, node.priority, node.kind, node.target)
