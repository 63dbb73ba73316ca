"""The formats of floppy disks, and which one an image of a given size is."""

from collections.abc import Iterator

from pellucid.records import dataclass

SECTOR = 512
KBPS_500, KBPS_300, KBPS_250, KBPS_1000 = range(4)
"""Data rates as the controller's rate registers number them."""
DRIVE_TYPES = ("120", "144", "288", "none", "auto")
CMOS_TYPES = {"120": 2, "144": 4, "288": 5, "none": 0}
"""A drive's type in CMOS byte 0x10."""
LARGEST_DRIVE = "288"


@dataclass(frozen=True)
class Format:
    """A medium as it was formatted; `drive` is the type of drive that it is made for."""

    drive: str
    rate: int
    heads: int
    sectors: int
    tracks: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.tracks * self.heads * self.sectors * SECTOR

    @property
    def inches(self) -> float:
        """The medium's width."""
        return 5.25 if self.drive == "120" else 3.5


def _formats() -> Iterator[Format]:
    """Sectors and tracks, by drive, rate and heads. What DOS and its companions format comes first."""
    yield from (Format("144", KBPS_500, 2, sectors, 80) for sectors in (18, 20, 21))
    yield from (Format("144", KBPS_500, 2, 21, tracks) for tracks in (82, 83))
    yield from (Format("144", KBPS_500, 2, sectors, 80) for sectors in (22, 23, 24))
    yield from (Format("288", KBPS_1000, 2, sectors, 80) for sectors in (36, 39, 40, 44, 48))
    yield from (Format("144", KBPS_250, 2, sectors, 80) for sectors in (9, 10))
    yield from (Format("144", KBPS_250, 2, 10, tracks) for tracks in (82, 83))
    yield from (Format("144", KBPS_250, 2, sectors, 80) for sectors in (13, 14))
    yield from (Format("120", KBPS_500, 2, sectors, 80) for sectors in (15, 18))
    yield from (Format("120", KBPS_500, 2, 18, tracks) for tracks in (82, 83))
    yield Format("120", KBPS_500, 2, 20, 80)
    yield from (Format("120", KBPS_250, 2, sectors, 80) for sectors in (9, 11))
    yield from (Format("120", KBPS_300, heads, 9, 40) for heads in (2, 1))
    yield from (Format("120", KBPS_300, 2, 10, tracks) for tracks in (41, 42))
    yield from (Format("120", KBPS_250, heads, 8, 40) for heads in (2, 1))
    yield Format("144", KBPS_250, 1, 9, 80)


FORMATS = tuple(_formats())


def find_format(size: int, drive: str) -> Format | None:
    """The format of a medium of `size` bytes in a drive of that type; with "auto", in whatever drive it is made for.

    A size that fits none is taken for the drive's usual format; None only where the drive is not known either.
    """
    fitting = [form for form in FORMATS if form.size == size]
    if drive == "auto":
        return fitting[0] if fitting else None
    usual = [form for form in FORMATS if form.drive == drive]
    if not usual:
        return None
    own = [form for form in fitting if form.drive == drive]
    same_width = [form for form in fitting if form.inches == usual[0].inches]
    return (own or same_width or usual)[0]
