"""The commands that move sectors: READ, WRITE, SCAN and VERIFY, by DMA or through the FIFO."""

from pellucid.machine.device import State
from pellucid.machine.floppy.commands import MULTI_TRACK, SCANS, Transfer
from pellucid.machine.floppy.core import (
    DATA,
    DOR_DMA,
    MSR_BUSY,
    MSR_NO_DMA,
    MSR_READY,
    MSR_TO_HOST,
    ST0_ABNORMAL,
    ST0_SEEK_END,
    FdcCore,
)
from pellucid.machine.floppy.drive import Place, Reach
from pellucid.machine.floppy.formats import SECTOR
from pellucid.machine.state import BOOL, U8, U32, Integer

RATE = 0x03
ST1_MISSING_MARK, ST1_NOT_WRITABLE, ST1_DATA_ERROR, ST1_END_OF_CYLINDER = 0x01, 0x02, 0x20, 0x80
ST2_SCAN_NOT_SATISFIED, ST2_SCAN_EQUAL = 0x04, 0x08
LARGEST_SIZE = 7


class SectorTransfers(FdcCore):
    """The execution phase. A transfer ends with the bytes asked for, DMA's terminal count, or the end of the track."""

    kind_of_transfer = State(Integer(0, len(Transfer) - 1), 0)
    multi_track = State(BOOL, False)
    end_of_track = State(U8, 0, doc="the last sector that the command wants of a track")
    moved = State(U32, 0, doc="bytes so far")

    def start_transfer(self, first: int, kind: Transfer) -> None:
        """A command with its eight parameters is in the FIFO; `first` is its first byte."""
        _, number, track, head, sector, size, end, _, length = self.fifo[:9]
        drive, place = self.select(number), Place(track, head, sector)
        reach = drive.reaches(place)
        if reach is not Reach.THERE:
            st1 = ST1_END_OF_CYLINDER if reach is Reach.NO_SECTOR else 0
            self.finish(ST0_ABNORMAL, st1, at=place)
            return
        self.did_seek = drive.seek(place) and drive.inserted
        if drive.format is None:
            self.finish(ST0_ABNORMAL, at=place)
            return
        if drive.format.rate != self.dsr & RATE:
            self.finish(ST0_ABNORMAL, ST1_MISSING_MARK)
            return
        self.multi_track, self.end_of_track, self.kind_of_transfer = bool(first & MULTI_TRACK), end, kind.value
        if size:
            sectors = end - sector + 1
            if sectors < 0:
                self.finish(ST0_ABNORMAL, ST1_MISSING_MARK)
                return
            length = (128 << min(size, LARGEST_SIZE)) * (sectors + (end if self.multi_track else 0))
        self.phase, self.position, self.length = DATA, 0, length
        self._go(kind)

    def _go(self, kind: Transfer) -> None:
        if not self.dor & DOR_DMA:
            self.msr = MSR_READY | MSR_NO_DMA | MSR_BUSY | (0 if kind is Transfer.WRITE else MSR_TO_HOST)
            self.raise_irq()
            return
        self.msr = MSR_BUSY
        if kind is Transfer.VERIFY:
            self._run(self.length)
        else:
            self.dma.request(self.serve_dma)

    # DMA.

    def serve_dma(self) -> None:
        """The channel runs: everything it is programmed for goes at once."""
        self._run(min(self.dma.left, self.length))

    def _run(self, length: int) -> None:
        kind = Transfer(self.kind_of_transfer)
        st2 = ST2_SCAN_NOT_SATISFIED if kind in SCANS else 0
        done = 0
        while done < length:
            size = min(SECTOR, length - done)
            if kind in SCANS:
                found = self._scan(kind, size)
                if found is not None:
                    st2 = found
                    break
            elif (error := self._move(kind, size)) is not None:
                self.finish(ST0_ABNORMAL | ST0_SEEK_END, error)
                return
            done += size
            if size == SECTOR and not self.next_sector():
                break
        self.finish(0, 0, st2)

    def _move(self, kind: Transfer, size: int) -> int | None:
        """One sector, or its beginning; None, or ST1 for what goes wrong."""
        drive, content = self.drive, bytearray(SECTOR)
        if kind is Transfer.VERIFY:
            return None
        if kind is Transfer.WRITE and drive.read_only:
            return ST1_NOT_WRITABLE
        if (kind is Transfer.READ or size < SECTOR) and not drive.read_sector(content):
            return ST1_DATA_ERROR
        if kind is Transfer.READ:
            self.dma.to_memory(content[:size])
            return None
        content[:size] = self.dma.from_memory(size).ljust(size, b"\0")
        return None if drive.write_sector(content) else 0

    def _scan(self, kind: Transfer, size: int) -> int | None:
        """Compare a sector with memory; ST2 where that ends the scan."""
        content = bytearray(SECTOR)
        self.drive.read_sector(content)
        disk, wanted = bytes(content[:size]), self.dma.from_memory(size)
        if disk == wanted:
            return ST2_SCAN_EQUAL
        low = kind is Transfer.SCAN_LOW and disk < wanted
        return 0 if low or (kind is Transfer.SCAN_HIGH and disk > wanted) else None

    # Through the FIFO.

    def read_data(self) -> int:
        """The guest takes a byte."""
        at = self.position % SECTOR
        if at == 0:
            if self.position and not self.next_sector():
                return 0
            if not self.drive.read_sector(self.fifo):
                self.fifo[:] = bytes(SECTOR)
        value = self.fifo[at]
        self.position += 1
        if self.position >= self.length:
            self.finish()
        return value

    def write_data(self, value: int) -> None:
        """The guest gives a byte."""
        at = self.position % SECTOR
        self.fifo[at] = value
        self.position += 1
        last = self.position >= self.length
        if at == SECTOR - 1 or last:
            self.drive.write_sector(self.fifo)
            if not last:
                self.next_sector()
        if last:
            self.finish()

    def next_sector(self) -> bool:
        """On to the sector that follows; False where the command ends with the track."""
        drive = self.drive
        heads = 2 if drive.format is None else drive.format.heads
        track, head, sector, more = drive.track, drive.head, drive.sector + 1, True
        if drive.sector >= drive.last_sector or drive.sector == self.end_of_track:
            sector = 1
            if self.multi_track and head == 0 and heads == 2:
                head = 1
            else:
                more = self.multi_track and heads == 2
                head, track = 0 if self.multi_track else head, track + 1
                self.st0 |= ST0_SEEK_END
        place = Place(track, head, sector)
        if drive.reaches(place) is Reach.THERE:
            drive.seek(place)
        return more
