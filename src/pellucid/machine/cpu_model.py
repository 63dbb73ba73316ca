"""CPU models: what CPUID answers for `-cpu MODEL,+feature,property=value`.

Everything is by QEMU's names. `FEATURES` says where each CPUID bit is, `MODELS` what a model has, `BUILT` which of all
these the processor carries out whole; a feature is announced only when it is in the last. Asked for by name and not
built, it is left out with a warning, or refused with `enforce`, as QEMU does.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace

from pellucid.errors import NotBuiltError, UserError
from pellucid.kvm.api import CpuidEntry
from pellucid.kvm.cpuid import SUPPORTED_FEATURES, KvmFeature, kvm_leaves
from pellucid.machine.config import CpuConfig

_log = logging.getLogger("pellucid.machine.cpu")

Place = tuple[int, int, str]
"""(leaf, subleaf, register) of a word of feature bits."""

_BITS: dict[Place, str] = {
    (0x1, 0, "edx"): "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - ds acpi "
    "mmx fxsr sse sse2 ss ht tm ia64 pbe",
    (0x1, 0, "ecx"): "pni pclmulqdq dtes64 monitor ds-cpl vmx smx est tm2 ssse3 cid - fma cx16 xtpr pdcm - pcid dca "
    "sse4.1 sse4.2 x2apic movbe popcnt tsc-deadline aes xsave - avx f16c rdrand hypervisor",
    (0x6, 0, "eax"): "- - arat",
    (0x7, 0, "ebx"): "fsgsbase tsc-adjust sgx bmi1 hle avx2 - smep bmi2 erms invpcid rtm - - mpx - avx512f avx512dq "
    "rdseed adx smap avx512ifma pcommit clflushopt clwb intel-pt avx512pf avx512er avx512cd sha-ni avx512bw avx512vl",
    (0x7, 0, "ecx"): "- avx512vbmi umip pku - waitpkg avx512vbmi2 - gfni vaes vpclmulqdq avx512vnni avx512bitalg - "
    "avx512-vpopcntdq - la57 - - - - - rdpid - bus-lock-detect cldemote - movdiri movdir64b - sgxlc pks",
    (0x7, 0, "edx"): "- - avx512-4vnniw avx512-4fmaps fsrm - - - avx512-vp2intersect - md-clear - - - serialize - "
    "tsx-ldtrk - - arch-lbr - - amx-bf16 avx512-fp16 amx-tile amx-int8 spec-ctrl stibp - arch-capabilities "
    "core-capability ssbd",
    (0x7, 1, "eax"): "- - - - avx-vnni avx512-bf16",
    (0xD, 1, "eax"): "xsaveopt xsavec xgetbv1 xsaves xfd",
    (0x8000_0001, 0, "edx"): "- - - - - - - - - - - syscall - - - - - - - - nx - mmxext - - fxsr-opt pdpe1gb rdtscp - "
    "lm 3dnowext 3dnow",
    (0x8000_0001, 0, "ecx"): "lahf-lm cmp-legacy svm extapic cr8legacy abm sse4a misalignsse 3dnowprefetch osvw ibs "
    "xop skinit wdt - lwp fma4 tce - nodeid-msr - tbm topoext",
    (0x8000_0007, 0, "edx"): "- - - - - - - - invtsc",
    (0x8000_0008, 0, "ebx"): "clzero - xsaveerptr - - - - - - wbnoinvd",
}

FEATURES: dict[str, tuple[Place, int]] = {
    name: (place, bit) for place, names in _BITS.items() for bit, name in enumerate(names.split()) if name != "-"
}
"""Where a feature's bit is."""

BUILT = frozenset(
    (
        "fpu de pse tsc msr pae cx8 apic sep mtrr pge cmov pat pse36 clflush mmx fxsr sse sse2 "
        "pni ssse3 cx16 sse4.1 sse4.2 x2apic popcnt tsc-deadline hypervisor arat fsgsbase smep erms smap umip "
        "arch-capabilities lahf-lm syscall nx pdpe1gb rdtscp lm"
    ).split()
)
"""What Pellucid's processor has."""

_QEMU64 = (
    "fpu de pse tsc msr pae cx8 apic sep mtrr pge cmov pat pse36 clflush mmx fxsr sse sse2 pni cx16 hypervisor "
    "lahf-lm syscall nx lm x2apic tsc-deadline arat"
)


@dataclass(frozen=True)
class Model:
    """What identifies a processor, and its features by name."""

    features: frozenset[str]
    vendor: str = "GenuineIntel"
    family: int = 6
    model: int = 58
    stepping: int = 9
    model_id: str = "Pellucid CPU"
    level: int = 0xD
    xlevel: int = 0x8000_0008
    phys_bits: int = 40
    kvm: KvmFeature = SUPPORTED_FEATURES
    """Paravirtual features; with none of them the leaves of a KVM guest are not there."""


MODELS = {
    "qemu64": Model(frozenset(_QEMU64.split()), model_id="Pellucid Virtual CPU"),
    "max": Model(BUILT),
}

KVM_FEATURES = {
    "kvmclock": KvmFeature.CLOCKSOURCE | KvmFeature.CLOCKSOURCE2,
    "kvm-nopiodelay": KvmFeature.NOP_IO_DELAY,
    "kvmclock-stable-bit": KvmFeature.CLOCKSOURCE_STABLE_BIT,
    "kvm-pv-eoi": KvmFeature.PV_EOI,
    "kvm-steal-time": KvmFeature.STEAL_TIME,
    "kvm-asyncpf": KvmFeature.ASYNC_PF,
}
PHYS_BITS = (36, 52)
IGNORED = ("migratable", "check", "host-phys-bits")
"""Properties that mean nothing here, because nothing of the host's CPU is passed through."""


def cpuid_entries(cpu: CpuConfig, apic_id: int, cpu_count: int) -> list[CpuidEntry]:
    """What CPUID answers on the processor with `apic_id`.

    Raises UserError for a model or property that does not exist and, with `enforce`, for a feature that is not built.
    """
    model = configured_model(cpu)
    words = feature_words(model)

    def entry(leaf: int, subleaf: int | None = None, *, eax: int = 0, ebx: int = 0) -> CpuidEntry:
        bits = {name: words.get((leaf, subleaf or 0, name), 0) for name in ("eax", "ebx", "ecx", "edx")}
        return CpuidEntry(leaf, subleaf, eax | bits["eax"], ebx | bits["ebx"], bits["ecx"], bits["edx"])

    flush_size = 8 << 8  # in units of 8 bytes
    entries = [
        _identity(model, 0, model.level),
        entry(1, eax=signature(model), ebx=apic_id << 24 & 0xFF00_0000 | min(cpu_count, 255) << 16 | flush_size),
        entry(6),
        entry(7, 0, eax=1),
        entry(7, 1),
        *_topology(apic_id, cpu_count),
    ]
    if "xsave" in model.features:
        entries += _xsave_leaves(model, entry(0xD, 1))
    entries = [found for found in entries if found.function <= model.level]
    entries += [_identity(model, 0x8000_0000, model.xlevel), entry(0x8000_0001, eax=signature(model))]
    entries += _brand(model.model_id)
    entries += [entry(0x8000_0007), entry(0x8000_0008, eax=48 << 8 | model.phys_bits)]
    return entries + (kvm_leaves(model.kvm) if model.kvm else [])


def configured_model(cpu: CpuConfig) -> Model:
    """The model with the features and properties that were asked for, less what is not built."""
    if cpu.model not in MODELS:
        raise UserError(f"-cpu {cpu.model}: no such CPU model; there are: {', '.join(MODELS)}")
    model = _with_properties(MODELS[cpu.model], cpu)
    wanted = set(model.features)
    for name, on in cpu.features.items():
        if name in KVM_FEATURES and not on:
            model = replace(model, kvm=model.kvm & ~KVM_FEATURES[name])
        elif name not in KVM_FEATURES or KVM_FEATURES[name] & ~SUPPORTED_FEATURES:
            (wanted.add if on else wanted.discard)(name)
    lacking = sorted(wanted - BUILT)
    if _switch(cpu, "enforce", False) and lacking:
        raise UserError(f"-cpu {cpu.model},enforce: this processor does not have {', '.join(lacking)}")
    for name in lacking:
        _log.warning("-cpu %s: this processor does not have %s; it is left out", cpu.model, name)
    return replace(model, features=frozenset(wanted & BUILT))


def _with_properties(model: Model, cpu: CpuConfig) -> Model:
    changes: dict[str, object] = {}
    for name, text in cpu.properties.items():
        if name in ("family", "model", "stepping", "level", "xlevel"):
            changes[name] = _number(cpu, name, 0, 0xFFFF_FFFF)
        elif name == "phys-bits":
            changes["phys_bits"] = _number(cpu, name, *PHYS_BITS)
        elif name == "model-id":
            changes["model_id"] = text[:48]
        elif name == "vendor":
            if len(text.encode()) != 12:
                raise UserError(f"-cpu {cpu.model},vendor={text}: a vendor has exactly 12 characters")
            changes["vendor"] = text
        elif name == "kvm":
            changes["kvm"] = model.kvm if _switch(cpu, name, True) else KvmFeature(0)
        elif name not in ("enforce", *IGNORED):
            raise NotBuiltError(f"-cpu {cpu.model},{name}={text}: this property is not built yet: leave it out")
    return replace(model, **changes)  # type: ignore[arg-type]


def _number(cpu: CpuConfig, name: str, low: int, high: int) -> int:
    text = cpu.properties[name]
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if not low <= value <= high:
        raise UserError(f"-cpu {cpu.model},{name}={text}: give a number from {low} to {high}")
    return value


def _switch(cpu: CpuConfig, name: str, default: bool) -> bool:
    text = cpu.properties.get(name)
    if text not in (None, "on", "off", ""):
        raise UserError(f"-cpu {cpu.model},{name}={text}: give on or off")
    return default if text is None else text != "off"


def feature_words(model: Model) -> dict[Place, int]:
    """The model's feature bits, word by word."""
    words: dict[Place, int] = {}
    for name in model.features:
        place, bit = FEATURES[name]
        words[place] = words.get(place, 0) | 1 << bit
    return words


def signature(model: Model) -> int:
    """Family, model and stepping as leaf 1 packs them (SDM vol. 2, figure 3-6)."""
    family = min(model.family, 15)
    extended_family = (model.family - family) & 0xFF
    return (
        model.stepping & 15
        | (model.model & 15) << 4
        | family << 8
        | (model.model >> 4 & 15) << 16
        | (extended_family << 20)
    )


def _identity(model: Model, leaf: int, highest: int) -> CpuidEntry:
    """Leaf 0 or 0x80000000: the highest leaf of its range, and the vendor."""
    ebx, edx, ecx = (int.from_bytes(model.vendor.encode()[at : at + 4], "little") for at in (0, 4, 8))
    return CpuidEntry(leaf, None, highest, ebx, ecx, edx)


def _topology(apic_id: int, cpu_count: int) -> Iterator[CpuidEntry]:
    """Leaf 0xB: one thread a core, all cores in one package (SDM vol. 2, table 3-8)."""
    smt, core = 1, 2
    yield CpuidEntry(0xB, 0, eax=0, ebx=1, ecx=smt << 8 | 0, edx=apic_id)
    yield CpuidEntry(0xB, 1, eax=(cpu_count - 1).bit_length(), ebx=cpu_count, ecx=core << 8 | 1, edx=apic_id)
    yield CpuidEntry(0xB, 2, ecx=2, edx=apic_id)


def _xsave_leaves(model: Model, features: CpuidEntry) -> Iterator[CpuidEntry]:
    """Leaf 0xD in the standard format: x87 and SSE in the first 576 bytes, AVX in 256 more."""
    avx = "avx" in model.features
    size = 832 if avx else 576
    yield CpuidEntry(0xD, 0, eax=7 if avx else 3, ebx=576, ecx=size)
    yield features
    if avx:
        yield CpuidEntry(0xD, 2, eax=256, ebx=576)


def _brand(text: str) -> Iterator[CpuidEntry]:
    """Leaves 0x80000002 to 0x80000004: 48 bytes of text."""
    content = text.encode("ascii", "replace")[:47].ljust(48, b"\0")
    for index in range(3):
        part = content[16 * index : 16 * index + 16]
        eax, ebx, ecx, edx = (int.from_bytes(part[at : at + 4], "little") for at in (0, 4, 8, 12))
        yield CpuidEntry(0x8000_0002 + index, eax=eax, ebx=ebx, ecx=ecx, edx=edx)
