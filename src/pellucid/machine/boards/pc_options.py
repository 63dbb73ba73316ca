"""The options of `-machine pc`: which there are, what they take, and which cannot be had yet."""

from collections.abc import Mapping
from dataclasses import dataclass

from pellucid.errors import NotBuiltError, UserError

DEFAULT_FIRMWARE = "bios-256k.bin"
OPTIONS = ("acpi", "firmware", "hpet", "i8042", "max-ram-below-4g", "smm", "vmport")
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
SMALLEST_BELOW_4G, LARGEST_BELOW_4G = 1 << 20, 1 << 32
FIXED = {"acpi": True, "hpet": True, "i8042": True, "vmport": False}
"""Switches that have one position so far."""
SWITCH = {"on": True, "off": False, "auto": None}


@dataclass(frozen=True)
class PcOptions:
    """What was chosen; `max_ram_below_4g` is None for the board's own rule, `smm` for what the hypervisor can."""

    firmware: str = DEFAULT_FIRMWARE
    max_ram_below_4g: int | None = None
    smm: bool | None = None


def parse_pc_options(given: Mapping[str, str]) -> PcOptions:
    """The options. Raises UserError for unknown ones and bad values, NotBuiltError for what is not built yet."""
    firmware, below, smm = DEFAULT_FIRMWARE, None, None
    for name, text in given.items():
        if name == "firmware":
            firmware = text
        elif name == "max-ram-below-4g":
            below = _size(text)
        elif name == "smm":
            smm = _switch(name, text)
        elif name in FIXED:
            if _switch(name, text) not in (None, FIXED[name]):
                raise NotBuiltError(f"-machine pc,{name}={text} is not built yet: leave the option out")
        else:
            raise UserError(f"-machine pc: unknown option '{name}'; known are: {', '.join(OPTIONS)}")
    return PcOptions(firmware, below, smm)


def _switch(name: str, text: str) -> bool | None:
    if text not in SWITCH:
        raise UserError(f"-machine pc: option {name} takes on, off or auto, not '{text}'")
    return SWITCH[text]


def _size(text: str) -> int:
    unit = text[-1:].upper() if text[-1:].isalpha() else ""
    number = text[: len(text) - len(unit)]
    if unit not in UNITS or not number.isdecimal() or len(number) > 12:
        raise UserError(f"-machine pc: max-ram-below-4g={text}: give a size such as 3G or 2048M")
    size = int(number) * UNITS[unit]
    if not SMALLEST_BELOW_4G <= size <= LARGEST_BELOW_4G or size % 4096:
        raise UserError(f"-machine pc: max-ram-below-4g={text}: it must be whole pages from 1 MiB to 4 GiB")
    return size
