"""A processor's properties: what QEMU 7.2 has for the same models (tests/qtest/test-x86-cpuid-compat asks for them)."""

import pytest

from pellucid.machine.config import CpuConfig
from pellucid.monitor.cpu_object import cpu_properties


def properties(model: str, features: dict[str, bool] | None = None, **values: str) -> dict[str, object]:
    config = CpuConfig(model, features or {}, values)
    return {name: value for name, _, value in cpu_properties(config)}


@pytest.mark.parametrize(
    ("model", "features", "name", "value"),
    [
        ("phenom", {}, "level", 5),
        ("Conroe", {}, "level", 10),
        ("phenom", {"fsgsbase": True}, "level", 7),
        ("486", {"arat": True}, "level", 6),
        ("486", {"npt": True, "svm": True}, "xlevel", 0x8000_000A),
        ("athlon", {"svm": True}, "xlevel", 0x8000_000A),
        ("pentium", {}, "family", 5),
        ("Nehalem", {}, "vendor", "GenuineIntel"),
        ("pentium", {"mmx": False}, "mmx", False),
        ("pentium", {"sse4.1": True}, "sse4-1", True),
    ],
)
def test_a_property(model: str, features: dict[str, bool], name: str, value: object) -> None:
    assert properties(model, features)[name] == value


def test_feature_words() -> None:
    shown = properties("486", {"arat": True, "3dnow": True})
    words = {(word["cpuid-input-eax"], word["cpuid-register"]): word for word in shown["feature-words"]}  # type: ignore[attr-defined]
    assert words[6, "EAX"] == {"cpuid-input-eax": 6, "cpuid-register": "EAX", "features": 1 << 2}
    assert "cpuid-input-ecx" in words[7, "EBX"] and not words[0x8000_0001, "EDX"]["features"]
    filtered = {(w["cpuid-input-eax"], w["cpuid-register"]): w["features"] for w in shown["filtered-features"]}  # type: ignore[attr-defined]
    assert filtered[0x8000_0001, "EDX"] == 1 << 31 and not shown["3dnow"]
