"""Flat views and explanations on a terminal: one row for each range, holes too, and bars that grow with the size."""

import os
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from pellucid.memory import AddressSpace, FlatView
from pellucid.memory.explain import Candidate, Explanation, effects, ways
from pellucid.memory.ram_block import format_size
from pellucid.memory.region import MemoryRegion

COLOURS = {"ram": "green", "rom": "yellow", "romd": "yellow", "ramd": "magenta", "i/o": "cyan"}
NOTHING = "bright_black"
_FILE_WIDTH = 200
_END = (1 << 64) - 1
_BAR = "▏▎▍▌▋▊▉█"
_BAR_BITS = 8
"""Bits of size for each cell of a bar: eight cells are all 64-bit addresses."""


def print_flat_views(spaces: Sequence[AddressSpace]) -> None:
    """The flat view of each address space; those that share one together, the machine's memory first."""
    console = _console()
    sharing: dict[FlatView, list[AddressSpace]] = {}
    empty = []
    for space in spaces:
        if space.view.ranges:
            sharing.setdefault(space.view, []).append(space)
        else:
            empty.append(space.name)
    for users in sorted(sharing.values(), key=lambda users: all(space.name != "memory" for space in users)):
        console.print(*_title(users), _flat_table(_representative(users)))
    if empty:
        console.print(f"[{NOTHING}]nothing is seen in[/] {escape(', '.join(empty))}")


def print_explanation(found: Explanation) -> None:
    """The answer, the way to it, and the others with the reasons."""
    console = _console()
    console.print(_verdict(found))
    read, write = effects(found)
    console.print(f"  read   {read}\n  write  {write}\n")
    if found.answer is not None:
        console.print(_way(found.answer))
    if found.others:
        console.print("\n[bold]why no other[/]")
        console.print(_others(found.others))
    if any(other.equal for other in found.others):
        console.print(f"\n[{NOTHING}]Which of two equals was added last is not in a dump: the first line is taken.[/]")
    if all(region.enabled for region in found.space.root.descendants()):
        console.print(f"\n[{NOTHING}]No region of this dump is disabled; 'info mtree -D' prints those too.[/]")


def _console() -> Console:
    """As wide as the terminal; into a file or pipe, wide enough for everything."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _FILE_WIDTH
    return console


def _representative(users: Sequence[AddressSpace]) -> AddressSpace:
    """The one that looks at the view's root without a detour."""
    return next((space for space in users if space.root is space.view.root), users[0])


def _title(users: Sequence[AddressSpace]) -> Iterator[Text]:
    root = _representative(users).root
    own = [space.name for space in users if space.root is root]
    others = [space.name for space in users if space.root is not root]
    yield Text.assemble((", ".join(own), "bold"), (f"   root {root.name}\n", NOTHING))
    if others:
        yield Text.assemble(("the same is seen by ", NOTHING), ", ".join(others), "\n")


def _flat_table(space: AddressSpace) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for heading in ("from", "to", "size"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("", "kind"):
        table.add_column(heading, no_wrap=True)
    table.add_column("region  ← aliases", overflow="fold")
    for row in _rows(space):
        table.add_row(*row)
    return table


def _rows(space: AddressSpace) -> Iterator[tuple[Text, ...]]:
    """A row for each range and each hole between two."""
    expected = 0
    for found, way in ways(space):
        if found.start > expected:
            yield _row(expected, found.start, NOTHING, "", Text("nothing", NOTHING))
        expected = found.end
        region = found.region
        kind = "rom" if found.readonly else region.type_name
        # What answers between the others, port space's root say, is as good as a hole.
        colour = NOTHING if region is space.view.root else COLOURS[kind]
        name = Text(region.name, colour)
        if found.offset:
            name.append(f" + {found.offset:#x}", NOTHING)
        if way is not None and way.through:
            name.append(f"  ← {' ← '.join(reversed(way.through))}", NOTHING)
        yield _row(found.start, found.end, colour, kind, name)
    if expected < space.root.size:
        yield _row(expected, space.root.size, NOTHING, "", Text("nothing", NOTHING))


def _row(start: int, end: int, colour: str, kind: str, name: Text) -> tuple[Text, ...]:
    style = NOTHING if colour == NOTHING else ""
    size = end - start
    return (
        Text(f"{start:x}", style),
        Text("the end" if end - 1 == _END else f"{end - 1:x}", style),
        Text(_size(size), style),
        Text("" if name.plain == "nothing" and not kind else _bar(size), colour),
        Text(kind, colour),
        name,
    )


def _size(size: int) -> str:
    if size > 1 << 63:
        return ""
    return "1 byte" if size == 1 else format_size(size)


def _bar(size: int) -> str:
    """A cell for each eight bits of the size."""
    eighths = max(size.bit_length(), 1)
    cells, rest = divmod(eighths - 1, _BAR_BITS)
    return _BAR[-1] * cells + _BAR[rest]


def _verdict(found: Explanation) -> Text:
    text = Text.assemble((f"{found.address:#x}", "bold"), f" in {found.space.name}: ")
    if found.answer is None:
        return text.append("nothing answers", "bold red")
    kind = "rom" if found.readonly else found.answer.region.type_name
    text.append(found.answer.region.name, f"bold {COLOURS[kind]}")
    return text.append(f" + {found.answer.offset:#x}, {kind}")


def _way(answer: Candidate) -> Tree:
    tree: Tree | None = None
    branch: Tree | None = None
    for step in answer.steps:
        label = _step_label(step.region, step.offset, last=step is answer.steps[-1])
        if branch is None:
            tree = branch = Tree(label, guide_style=NOTHING)
        else:
            branch = branch.add(label)
    assert tree is not None
    return tree


def _step_label(region: MemoryRegion, offset: int, *, last: bool) -> Text:
    text = Text(region.name, f"bold {COLOURS[region.type_name]}" if last else "")
    text.append(f" + {offset:#x}", NOTHING)
    if region.priority:
        text.append(f"   priority {region.priority}", NOTHING)
    target = region.alias_target
    if target is not None:
        text.append(f"   alias of {target.name} + {region.alias_offset + offset:#x}", NOTHING)
    return text


def _others(others: Sequence[Candidate]) -> Table:
    table = Table.grid(padding=(0, 2))
    for other in others:
        way = " → ".join(other.through)
        name = Text.assemble(("✗ ", "red"), other.region.name, (f" + {other.offset:#x}", NOTHING))
        kind = other.region.type_name
        table.add_row(name, Text(kind, COLOURS[kind]), other.reason, Text(way, NOTHING))
    return table
