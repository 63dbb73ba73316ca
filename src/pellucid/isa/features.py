"""Which CPUID features an encoding needs, as bits: where a CPU model hides one, the encoding raises #UD.

The bits are our own, in the order of `GATES`; a template carries those that its instruction needs, `CpuState.features`
those that CPUID shows (from word `FEATURES_ISA` on), and the translator compares them (SDM vol. 2: "#UD if CPUID =
0").
Encodings that are another instruction without their feature (TZCNT, LZCNT, WBNOINVD) have a second template.
What needs a control register besides, as AVX does, is a matter of the mode. CLDEMOTE is a no-operation without its.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import iced_x86 as iced

from pellucid.cpu.models.features import FEATURES, Place
from pellucid.cpu.state import FEATURES_ISA
from pellucid.native import native

GATES = {
    "tsc": "TSC", "msr": "MSR", "cx8": "CX8", "sep": "SEP", "cmov": "CMOV", "clflush": "CLFSH", "mmx": "MMX",
    "fxsr": "FXSR", "sse": "SSE", "sse2": "SSE2", "pni": "SSE3", "ssse3": "SSSE3", "cx16": "CMPXCHG16B",
    "sse4.1": "SSE4_1", "sse4.2": "SSE4_2", "movbe": "MOVBE", "popcnt": "POPCNT", "xsave": "XSAVE",
    "fsgsbase": "FSGSBASE", "smap": "SMAP", "clflushopt": "CLFLUSHOPT", "clwb": "CLWB", "rdpid": "RDPID",
    "xsaveopt": "XSAVEOPT", "xsavec": "XSAVEC", "syscall": "SYSCALL", "rdtscp": "RDTSCP", "abm": "LZCNT",
    "wbnoinvd": "WBNOINVD", "aes": "AES", "pclmulqdq": "PCLMULQDQ", "avx": "AVX", "avx2": "AVX2", "bmi1": "BMI1",
    "bmi2": "BMI2", "f16c": "F16C", "fma": "FMA", "rdrand": "RDRAND", "rdseed": "RDSEED", "adx": "ADX",
    "sha-ni": "SHA", "invpcid": "INVPCID", "pku": "PKU", "shstk": "CET_SS", "xsaves": "XSAVES",
    "gfni": "GFNI", "vaes": "VAES", "vpclmulqdq": "VPCLMULQDQ", "serialize": "SERIALIZE", "movdiri": "MOVDIRI",
    "movdir64b": "MOVDIR64B", "waitpkg": "WAITPKG", "clzero": "CLZERO", "sse4a": "SSE4A", "avx-vnni": "AVX_VNNI",
    "avx-vnni-int8": "AVX_VNNI_INT8", "avx-ifma": "AVX_IFMA", "avx-ne-convert": "AVX_NE_CONVERT",
    "cmpccxadd": "CMPCCXADD", "monitor": "MONITOR", "rtm": "RTM", "xop": "XOP", "fma4": "FMA4", "tbm": "TBM",
    "cr8legacy": "MOV to and from CR0 with LOCK, which is CR8", "misalignsse": "the bit MM of MXCSR",
    "xgetbv1": "XGETBV with 1 in ECX", "lahf-lm": "LAHF and SAHF in 64-bit mode",
}
"""Feature by QEMU's name, and the encodings it stands for by iced-x86's name of a feature."""

_BITS = {gate: 1 << number for number, gate in enumerate(GATES)}
_ICED = {bit: value for gate, bit in _BITS.items()
         if (value := getattr(iced.CpuidFeature, GATES[gate], None)) is not None}
_LAHF: tuple[int, ...] = (iced.Code.LAHF, iced.Code.SAHF)
_HINTS: tuple[int, ...] = (iced.Code.RDSSPD_R32, iced.Code.RDSSPQ_R64, iced.Code.ENDBR32, iced.Code.ENDBR64)
"""No-operations to a processor without their feature."""
CR8_BY_LOCK: tuple[int, ...] = (iced.Code.MOV_R32_CR, iced.Code.MOV_R64_CR, iced.Code.MOV_CR_R32, iced.Code.MOV_CR_R64)
"""With LOCK, of CR0: the same of CR8 (APM vol. 3, MOV CRn)."""
_HYPERCALLS: tuple[int, ...] = (iced.Code.VMCALL, iced.Code.VMMCALL)
HYPERCALL = 1 << len(GATES)
"""VMCALL and VMMCALL: there is a hypervisor that takes them. No bit of CPUID's own says so; its signature leaf does."""
_TSX = HYPERCALL << 1
"""XTEST: either half of TSX will do, `hle` or `rtm`."""
WORDS = 2
EVERYTHING = (1 << 64 * WORDS) - 1


@functools.cache
def needs(code: int, long_mode: bool) -> int:
    """The bits of the features that an encoding needs, all of them; `long_mode`: in 64-bit mode."""
    if code in _HINTS:
        return 0
    instruction: Any = iced.Instruction()
    instruction.code = code
    wanted: Any = instruction.cpuid_features()
    bits = sum(bit for bit, feature in _ICED.items() if feature in wanted)
    bits |= _BITS["lahf-lm"] if long_mode and code in _LAHF else 0
    bits |= _TSX if code == iced.Code.XTEST else 0
    return bits | (HYPERCALL if code in _HYPERCALLS else 0)


def shown(has: Callable[[Place, int], bool]) -> int:
    """The bits of the features that CPUID shows; `has` looks at a place (leaf, subleaf, register) and a bit."""
    tsx = _TSX * any(has(*FEATURES[name]) for name in ("hle", "rtm"))
    return sum(bit for gate, bit in _BITS.items() if has(*FEATURES[gate])) | tsx


def bit_of(gate: str) -> int:
    """The bit of a feature by QEMU's name."""
    return _BITS[gate]


def words(bits: int) -> tuple[int, ...]:
    """Bits of features as words of 64 bits."""
    return tuple(bits >> 64 * n & (1 << 64) - 1 for n in range(WORDS))


def place_of(gate: str) -> tuple[int, int]:
    """A feature's word in `CpuState.features`, and its bit there."""
    number, bit = divmod(_BITS[gate].bit_length() - 1, 64)
    return FEATURES_ISA + number, 1 << bit


@native
def shows(s, gate):
    """Whether CPUID shows a feature."""
    word, bit = place_of(gate)
    return (s.features[word] & bit) != 0
