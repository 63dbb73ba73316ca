"""CPU models: where feature bits are, what models have, what is announced, and that all of it is built."""

from __future__ import annotations

import iced_x86
import pytest
from pellucid.cpu.models import (
    FEATURES, CpuModel, alias_of, built, canonical_name, describe_models, feature_names, find_model, models,
    needed_levels, own_models, resolve)
from pellucid.cpu.models.features import OTHER_FEATURES, UNMIGRATABLE, in_word_order, spelled
from pellucid.cpu.models.caches import CACHE_SETS, LEGACY
from pellucid.cpu.models.leaves import CpuidLeaf, cpuid_leaves
from pellucid.cpu.models.topology import CpuTopology
from pellucid.errors import UserError
from pellucid.isa import forms
from pellucid.isa.all import TABLE
from pellucid.isa.features import GATES
from pellucid.kvm.backends.soft.cpuid import CR4_FEATURES


def leaf(model: CpuModel, function: int, index: int | None = None, apic_id: int = 0, count: int = 1) -> CpuidLeaf:
    every = cpuid_leaves(model, apic_id, CpuTopology(cores=count))
    (found,) = (e for e in every if e.function == function and e.index == index)
    return found


@pytest.mark.parametrize(("name", "place", "bit"), [
    # SDM vol. 2, tables 3-8, 3-10 and 3-11; AMD APM vol. 3, appendix E.
    ("fpu", (1, 0, "edx"), 0), ("cx8", (1, 0, "edx"), 8), ("sep", (1, 0, "edx"), 11), ("clflush", (1, 0, "edx"), 19),
    ("sse2", (1, 0, "edx"), 26), ("pbe", (1, 0, "edx"), 31), ("cx16", (1, 0, "ecx"), 13), ("pcid", (1, 0, "ecx"), 17),
    ("x2apic", (1, 0, "ecx"), 21), ("tsc-deadline", (1, 0, "ecx"), 24), ("xsave", (1, 0, "ecx"), 26),
    ("hypervisor", (1, 0, "ecx"), 31), ("arat", (6, 0, "eax"), 2), ("fdp-excptn-only", (7, 0, "ebx"), 6),
    ("smep", (7, 0, "ebx"), 7), ("zero-fcs-fds", (7, 0, "ebx"), 13), ("smap", (7, 0, "ebx"), 20),
    ("sha-ni", (7, 0, "ebx"), 29), ("umip", (7, 0, "ecx"), 2), ("la57", (7, 0, "ecx"), 16),
    ("rdpid", (7, 0, "ecx"), 22), ("pks", (7, 0, "ecx"), 31), ("fsrm", (7, 0, "edx"), 4),
    ("serialize", (7, 0, "edx"), 14), ("arch-capabilities", (7, 0, "edx"), 29), ("ssbd", (7, 0, "edx"), 31),
    ("bhi-ctrl", (7, 2, "edx"), 4), ("xsaves", (0xD, 1, "eax"), 3), ("syscall", (0x8000_0001, 0, "edx"), 11),
    ("nx", (0x8000_0001, 0, "edx"), 20), ("lm", (0x8000_0001, 0, "edx"), 29), ("3dnow", (0x8000_0001, 0, "edx"), 31),
    ("3dnowprefetch", (0x8000_0001, 0, "ecx"), 8), ("topoext", (0x8000_0001, 0, "ecx"), 22),
    ("invtsc", (0x8000_0007, 0, "edx"), 8), ("wbnoinvd", (0x8000_0008, 0, "ebx"), 9),
    ("ibpb", (0x8000_0008, 0, "ebx"), 12), ("amd-ssbd", (0x8000_0008, 0, "ebx"), 24),
])
def test_places_of_bits(name: str, place: tuple[int, int, str], bit: int) -> None:
    assert FEATURES[name] == (place, bit)


def test_names_are_of_one_thing() -> None:
    assert len(set(FEATURES.values())) == len(FEATURES)
    assert not OTHER_FEATURES.keys() & FEATURES.keys()
    assert built() <= FEATURES.keys() | OTHER_FEATURES.keys() and UNMIGRATABLE <= built()
    assert len(set(feature_names())) == len(FEATURES) + len(OTHER_FEATURES)
    for model in models().values():
        assert model.features <= FEATURES.keys() | OTHER_FEATURES.keys(), model.name
        assert len(model.vendor) == 12 and len(model.model_id) <= 48


NO_FEATURE = ("lahf-lm", "xgetbv1", "cr8legacy", "misalignsse")
"""Gates that iced-x86 has no feature for."""
INSTRUCTIONS = {gate: word for gate, word in GATES.items() if gate not in NO_FEATURE} | {
    "fpu": "FPU FPU287 FPU387", "lm": "X64", "cldemote": "CLDEMOTE", "vmx": "VMX", "svm": "SVM",
}
"""The encodings that a feature stands for, by iced-x86's names."""

CPUID_FEATURES = {value: name for name, value in vars(iced_x86.CpuidFeature).items() if isinstance(value, int)}


def unbuilt_encodings() -> set[str]:
    """iced-x86's features with an encoding that the instruction table does not have.

    One that needs several is the fault of those that are not announced (VSHA512MSG1: SHA512, not AVX).
    """
    announced = {word for name in built() for word in INSTRUCTIONS.get(name, "").split()}
    found = set()
    for code, name in forms.CODE_NAMES.items():
        info = iced_x86.OpCodeInfo(code)
        encoded = info.encoding in (iced_x86.EncodingKind.LEGACY, iced_x86.EncodingKind.VEX, iced_x86.EncodingKind.XOP)
        if not encoded or not info.is_instruction or info.fwait:
            continue
        if TABLE.find(forms.MNEMONIC_NAMES[info.mnemonic], name) is None:
            instruction = iced_x86.Instruction()
            instruction.code = code
            needs = {CPUID_FEATURES[feature] for feature in instruction.cpuid_features()}
            found |= needs - announced or needs
    return found


def test_what_is_announced_is_what_the_instruction_table_has() -> None:
    unbuilt = unbuilt_encodings()
    # Encodings of a built feature may need another one too (VAESENC: AES and AVX).
    complete = {name for name, needs in INSTRUCTIONS.items() if not unbuilt & set(needs.split())}
    assert complete == built() & INSTRUCTIONS.keys()


def test_every_announced_control_bit_can_be_set() -> None:
    """CR4 bits by feature, as the soft backend derives them; and what is built is known to it."""
    places = {FEATURES[name] for name in built() & FEATURES.keys()}
    known = {((function, index, register), bit) for function, index, register, bit in CR4_FEATURES.values()}
    for name in ("de", "pse", "pae", "mce", "pge", "fxsr", "sse", "umip", "la57", "fsgsbase", "pcid", "xsave", "smep",
                 "smap", "tsc"):
        assert FEATURES[name] in known & places, name


def test_own_models() -> None:
    own = own_models()
    assert own["max"].features == built() - UNMIGRATABLE - {"topoext", "bus-lock-detect"}
    assert own["pellucid"].features < own["max"].features
    for model in own.values():
        assert resolve(model.name).lacking == ()
        assert resolve(model.name).model.features == model.features


def test_models_are_found_by_name_or_not_at_all() -> None:
    assert {"qemu64", "qemu32", "kvm64", "Nehalem", "Westmere", "Skylake-Server", "max"} <= models().keys()
    assert {"Opteron_G1", "Opteron_G5", "EPYC", "EPYC-Rome", "EPYC-Milan", "phenom", "athlon"} <= models().keys()
    assert describe_models().keys() == models().keys()
    assert find_model("Nehalem").model_id.startswith("Intel Core i7")
    with pytest.raises(UserError, match="-cpu Nehalm: no such CPU model: did you mean 'Nehalem'"):
        resolve("Nehalm")
    with pytest.raises(UserError, match="-cpu sse42: no such CPU feature: did you mean 'sse4.2'"):
        resolve("max", {"sse42": True})


def test_names_have_spellings() -> None:
    assert [canonical_name(word) for word in ("sse4_1", "sse4-2", "lahf_lm", "xd", "i64", "tsc_deadline", "sse3")] == [
        "sse4.1", "sse4.2", "lahf-lm", "nx", "lm", "tsc-deadline", "pni"]


def test_what_the_processor_lacks_is_left_out_and_named() -> None:
    resolved = resolve("Haswell")
    assert not {"sse4.2", "bmi2", "hle", "rtm"} & set(resolved.lacking) and "vme" not in resolved.lacking
    assert {"bmi2", "hle", "rtm"} <= resolved.model.features
    changed = resolve("Westmere", {"aes": False, "pclmulqdq": False, "vmx-ept": True, "sse4_2": False, "umip": True})
    assert changed.lacking == ("vmx-ept",)
    assert "sse4.2" not in changed.model.features and "umip" in changed.model.features


def test_the_accelerator_adds_and_takes_away_as_kvm_does() -> None:
    resolved = resolve("qemu64")
    assert {"x2apic", "tsc-deadline", "hypervisor", "arat", "arch-capabilities"} <= resolved.model.features
    assert resolved.lacking == () and "svm" in find_model("qemu64").features
    assert resolve("qemu64", {"svm": True}).lacking == ("svm",)
    assert "x2apic" not in resolve("qemu64", {"x2apic": False}).model.features
    assert "arat" not in resolve("qemu32").model.features
    assert resolve("486").model.features == {"fpu", "pse", "hypervisor"} & resolve("486").model.features
    assert "invtsc" not in resolve("max").model.features and "invtsc" in resolve("max", {"invtsc": True}).model.features


def test_amd_models() -> None:
    g1 = resolve("Opteron_G1")
    assert g1.lacking == () and (g1.model.vendor, g1.model.signature) == ("AuthenticAMD", 0xF61)
    assert "npt" not in resolve("EPYC").lacking
    first, extended = leaf(g1.model, 1).edx, leaf(g1.model, 0x8000_0001).edx
    assert first & 0x0183_F3FF == extended & 0x0183_F3FF and extended >> 29 & 1
    assert not leaf(resolve("qemu64").model, 0x8000_0001).edx & 1, "Intel's leaf repeats nothing"


def test_versions() -> None:
    """SDM's and APM's words aside: what QEMU 7.2's versions change."""
    first, third = find_model("EPYC-v1"), find_model("EPYC-v3")
    assert third.features - first.features == {"ibpb", "perfctr-core", "clzero", "xsaveerptr", "xsaves"}
    assert (find_model("EPYC").features, find_model("EPYC-IBPB").features) == (
        first.features, find_model("EPYC-v2").features)
    assert alias_of("EPYC") == "EPYC-v1" and alias_of("Haswell-noTSX-IBRS") == "Haswell-v4"
    assert alias_of("EPYC-v3") is None is alias_of("max")
    assert find_model("Haswell-v2").stepping == 1 and find_model("Haswell-v3").stepping == 4
    assert find_model("Icelake-Server-v4").model == 106 == find_model("Icelake-Server-v6").model
    assert describe_models()["Skylake-Server-v5"].endswith("[IBRS, XSAVES, EPT switching, no TSX]")
    with pytest.raises(UserError, match="did you mean 'EPYC-v3'"):
        find_model("EPYC-v33")


def test_features_raise_the_highest_leaf() -> None:
    assert resolve("Opteron_G1").model.level == 5 and resolve("Opteron_G1", {"smep": True}).model.level == 7
    assert resolve("qemu32", {"invtsc": True}).model.xlevel == 0x8000_0007
    assert needed_levels(()) == (0, 0, 0)
    assert needed_levels({"xsaves", "3dnow", "xstore"}) == (0xD, 0x8000_0001, 0xC000_0001)
    assert resolve("486", {"xstore": True}).model.xlevel2 == 0xC000_0001 and not resolve("486").model.xlevel2


def test_places_as_qemu_spells_them() -> None:
    assert spelled("hle") == "CPUID.07H:EBX.hle [bit 4]" and spelled("svm") == "CPUID.80000001H:ECX.svm [bit 2]"
    assert spelled("rdctl-no") == "MSR(10AH).rdctl-no [bit 0]"
    mixed = ("arat", "xsaves", "svm", "npt", "rdctl-no", "hle", "fpu")
    assert in_word_order(mixed) == ("fpu", "hle", "svm", "npt", "xsaves", "arat", "rdctl-no")


def test_amd_caches_and_cores() -> None:
    """Linux divides by the ways of leaf 0x80000005 on family 0x15."""
    model = resolve("Opteron_G5").model
    caches = leaf(model, 0x8000_0005)
    for found, cache in ((caches.ecx, LEGACY.amd[0]), (caches.edx, LEGACY.amd[1])):
        assert (found >> 24, found >> 16 & 0xFF, found & 0xFF) == (cache.kib, cache.ways, 64)
    l2, l3 = leaf(model, 0x8000_0006).ecx, leaf(model, 0x8000_0006).edx
    assert (l2 >> 16, l3 >> 18) == (LEGACY.amd[2].kib, LEGACY.amd[3].kib // 512)
    assert leaf(model, 0x8000_0008, count=4).ecx == 3 | 2 << 12 and leaf(model, 0x8000_0008).ecx == 0
    assert leaf(model, 0x8000_0001, count=4).ecx & 2 and not leaf(model, 0x8000_0001).ecx & 2
    intel = resolve("Haswell").model
    assert leaf(intel, 0x8000_0008, count=4).ecx == 3 | 2 << 12 and not leaf(intel, 0x8000_0001, count=4).ecx & 2


# --- leaves ----------------------------------------------------------------------------------------------


def test_extended_topology() -> None:
    """APM vol. 3, appendix E.4.15: caches by subleaf, and which unit of which node this is."""
    every = cpuid_leaves(resolve("EPYC").model, 0b1_01_1, CpuTopology(sockets=2, cores=3, threads=2))
    caches = [found for found in every if found.function == 0x8000_001D]
    assert [cache.eax & 0x1F for cache in caches] == [1, 2, 3, 3, 0]
    assert [cache.eax >> 14 for cache in caches] == [1, 1, 1, 5, 0]
    assert [(cache.ecx + 1) * ((cache.ebx >> 22) + 1) * 64 for cache in caches[:4]] == [
        c.kib << 10 for c in CACHE_SETS["zen"].listed]
    (unit,) = [found for found in every if found.function == 0x8000_001E]
    assert (unit.eax, unit.ebx, unit.ecx) == (0b1_01_1, 1 << 8 | 1, 1)
    assert not [found for found in cpuid_leaves(resolve("EPYC", {"topoext": False}).model, 0, CpuTopology())
                if found.function > 0x8000_0008]


def test_identity() -> None:
    model = own_models()["pellucid"]
    first = leaf(model, 0)
    vendor = b"".join(part.to_bytes(4, "little") for part in (first.ebx, first.edx, first.ecx))
    assert vendor == b"GenuineIntel" and first.eax == 0xD
    assert leaf(model, 1).eax == 0x306A9 == model.signature
    parts = [leaf(model, 0x8000_0002 + n) for n in range(3)]
    brand = b"".join(word.to_bytes(4, "little") for e in parts for word in (e.eax, e.ebx, e.ecx, e.edx))
    assert brand.rstrip(b"\0") == b"Pellucid Virtual CPU"


def test_signature_of_extended_families() -> None:
    assert CpuModel("x", frozenset(), family=25, model=0x61, stepping=2).signature == 0x00A60F12
    assert CpuModel("x", frozenset(), family=6, model=0x1A, stepping=3).signature == 0x000106A3


def test_caches() -> None:
    """Leaf 4 (SDM vol. 2, table 3-8): ways x partitions x line x sets is the size."""
    model = resolve("max").model
    for index, cache in enumerate(LEGACY.listed):
        found = leaf(model, 4, index, count=4)
        ways, partitions, line = (found.ebx >> 22) + 1, (found.ebx >> 12 & 0x3FF) + 1, (found.ebx & 0xFFF) + 1
        assert ways * partitions * line * (found.ecx + 1) == cache.kib * 1024
        assert (found.eax & 31, found.eax >> 5 & 7) == (cache.kind, cache.level)
        assert (found.eax >> 14 & 0xFFF) == (3 if cache.shared else 0)
        assert found.eax >> 26 == 3
    assert leaf(model, 4, 4) == CpuidLeaf(4, 4)


INTEL_LEAVES = {
    (2, 0): (1, 0, 0x4D, 0x2C307D), (4, 0): (0x121, 0x1C0003F, 0x3F, 1), (4, 1): (0x122, 0x1C0003F, 0x3F, 1),
    (4, 2): (0x143, 0x3C0003F, 0xFFF, 1), (4, 3): (0x163, 0x3C0003F, 0x3FFF, 6), (4, 4): (0, 0, 0, 0)}
AMD_LEAVES = {
    (2, 0): None, (4, 0): None, (0x8000_001D, 0): (0x121, 0x1C0003F, 0x3F, 1),
    (0x8000_001D, 1): (0x122, 0x1C0003F, 0x3F, 1), (0x8000_001D, 2): (0x43, 0x1C0003F, 0x3FF, 0)}
SMALL_L3, LARGE_CODE = (0x163, 0x3C0003F, 0x1FFF, 6), (0x122, 0xC0003F, 0xFF, 1)
HYGON = {(2, 0): (1, 0, 0x4B, 0x2CFF80), (4, 0): (0x121, 0x1C0003F, 0x3F, 1), (4, 1): LARGE_CODE,
         (4, 2): (0x43, 0x1C0003F, 0x3FF, 0), (4, 3): SMALL_L3}


@pytest.mark.parametrize(("name", "first", "upper", "others"), [
    ("Skylake-Client", (0x40020140, 0x40020140), (0x02008140, 0x00808140), INTEL_LEAVES),
    ("Conroe", (0x40020140, 0x40020140), (0x02008140, 0x00808140), INTEL_LEAVES),
    ("phenom", (0x40020140, 0x40020140), (0x02008140, 0x00808140), {(2, 0): None, (4, 0): None}),
    ("EPYC", (0x20080140, 0x40040140), (0x02006140, 0x00408140), AMD_LEAVES | {(0x8000_001D, 1): LARGE_CODE,
                                                                               (0x8000_001D, 3): SMALL_L3}),
    ("EPYC-Rome", (0x20080140, 0x20080140), (0x02006140, 0x00808140),
     AMD_LEAVES | {(0x8000_001D, 3): (0x163, 0x3C0003F, 0x3FFF, 6)}),
    ("EPYC-Milan", (0x20080140, 0x20080140), (0x02006140, 0x01008140),
     AMD_LEAVES | {(0x8000_001D, 3): (0x163, 0x3C0003F, 0x7FFF, 6)}),
    ("Dhyana", (0x20080140, 0x40040140), (0x02006140, 0x00408140), AMD_LEAVES | {(0x8000_001D, 1): LARGE_CODE} | HYGON),
])
def test_a_guest_reads_qemu_s_caches(
        name: str, first: tuple[int, int], upper: tuple[int, int],
        others: dict[tuple[int, int], tuple[int, ...] | None]) -> None:
    """What a guest of QEMU 7.2 reads, with one processor."""
    found = {(e.function, e.index or 0): (e.eax, e.ebx, e.ecx, e.edx)
             for e in cpuid_leaves(resolve(name).model, 0, CpuTopology())}
    assert found[0x8000_0005, 0] == (0x01FF01FF, 0x01FF01FF, *first)
    assert found[0x8000_0006, 0] == (0, 0x42004200, *upper)
    assert {place: found.get(place) for place in others} == others


def test_topology() -> None:
    model = resolve("max").model
    one, four = leaf(model, 1, apic_id=0), leaf(model, 1, apic_id=3, count=4)
    assert four.ebx == 3 << 24 | 4 << 16 | 0x800
    assert (one.edx >> 28 & 1, four.edx >> 28 & 1) == (0, 1)
    assert [leaf(model, 0xB, n, 3, 4) for n in range(3)] == [
        CpuidLeaf(0xB, 0, 0, 1, 0x100, 3), CpuidLeaf(0xB, 1, 2, 4, 0x201, 3), CpuidLeaf(0xB, 2, 0, 0, 2, 3)]


def test_extended_state_sizes() -> None:
    everything = own_models()["max"]
    keyed = CpuModel("x", everything.features | {"pku"})
    assert (leaf(keyed, 0xD, 0).eax >> 9 & 1, leaf(keyed, 0xD, 0).ecx) == (1, 2696)
    assert (leaf(keyed, 0xD, 9).eax, leaf(keyed, 0xD, 9).ebx, leaf(keyed, 0xD, 9).ecx) == (8, 2688, 0)
    model = CpuModel("x", everything.features - {"avx", "pku"})
    assert leaf(model, 0xD, 0) == CpuidLeaf(0xD, 0, 3, 576, 576, 0)
    assert leaf(model, 0xD, 1).eax == 15 and leaf(model, 0xD, 1).ebx == 576
    with_avx = CpuModel("x", model.features | {"avx"})
    assert leaf(with_avx, 0xD, 0).eax == 7 and leaf(with_avx, 0xD, 0).ecx == 832
    assert (leaf(with_avx, 0xD, 2).eax, leaf(with_avx, 0xD, 2).ebx) == (256, 576)
    assert leaf(with_avx, 0xD, 0).ecx == 832
    without = CpuModel("x", model.features - {"xsave", "xsaveopt", "xsavec", "xsaves", "xgetbv1"})
    assert not [found for found in cpuid_leaves(without, 0, CpuTopology()) if found.function == 0xD]


def test_address_sizes() -> None:
    own = own_models()
    assert leaf(own["pellucid"], 0x8000_0008).eax == 48 << 8 | 40
    assert leaf(own["max"], 0x8000_0008).eax == 57 << 8 | 40


def test_no_leaf_lies_above_the_highest() -> None:
    for name in models():
        model = resolve(name).model
        for found in cpuid_leaves(model, 0, CpuTopology()):
            assert found.function <= (model.level if found.function < 0x8000_0000 else model.xlevel)
            assert all(0 <= word < 1 << 32 for word in (found.eax, found.ebx, found.ecx, found.edx))
