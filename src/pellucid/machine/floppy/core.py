"""The middle of a floppy controller: whose turn it is, the FIFO, the interrupt, how a command ends."""

from collections.abc import Sequence

from pellucid.kvm.clock import Clock
from pellucid.machine.device import Device, State
from pellucid.machine.devices.dma8237 import DmaChannel
from pellucid.machine.floppy.drive import FloppyDrive, Place
from pellucid.machine.floppy.formats import SECTOR
from pellucid.machine.irq import IrqLine
from pellucid.machine.state import BOOL, U8, U32, Integer, Memory, Text

DOR_SELECT, DOR_NOT_RESET, DOR_DMA = 0x01, 0x04, 0x08
MSR_READY, MSR_TO_HOST, MSR_NO_DMA, MSR_BUSY = 0x80, 0x40, 0x20, 0x10
ST0_ABNORMAL, ST0_INVALID, ST0_READY_CHANGED, ST0_SEEK_END, ST0_HEAD = 0x40, 0x80, 0xC0, 0x20, 0x04
TDR_BOOT = 0x04
SIZE_512 = 2
"""A sector's size as commands have it: 128 << 2."""
COMMAND, DATA, RESULT = range(3)
DRIVES = 2


class FdcCore(Device):
    """`drives` are both, connected or not; `dma` is the channel that sectors go over."""

    dor = State(U8, DOR_NOT_RESET | DOR_DMA, doc="digital output register")
    selected = State(Integer(0, DRIVES - 1), 0, doc="the drive that DOR or a command named last")
    tdr = State(U8, 0, doc="tape drive register")
    dsr = State(U8, 0, doc="data rate select register")
    msr = State(U8, MSR_READY, doc="main status register")
    fifo = State(Memory(SECTOR), bytes(SECTOR))
    phase = State(Integer(COMMAND, RESULT), COMMAND)
    position = State(U32, 0, doc="of the next byte in this phase")
    length = State(U32, 0, doc="bytes of this phase")
    st0 = State(U8, 0)
    did_seek = State(BOOL, False, doc="the command under way began with a seek")
    irq = State(BOOL, False, doc="the interrupt line")
    resets_to_sense = State(Integer(0, 4), 0, doc="drives whose reset SENSE INTERRUPT is still to report")
    action = State(Text(), "", doc="the command under way")

    def __init__(self, drives: Sequence[FloppyDrive], line: IrqLine, dma: DmaChannel, clock: Clock) -> None:
        assert len(drives) == DRIVES
        self.drives, self._line, self.dma = drives, line, dma
        self._turn = clock.timer(self._turned)
        self._clock = clock
        super().__init__()
        for drive in drives:
            drive.recalibrate()

    def _turned(self) -> None:
        raise NotImplementedError

    # Drives.

    @property
    def drive(self) -> FloppyDrive:
        """The one selected."""
        return self.numbered(self.selected)

    def numbered(self, number: int) -> FloppyDrive:
        """The drive that software calls 0 or 1: the boot bit of the tape drive register swaps them."""
        return self.drives[number ^ (1 if self.tdr & TDR_BOOT else 0)]

    def select(self, number: int) -> FloppyDrive:
        """A command's first parameter names the drive."""
        self.selected = number & DOR_SELECT
        return self.drive

    # The interrupt.

    def raise_irq(self) -> None:
        """The controller wants attention."""
        if not self.irq:
            self.irq = True
            self._line.set(True)
        self.resets_to_sense = 0

    def lower_irq(self) -> None:
        """Somebody looked: what the interrupt was for is forgotten."""
        if self.irq:
            self.irq = False
            self._line.set(False)
            self.st0 = 0

    # Phases.

    def ready_for_command(self) -> None:
        """Nothing is under way."""
        self.phase, self.position, self.length, self.action, self.did_seek = COMMAND, 0, 0, "", False
        self.msr = MSR_READY

    def answer(self, result: Sequence[int]) -> None:
        """The result phase, without an interrupt."""
        self.fifo[: len(result)] = bytes(result)
        self.phase, self.position, self.length = RESULT, 0, len(result)
        self.msr = MSR_READY | MSR_TO_HOST | MSR_BUSY

    def finish(self, st0: int = 0, st1: int = 0, st2: int = 0, *, at: Place | None = None) -> None:
        """A command on sectors ends: seven bytes of result, and an interrupt. `at`: the drive's place if None."""
        drive = self.drive
        self.st0 |= ST0_SEEK_END if self.did_seek else 0
        self.st0 |= st0 & 0xF8 | (ST0_HEAD if drive.head else 0) | self.selected
        at = at or Place(drive.track, drive.head, drive.sector)
        self.dma.release()
        self.answer((self.st0, st1, st2, at.track, at.head, at.sector, SIZE_512))
        self.raise_irq()
