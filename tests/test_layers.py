"""Imports point down only: each module may import its own room and rooms on floors below it, nothing else of ours.

Rooms on one floor do not import each other. The order is the one of the picture in README.md.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "pellucid"

FLOORS = (
    ("cli", "ui"),
    ("monitor", "debug"),
    ("machine",),
    ("migration", "block"),
    ("memory",),
    ("runtime",),
    ("kvm",),
    ("engine",),
    ("isa",),
    ("cpu",),
    ("mm",),
    ("native",),
    ("errors", "records"),
)
HEIGHT = {room: len(FLOORS) - index for index, rooms in enumerate(FLOORS) for room in rooms}


def module_name(path: Path, root: Path = SOURCE) -> tuple[str, ...]:
    """The module's dotted name in parts, without `pellucid`: ("kvm", "irqchip", "pic")."""
    parts = path.relative_to(root).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def imports(tree: ast.Module, package: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yields (line, imported name in parts without `pellucid`) for each import of our own modules, wherever it is."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = ("pellucid", *package)[: len(package) + 2 - node.level]
            names = [".".join(filter(None, (*base, node.module, alias.name))) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = tuple(name.split("."))
            if parts[0] == "pellucid" and len(parts) > 1:
                yield node.lineno, parts[1:]


def violations(source: str, module: tuple[str, ...], is_package: bool = False) -> list[str]:
    """One line per import in `source` that does not point down."""
    room = module[0]
    found = []
    for line, target in imports(ast.parse(source), module if is_package else module[:-1]):
        if target[0] != room and not HEIGHT.get(target[0], 99) < HEIGHT[room]:
            found.append(f"{'/'.join(module)}.py:{line}: {room} imports {'.'.join(target)}")
    return found


def modules() -> list[Path]:
    return sorted(path for path in SOURCE.rglob("*.py") if module_name(path))


@pytest.mark.parametrize("path", modules(), ids=lambda path: "/".join(module_name(path)))
def test_imports_point_down(path: Path) -> None:
    module = module_name(path)
    assert module[0] in HEIGHT, f"{module[0]} is on no floor: add it to FLOORS and to the picture, or move it"
    assert violations(path.read_text(), module, path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("source", "module", "count"),
    [
        ("from pellucid.kvm.api import Vm", ("machine", "board"), 0),
        ("from pellucid.machine import board", ("kvm", "api"), 1),
        ("def late():\n    import pellucid.cli.main", ("memory", "x"), 1),
        ("from pellucid import monitor", ("machine", "x"), 1),
        ("from ..monitor import hmp", ("machine", "x"), 1),
        ("from . import config", ("machine", "x"), 0),
        ("from .config import MachineConfig", ("machine", "boards", "x"), 0),
        ("import pellucid.debug.trace", ("monitor", "x"), 1),
        ("import pellucid.unheard_of", ("cli", "x"), 1),
        ("import os, pellucidity", ("native", "x"), 0),
        ("from pellucid.errors import UserError", ("native", "x"), 0),
    ],
)
def test_the_check_itself(source: str, module: tuple[str, ...], count: int) -> None:
    assert len(violations(source, module)) == count


def test_records_are_made_in_one_way() -> None:
    """The standard library's dataclasses cost a quarter of a start (`pellucid.records`)."""
    users = [path for root in (SOURCE, Path(__file__).parent) for path in root.rglob("*.py")
             if path.parent.name != "records"
             and any(isinstance(node, ast.ImportFrom) and node.module == "dataclasses"
                     or isinstance(node, ast.Import) and any(alias.name == "dataclasses" for alias in node.names)
                     for node in ast.walk(ast.parse(path.read_text())))]  # fmt: skip
    assert users == []
