"""Rows of the vector families: which faults an encoding takes depends on its registers, not on its mnemonic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pellucid.cpu.host_sse import HOST
from pellucid.isa.table import instruction


def is_sse(code: str) -> bool:
    """Whether an encoding names an XMM register: it needs CR4.OSFXSR."""
    return not code.startswith("VEX_") and any(part.startswith("XMM") for part in code.split("_")[1:])


def is_mmx(code: str) -> bool:
    """Whether an encoding names MMX registers and no XMM register."""
    return any(part.startswith("MM") for part in code.split("_")[1:]) and not is_sse(code)


def avx(*mnemonics: str, codes: Callable[[str], bool] | None = None, needs: str = "avx", **more: Any) -> Any:
    """Rows for the VEX encodings of these mnemonics, written without their V; none where the host lacks `needs`.

    `codes` and `extra` see the code's name without "VEX_V".
    """
    wanted = codes or (lambda code: True)
    if "extra" in more:
        number = more["extra"]
        more["extra"] = lambda code: number(code.removeprefix("VEX_V"))

    def register(fn: Any) -> Any:
        if needs in HOST:
            instruction(*("V" + name for name in mnemonics), fpu=True, avx=True, **more,
                        codes=lambda code: code.startswith("VEX_V") and wanted(code.removeprefix("VEX_V")))(fn)
        return fn

    return register


def vector(*mnemonics: str, codes: Callable[[str], bool] | None = None, **more: Any) -> Callable[[Any], Any]:
    """Rows for the MMX, SSE and AVX encodings of these mnemonics, and for no other (string MOVSD and CMPSD)."""
    wanted = codes or (lambda code: True)

    def register(fn: Any) -> Any:
        instruction(*mnemonics, codes=lambda code: is_sse(code) and wanted(code), fpu=True, sse=True, **more)(fn)
        instruction(*mnemonics, codes=lambda code: is_mmx(code) and wanted(code), fpu=True, mmx=True, **more)(fn)
        avx(*mnemonics, codes=codes, **more)(fn)
        return fn

    return register


def by_mnemonic(numbers: dict[str, int]) -> Callable[[str], int]:
    """`extra` from the mnemonic that a code's name starts with."""
    return lambda code: numbers[code.split("_")[0]]


def numbered(mnemonics: tuple[str, ...]) -> Callable[[str], int]:
    """`extra` is the mnemonic's place in a tuple."""
    return lambda code: mnemonics.index(code.split("_")[0])


_SUFFIX = {"B": 1, "W": 2, "D": 4, "Q": 8}


def element(code: str) -> int:
    """`extra` is the lane size in bytes that the mnemonic's last letter names: PADDB 1 to PADDQ 8."""
    return _SUFFIX[code.split("_")[0][-1]]
