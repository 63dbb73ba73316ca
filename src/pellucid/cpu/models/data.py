"""The named models and their versions, read from the .toml files beside this one.

A model's first version stands whole; each later one says what it changes of the one before. `EPYC-v3` is a version,
`EPYC` the one that the machine type means by the plain name (`DEFAULT_VERSION`), `EPYC-IBPB` another name of a version.
"""

from __future__ import annotations

import functools
import tomllib
from pathlib import Path
from typing import Any

from pellucid.cpu.models.features import FEATURES
from pellucid.records import dataclass, field, replace

_FILES = ("generic.toml", "intel.toml", "intel_since_haswell.toml", "amd.toml")

DEFAULT_VERSION = 1
"""What a plain name means on every machine type that there is, as in QEMU 7.2."""


@dataclass(frozen=True)
class CpuModel:
    """What CPUID is made from: identity, lowest values of the highest leaves, and features by canonical name.

    The highest leaf of each range: `level`, `xlevel` (0x80000000), `xlevel2` (Centaur's, 0xC0000000; 0: none).
    `caches` names a set of `caches.CACHE_SETS`; without `l3` the third level is not told of, and without
    `extended_topology` leaf 0xB is zeros.
    """

    name: str
    features: frozenset[str]
    vendor: str = "GenuineIntel"
    family: int = 6
    model: int = 58
    stepping: int = 9
    model_id: str = "Pellucid Virtual CPU"
    level: int = 0xD
    xlevel: int = 0x8000_0008
    xlevel2: int = 0
    phys_bits: int = 40
    pmu: bool = False
    caches: str = ""
    l3: bool = True
    extended_topology: bool = True
    note: str = field(default="", compare=False)

    def words(self) -> dict[tuple[int, int, str], int]:
        """The feature bits, word by word. What tells more of the performance counters is not there without them."""
        words: dict[tuple[int, int, str], int] = {}
        for name in self.features & FEATURES.keys() - (set() if self.pmu else {"pdcm"}):
            place, bit = FEATURES[name]
            words[place] = words.get(place, 0) | 1 << bit
        return words

    @property
    def signature(self) -> int:
        """Family, model and stepping as leaf 1 packs them (SDM vol. 2, figure 3-6)."""
        family = min(self.family, 15)
        extended = (self.family - family & 0xFF) << 20 | (self.model >> 4 & 15) << 16
        return extended | family << 8 | (self.model & 15) << 4 | self.stepping & 15


@dataclass(frozen=True)
class Catalog:
    """Every version by its full name, and what the other names stand for."""

    versions: dict[str, CpuModel]
    aliases: dict[str, str]


@functools.cache
def catalog() -> Catalog:
    """The named models."""
    found = Catalog({}, {})
    for file in _FILES:
        for name, fields in tomllib.loads((Path(__file__).parent / file).read_text("ascii")).items():
            _add(found, name, fields)
    return found


def _add(found: Catalog, name: str, fields: dict[str, Any]) -> None:
    versions = fields.pop("versions", [])
    model = CpuModel(name=f"{name}-v1", features=frozenset(fields.pop("features").split()), **fields)
    found.versions[model.name] = model
    found.aliases[name] = f"{name}-v{DEFAULT_VERSION}"
    for number, changes in enumerate(versions, 2):
        full = f"{name}-v{number}"
        if "alias" in changes:
            found.aliases[changes.pop("alias")] = full
        features = model.features - set(changes.pop("remove", "").split()) | set(changes.pop("add", "").split())
        model = replace(model, name=full, features=features, **{"note": "", **changes})
        found.versions[full] = model


def describe(found: Catalog) -> dict[str, str]:
    """A line about each name, as QEMU words it, in its order."""
    lines = {}
    for name in sorted((*found.versions, *found.aliases)):
        if name in found.aliases:
            plain = found.aliases[name] == f"{name}-v{DEFAULT_VERSION}"
            lines[name] = "(alias configured by machine type)" if plain else f"(alias of {found.aliases[name]})"
        else:
            model = found.versions[name]
            lines[name] = model.model_id + (f" [{model.note}]" if model.note else "")
    return lines
