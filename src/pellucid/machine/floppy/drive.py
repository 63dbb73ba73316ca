"""A floppy drive: where its head is, and the medium under it.

Disk accesses are waited for: a track is 18 KB, and the controller has nothing else to do.
"""

from collections.abc import Callable, Iterator
from enum import Enum

from pellucid.block import BlockBackend, Buffers
from pellucid.machine.block_device import BLOCK_PROPERTIES, BlockDevice
from pellucid.machine.device import Property, State
from pellucid.machine.floppy.formats import LARGEST_DRIVE, SECTOR, Format, find_format
from pellucid.machine.properties import UINT32, Words
from pellucid.machine.state import BOOL, U8, Integer
from pellucid.records import dataclass

ANY_UNIT = 0xFFFF_FFFF
EMPTY_MOST = 0xFF
"""Tracks, and sectors of each, of a drive without a medium, as QEMU has them: it cannot tell where they end."""


@dataclass(frozen=True)
class Place:
    """Cylinder, head and sector, the latter from 1 on."""

    track: int
    head: int
    sector: int


class FloppyDrive(BlockDevice):
    """The drive with number `unit`. `drive_type` is "120", "144" or "288" (by its largest usual medium).

    backend: None where no drive is connected. format: of the medium, None while there is none.
    rate: the data rate of the medium, or of the last one, as DSR has it.
    """

    kind = "floppy"

    track = State(U8, 0, survives_reset=True)
    head = State(U8, 0, survives_reset=True)
    sector = State(U8, 0, survives_reset=True, doc="the last one that was looked for; 0 for none yet")
    last_sector = State(U8, 0, survives_reset=True, doc="of a track: the format's, or what a command made of it")
    perpendicular = State(Integer(0, 15), 0, survives_reset=True)
    changed = State(BOOL, True, survives_reset=True, doc="the disk change line: a medium came or went")

    unit = Property(UINT32, ANY_UNIT, doc="the place on the bus")
    drive_type = Property(
        Words("FdcDriveType", "144", "288", "120", "none", "auto", meaning="FDC drive type"), "auto", name="drive-type"
    )

    def __init__(
        self, backend: BlockBackend | None, unit: int, drive_type: str = "auto", fallback: str = LARGEST_DRIVE
    ) -> None:
        self.backend, self.unit, self._fallback = backend, unit, fallback
        super().__init__()
        self.format: Format | None = None
        self._sides, self.rate = 1, 0
        self.connect(backend, drive_type)

    def connect(self, backend: BlockBackend | None, drive_type: str) -> None:
        """Put the drive on the cable, with what it takes its medium from."""
        self.backend = backend
        self.drive_type = _drive_type(backend, drive_type, self._fallback)
        self._look_at_medium()
        if backend is not None:
            backend.user, self.drive = self, backend.name

    def describe(self) -> Iterator[tuple[str, str]]:
        shown = dict(super().describe())
        for name in ("unit", *BLOCK_PROPERTIES, "drive-type"):
            yield name, shown[name]

    @property
    def inserted(self) -> bool:
        """Whether there is a medium."""
        return self.backend is not None and self.backend.inserted

    @property
    def read_only(self) -> bool:
        """Whether the medium's tab says so; without a medium too."""
        return self.backend is None or self.backend.read_only

    def medium_changed(self) -> None:
        """A medium was put in or taken out."""
        self.changed = True
        self._look_at_medium()

    def _look_at_medium(self) -> None:
        medium = self.backend.size if self.backend is not None and self.backend.inserted else None
        self.format = None if medium is None else find_format(medium, self.drive_type)
        if self.format is not None:
            self.last_sector, self._sides, self.rate = self.format.sectors, self.format.heads, self.format.rate
        else:
            self.last_sector = 0 if self.backend is None else EMPTY_MOST

    # The head.

    def reaches(self, place: Place) -> "Reach":
        """Whether the medium has such a place; without a medium the head can go anywhere."""
        if place.track > self.most_tracks or (place.head and self._sides == 1):
            return Reach.NO_TRACK
        return Reach.THERE if place.sector <= self.last_sector else Reach.NO_SECTOR

    @property
    def most_tracks(self) -> int:
        """Tracks of the medium; without one, as far as the head can be told to go."""
        if self.format is not None:
            return self.format.tracks
        return 0 if self.backend is None else EMPTY_MOST

    def seek(self, place: Place) -> bool:
        """Go there, to a place that is there. True when the head had to move.

        The disk change line falls with the step pulses: a driver reads it behind a seek.
        """
        if place == Place(self.track, self.head, self.sector):
            return False
        moved = place.track != self.track
        if moved and self.inserted:
            self.changed = False
        self.track, self.head, self.sector = place.track, place.head, place.sector
        return moved

    def recalibrate(self) -> None:
        """Go to track 0."""
        place = Place(0, 0, 1)
        if self.reaches(place) is Reach.THERE:
            self.seek(place)

    # The medium.

    def read_sector(self, content: bytearray) -> bool:
        """The 512 bytes under the head; False when they cannot be had. An image that is too short goes on in zeros."""
        return self.backend is not None and self._access(self.backend.read, [memoryview(content)])

    def write_sector(self, content: bytes | bytearray) -> bool:
        """Replace the 512 bytes under the head; False when that cannot be."""
        return self.backend is not None and self._access(self.backend.write, [memoryview(bytearray(content))])

    def fill_track(self, head: int, sectors: int, filler: int) -> None:
        """Every byte of the first sectors of a track, on one side, as a format leaves them; the head stays."""
        form, place = self.format, Place(self.track, self.head, self.sector)
        if form is None or self.read_only or head >= form.heads or self.track >= form.tracks:
            return
        self.head = head
        for self.sector in range(1, min(sectors, form.sectors) + 1):
            self.write_sector(bytes([filler]) * SECTOR)
        self.track, self.head, self.sector = place.track, place.head, place.sector

    def _access(self, request: Callable[[int, Buffers, Callable[[int], None]], None], buffers: Buffers) -> bool:
        form, backend = self.format, self.backend
        if form is None or backend is None:
            return False
        errors: list[int] = []
        offset = ((self.track * form.heads + self.head) * form.sectors + self.sector - 1) * SECTOR
        if request == backend.read and not 0 <= offset <= backend.size - SECTOR:
            buffers[0][:] = bytes(SECTOR)
            return True
        request(offset, buffers, errors.append)
        if not errors:
            backend.drain()
        return errors == [0]


class Reach(Enum):
    """What became of looking for a place on the medium."""

    THERE = 0
    NO_TRACK = 1
    NO_SECTOR = 2


def _drive_type(backend: BlockBackend | None, wanted: str, fallback: str) -> str:
    """Of the drive that was asked for: with "auto" one for the medium that is in it, with none in it the fallback."""
    if wanted != "auto":
        return wanted
    if backend is None:
        return "none"
    form = find_format(backend.size, "auto") if backend.inserted else None
    return fallback if form is None else form.drive
