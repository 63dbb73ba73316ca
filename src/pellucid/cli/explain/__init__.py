"""`pellucid explain TOPIC ...`: texts that other programs print, read and explained.

mtree.py: QEMU's memory tree; picture.py: what it looks like on a terminal.
"""

from collections.abc import Callable, Sequence

from pellucid.cli.keyval import suggestion
from pellucid.errors import UserError


def _mtree(arguments: Sequence[str]) -> int:
    from pellucid.cli.explain.mtree import explain_mtree

    return explain_mtree(arguments)


TOPICS: dict[str, tuple[str, Callable[[Sequence[str]], int]]] = {
    "mtree": ("what 'info mtree' of any QEMU says: the flat view, and who answers at an address", _mtree),
}


def explain(arguments: Sequence[str]) -> int:
    """The subcommand; the exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: pellucid explain TOPIC ...\n")
        for name, (text, _) in TOPICS.items():
            print(f"  {name:<10} {text}")
        return 0
    if arguments[0] not in TOPICS:
        raise UserError(f"explain {arguments[0]}: no such topic: {suggestion(arguments[0], TOPICS)}")
    return TOPICS[arguments[0]][1](arguments[1:])
