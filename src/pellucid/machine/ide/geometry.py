"""A disk's cylinders, heads and sectors, as QEMU works them out, and the BIOS translation that goes with them."""


from pellucid.errors import UserError
from pellucid.records import dataclass, replace

SECTORS_PER_TRACK, HEADS, MOST_CYLINDERS = 63, 16, 16383
NO_TRANSLATION, LBA, LARGE, RECHS = 0, 1, 2, 3
"""As CMOS byte 0x39 has them, two bits for each disk."""
TRANSLATIONS = ("none", "lba", "large", "rechs")
"""As the user says them."""
MOST_CHOSEN = (("cyls", 65535), ("heads", 16), ("secs", 255))


@dataclass(frozen=True)
class Geometry:
    """The geometry that IDENTIFY reports, and the translation that the BIOS is to use."""

    cylinders: int
    heads: int
    sectors: int
    translation: int = NO_TRANSLATION


def guess_geometry(total_sectors: int, first_sector: bytes) -> Geometry:
    """From the size, and from a partition table if there is one: its entries end where somebody saw a track end."""
    logical = _from_partitions(total_sectors, first_sector)
    if logical is not None and logical.heads <= HEADS:
        return logical
    cylinders = min(max(total_sectors // (HEADS * SECTORS_PER_TRACK), 2), MOST_CYLINDERS)
    if logical is None:
        translation = NO_TRANSLATION if cylinders <= 1024 else LBA
    else:
        translation = LARGE if cylinders * HEADS <= 131072 else LBA
    return Geometry(cylinders, HEADS, SECTORS_PER_TRACK, translation)


def chosen_geometry(chosen: tuple[int, int, int], translation: str, guess: Geometry) -> Geometry:
    """The geometry with what the user says: cylinders, heads and sectors (all 0: the guess), and the translation.

    Raises UserError for a number that is out of range.
    """
    code = guess.translation
    if any(chosen):
        for (name, most), value in zip(MOST_CHOSEN, chosen, strict=True):
            if not 1 <= value <= most:
                raise UserError(f"{name} must be between 1 and {most}")
        cylinders, heads, sectors = chosen
        code = NO_TRANSLATION if cylinders <= 1024 and heads <= HEADS and sectors <= SECTORS_PER_TRACK else LBA
        guess = Geometry(cylinders, heads, sectors)
    if translation != "auto":
        code = TRANSLATIONS.index(translation)
    return replace(guess, translation=code)


def _from_partitions(total_sectors: int, first_sector: bytes) -> Geometry | None:
    if first_sector[510:512] != b"\x55\xaa":
        return None
    for at in range(446, 510, 16):
        entry = first_sector[at : at + 16]
        end_head, sectors = entry[5], entry[6] & 0x3F
        if not int.from_bytes(entry[12:16], "little") or not end_head or not sectors:
            continue
        cylinders = total_sectors // ((end_head + 1) * sectors)
        if 1 <= cylinders <= MOST_CYLINDERS:
            return Geometry(cylinders, end_head + 1, sectors)
    return None
