"""The types that a user-visible property can have: how its text is read, and how QEMU's listings show it.

`parse(name, text)` raises UserError with QEMU's words; `show` is `info qtree`'s form, `default_text` that of
`-device NAME,help`.
"""

import re
from typing import TypeVar

from pellucid.errors import UserError
from pellucid.machine.state import Kind

SIZE_UNITS = {"": 0, "B": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50, "E": 60}
UNIT_NAMES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
SWITCHES = {"on": True, "yes": True, "true": True, "y": True, "off": False, "no": False, "false": False, "n": False}
NUMBER = re.compile(r"[+-]?(0[xX][0-9a-fA-F]{1,32}|\d{1,40})")

T = TypeVar("T")


class PropertyType(Kind[T]):
    """The base. `name` stands in help as `property=<name>`, `hint` behind it."""

    name: str
    hint: str = ""

    @property
    def wanted(self) -> str:  # type: ignore[override]
        return self.name

    def parse(self, property_name: str, text: str) -> T:
        """The value that the user wrote. Raises UserError."""
        raise NotImplementedError

    def show(self, value: T) -> str:
        """As `info qtree` shows it."""
        return str(value)

    def default_text(self, value: T) -> str | None:
        """As help shows a default; None where it shows none."""
        return str(value)


class Unsigned(PropertyType[int]):
    """A whole number of 8, 16, 32 or 64 bits."""

    def __init__(self, bits: int) -> None:
        self.bits, self.name = bits, f"uint{bits}"

    def load(self, plain: object) -> int:
        if isinstance(plain, int) and not isinstance(plain, bool) and 0 <= plain < 1 << self.bits:
            return plain
        return super().load(plain)

    def parse(self, property_name: str, text: str) -> int:
        if not NUMBER.fullmatch(text):
            raise UserError(f"Parameter '{property_name}' expects integer")
        digits = text.lstrip("+-")
        value = int(digits, 16) if digits[:2].lower() == "0x" else int(digits, 8 if digits[:1] == "0" else 10)
        if not 0 <= value < 1 << self.bits or text.startswith("-"):
            raise UserError(f"Parameter '{property_name}' expects {self.name}_t")
        return value

    def show(self, value: int) -> str:
        # QEMU keeps all ones of 64 bits as -1 in decimal only where the property is signed inside.
        return f"{value} ({value:#x})"


class BootIndex(PropertyType[int]):
    """A place in the firmware's boot order, from 0 on; -1 for none."""

    name = "int32"

    def load(self, plain: object) -> int:
        if isinstance(plain, int) and not isinstance(plain, bool) and -1 <= plain < 1 << 31:
            return plain
        return super().load(plain)

    def parse(self, property_name: str, text: str) -> int:
        if not re.fullmatch(r"-1|\d{1,10}", text, re.ASCII) or int(text) >= 1 << 31:
            raise UserError(f"Parameter '{property_name}' expects integer")
        return int(text)

    def default_text(self, value: int) -> None:
        return None


class Size(PropertyType[int]):
    """Bytes, with a binary suffix."""

    name = "size"

    def __init__(self, hint: str = "") -> None:
        self.hint = hint

    def load(self, plain: object) -> int:
        if isinstance(plain, int) and not isinstance(plain, bool) and 0 <= plain < 1 << 64:
            return plain
        return super().load(plain)

    def parse(self, property_name: str, text: str) -> int:
        found = re.fullmatch(r"(0[xX][0-9a-fA-F]{1,16}|\d{1,20})([bkmgtpeBKMGTPE]?)", text, re.ASCII)
        size = -1
        if found:
            size = int(found[1], 16 if found[1][:2].lower() == "0x" else 10) << SIZE_UNITS[found[2].upper()]
        if not 0 <= size < 1 << 64:
            raise UserError(f"Parameter '{property_name}' expects size")
        return size

    def show(self, value: int) -> str:
        return f"{value} ({size_text(value)})"


def size_text(value: int) -> str:
    """A size in the largest binary unit of which it is at least one, with three significant digits."""
    unit = min(max(value.bit_length() - 1, 0) // 10, len(UNIT_NAMES) - 1)
    return f"{value / (1 << 10 * unit):.3g} {UNIT_NAMES[unit]}"


class Switch(PropertyType[bool]):
    """True or false. `bit` is QEMU's second type of it, whose help has a hint."""

    name = "bool"

    def __init__(self, *, bit: bool = False) -> None:
        self.hint = "on/off" if bit else ""

    def load(self, plain: object) -> bool:
        return plain if isinstance(plain, bool) else super().load(plain)

    def parse(self, property_name: str, text: str) -> bool:
        if text not in SWITCHES:
            raise UserError(f"Parameter '{property_name}' expects 'on' or 'off'")
        return SWITCHES[text]

    def show(self, value: bool) -> str:
        return "true" if value else "false"

    def default_text(self, value: bool) -> str:
        return self.show(value)


class Words(PropertyType[str]):
    """One of several words; `meaning` stands before them in help."""

    def __init__(self, name: str, *words: str, meaning: str = "") -> None:
        self.name, self.words = name, words
        self.hint = (meaning and f"{meaning}, ") + "/".join(words)

    def load(self, plain: object) -> str:
        return plain if isinstance(plain, str) and plain in self.words else super().load(plain)

    def parse(self, property_name: str, text: str) -> str:
        if text not in self.words:
            raise UserError(f"Parameter '{property_name}' does not accept value '{text}'")
        return text

    def show(self, value: str) -> str:
        return f'"{value}"'

    def default_text(self, value: str) -> str:
        return f'"{value}"'


class String(PropertyType[str]):
    """Any text; the empty one stands for none."""

    name = "str"

    def __init__(self, hint: str = "") -> None:
        self.hint = hint

    def load(self, plain: object) -> str:
        return plain if isinstance(plain, str) and len(plain) <= 4096 else super().load(plain)

    def parse(self, property_name: str, text: str) -> str:
        return text

    def show(self, value: str) -> str:
        return f'"{value}"'

    def default_text(self, value: str) -> None:
        return None


class PciAddress(PropertyType[int]):
    """SLOT or SLOT.FUNCTION in hexadecimal; the value is slot * 8 + function, -1 for any free place."""

    name = "int32"
    hint = "Slot and optional function number, example: 06.0 or 06"

    def load(self, plain: object) -> int:
        if isinstance(plain, int) and not isinstance(plain, bool) and -1 <= plain < 256:
            return plain
        return super().load(plain)

    def parse(self, property_name: str, text: str) -> int:
        found = re.fullmatch(r"(?:0[xX])?([0-9a-fA-F]{1,4})(?:\.(?:0[xX])?([0-9a-fA-F]{1,4}))?", text, re.ASCII)
        slot, function = (int(found[1], 16), int(found[2] or "0", 16)) if found else (32, 0)
        if slot > 31 or function > 7:
            raise ValueError(text)
        return slot << 3 | function

    def show(self, value: int) -> str:
        return f"{value >> 3:02x}.{value & 7:x}" if value >= 0 else "-1"


UINT8, UINT16, UINT32, UINT64 = Unsigned(8), Unsigned(16), Unsigned(32), Unsigned(64)
SIZE, BOOL, BIT, STRING = Size(), Switch(), Switch(bit=True), String()
CHARDEV = String("ID of a chardev to use as a backend")
DRIVE = String("Node name or ID of a block device to use as a backend")
BLOCK_SIZE = Size("A power of two between 512 B and 2 MiB")
ON_ERROR = Words(
    "BlockdevOnError", "report", "ignore", "enospc", "stop", "auto", meaning="Error handling policy"
)
BIOS_TRANSLATION = Words(
    "BiosAtaTranslation", "auto", "none", "lba", "large", "rechs", meaning="Logical CHS translation algorithm"
)
ON_OFF_AUTO = Words("OnOffAuto", "on", "off", "auto")
PCI_ADDRESS = PciAddress()
BOOT_INDEX = BootIndex()
