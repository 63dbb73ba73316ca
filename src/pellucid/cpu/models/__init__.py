"""CPU models: named sets of features and identities, as data, and what becomes of `-cpu MODEL,+feature,-feature`.

    resolve("Nehalem", {"sse4.2": False, "aes": True})

gives the model with what this processor has of all that, and the names of what it lacks. Models stand in the .toml
files beside this one; those that follow the processor itself, `pellucid`, `max` and `host`, are
made here.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from pellucid.cpu.models.features import (
    FEATURES, SVM_LEAF, UNMIGRATABLE, built, canonical_name, feature_names, is_feature)
from pellucid.errors import UserError

_DATA = ("generic.toml", "intel.toml", "intel_since_haswell.toml", "amd.toml")

DEFAULT_MODEL = "pellucid"

ACCELERATOR_FEATURES = ("x2apic", "tsc-deadline", "arat", "hypervisor")
"""What the hypervisor adds to every model whose leaves can show it, as KVM does with its first."""

HARMLESS_MODELS = ("qemu64", "kvm64")
"""Models of no real processor: they get arch-capabilities too, lest guests guard against leaks of real ones."""

ACCELERATOR_LEAVES_OUT = ("acpi", "monitor", "svm",
                          *(name for name, (place, _) in FEATURES.items() if place[0] == SVM_LEAF))
"""What it takes away without a word, as KVM does."""

NOT_IN_DEFAULT = ("la57",)
"""Left out of `pellucid`: a fifth level of page tables makes every walk longer, and no guest here needs it."""


@dataclass(frozen=True)
class CpuModel:
    """What CPUID is made from: identity, highest leaves, and features by canonical name."""

    name: str
    features: frozenset[str]
    vendor: str = "GenuineIntel"
    family: int = 6
    model: int = 58
    stepping: int = 9
    model_id: str = "Pellucid Virtual CPU"
    level: int = 0xD
    xlevel: int = 0x8000_0008
    phys_bits: int = 40

    def words(self) -> dict[tuple[int, int, str], int]:
        """The feature bits, word by word."""
        words: dict[tuple[int, int, str], int] = {}
        for name in self.features:
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
class Resolved:
    """A model as this processor can be it, and what was asked for beyond that, in alphabetical order."""

    model: CpuModel
    lacking: tuple[str, ...]


def own_models() -> dict[str, CpuModel]:
    """The models that follow what is built."""
    everything = built() - UNMIGRATABLE
    return {
        DEFAULT_MODEL: CpuModel(DEFAULT_MODEL, everything - set(NOT_IN_DEFAULT)),
        "max": CpuModel("max", everything),
        "host": CpuModel("host", everything),
    }


@functools.cache
def models() -> dict[str, CpuModel]:
    """Every model by name."""
    found = own_models()
    for name in _DATA:
        for model, fields in tomllib.loads((Path(__file__).parent / name).read_text("ascii")).items():
            found[model] = CpuModel(name=model, features=frozenset(fields.pop("features").split()), **fields)
    return found


def describe_models() -> dict[str, str]:
    """A line about each model, for `-cpu help`."""
    special = {
        DEFAULT_MODEL: "the default: what this processor has, less what slows a guest down",
        "max": "everything that this processor has",
        "host": "the same: this processor is the host of its guests; nothing of the CPU under it is passed through",
    }
    plain = {name: model.model_id or f"a processor of family {model.family}" for name, model in models().items()}
    return plain | special


def find_model(name: str) -> CpuModel:
    """The model called `name`; UserError with the nearest name for one that does not exist."""
    model = models().get(name)
    if model is None:
        raise UserError(f"-cpu {name}: no such CPU model: {_hint(name, models())}")
    return model


def find_feature(word: str) -> str:
    """The canonical name of a feature; UserError with the nearest name for one that does not exist."""
    name = canonical_name(word)
    if not is_feature(name):
        raise UserError(f"-cpu {word}: no such CPU feature: {_hint(name, feature_names())}")
    return name


def _hint(word: str, known: Collection[str]) -> str:
    near = get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean '{near[0]}'?" if near else "-cpu help lists them"


def resolve(name: str, changes: Mapping[str, bool] | None = None) -> Resolved:
    """Model `name` with features switched on or off, reduced to what is built; raises UserError for unknown names."""
    base = find_model(name)
    asked = {find_feature(word): on for word, on in (changes or {}).items()}
    on, off = ({word for word, state in asked.items() if state is wanted} for wanted in (True, False))
    wanted = base.features - set(ACCELERATOR_LEAVES_OUT) | set(_added(base))
    wanted = (wanted | on) - off
    return Resolved(replace(base, features=wanted & built()), tuple(sorted(wanted - built())))


def _added(model: CpuModel) -> list[str]:
    """The accelerator's features for a model that has the local APIC and the leaves that tell of them."""
    if "apic" not in model.features:
        return ["hypervisor"]
    names = ACCELERATOR_FEATURES + (("arch-capabilities",) if model.name in HARMLESS_MODELS else ())
    return [name for name in names if FEATURES[name][0][0] <= model.level]


__all__ = [
    "ACCELERATOR_FEATURES",
    "DEFAULT_MODEL",
    "FEATURES",
    "CpuModel",
    "Resolved",
    "built",
    "canonical_name",
    "describe_models",
    "feature_names",
    "find_feature",
    "find_model",
    "models",
    "own_models",
    "resolve",
]
