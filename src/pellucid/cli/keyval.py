"""QEMU's `key=value,key=value` option strings, sizes and switches.

A comma inside a value is written twice. The first item may leave out its key where the option has an implied one; a
later item without `=` is a switch: `foo` for foo=on, `nofoo` for foo=off.
"""

import re
from collections.abc import Collection
from decimal import Decimal
from difflib import get_close_matches

from pellucid.errors import UserError

SIZE_SUFFIXES = {"": 0, "B": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50, "E": 60}
SWITCHES = {"on": True, "yes": True, "true": True, "y": True, "off": False, "no": False, "false": False, "n": False}


def suggestion(word: str, known: Collection[str], otherwise: str = "see -help") -> str:
    """A closing part for a message about an unknown word: `did you mean 'x'?`, the choice where short, `otherwise`."""
    matches = get_close_matches(word, known, n=1, cutoff=0.6)
    if matches:
        return f"did you mean '{matches[0]}'?"
    return f"known: {', '.join(known)}" if 0 < len(known) <= 12 else otherwise


def split_items(text: str) -> list[str]:
    """The items of `text` between single commas, with `,,` taken for one comma."""
    return [item.replace("\0", ",") for item in text.replace(",,", "\0").split(",")]


def parse_keyval(option: str, text: str, known: Collection[str], implied: str | None = None) -> dict[str, str]:
    """The keys and values of `text`, the last one winning. UserError for a key that is not in `known`."""
    values: dict[str, str] = {}
    for index, item in enumerate(split_items(text)):
        key, equals, value = item.partition("=")
        if not equals:
            if index == 0 and implied is not None:
                key, value = implied, item
            else:
                key, value = (key[2:], "off") if key.startswith("no") and key not in known else (key, "on")
        if key not in known:
            raise UserError(f"-{option} {text}: unknown parameter '{key}': {suggestion(key, known)}")
        values[key] = value
    return values


def parse_switch(option: str, key: str, text: str) -> bool:
    """The value of an on/off parameter."""
    if text not in SWITCHES:
        raise UserError(f"-{option}: {key}={text}: give on or off")
    return SWITCHES[text]


def parse_size(option: str, text: str, default_suffix: str) -> int:
    """Bytes: a number, possibly with a fraction, with a binary suffix K, M, G, T, P or E (either case)."""
    found = re.fullmatch(r"(0x[0-9a-fA-F]+|\d+(?:\.\d+)?)([bkmgtpeBKMGTPE]?)", text, re.ASCII)
    if not found:
        raise UserError(f"-{option} {text}: not a size: give a number with K, M, G or T, such as 512M")
    shift = SIZE_SUFFIXES[(found[2] or default_suffix).upper()]
    number = int(found[1], 16) if found[1].startswith("0x") else Decimal(found[1])
    size = int(number * (1 << shift))
    if size >= 1 << 64:
        raise UserError(f"-{option} {text}: no address reaches that far: give less than 16E")
    return size


def parse_count(option: str, key: str, text: str) -> int:
    """A positive decimal number of up to nine digits."""
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or int(text) == 0:
        raise UserError(f"-{option}: {key}={text}: give a number of 1 or more")
    return int(text)
