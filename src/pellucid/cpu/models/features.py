"""CPUID features by QEMU's names: where each bit is, and which of them this processor has.

Naming and places are facts of the manuals (SDM vol. 2, CPUID; APM vol. 3, appendix E) and of QEMU's command line.
"""

import functools
from collections.abc import Iterable

from pellucid.cpu.models.msr_features import OTHER_FEATURES
from pellucid.native.host import flags

Place = tuple[int, int, str]
"""(leaf, subleaf, register) of a word of feature bits."""

SVM_LEAF = 0x8000_000A

_BITS: dict[Place, str] = {
    (0x1, 0, "edx"): "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - ds acpi "
    "mmx fxsr sse sse2 ss ht tm ia64 pbe",
    (0x1, 0, "ecx"): "pni pclmulqdq dtes64 monitor ds-cpl vmx smx est tm2 ssse3 cid - fma cx16 xtpr pdcm - pcid dca "
    "sse4.1 sse4.2 x2apic movbe popcnt tsc-deadline aes xsave - avx f16c rdrand hypervisor",
    (0x6, 0, "eax"): "- - arat",
    (0x7, 0, "ebx"): "fsgsbase tsc-adjust sgx bmi1 hle avx2 fdp-excptn-only smep bmi2 erms invpcid rtm - zero-fcs-fds "
    "mpx - avx512f avx512dq rdseed adx smap avx512ifma pcommit clflushopt clwb intel-pt avx512pf avx512er avx512cd "
    "sha-ni avx512bw avx512vl",
    (0x7, 0, "ecx"): "- avx512vbmi umip pku - waitpkg avx512vbmi2 shstk gfni vaes vpclmulqdq avx512vnni avx512bitalg - "
    "avx512-vpopcntdq - la57 - - - - - rdpid - bus-lock-detect cldemote - movdiri movdir64b - sgxlc pks",
    (0x7, 0, "edx"): "- - avx512-4vnniw avx512-4fmaps fsrm - - - avx512-vp2intersect - md-clear - - - serialize - "
    "tsx-ldtrk - - arch-lbr ibt - amx-bf16 avx512-fp16 amx-tile amx-int8 spec-ctrl stibp - arch-capabilities "
    "core-capability ssbd",
    (0x7, 1, "eax"): "- - - - avx-vnni avx512-bf16 - cmpccxadd - - fzrm fsrs fsrc - - - - - - - - amx-fp16 - "
    "avx-ifma - - lam",
    (0x7, 1, "edx"): "- - - - avx-vnni-int8 avx-ne-convert",
    (0x7, 2, "edx"): "intel-psfd ipred-ctrl rrsba-ctrl ddpd-u bhi-ctrl mcdt-no",
    (0xD, 1, "eax"): "xsaveopt xsavec xgetbv1 xsaves xfd",
    (0x8000_0001, 0, "edx"): "- - - - - - - - - - - syscall - - - - - - - - nx - mmxext - - fxsr-opt pdpe1gb rdtscp - "
    "lm 3dnowext 3dnow",
    (0x8000_0001, 0, "ecx"): "lahf-lm cmp-legacy svm extapic cr8legacy abm sse4a misalignsse 3dnowprefetch osvw ibs "
    "xop skinit wdt - lwp fma4 tce - nodeid-msr - tbm topoext perfctr-core perfctr-nb",
    (0x8000_0007, 0, "edx"): "- - - - - - - - invtsc",
    (0x8000_0008, 0, "ebx"): "clzero - xsaveerptr - - - - - - wbnoinvd - - ibpb - ibrs amd-stibp - - - - - - - - "
    "amd-ssbd virt-ssbd amd-no-ssb",
    (SVM_LEAF, 0, "edx"): "npt lbrv svm-lock nrip-save tsc-scale vmcb-clean flushbyasid decodeassists - - "
    "pause-filter - pfthreshold avic - v-vmsave-vmload vgif - - - - - - - - - - - svme-addr-chk",
    (0xC000_0001, 0, "edx"): "- - xstore xstore-en - - xcrypt xcrypt-en ace2 ace2-en phe phe-en pmm pmm-en",
}

FEATURES: dict[str, tuple[Place, int]] = {
    name: (place, bit) for place, names in _BITS.items() for bit, name in enumerate(names.split()) if name != "-"
}
"""Where a feature's bit is."""

ALIASES = {
    "sse3": "pni",
    "sse4-1": "sse4.1",
    "sse4-2": "sse4.2",
    "xd": "nx",
    "ffxsr": "fxsr-opt",
    "i64": "lm",
    "pclmuldq": "pclmulqdq",
}
"""QEMU's second names. Everywhere an underscore stands for a hyphen."""

_BUILT = frozenset(
    (
        "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 "
        "pni ssse3 cx16 pcid sse4.1 sse4.2 x2apic movbe popcnt tsc-deadline xsave hypervisor arat "
        "fsgsbase tsc-adjust bmi1 fdp-excptn-only smep bmi2 erms adx zero-fcs-fds smap clflushopt clwb "
        "umip monitor pku shstk ibt pks la57 rdpid fsrm spec-ctrl stibp arch-capabilities core-capability bhi-ctrl "
        "mcdt-no xsaveopt xsavec serialize movdiri movdir64b waitpkg cldemote clzero sse4a lam invpcid hle rtm "
        "fzrm fsrs fsrc pdcm full-width-write "
        "mmxext fxsr-opt osvw topoext ibpb ibrs amd-stibp amd-ssbd amd-no-ssb ssbd "
        "cmpccxadd tbm cr8legacy misalignsse bus-lock-detect "
        "xgetbv1 xsaves syscall nx pdpe1gb rdtscp lm lahf-lm abm 3dnowprefetch invtsc wbnoinvd xsaveerptr"
    ).split()
)
"""What this processor carries out whole on every host."""

_BUILT_MSR_BITS = frozenset(
    "rdctl-no ibrs-all skip-l1dfl-vmentry ssb-no mds-no pschange-mc-no taa-no tsx-ctrl split-lock-detect".split())
"""Bits of IA32_ARCH_CAPABILITIES and IA32_CORE_CAPABILITIES; `tsx-ctrl` needs `rtm` besides."""

_BY_HOST = {
    "avx": ("avx", "avx2", "avx-vnni", "avx-vnni-int8", "avx-ifma", "xop"), "fma": ("fma", "fma4"), "f16c": ("f16c",),
    "f16c avx": ("avx-ne-convert",),
    "aes": ("aes",), "aes avx": ("vaes",), "pclmulqdq": ("pclmulqdq",), "pclmulqdq avx": ("vpclmulqdq",),
    "gfni": ("gfni",), "sha_ni": ("sha-ni",), "rdrand": ("rdrand",), "rdseed": ("rdseed",),
}
"""By the host's features in /proc/cpuinfo: what we do by the host's own instructions, where it has them."""


@functools.cache
def built() -> frozenset[str]:
    """What this processor carries out whole on this host; nothing else is ever announced."""
    host = flags()
    return _BUILT.union(_BUILT_MSR_BITS, *(names for name, names in _BY_HOST.items() if host.issuperset(name.split())))

UNMIGRATABLE = frozenset(("invtsc",))
"""Features that a machine cannot take along to another host; left out unless asked for by name."""


def canonical_name(word: str) -> str:
    """The name of a feature as it stands in FEATURES, for a spelling that QEMU accepts."""
    name = word.replace("_", "-")
    return ALIASES.get(name, name)


def is_feature(name: str) -> bool:
    """Whether QEMU knows a feature of this canonical name."""
    return name in FEATURES or name in OTHER_FEATURES


def feature_names() -> tuple[str, ...]:
    """Every canonical name."""
    return (*FEATURES, *sorted(OTHER_FEATURES))


_LAST_WORDS = ((SVM_LEAF, 0, "edx"), (0xD, 1, "eax"), (0x6, 0, "eax"))
"""What QEMU names behind all other words that CPUID tells of."""


def _word_order(name: str) -> tuple[int, int]:
    if name not in FEATURES:
        return 100 + list(OTHER_FEATURES).index(name), 0
    place, bit = FEATURES[name]
    at = 50 + _LAST_WORDS.index(place) if place in _LAST_WORDS else list(_BITS).index(place)
    return at, bit


def in_word_order(names: Iterable[str]) -> tuple[str, ...]:
    """Features in the order in which QEMU tells of them: word by word."""
    return tuple(sorted(names, key=_word_order))


def spelled(name: str) -> str:
    """A feature with its place, as QEMU spells it: CPUID.07H:EBX.hle [bit 4]."""
    if name in FEATURES:
        (leaf, _, register), bit = FEATURES[name]
        return f"CPUID.{leaf:02X}H:{register.upper()}.{name} [bit {bit}]"
    place, bit = OTHER_FEATURES[name]
    return f"{place}.{name} [bit {bit}]"
