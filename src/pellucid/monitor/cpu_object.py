"""What a processor shows as an object: its model's identity and features, under QEMU's property names."""

from collections.abc import Iterator

from pellucid.cpu.models import FEATURES
from pellucid.cpu.models.data import CpuModel
from pellucid.cpu.models.features import ALIASES
from pellucid.machine.config import CpuConfig
from pellucid.machine.cpu_model import LEVELS, configured_model, filtered_features

SUBLEAVES = frozenset((0x7, 0xD))
"""Leaves of feature words that depend on ECX."""
FeatureWord = dict[str, int | str]


def cpu_properties(cpu: CpuConfig) -> Iterator[tuple[str, str, object]]:
    """(name, type, value) of each property. What is asked for and not built is in filtered-features alone."""
    model = configured_model(cpu, warn=False)
    yield from (("family", "int", model.family), ("model", "int", model.model), ("stepping", "int", model.stepping))
    yield from (("vendor", "string", model.vendor), ("model-id", "string", model.model_id))
    yield from ((name, "uint32", getattr(model, name)) for name in LEVELS)
    yield "phys-bits", "uint32", model.phys_bits
    yield "feature-words", "X86CPUFeatureWordInfo", feature_words(model)
    lacking = filtered_features(cpu)
    yield "filtered-features", "X86CPUFeatureWordInfo", feature_words(CpuModel("", frozenset(lacking)))
    for name in (*FEATURES, *ALIASES):
        yield name, "bool", ALIASES.get(name, name) in model.features


def feature_words(model: CpuModel) -> list[FeatureWord]:
    """The model's feature bits by leaf and register, words without any too."""
    words = dict.fromkeys((place for place, _ in FEATURES.values()), 0) | model.words()
    found: list[FeatureWord] = []
    for (leaf, subleaf, register), bits in words.items():
        word: FeatureWord = {"cpuid-register": register.upper(), "cpuid-input-eax": leaf, "features": bits}
        if leaf in SUBLEAVES:
            word["cpuid-input-ecx"] = subleaf
        found.append(word)
    return found
