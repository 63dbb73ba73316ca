"""`info mtree` with its flags, character for character as QEMU 7.2 prints them for the same tree.

Two things cannot be the same, because QEMU takes them from the hash of a pointer: the order of the address spaces and
of the flat views. Here they come in the order in which the address spaces were made.
"""

from collections.abc import Iterable, Sequence

from pellucid.memory.address_space import AddressSpace
from pellucid.memory.dispatch_tree import dispatch_tree_lines
from pellucid.memory.flat_view import FlatView
from pellucid.memory.region import MemoryRegion

_INDENT = "  "
_WRAP = (1 << 64) - 1


def info_mtree(
    spaces: Sequence[AddressSpace],
    *,
    flat: bool = False,
    dispatch_tree: bool = False,
    owner: bool = False,
    disabled: bool = False,
) -> str:
    """The text of `info mtree`: `flat` is -f, `dispatch_tree` -d (with -f only), `owner` -o, `disabled` -D."""
    return _flat_text(spaces, owner, dispatch_tree) if flat else _TreeText(owner, disabled).render(spaces)


class _TreeText:
    """The trees of all address spaces, then those of the regions that aliases show, each once."""

    def __init__(self, owner: bool, disabled: bool) -> None:
        self._owner = owner
        self._disabled = disabled
        self._lines: list[str] = []
        self._alias_targets: list[MemoryRegion] = []

    def render(self, spaces: Sequence[AddressSpace]) -> str:
        for root in dict.fromkeys(space.root for space in spaces):
            names = sorted(space.name for space in spaces if space.root is root)
            self._lines += [f"address-space: {name}" for name in names]
            self._region(root, 1, 0)
            self._lines.append("")
        # Grows while it is walked: what an alias shows may contain aliases.
        for region in self._alias_targets:
            self._lines.append(f"memory-region: {region.name}")
            self._region(region, 1, 0)
            self._lines.append("")
        return "\n".join(self._lines) + "\n"

    def _region(self, region: MemoryRegion, level: int, base: int) -> None:
        start = base + region.addr
        target = region.alias_target
        if target is not None and target not in self._alias_targets:
            self._alias_targets.append(target)
        if region.enabled or self._disabled:
            self._lines.append(self._line(region, level, start))
        for subregion in sorted(region.subregions, key=lambda r: (r.addr, -r.priority)):
            self._region(subregion, level + 1, start)

    def _line(self, region: MemoryRegion, level: int, start: int) -> str:
        text = f"{_INDENT * level}{_span(start, region.size)} ({_attributes(region, region.type_name)}): "
        target = region.alias_target
        if target is not None:
            offset = region.alias_offset
            text += f"alias {region.name} @{target.name} {_span(offset, region.size)}"
        else:
            text += region.name
        if not region.enabled:
            text += " [disabled]"
        if start + max(region.size - 1, 0) > _WRAP:
            text = "[DETECTED OVERFLOW!] " + text
        return text + (_owner_text(region) if self._owner else "")


def _flat_text(spaces: Iterable[AddressSpace], owner: bool, dispatch_tree: bool) -> str:
    by_view: dict[FlatView | None, list[AddressSpace]] = {}
    for space in spaces:
        # Address spaces that show nothing have one view in common, the one without a root.
        by_view.setdefault(space.view if space.view.root else None, []).append(space)
    lines: list[str] = []
    for number, (view, users) in enumerate(by_view.items()):
        lines.append(f"FlatView #{number}")
        for space in users:
            alias = space.root.alias_target
            lines.append(f' AS "{space.name}", root: {space.root.name}' + (f", alias {alias.name}" if alias else ""))
        lines.append(f" Root memory region: {view.root.name if view and view.root else '(none)'}")
        lines += _flat_lines(view, owner) or ["  No rendered FlatView"]
        if dispatch_tree and view is not None and view.ranges:
            lines += dispatch_tree_lines(view)
        lines.append("")
    return "\n".join(lines) + "\n"


def _flat_lines(view: FlatView | None, owner: bool) -> list[str]:
    lines = []
    for found in view.ranges if view else ():
        region = found.region
        kind = "rom" if found.readonly else region.type_name
        text = f"{_INDENT}{_span(found.start, found.end - found.start)} "
        text += f"({_attributes(region, kind, found.nonvolatile)}): {region.name}"
        if found.offset:
            text += f" @{found.offset:016x}"
        lines.append(text + (_owner_text(region) if owner else ""))
    return lines


def _attributes(region: MemoryRegion, kind: str, nonvolatile: bool | None = None) -> str:
    is_nonvolatile = region.nonvolatile if nonvolatile is None else nonvolatile
    return f"prio {region.priority}, {'nv-' if is_nonvolatile else ''}{kind}"


def _span(start: int, size: int) -> str:
    return f"{start & _WRAP:016x}-{(start + max(size - 1, 0)) & _WRAP:016x}"


def _owner_text(region: MemoryRegion) -> str:
    text = f" owner:{{{region.owner}}}" if region.owner else ""
    if region.parent and region.parent != region.owner:
        text += f" parent:{{{region.parent}}}"
    return text or " orphan"
