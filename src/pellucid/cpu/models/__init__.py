"""CPU models: named sets of features and identities, as data, and what becomes of `-cpu MODEL,+feature,-feature`.

    resolve("Nehalem", {"sse4.2": False, "aes": True})

gives the model with what this processor has of all that, and the names of what it lacks. Named models are `data`'s;
those that follow the processor itself, `pellucid`, `max` and `host`, are made here.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from difflib import get_close_matches

from pellucid.cpu.models.data import CpuModel, catalog, describe
from pellucid.cpu.models.features import (
    FEATURES, SVM_LEAF, UNMIGRATABLE, built, canonical_name, feature_names, in_word_order, is_feature)
from pellucid.cpu.models.msr_features import OTHER_FEATURES
from pellucid.errors import UserError
from pellucid.records import dataclass, replace

DEFAULT_MODEL = "pellucid"

ACCELERATOR_FEATURES = ("x2apic", "tsc-deadline", "arat", "hypervisor")
"""What the hypervisor adds to every model whose leaves can show it, as KVM does with its first."""

HARMLESS_MODELS = ("qemu64", "kvm64")
"""Models of no real processor: they get arch-capabilities too, lest guests guard against leaks of real ones."""

ACCELERATOR_LEAVES_OUT = ("acpi", "svm",
                          *(name for name, (place, _) in FEATURES.items() if place[0] == SVM_LEAF))
"""What it takes away without a word, as KVM does."""

EXTENDED, CENTAUR = 0x8000_0000, 0xC000_0000
"""Where the ranges of extended and of Centaur's leaves begin."""

NOT_AUTOMATIC = ("topoext", "bus-lock-detect")
"""Only where a model or the user asks for it. The leaves of the first are above those that other features need, as in
QEMU. Linux switches the second on, and where no firmware has made memory write-back (a kernel that `microvm` boots)
every LOCK then takes a bus lock.
"""

NOT_IN_DEFAULT = ("la57", "shstk", "ibt", "monitor", "pdcm", "full-width-write", "xop", "fma4", "tbm")
"""Left out of `pellucid`: a fifth level of page tables makes every walk longer, a shadow stack every call, tracking
every branch through a register, a performance counter every block; Linux uses what it finds. MWAIT wakes later than
HLT.
The last three no processor has had since 2017, and none had beside AVX2's successors.
"""


@dataclass(frozen=True)
class Resolved:
    """A model as this processor can be it, and what was asked for beyond that, in the order of the feature words."""

    model: CpuModel
    lacking: tuple[str, ...]


def own_models() -> dict[str, CpuModel]:
    """The models that follow what is built."""
    everything = built() - UNMIGRATABLE - set(NOT_AUTOMATIC)
    return {
        DEFAULT_MODEL: CpuModel(DEFAULT_MODEL, everything - set(NOT_IN_DEFAULT)),
        "max": CpuModel("max", everything, pmu=True),
        "host": CpuModel("host", everything, pmu=True),
        "base": CpuModel("base", frozenset(), "\0" * 12, 0, 0, 0, "", 0, 0),
    }


@functools.cache
def models() -> dict[str, CpuModel]:
    """Every model by every name that it has."""
    named = catalog()
    aliases = {name: replace(named.versions[target], name=name) for name, target in named.aliases.items()}
    return own_models() | named.versions | aliases


def alias_of(name: str) -> str | None:
    """The version that a name stands for; None for one that stands for itself."""
    return catalog().aliases.get(name)


def describe_models() -> dict[str, str]:
    """A line about each model, for `-cpu help`."""
    return describe(catalog()) | {
        "base": "base CPU model type with no features enabled",
        "host": "the same as max: this processor is the host of its guests",
        "max": "everything that this processor has",
        DEFAULT_MODEL: "the default: what this processor has, less what slows a guest down",
    }


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
    """Model `name` with features switched on or off, reduced to what is built; raises UserError for unknown names.

    Its highest leaves are at least those that the features asked for need.
    """
    base = find_model(name)
    asked = {find_feature(word): on for word, on in (changes or {}).items()}
    on, off = ({word for word, state in asked.items() if state is wanted} for wanted in (True, False))
    wanted = base.features - set(ACCELERATOR_LEAVES_OUT) | set(_added(base))
    wanted = (wanted | on) - off
    level, xlevel, xlevel2 = needed_levels(wanted)
    model = replace(base, features=wanted & built(), level=max(base.level, level), xlevel=max(base.xlevel, xlevel),
                    xlevel2=max(base.xlevel2, xlevel2))
    return Resolved(model, in_word_order(wanted - built()))


def needed_levels(features: Collection[str]) -> tuple[int, int, int]:
    """The highest leaf, extended leaf (SVM's own too) and Centaur's that these features are told in; 0 without any."""
    leaves = [FEATURES[name][0][0] for name in features if name in FEATURES]
    leaves += [SVM_LEAF] if "svm" in features else []
    return (max((leaf for leaf in leaves if leaf < EXTENDED), default=0),
            max((leaf for leaf in leaves if EXTENDED <= leaf < CENTAUR), default=0),
            max((leaf for leaf in leaves if leaf >= CENTAUR), default=0))


def _added(model: CpuModel) -> list[str]:
    """The accelerator's features for a model that has the local APIC and the leaves that tell of them."""
    if "apic" not in model.features:
        return ["hypervisor"] if model.level else []
    harmless = model.name.removesuffix("-v1") in HARMLESS_MODELS
    names = ACCELERATOR_FEATURES + (("arch-capabilities",) if harmless else ())
    found = [name for name in names if FEATURES[name][0][0] <= model.level]
    return found + [name for name in OTHER_FEATURES if harmless and OTHER_FEATURES[name][0] == "MSR(10AH)"
                    and name in built()]


__all__ = [
    "ACCELERATOR_FEATURES",
    "DEFAULT_MODEL",
    "FEATURES",
    "CpuModel",
    "Resolved",
    "alias_of",
    "built",
    "canonical_name",
    "describe_models",
    "feature_names",
    "find_feature",
    "find_model",
    "models",
    "needed_levels",
    "own_models",
    "resolve",
]
