"""-cpu: from the configuration to CPUID entries; what is left out is said, what is wrong is refused."""

import logging

import pytest

from pellucid.cpu.models.topology import CpuTopology
from pellucid.errors import NotBuiltError, UserError
from pellucid.kvm.api import CpuidEntry
from pellucid.machine.config import CpuConfig
from pellucid.machine.cpu_model import (
    check_migratable,
    check_threads,
    configured_model,
    cpuid_entries,
    feature_msrs,
    tsc_frequency,
)


def leaf(cpu: CpuConfig, function: int, index: int | None = None, *, apic_id: int = 0, count: int = 1) -> CpuidEntry:
    every = cpuid_entries(cpu, apic_id, CpuTopology(cores=count))
    (found,) = (e for e in every if e.function == function and e.index == index)
    return found


def test_the_default_announces_a_kvm_guest() -> None:
    assert leaf(CpuConfig(), 0x4000_0000).ebx.to_bytes(4, "little") == b"KVMK"
    assert leaf(CpuConfig(), 1).ecx >> 31 and leaf(CpuConfig(), 0).eax == 0xD
    assert leaf(CpuConfig(), 0xB, 0, apic_id=2, count=4).edx == 2


def test_features_are_switched_on_and_off() -> None:
    assert leaf(CpuConfig("max"), 7, 0).ebx >> 20 & 1
    assert not leaf(CpuConfig("max", {"smap": False}), 7, 0).ebx >> 20 & 1
    assert not leaf(CpuConfig("qemu64"), 1).ecx >> 20 & 1
    assert leaf(CpuConfig("qemu64", {"sse4.2": True}), 1).ecx >> 20 & 1


def test_what_is_not_built_is_left_out_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    cpu = CpuConfig("max", {"svm": True, "avx512f": True, "kvm-poll-control": True})
    with caplog.at_level(logging.WARNING, "pellucid"):
        assert not leaf(cpu, 0x8000_0001).ecx & 4
    assert caplog.messages == ["TCG doesn't support requested feature: " + feature for feature in (
        "CPUID.07H:EBX.avx512f [bit 16]", "CPUID.80000001H:ECX.svm [bit 2]",
        "CPUID.40000001H:EAX.kvm-poll-control [bit 12]")]
    caplog.clear()
    configured_model(CpuConfig("max", {"svm": True}, {"check": "off"}))
    assert not caplog.messages
    configured_model(CpuConfig("max", {"vmx-ept": True, "rsba": True}))
    assert caplog.messages == ["TCG doesn't support requested feature: " + feature for feature in (
        "MSR(48BH).vmx-ept [bit 1]", "MSR(10AH).rsba [bit 2]")]
    caplog.clear()
    cpuid_entries(cpu, 0, CpuTopology(), warn=False)
    assert not caplog.messages


@pytest.mark.parametrize("feature", ["svm", "kvm-poll-control"])
def test_enforce_refuses_what_is_not_built(feature: str) -> None:
    with pytest.raises(UserError, match="^TCG doesn't support requested features$"):
        cpuid_entries(CpuConfig("max", {feature: True}, {"enforce": "on"}), 0, CpuTopology())


def test_properties() -> None:
    properties = {"phys-bits": "46", "vendor": "AuthenticAMD", "model-id": "My CPU", "level": "5", "kvm": "off"}
    entries = cpuid_entries(CpuConfig("max", {}, properties), 0, CpuTopology())
    found = {entry.function: entry for entry in entries}
    assert found[0x8000_0008].eax & 0xFF == 46 and found[0].eax == 5
    assert found[0].ebx.to_bytes(4, "little") == b"Auth"
    assert 7 not in found and 0xB not in found and 0x4000_0000 not in found
    numbers = {"family": "25", "model": "0x61", "stepping": "2"}
    assert configured_model(CpuConfig("max", properties=numbers)).signature == 0x00A60F12


def test_performance_counters() -> None:
    """`max` has them, the default and named models only where asked, as in QEMU; AMD's leaf says nothing of them."""
    counters = leaf(CpuConfig("max"), 0xA)
    assert (counters.eax, counters.ebx, counters.edx) == (0x0730_0802, 0x58, 0x603)
    assert feature_msrs(CpuConfig("max"))[0x345] == 1 << 13 and leaf(CpuConfig("max"), 1).ecx >> 15 & 1
    assert feature_msrs(CpuConfig("max", {"full-width-write": False}))[0x345] == 0
    none = CpuConfig("max", {}, {"pmu": "off"})
    assert not leaf(none, 1).ecx >> 15 & 1
    assert 0x345 not in feature_msrs(none).keys() | feature_msrs(CpuConfig("max", {"pdcm": False})).keys()
    for cpu in (none, CpuConfig(), CpuConfig("EPYC", {}, {"pmu": "on"}), CpuConfig("Nehalem")):
        assert 0xA not in [entry.function for entry in cpuid_entries(cpu, 0, CpuTopology())]
    assert leaf(CpuConfig("Nehalem", {}, {"pmu": "on"}), 0xA) == counters


def test_last_branch_records(caplog: pytest.LogCaptureFixture) -> None:
    """By lbr-fmt=; else the models that follow this processor have its format where they need not run elsewhere."""

    def shown(model: str, **properties: str) -> int:
        cpu = CpuConfig(model, {}, {name.replace("_", "-"): value for name, value in properties.items()})
        assert leaf(cpu, 1).ecx >> 15 & 1 or not feature_msrs(cpu).get(0x345)
        return feature_msrs(cpu).get(0x345, 0)

    assert shown("max", lbr_fmt="5") == shown("host", lbr_fmt="0x5", migratable="no") == 1 << 13 | 5
    assert shown("max", migratable="off") == shown("host", migratable="no") == 1 << 13 | 4
    assert shown("max", migratable="off", lbr_fmt="0") == shown("max") == 1 << 13
    assert shown("max", migratable="off", pmu="off") == shown("Nehalem", pmu="on") == 0
    assert feature_msrs(CpuConfig("Nehalem", {"pdcm": True}, {"pmu": "on", "lbr-fmt": "3"}))[0x345] == 3
    configured_model(CpuConfig("Nehalem", {}, {"pmu": "on", "lbr-fmt": "3"}))
    assert "add +pdcm" in caplog.text


@pytest.mark.parametrize(
    ("model", "properties", "text"),
    [
        ("qemu64", {"lbr-fmt": "0x40"}, "lbr-fmt=0x40: Property value for 'lbr-fmt' has bits outside mask '0x3f'"),
        ("qemu64", {"lbr-fmt": "-1"}, "lbr-fmt=-1: Property value for 'lbr-fmt' has bits outside mask '0x3f'"),
        ("qemu64", {"lbr-fmt": "five"}, "lbr-fmt=five: Parameter 'lbr-fmt' expects uint64"),
        ("qemu64", {"lbr-fmt": "5"}, "^vPMU: LBR is unsupported without pmu=on$"),
        ("max", {"lbr-fmt": "0x3f"}, r"^vPMU: the lbr-fmt value \(0x3f\) does not match the host value \(0x4\)\.$"),
        ("EPYC", {"pmu": "on", "lbr-fmt": "5"}, r"the lbr-fmt value \(0x5\) does not match the host value \(0x0\)"),
    ],
)
def test_refused_formats_of_records(model: str, properties: dict[str, str], text: str) -> None:
    """With QEMU's words, the last three as under KVM."""
    with pytest.raises(UserError, match=text):
        configured_model(CpuConfig(model, {}, properties))


def test_the_revision_of_microcode() -> None:
    assert feature_msrs(CpuConfig("Nehalem"))[0x8B] == 1 << 32
    assert feature_msrs(CpuConfig("EPYC"))[0x8B] == 0x0100_0065
    assert feature_msrs(CpuConfig("EPYC", {}, {"ucode-rev": "0xA0011D5"}))[0x8B] == 0xA0011D5


def test_what_of_caches_and_topology_is_told() -> None:
    """What a guest of QEMU 7.2 reads with these properties."""
    def answers(model: str, **properties: str) -> dict[tuple[int, int], tuple[int, ...]]:
        cpu = CpuConfig(model, {}, {name.replace("_", "-"): value for name, value in properties.items()})
        entries = cpuid_entries(cpu, 0, CpuTopology())
        return {(e.function, e.index or 0): (e.eax, e.ebx, e.ecx, e.edx) for e in entries}

    without = answers("Nehalem", l3_cache="off")
    assert (without[2, 0], without[0x8000_0006, 0]) == ((1, 0, 0, 0x2C307D), (0, 0x42004200, 0x02008140, 0))
    assert without[4, 3] == (0, 0, 0, 0) and (4, 4) not in without
    legacy = answers("EPYC", legacy_cache="on")
    assert legacy[0x8000_0005, 0][2:] == (0x40020140, 0x40020140) and answers("EPYC")[0x8000_0005, 0] != legacy[5, 0]
    flat = answers("Nehalem", cpuid_0xb="off")
    assert flat[0xB, 0] == (0, 0, 0, 0) and (0xB, 1) not in flat


def test_kvmclock_can_be_taken_away() -> None:
    with_clock, without = leaf(CpuConfig("max"), 0x4000_0001), leaf(CpuConfig("max", {"kvmclock": False}), 0x4000_0001)
    assert with_clock.eax & 9 == 9 and without.eax & 9 == 0 and without.eax


@pytest.mark.parametrize(
    ("cpu", "error", "text"),
    [
        (CpuConfig("z80"), UserError, "-cpu z80: no such CPU model"),
        (CpuConfig("max", {"sse5": True}), UserError, "-cpu sse5: no such CPU feature"),
        (CpuConfig("max", {}, {"phys-bits": "64"}), UserError, "phys-bits should be between 32 and 52"),
        (CpuConfig("max", {}, {"family": "six"}), UserError, "max-x86_64-cpu.family=six: Parameter 'family' expects"),
        (CpuConfig("max", {}, {"stepping": "16"}), UserError, r"take value 16 \(minimum: 0, maximum: 15\)"),
        (CpuConfig("max", {}, {"vendor": "Intel"}), UserError, "Property '.vendor' doesn't take value 'Intel'"),
        (CpuConfig("max", {}, {"enforce": "maybe"}), UserError, "Parameter 'enforce' expects 'on' or 'off'"),
        (CpuConfig("max", {}, {"pmu": "perhaps"}), UserError, "Parameter 'pmu' expects 'on' or 'off'"),
        (CpuConfig("max", {}, {"level": "-1"}), UserError, "level=-1: Parameter 'level' expects uint32_t"),
        (CpuConfig("max", {}, {"host-phys-bits-limit": "300"}), UserError, "'host-phys-bits-limit' expects uint8_t"),
        (CpuConfig("Nehalem", {}, {"legacy-cache": "off"}), UserError,
         "^CPU model 'Nehalem' doesn't support legacy-cache=off$"),
        (CpuConfig("max", {}, {"lmce": "on"}), NotBuiltError, "-cpu max,lmce=on: this property is not built yet"),
    ],
)
def test_bad_cpu_options(cpu: CpuConfig, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        cpuid_entries(cpu, 0, CpuTopology())


def test_the_frequency_leaf_is_there_where_the_tsc_is_known_to_be_stable() -> None:
    def timing(features: dict[str, bool], properties: dict[str, str]) -> tuple[int, int, int] | None:
        entries = cpuid_entries(CpuConfig("max", features, properties), 0, CpuTopology(), tsc_hz=2_600_000_000)
        found = {entry.function: entry for entry in entries}
        leaf = found.get(0x4000_0010)
        return leaf and (leaf.eax, leaf.ebx, found[0x4000_0000].eax)

    known = (2_600_000, 1_000_000, 0x4000_0010)
    assert timing({}, {"tsc-frequency": "2600000000"}) == timing({"invtsc": True}, {}) == known
    assert timing({"invtsc": False}, {}) is timing({"invtsc": True}, {"vmware-cpuid-freq": "off"}) is None
    assert timing({"invtsc": True}, {"kvm": "off"}) is None


def test_a_tsc_frequency_is_kept_in_kilohertz() -> None:
    assert tsc_frequency(CpuConfig("max", {}, {"tsc-frequency": "1000000999"})) == 1_000_000_000
    assert tsc_frequency(CpuConfig("max", {}, {"tsc-frequency": "999"})) == tsc_frequency(CpuConfig()) == 0
    for wrong in ("1e9", "-1", str(1000 << 32)):
        with pytest.raises(UserError, match="tsc-frequency"):
            tsc_frequency(CpuConfig("max", {}, {"tsc-frequency": wrong}))


def test_what_no_other_host_may_have() -> None:
    """QEMU's words for KVM, whose TSC this is."""
    assert "invtsc" not in configured_model(CpuConfig("max")).features
    assert "invtsc" in configured_model(CpuConfig("max", {}, {"migratable": "off"})).features
    assert "invtsc" not in configured_model(CpuConfig("host", {"invtsc": False}, {"migratable": "off"})).features
    blocked = ("^disallowing migration blocker \\(--only-migratable\\) for: State blocked by non-migratable CPU device "
               "\\(invtsc flag\\)$")
    for cpu in (CpuConfig("Nehalem", {"invtsc": True}), CpuConfig("max", {}, {"migratable": "off"})):
        with pytest.raises(UserError, match=blocked):
            check_migratable(cpu)
    check_migratable(CpuConfig("max"))
    check_migratable(CpuConfig("max", {"invtsc": True}, {"tsc-frequency": "2000000000"}))
    with pytest.raises(UserError, match="migratable=off: Property 'Nehalem-x86_64-cpu.migratable' not found"):
        configured_model(CpuConfig("Nehalem", {}, {"migratable": "off"}))


def test_physical_addresses_of_the_host() -> None:
    def bits(**properties: str) -> int:
        named = {name.replace("_", "-"): value for name, value in properties.items()}
        return configured_model(CpuConfig("Nehalem", {}, named)).phys_bits

    own = bits(phys_bits="0")
    assert bits(host_phys_bits="on", phys_bits="36") == bits(host_phys_bits="on", host_phys_bits_limit="0") == own
    assert bits(host_phys_bits="on", host_phys_bits_limit="36") == 36
    assert bits(host_phys_bits="on", host_phys_bits_limit="255") == own
    assert bits(host_phys_bits_limit="36") == own == bits(host_phys_bits="off", host_phys_bits_limit="36")
    with pytest.raises(UserError, match="phys-bits should be between 32 and 52"):
        bits(host_phys_bits="on", host_phys_bits_limit="20")
    with pytest.raises(UserError, match="host-phys-bits-limit=300: Parameter 'host-phys-bits-limit' expects uint8_t"):
        bits(host_phys_bits="on", host_phys_bits_limit="300")


def test_threads_that_cpuid_cannot_tell_of(caplog: pytest.LogCaptureFixture) -> None:
    for cpu in (CpuConfig("Nehalem"), CpuConfig("EPYC"), CpuConfig("Opteron_G3", {"topoext": True})):
        check_threads(cpu, CpuTopology(threads=2))
    check_threads(CpuConfig("Opteron_G3"), CpuTopology(cores=2))
    assert not caplog.messages
    check_threads(CpuConfig("Opteron_G3"), CpuTopology(threads=2))
    assert caplog.messages == ["This family of AMD CPU doesn't support hyperthreading(2)\n"
                               "Please configure -smp options properly or try enabling topoext feature."]
