"""-cpu: from the configured model to what CPUID answers on each processor.

Models and features are the processor's (`pellucid.cpu.models`); the leaves of a KVM guest are the hypervisor's. What is
asked for and not built is left out with a warning, or refused with `enforce`, as QEMU does.
"""

import logging
from typing import Any

from pellucid.cpu.models import CpuModel, Resolved, find_model, needed_levels, own_models, resolve
from pellucid.cpu.models.features import UNMIGRATABLE, spelled
from pellucid.cpu.models.leaves import AMD, AMD_VENDORS, cpuid_leaves
from pellucid.cpu.models.msr_features import capabilities
from pellucid.cpu.models.topology import CpuTopology
from pellucid.errors import NotBuiltError, UserError
from pellucid.kvm.api import CpuidEntry
from pellucid.kvm.cpuid import KVM_CPUID_FEATURES, SUPPORTED_FEATURES, KvmFeature, kvm_leaves
from pellucid.kvm.lbr import FORMATS, LBR_FMT, OWN_FORMAT
from pellucid.kvm.pmu import FULL_WIDTH_WRITE, IA32_PERF_CAPABILITIES
from pellucid.machine.config import CpuConfig
from pellucid.records import astuple, replace

_log = logging.getLogger("pellucid.machine.cpu")

KVM_FEATURES = {
    "kvmclock": KvmFeature.CLOCKSOURCE | KvmFeature.CLOCKSOURCE2,
    "kvm-nopiodelay": KvmFeature.NOP_IO_DELAY,
    "kvmclock-stable-bit": KvmFeature.CLOCKSOURCE_STABLE_BIT,
    "kvm-mmu": KvmFeature.MMU_OP,
    "kvm-asyncpf": KvmFeature.ASYNC_PF,
    "kvm-asyncpf-int": KvmFeature.ASYNC_PF_INT,
    "kvm-steal-time": KvmFeature.STEAL_TIME,
    "kvm-pv-eoi": KvmFeature.PV_EOI,
    "kvm-pv-unhalt": KvmFeature.PV_UNHALT,
    "kvm-pv-tlb-flush": KvmFeature.PV_TLB_FLUSH,
    "kvm-pv-ipi": KvmFeature.PV_SEND_IPI,
    "kvm-poll-control": KvmFeature.POLL_CONTROL,
    "kvm-pv-sched-yield": KvmFeature.PV_SCHED_YIELD,
    "kvm-msi-ext-dest-id": KvmFeature.MSI_EXT_DEST_ID,
}
"""The paravirtual features that -cpu can switch, by QEMU's names. On without being asked: all that are built."""

PHYS_BITS = (32, 52)
INTEL, DIES_LEAF = "GenuineIntel", 0x1F
U32 = 0xFFFF_FFFF
LARGEST = {"family": 0xFF + 0xF, "model": 0xFF, "stepping": 0xF, "level": U32, "xlevel": U32,
           "xlevel2": U32}
SWITCHES = {"pmu": "pmu", "l3-cache": "l3", "cpuid-0xb": "extended_topology"}
"""Properties that are on or off, and what of a model they are."""
LEVELS = ("level", "xlevel", "xlevel2")
ELSEWHERE = ("migratable", "host-phys-bits", "host-phys-bits-limit", "full-cpuid-auto-level", "tsc-frequency",
             "vmware-cpuid-freq", "enforce", "check", "kvm", "ucode-rev", "legacy-cache", "fill-mtrr-mask", "tcg-cpuid",
             "kvm-no-smi-migration", "x-intel-pt-auto-level", "x-migrate-smi-count", "lbr-fmt")
"""Properties that are looked at elsewhere than in the order of the command line, and those that concern a migration, an
accelerator or a feature that is not here.
"""
IA32_BIOS_SIGN_ID = 0x8B
MICROCODE_AMD, MICROCODE = 0x0100_0065, 1 << 32
"""The revision of microcode that a model shows, QEMU's."""
ON, OFF = ("on", "yes", "true", "y"), ("off", "no", "false", "n")
"""QEMU's spellings of a switch."""
BLOCKED = "State blocked by non-migratable CPU device (invtsc flag)"


def cpuid_entries(cpu: CpuConfig, apic_id: int, topology: CpuTopology, warn: bool = True,
                  tsc_hz: int = 0) -> list[CpuidEntry]:
    """What CPUID answers on the processor with `apic_id`, warning of what is left out; `tsc_hz`: see `Vm.tsc_hz`.

    Raises UserError for a model, feature or property that does not exist and, with `enforce`, for a feature that is
    not built; NotBuiltError for a property that is not.
    """
    model = configured_model(cpu, warn)
    if topology.dies > 1 and model.vendor == INTEL and _switch(cpu, "full-cpuid-auto-level", True):
        if "level" not in cpu.properties:
            model = replace(model, level=max(model.level, DIES_LEAF))
    stable = "invtsc" in model.features or tsc_frequency(cpu) != 0
    shown = tsc_hz if stable and _switch(cpu, "vmware-cpuid-freq", True) else 0
    leaves = cpuid_leaves(model, apic_id, topology)
    return [CpuidEntry(*astuple(leaf)) for leaf in leaves] + _kvm_entries(cpu, shown)


def feature_msrs(cpu: CpuConfig) -> dict[int, int]:
    """What says more of a model than CPUID: IA32_ARCH_CAPABILITIES, IA32_CORE_CAPABILITIES, IA32_PERF_CAPABILITIES, and
    IA32_BIOS_SIGN_ID, the revision of its microcode (-cpu ...,ucode-rev=N).
    """
    model = configured_model(cpu, warn=False)
    found = capabilities(model.features)
    found[IA32_BIOS_SIGN_ID] = MICROCODE_AMD if model.vendor == AMD else MICROCODE
    if "ucode-rev" in cpu.properties:
        found[IA32_BIOS_SIGN_ID] = _number(cpu, "ucode-rev", 0, (1 << 64) - 1)
    if model.pmu and "pdcm" in model.features and model.vendor not in AMD_VENDORS:
        full_width = FULL_WIDTH_WRITE * ("full-width-write" in model.features)
        found[IA32_PERF_CAPABILITIES] = full_width | branch_format(cpu, model)
    return found


def branch_format(cpu: CpuConfig, model: CpuModel) -> int:
    """-cpu ...,lbr-fmt=N: the format of last-branch records, 0 where there are none. Without it the models that follow
    the processor have its own, where they need not run on another host, as have a KVM guest's.

    UserError for a format that is none, that no processor here has, or without performance counters.
    """
    if "lbr-fmt" not in cpu.properties:
        return OWN_FORMAT if _unmigratable(cpu) and model.pmu else 0
    number = _number(cpu, "lbr-fmt", -1 << 63, (1 << 64) - 1)
    if number & ~LBR_FMT:
        raise UserError(_refused(cpu, "lbr-fmt", f"Property value for 'lbr-fmt' has bits outside mask '{LBR_FMT:#x}'"))
    if number and not model.pmu:
        raise UserError("vPMU: LBR is unsupported without pmu=on")
    own = 0 if model.vendor in AMD_VENDORS else OWN_FORMAT
    if number and (not own or number not in FORMATS):
        raise UserError(f"vPMU: the lbr-fmt value ({number:#x}) does not match the host value ({own:#x}).")
    return number


def tsc_frequency(cpu: CpuConfig) -> int:
    """-cpu ...,tsc-frequency=HZ in whole kHz, as QEMU keeps it; 0 is the host's own."""
    if "tsc-frequency" not in cpu.properties:
        return 0
    return _number(cpu, "tsc-frequency", 0, (1000 << 32) - 1) // 1000 * 1000


def configured_model(cpu: CpuConfig, warn: bool = True) -> CpuModel:
    """The model with the features and properties that were asked for, less what is not built."""
    resolved = _resolved(cpu)
    lacking = [*map(spelled, resolved.lacking), *_lacking_kvm_features(cpu)]
    enforce = _switch(cpu, "enforce", False)
    if warn and (enforce or _switch(cpu, "check", True)):
        for feature in lacking:
            _log.warning("TCG doesn't support requested feature: %s", feature)
    if lacking and enforce:
        raise UserError("TCG doesn't support requested features")
    model = _with_properties(resolved.model, cpu)
    if branch_format(cpu, model) and "pdcm" not in model.features and warn:
        _log.warning("lbr-fmt: this model has no IA32_PERF_CAPABILITIES to tell of last-branch records: add +pdcm")
    return model


def _unmigratable(cpu: CpuConfig) -> bool:
    """-cpu max,migratable=off: the models that follow the processor have what no other host may have, too."""
    if "migratable" not in cpu.properties:
        return False
    if cpu.model not in own_models() or cpu.model == "base":
        why = f"Property '{cpu.model}-x86_64-cpu.migratable' not found"
        raise UserError(_refused(cpu, "migratable", why))
    return not _switch(cpu, "migratable", True)


def check_threads(cpu: CpuConfig, topology: CpuTopology) -> None:
    """A warning where AMD's CPUID cannot tell of a core's threads: leaf 0x8000001E comes with topoext."""
    model = configured_model(cpu, warn=False)
    if model.vendor in AMD_VENDORS and topology.threads > 1 and "topoext" not in model.features:
        _log.warning("This family of AMD CPU doesn't support hyperthreading(%d)\n"
                     "Please configure -smp options properly or try enabling topoext feature.", topology.threads)


def check_migratable(cpu: CpuConfig) -> None:
    """-only-migratable: UserError where the guest could not go on on another host.

    A TSC that is said never to change its rate could; one with a frequency of its own would be given that again.
    """
    if "invtsc" in configured_model(cpu, warn=False).features and not tsc_frequency(cpu):
        raise UserError(f"disallowing migration blocker (--only-migratable) for: {BLOCKED}")


def _resolved(cpu: CpuConfig) -> Resolved:
    changes = {name: on for name, on in cpu.features.items() if name not in KVM_FEATURES}
    if _unmigratable(cpu):
        changes = dict.fromkeys(UNMIGRATABLE, True) | changes
    return resolve(cpu.model, changes)


def filtered_features(cpu: CpuConfig) -> tuple[str, ...]:
    """What was asked for, or is the model's, and is not built (QEMU's filtered-features)."""
    return _resolved(cpu).lacking


def _lacking_kvm_features(cpu: CpuConfig) -> list[str]:
    asked = sorted((KVM_FEATURES[name], name) for name, on in cpu.features.items() if on and name in KVM_FEATURES)
    return [f"CPUID.{KVM_CPUID_FEATURES:02X}H:EAX.{name} [bit {bits.bit_length() - 1}]"
            for bits, name in asked if bits & ~SUPPORTED_FEATURES]


def _kvm_entries(cpu: CpuConfig, tsc_hz: int) -> list[CpuidEntry]:
    """The leaves of a KVM guest; with `kvm=off` they are not there. `tsc_hz`: the frequency to be shown, or 0."""
    if not _switch(cpu, "kvm", True):
        return []
    features = SUPPORTED_FEATURES
    for name, on in cpu.features.items():
        if name in KVM_FEATURES and not on:
            features &= ~KVM_FEATURES[name]
    return kvm_leaves(features, tsc_hz)


def _with_properties(model: CpuModel, cpu: CpuConfig) -> CpuModel:
    changes: dict[str, Any] = {}
    if not _switch(cpu, "full-cpuid-auto-level", True):
        base = find_model(cpu.model)
        changes |= {name: getattr(base, name) for name in LEVELS}
    needed = dict(zip(LEVELS, needed_levels(model.features), strict=True))
    for name, text in cpu.properties.items():
        if name in LARGEST:
            changes[name] = _number(cpu, name, 0, LARGEST[name])
        elif name.removeprefix("min-") in LEVELS:
            level = name.removeprefix("min-")
            if level not in cpu.properties:
                changes[level] = max(_number(cpu, name, 0, U32), needed[level])
        elif name == "phys-bits":
            changes["phys_bits"] = _physical_bits(cpu)
        elif name == "model-id":
            changes["model_id"] = text[:48]
        elif name == "vendor":
            if len(text.encode()) != 12:
                raise UserError(_refused(cpu, name, f"Property '.vendor' doesn't take value '{text}'"))
            changes["vendor"] = text
        elif name in SWITCHES:
            changes[SWITCHES[name]] = _switch(cpu, name, False)
        elif name not in ELSEWHERE:
            raise NotBuiltError(f"-cpu {cpu.model},{name}={text}: this property is not built yet: leave it out")
    limit = _phys_bits_limit(cpu)
    if _switch(cpu, "host-phys-bits", False):
        changes["phys_bits"] = _checked_bits(min(CpuModel.phys_bits, limit))
    if _switch(cpu, "legacy-cache", not model.caches):
        changes["caches"] = ""
    elif not model.caches:
        raise UserError(f"CPU model '{cpu.model}' doesn't support legacy-cache=off")
    return replace(model, **changes)


def _refused(cpu: CpuConfig, name: str, why: str) -> str:
    return f"can't apply global {cpu.model}-x86_64-cpu.{name}={cpu.properties[name]}: {why}"


def _physical_bits(cpu: CpuConfig) -> int:
    """-cpu ...,phys-bits=N; 0 is the accelerator's own width."""
    bits = _number(cpu, "phys-bits", 0, U32)
    return _checked_bits(bits) if bits else CpuModel.phys_bits


def _checked_bits(bits: int) -> int:
    if not PHYS_BITS[0] <= bits <= PHYS_BITS[1]:
        raise UserError(f"phys-bits should be between {PHYS_BITS[0]} and {PHYS_BITS[1]}  (but is {bits})")
    return bits


def _phys_bits_limit(cpu: CpuConfig) -> int:
    """-cpu ...,host-phys-bits-limit=N: no more than that of the accelerator's width; 0 is no limit."""
    if "host-phys-bits-limit" not in cpu.properties:
        return PHYS_BITS[1]
    limit = _number(cpu, "host-phys-bits-limit", 0, (1 << 64) - 1)
    if limit > 0xFF:
        raise UserError(_refused(cpu, "host-phys-bits-limit", "Parameter 'host-phys-bits-limit' expects uint8_t"))
    return limit or PHYS_BITS[1]


def _number(cpu: CpuConfig, name: str, low: int, high: int) -> int:
    """A number; out of range QEMU names the type where that is what bounds it, else the bounds."""
    text = cpu.properties[name]
    kind = "int64" if name == "tsc-frequency" else "uint64"
    try:
        value = int(text, 0)
    except ValueError:
        raise UserError(_refused(cpu, name, f"Parameter '{name}' expects {kind}")) from None
    if not low <= value <= high:
        why = f"Property .{name} doesn't take value {value} (minimum: {low}, maximum: {high})"
        if name.removeprefix("min-") in LEVELS:
            why = f"Parameter '{name}' expects uint32_t"
        raise UserError(_refused(cpu, name, why))
    return value


def _switch(cpu: CpuConfig, name: str, default: bool) -> bool:
    text = cpu.properties.get(name)
    if text not in (None, "", *ON, *OFF):
        raise UserError(_refused(cpu, name, f"Parameter '{name}' expects 'on' or 'off'"))
    return default if text is None else text not in OFF
