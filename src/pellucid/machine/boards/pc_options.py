"""The options of `-machine pc` and `-machine q35`: which there are, what they take, and which cannot be had yet."""

from collections.abc import Mapping
from typing import Any

from pellucid.errors import NotBuiltError, UserError
from pellucid.machine.firmware.pc_acpi import BOCHS
from pellucid.records import dataclass

DEFAULT_FIRMWARE = "bios-256k.bin"
SWITCHES = ("acpi", "hpet", "pit", "vmport")
OPTIONS = (
    *("acpi", "firmware", "hpet", "i8042", "max-ram-below-4g", "pit", "smbios-entry-point-type", "smbus", "smm"),
    *("vmport", "x-oem-id", "x-oem-table-id"),
)
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
SMALLEST_BELOW_4G, LARGEST_BELOW_4G = 1 << 20, 1 << 32
FIXED = {"i8042": True, "smbus": True}
"""Switches that have one position so far."""
SWITCH = {"on": True, "off": False, "auto": None}


OEM_WIDTHS = {"x-oem-id": 6, "x-oem-table-id": 8}


@dataclass(frozen=True)
class PcOptions:
    """What was chosen; `max_ram_below_4g` is None for the board's own rule, `smm` for what the hypervisor can.

    The OEM ids go into ACPI's tables.
    """

    firmware: str = DEFAULT_FIRMWARE
    max_ram_below_4g: int | None = None
    acpi: bool = True
    hpet: bool = True
    pit: bool = True
    vmport: bool = True
    smm: bool | None = None
    smbios_64: bool = False
    oem_id: bytes = BOCHS.id
    oem_table_id: bytes = BOCHS.table_id


def parse_pc_options(board: str, given: Mapping[str, str]) -> PcOptions:
    """The options. Raises UserError for unknown ones and bad values, NotBuiltError for what is not built yet."""
    chosen: dict[str, Any] = {}
    for name, text in given.items():
        if name == "firmware":
            chosen["firmware"] = text
        elif name == "max-ram-below-4g":
            chosen["max_ram_below_4g"] = _size(board, text)
        elif name in SWITCHES:
            chosen[name] = _switch(board, name, text) is not False
        elif name == "smm":
            chosen["smm"] = _switch(board, name, text)
        elif name == "smbios-entry-point-type":
            chosen["smbios_64"] = _entry_point(board, text)
        elif name in OEM_WIDTHS:
            chosen[name.removeprefix("x-").replace("-", "_")] = _oem(board, name, text)
        elif name in FIXED:
            if _switch(board, name, text) not in (None, FIXED[name]):
                raise NotBuiltError(f"-machine {board},{name}={text} is not built yet: leave the option out")
        else:
            raise UserError(f"-machine {board}: unknown option '{name}'; known are: {', '.join(OPTIONS)}")
    return PcOptions(**chosen)


def _switch(board: str, name: str, text: str) -> bool | None:
    if text not in SWITCH:
        raise UserError(f"-machine {board}: option {name} takes on, off or auto, not '{text}'")
    return SWITCH[text]


def _entry_point(board: str, text: str) -> bool:
    if text not in ("32", "64"):
        raise UserError(f"-machine {board}: smbios-entry-point-type takes 32 or 64, not '{text}'")
    return text == "64"


def _oem(board: str, name: str, text: str) -> bytes:
    width, content = OEM_WIDTHS[name], text.encode()
    if len(content) > width:
        raise UserError(f"-machine {board}: {name}={text}: at most {width} characters")
    return content.ljust(width, b"\0")


def _size(board: str, text: str) -> int:
    unit = text[-1:].upper() if text[-1:].isalpha() else ""
    number = text[: len(text) - len(unit)]
    if unit not in UNITS or not number.isdecimal() or len(number) > 12:
        raise UserError(f"-machine {board}: max-ram-below-4g={text}: give a size such as 3G or 2048M")
    size = int(number) * UNITS[unit]
    if not SMALLEST_BELOW_4G <= size <= LARGEST_BELOW_4G or size % 4096:
        raise UserError(f"-machine {board}: max-ram-below-4g={text}: it must be whole pages from 1 MiB to 4 GiB")
    return size
