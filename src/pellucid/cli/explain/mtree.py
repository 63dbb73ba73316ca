"""`pellucid explain mtree FILE [--at ADDR] [--space NAME] [--json]`: a pasted `info mtree`, rendered and asked."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pellucid.cli.arguments import ArgumentParser
from pellucid.cli.explain.picture import print_explanation, print_flat_views
from pellucid.cli.keyval import suggestion
from pellucid.errors import UserError
from pellucid.memory import AddressSpace
from pellucid.memory.explain import Candidate, Explanation, effects, explain, ways
from pellucid.memory.mtree_reader import read_mtree

LARGEST_FILE = 4 << 20
LAST_ADDRESS = (1 << 64) - 1


def explain_mtree(arguments: Sequence[str]) -> int:
    """The subcommand; the exit status."""
    parser = ArgumentParser(
        prog="pellucid explain mtree",
        description="Read what QEMU's 'info mtree' printed (with -o and -D if you like), and render its flat views.",
    )
    parser.add_argument("file", help="the dump; - reads standard input")
    parser.add_argument("--at", metavar="ADDR", help="say who answers at this address and why the others do not")
    parser.add_argument("--space", metavar="NAME", help="of this address space only; --at's is 'memory' unless given")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(list(arguments))
    spaces = _read(given.file)
    chosen = [_space(spaces, given.space)] if given.space is not None else spaces
    if given.at is None:
        if given.json:
            print(json.dumps({"address_spaces": [_space_json(space) for space in chosen]}, indent=2))
        else:
            print_flat_views(chosen)
        return 0
    space = chosen[0] if given.space is not None else _space(spaces, None)
    found = explain(space, _address(given.at, space))
    if given.json:
        print(json.dumps(_explanation_json(found), indent=2))
    else:
        print_explanation(found)
    return 0


def _read(name: str) -> list[AddressSpace]:
    shown = "standard input" if name == "-" else name
    try:
        if name == "-":
            content = sys.stdin.buffer.read(LARGEST_FILE + 1)
        else:
            with Path(name).open("rb") as file:
                content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror}") from None
    except ValueError as error:  # a zero byte in the name
        raise UserError(f"cannot read {name!r}: {error}") from None
    if len(content) > LARGEST_FILE:
        raise UserError(f"{shown} has more than {LARGEST_FILE >> 20} MiB: no dump of 'info mtree' is that long")
    try:
        return read_mtree(content.decode(errors="replace"))
    except UserError as error:
        raise UserError(f"{shown}: {error}") from None


def _space(spaces: Sequence[AddressSpace], name: str | None) -> AddressSpace:
    names = {space.name: space for space in reversed(spaces)}
    if name is None:
        return names.get("memory", spaces[0])
    if name not in names:
        raise UserError(f"--space {name}: there is none in the dump; {suggestion(name, names)}")
    return names[name]


def _address(text: str, space: AddressSpace) -> int:
    """As QEMU prints it (16 digits), with 0x, or decimal."""
    try:
        bare = len(text) == 16 and not text.startswith(("0x", "0X"))
        address = int(text, 16) if bare else int(text, 0)
    except ValueError:
        raise UserError(f"--at {text}: no address; write 0xfed00000, or 16 digits as 'info mtree' does") from None
    if not 0 <= address <= LAST_ADDRESS:
        raise UserError(f"--at {text}: outside 0 to {LAST_ADDRESS:#x}")
    if address >= space.root.size:
        raise UserError(f"--at {text}: address space '{space.name}' ends at {space.root.size - 1:#x}")
    return address


def _space_json(space: AddressSpace) -> dict[str, Any]:
    ranges = []
    for found, way in ways(space):
        ranges.append(
            {
                "start": found.start,
                "size": found.end - found.start,
                "region": found.region.name,
                "offset": found.offset,
                "type": "rom" if found.readonly else found.region.type_name,
                "priority": found.region.priority,
                "through": way.through if way is not None else [],
            }
        )
    return {"name": space.name, "root": space.root.name, "ranges": ranges}


def _explanation_json(found: Explanation) -> dict[str, Any]:
    read, write = effects(found)
    return {
        "address_space": found.space.name,
        "address": found.address,
        "answer": _candidate_json(found.answer) if found.answer is not None else None,
        "reads": read,
        "writes": write,
        "others": [{**_candidate_json(other), "reason": other.reason} for other in found.others],
    }


def _candidate_json(candidate: Candidate) -> dict[str, Any]:
    region = candidate.region
    way = [
        {
            "region": step.region.name,
            "offset": step.offset,
            "priority": step.region.priority,
            "alias": step.region.alias_target.name if step.region.alias_target is not None else None,
        }
        for step in candidate.steps
    ]
    return {"region": region.name, "offset": candidate.offset, "type": region.type_name, "way": way}
