"""Which instructions can be compared: iced-x86's `Code` values, chosen by CPUID feature, mnemonic and mode.

A `Code` is one encoding of one mnemonic (ADD_RM32_IMM8 and so on); here it is a plain int, and so are mnemonics,
registers and features. What is left out, and why, is in `EXCLUDED` and `vendor_dependent`, so nothing is missing
silently.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable
from typing import Any

import iced_x86

from .hostcpu import cpu_flags

CODE: Any = iced_x86.Code
FEATURE: Any = iced_x86.CpuidFeature
MNEMONIC: Any = iced_x86.Mnemonic
REGISTER: Any = iced_x86.Register


def _named(module: Any) -> dict[int, str]:
    return {value: name for name, value in vars(module).items() if isinstance(value, int) and name.isupper()}


CODE_NAMES = _named(CODE)
MNEMONIC_NAMES = _named(MNEMONIC)
FEATURE_NAMES = _named(FEATURE)


def _features(names: str) -> frozenset[int]:
    return frozenset(getattr(FEATURE, name) for name in names.split())


BASE = _features("INTEL8086 INTEL186 INTEL286 INTEL386 INTEL486 X64 CMOV CX8 MULTIBYTENOP PAUSE CLFSH")
X87 = _features("FPU FPU287 FPU387")
MMX = _features("MMX")
SSE = _features("SSE SSE2 FXSR")
X86_64_V1 = BASE | X87 | MMX | SSE
X86_64_V2 = X86_64_V1 | _features("CMPXCHG16B POPCNT SSE3 SSSE3 SSE4_1 SSE4_2")
X86_64_V3 = X86_64_V2 | _features("AVX AVX2 BMI1 BMI2 F16C FMA LZCNT MOVBE XSAVE")
EXTRA = _features("AES PCLMULQDQ SHA ADX GFNI VAES VPCLMULQDQ FSGSBASE PREFETCHW CLFLUSHOPT XSAVEC AVX_VNNI SSE4A")
"""Features beyond x86-64-v3 that cases can be made for, on request."""

_HOST_FLAGS = {
    "SSE3": "pni", "CMPXCHG16B": "cx16", "LZCNT": "abm", "SHA": "sha_ni", "PREFETCHW": "3dnowprefetch", "FXSR": "fxsr",
    "FPU287": "fpu", "FPU387": "fpu", "CLFSH": "clflush",
}  # fmt: skip
_ALWAYS = _features("INTEL8086 INTEL186 INTEL286 INTEL386 INTEL486 X64 MULTIBYTENOP PAUSE")

EXCLUDED: dict[str, str] = {
    **dict.fromkeys(("SYSCALL", "SYSENTER"), "makes a system call"),
    **dict.fromkeys(
        ("SGDT", "SIDT", "SLDT", "STR", "SMSW"), "shows the host kernel's tables, or UMIP and its emulation"
    ),
    **dict.fromkeys(
        ("CPUID", "XGETBV", "RDTSC", "RDTSCP", "RDPID", "RDPMC"), "shows the host model, clock or processor number"
    ),
    **dict.fromkeys(("XSAVEOPT", "XSAVEOPT64"), "may leave out what it believes unchanged since the last XRSTOR"),
    **dict.fromkeys(("UD0",), "whether it has a ModRM byte differs between vendors"),
    **dict.fromkeys(("FSTPNCE",), "an undocumented alias of FSTP whose stack faults differ between processors"),
    **dict.fromkeys(("FNDISI", "FNENI", "FNSETPM"), "no-operations of old coprocessors"),
    **dict.fromkeys(("INT1",), "under virtualization its #DB is not always delivered as on bare hardware"),
    **dict.fromkeys(("RESERVEDNOP",), "reserved encodings, which later features claim"),
}


@functools.cache
def host_features() -> frozenset[int]:
    """Features of this host, among those that `X86_64_V3` and `EXTRA` name."""
    flags = cpu_flags()
    return _ALWAYS | frozenset(
        feature
        for feature in X86_64_V3 | EXTRA
        if _HOST_FLAGS.get(FEATURE_NAMES[feature], FEATURE_NAMES[feature].lower()) in flags
    )


@functools.cache
def op_info(code: int) -> iced_x86.OpCodeInfo:
    """iced-x86's description of an encoding."""
    handle: Any = code
    return iced_x86.OpCodeInfo(handle)


@functools.cache
def features_of(code: int) -> frozenset[int]:
    """CPUID features that an encoding needs."""
    instruction: Any = iced_x86.Instruction()
    instruction.code = code
    return frozenset(instruction.cpuid_features())


@functools.cache
def mnemonic_name(code: int) -> str:
    """The mnemonic of an encoding, in capitals: ADD, VFMADD132PS."""
    return MNEMONIC_NAMES[op_info(code).mnemonic]


def is_privileged(code: int) -> bool:
    """Whether the encoding needs CPL 0 or an I/O permission: at CPL 3 it raises #GP(0)."""
    info = op_info(code)
    return info.is_privileged or not info.cpl3 or info.is_input_output


def vendor_dependent(code: int) -> bool:
    """Whether Intel and AMD decode it differently in 64-bit mode: 66-prefixed near branches, m16:64 far pointers."""
    info = op_info(code)
    return info.mode64 and info.intel_decoder64 != info.amd_decoder64


@functools.cache
def _available(bits: int) -> tuple[int, ...]:
    wanted = X86_64_V3 | EXTRA
    return tuple(
        code
        for code in sorted(CODE_NAMES)
        if op_info(code).is_instruction
        and not op_info(code).fwait  # two instructions, WAIT and the one without it, which are both here
        and (op_info(code).mode64 if bits == 64 else op_info(code).mode32)
        and features_of(code) <= wanted
        and mnemonic_name(code) not in EXCLUDED
        and not (bits == 64 and vendor_dependent(code))
    )


def instructions(
    features: Collection[int] | None = None,
    mnemonics: Iterable[str] | None = None,
    bits: int = 64,
    privileged: bool = False,
) -> list[int]:
    """Encodings that cases can be made for, in the order of their numbers.

    Kept are those whose every CPUID feature is in `features` (default: `X86_64_V3`) and present on this host, whose
    mnemonic is in `mnemonics` when given, that exist in `bits`-wide code, and that are user-mode instructions; with
    `privileged` the others instead, all of which fault. ValueError names a mnemonic that does not exist.
    """
    allowed = frozenset(X86_64_V3 if features is None else features) & host_features()
    names = None if mnemonics is None else {name.upper() for name in mnemonics}
    if names is not None and (unknown := sorted(names - set(MNEMONIC_NAMES.values()))):
        raise ValueError(f"no such mnemonic: {', '.join(unknown)}")
    return [
        code
        for code in _available(bits)
        if features_of(code) <= allowed
        and (names is None or mnemonic_name(code) in names)
        and is_privileged(code) == privileged
    ]
