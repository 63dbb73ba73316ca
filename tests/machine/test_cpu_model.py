"""-cpu: where bits are, what a model answers, what is left out and said so."""

import logging

import pytest

from pellucid.errors import NotBuiltError, UserError
from pellucid.kvm.api import CpuidEntry
from pellucid.machine.config import CpuConfig
from pellucid.machine.cpu_model import BUILT, FEATURES, MODELS, configured_model, cpuid_entries, signature


def leaf(cpu: CpuConfig, function: int, index: int | None = None, *, apic_id: int = 0, count: int = 1) -> CpuidEntry:
    (found,) = (e for e in cpuid_entries(cpu, apic_id, count) if e.function == function and e.index == index)
    return found


@pytest.mark.parametrize(
    ("name", "place", "bit"),
    [
        # SDM vol. 2, tables 3-10, 3-11 and 3-8; AMD APM vol. 3, appendix E.
        ("fpu", (1, 0, "edx"), 0),
        ("cx8", (1, 0, "edx"), 8),
        ("sep", (1, 0, "edx"), 11),
        ("clflush", (1, 0, "edx"), 19),
        ("sse2", (1, 0, "edx"), 26),
        ("pbe", (1, 0, "edx"), 31),
        ("cx16", (1, 0, "ecx"), 13),
        ("x2apic", (1, 0, "ecx"), 21),
        ("tsc-deadline", (1, 0, "ecx"), 24),
        ("hypervisor", (1, 0, "ecx"), 31),
        ("arat", (6, 0, "eax"), 2),
        ("smep", (7, 0, "ebx"), 7),
        ("smap", (7, 0, "ebx"), 20),
        ("sha-ni", (7, 0, "ebx"), 29),
        ("umip", (7, 0, "ecx"), 2),
        ("la57", (7, 0, "ecx"), 16),
        ("rdpid", (7, 0, "ecx"), 22),
        ("pks", (7, 0, "ecx"), 31),
        ("serialize", (7, 0, "edx"), 14),
        ("arch-capabilities", (7, 0, "edx"), 29),
        ("ssbd", (7, 0, "edx"), 31),
        ("xsaves", (0xD, 1, "eax"), 3),
        ("syscall", (0x8000_0001, 0, "edx"), 11),
        ("nx", (0x8000_0001, 0, "edx"), 20),
        ("lm", (0x8000_0001, 0, "edx"), 29),
        ("3dnow", (0x8000_0001, 0, "edx"), 31),
        ("topoext", (0x8000_0001, 0, "ecx"), 22),
        ("invtsc", (0x8000_0007, 0, "edx"), 8),
        ("wbnoinvd", (0x8000_0008, 0, "ebx"), 9),
    ],
)
def test_places_of_bits(name: str, place: tuple[int, int, str], bit: int) -> None:
    assert FEATURES[name] == (place, bit)


def test_every_name_has_a_place_and_no_two_share_one() -> None:
    assert len(set(FEATURES.values())) == len(FEATURES)
    assert set(FEATURES) >= BUILT
    for model in MODELS.values():
        assert model.features <= BUILT


def test_identity() -> None:
    cpu = CpuConfig("max")
    first = leaf(cpu, 0)
    vendor = b"".join(part.to_bytes(4, "little") for part in (first.ebx, first.edx, first.ecx))
    assert vendor == b"GenuineIntel" and first.eax == 0xD
    assert leaf(cpu, 1).eax == 0x306A9 == signature(MODELS["max"])
    parts = [leaf(cpu, 0x8000_0002 + n) for n in range(3)]
    brand = b"".join(word.to_bytes(4, "little") for e in parts for word in (e.eax, e.ebx, e.ecx, e.edx))
    assert brand.rstrip(b"\0") == b"Pellucid CPU"
    assert leaf(cpu, 0x8000_0008).eax == 0x3028
    assert leaf(cpu, 0x4000_0000).ebx.to_bytes(4, "little") == b"KVMK"


def test_signature_of_extended_families() -> None:
    model = configured_model(CpuConfig("max", properties={"family": "25", "model": "0x61", "stepping": "2"}))
    assert signature(model) == 0x00A60F12


def test_features_are_switched_on_and_off() -> None:
    assert leaf(CpuConfig("max"), 7, 0).ebx >> 20 & 1
    assert not leaf(CpuConfig("max", {"smap": False}), 7, 0).ebx >> 20 & 1
    assert not leaf(CpuConfig("qemu64"), 1).ecx >> 20 & 1
    assert leaf(CpuConfig("qemu64", {"sse4.2": True}), 1).ecx >> 20 & 1


def test_what_is_not_built_is_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "pellucid"):
        assert not leaf(CpuConfig("max", {"svm": True}), 0x8000_0001).ecx & 4
    assert "-cpu max: this processor does not have svm; it is left out" in caplog.text
    with pytest.raises(UserError, match="this processor does not have svm"):
        cpuid_entries(CpuConfig("max", {"svm": True}, {"enforce": "on"}), 0, 1)


def test_properties() -> None:
    properties = {"phys-bits": "46", "vendor": "AuthenticAMD", "model-id": "My CPU", "level": "5", "kvm": "off"}
    entries = cpuid_entries(CpuConfig("max", {}, properties), 0, 1)
    found = {entry.function: entry for entry in entries}
    assert found[0x8000_0008].eax & 0xFF == 46 and found[0].eax == 5
    assert found[0].ebx.to_bytes(4, "little") == b"Auth"
    assert 7 not in found and 0xB not in found and 0x4000_0000 not in found


def test_kvmclock_can_be_taken_away() -> None:
    with_clock, without = leaf(CpuConfig("max"), 0x4000_0001), leaf(CpuConfig("max", {"kvmclock": False}), 0x4000_0001)
    assert with_clock.eax & 9 == 9 and without.eax & 9 == 0 and without.eax


@pytest.mark.parametrize(
    ("cpu", "error", "text"),
    [
        (CpuConfig("z80"), UserError, "no such CPU model; there are: qemu64, max"),
        (CpuConfig("max", {}, {"phys-bits": "64"}), UserError, "phys-bits=64: give a number from 36 to 52"),
        (CpuConfig("max", {}, {"family": "six"}), UserError, "family=six: give a number"),
        (CpuConfig("max", {}, {"vendor": "Intel"}), UserError, "exactly 12 characters"),
        (CpuConfig("max", {}, {"enforce": "maybe"}), UserError, "give on or off"),
        (CpuConfig("max", {}, {"tsc-frequency": "1000000000"}), NotBuiltError, "not built yet"),
    ],
)
def test_bad_cpu_options(cpu: CpuConfig, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        cpuid_entries(cpu, 0, 1)


def test_topology() -> None:
    cpu = CpuConfig("max")
    assert leaf(cpu, 1, apic_id=3, count=4).ebx == 3 << 24 | 4 << 16 | 0x800
    assert [leaf(cpu, 0xB, n, apic_id=3, count=4) for n in range(3)] == [
        CpuidEntry(0xB, 0, 0, 1, 0x100, 3),
        CpuidEntry(0xB, 1, 2, 4, 0x201, 3),
        CpuidEntry(0xB, 2, 0, 0, 2, 3),
    ]
