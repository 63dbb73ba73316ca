"""Cuts the texts of `info mtree` and `info ramblock` into blocks that can be compared.

QEMU prints address spaces and flat views in the order of a pointer's hash: a block is known by its headings instead.
"""

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
