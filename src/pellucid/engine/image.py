"""The handler image: loaded from the cache, or compiled from `handlers`.

Neither `handlers` nor the instruction table is imported before something is compiled or translated: together they are
a sixth of a start.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import pellucid
from pellucid.isa.table import Table
from pellucid.native.image import Image, Progress, Root, load_or_build, source_key

ROOT = Path(pellucid.__file__).parent
PACKAGES = [ROOT / "native", ROOT / "cpu", ROOT / "isa", ROOT / "engine"]


def roots() -> Mapping[str, Root]:
    """Everything that the image holds, in the order of handler numbers."""
    from pellucid.engine import handlers

    return handlers.roots()


@functools.cache
def table() -> Table:
    """The instruction table."""
    from pellucid.isa.all import TABLE

    return TABLE


def load(progress: Progress | None = None) -> Image:
    """The handler image, compiled when the cache has none for these sources and this CPU."""
    return load_or_build("handlers", roots, PACKAGES, progress)


@functools.cache
def key() -> str:
    """What saved templates depend on."""
    return source_key(PACKAGES)


def numbers(image: Image) -> dict[str, int]:
    """Handler numbers by root name."""
    return {name: number for number, name in enumerate(image.address)}


def fused_table(numbers: Mapping[str, int]) -> list[int]:
    """For each handler number, the number of its first fused handler, or 0."""
    table = [0] * len(numbers)
    for name, number in numbers.items():
        if name.startswith("fused:") and name.endswith(":0"):
            table[numbers[name.removeprefix("fused:").removesuffix(":0")]] = number
    return table
