"""Cuts the texts of `info mtree` and `info ramblock` into blocks that can be compared, and takes regions out of them.

QEMU prints address spaces and flat views in the order of a pointer's hash: a block is known by its headings instead.
"""

import re

_NAME = re.compile(r": (?:alias )?(?P<name>.*?)(?: @.*| owner:.*| parent:.*| orphan| \[disabled\].*)?")

Blocks = dict[str, list[str]]


def blocks(text: str) -> Blocks:
    """The lines below each set of headings; a flat view's are its address spaces, not its number."""
    found: Blocks = {}
    for part in text.strip("\n").split("\n\n"):
        lines = part.split("\n")
        heads = [line for line in lines if line.startswith(("address-space:", "memory-region:", " AS "))]
        body = [line for line in lines if line not in heads and not line.startswith("FlatView #")]
        found["\n".join(sorted(heads))] = [line.replace(" [MRU]", "") for line in body]
    return found


def region_name(line: str) -> str:
    """The name of the region on a line of either form."""
    at = line.find("): ")
    match = _NAME.fullmatch(line, at + 1) if at >= 0 else None
    return match["name"] if match else ""


def without(found: Blocks, regions: set[str], spaces: set[str]) -> Blocks:
    """The blocks of a tree as they would be if these regions and address spaces were not there."""
    result: Blocks = {}
    for heads, lines in found.items():
        kept = [head for head in heads.split("\n") if not _is_of(head, spaces)]
        if kept:
            result["\n".join(kept)] = [line for line in lines if region_name(line) not in regions]
    return result


def tree_text(found: Blocks) -> str:
    """The blocks as a text that can be read back."""
    return "\n\n".join("\n".join([heads, *lines]) for heads, lines in found.items()) + "\n"


def _is_of(head: str, spaces: set[str]) -> bool:
    return any(head == f"address-space: {name}" or head.startswith(f' AS "{name}"') for name in spaces)
