"""Floppy disk controller of a PC (Intel 82078, data sheet 290468), as an ISA device with two drives.

Region 0 is ports 0x3F1 to 0x3F5, region 1 port 0x3F7; the port between belongs to the IDE channel. A command is a byte
with its parameters, written to the FIFO; then sectors go by DMA, or through the FIFO; then result bytes are read
there. The main status register says whose turn it is. `floppy/commands.py` has the table of the commands,
`floppy/transfer.py` what moves sectors.

Nothing takes time but READ ID, which waits for a sector to come round.
"""

from pellucid.machine.device import Region, Register, State
from pellucid.machine.firmware.aml import Resources
from pellucid.machine.floppy.acpi import floppy_aml
from pellucid.machine.floppy.commands import find_command
from pellucid.machine.floppy.core import (
    COMMAND,
    DATA,
    DOR_DMA,
    DOR_NOT_RESET,
    DOR_SELECT,
    MSR_BUSY,
    MSR_READY,
    MSR_TO_HOST,
    ST0_ABNORMAL,
    ST0_INVALID,
    ST0_READY_CHANGED,
    ST0_SEEK_END,
    TDR_BOOT,
)
from pellucid.machine.floppy.drive import FloppyDrive, Place, Reach
from pellucid.machine.floppy.transfer import RATE, ST1_MISSING_MARK, SectorTransfers
from pellucid.machine.state import BOOL, U8, Integer

DSR_RESET, DSR_POWER_DOWN = 0x80, 0x40
SRB_ALWAYS, SRB_DRIVE_0 = 0xC0, 0x20
DISK_CHANGE = 0x80
ST3_ALWAYS, ST3_PROTECTED, ST3_TRACK_0 = 0x28, 0x40, 0x10
IMPLIED_SEEK, FIFO_OFF = 0x40, 0x20
ENHANCED_CONTROLLER, STEPPING = 0x90, 0x41
"""The answers to VERSION and PART ID."""
MOST_BYTES = 18
"""Of a command with its parameters, the longest of which is RESTORE; results are shorter."""
TURN_NS = 20_000_000
"""A tenth of a turn of the disk: how long READ ID looks for a sector."""


class Fdc(SectorTransfers):
    """The controller."""

    kind = "isa-fdc"
    regions = (Region("fdc", 5), Region("fdc", 1))

    status_b = Register(0, access="ro", stored=False, doc="status register B: motors and the selected drive")
    output = Register(1, stored=False, doc="digital output: drive, reset, DMA, motors")
    tape = Register(2, stored=False, doc="tape drive register: bit 2 swaps the drives")
    status = Register(3, access="ro", stored=False, doc="main status")
    rate_select = Register(3, access="wo", stored=False, doc="data rate, reset, power down")
    fifo_port = Register(4, stored=False, doc="commands, data, results")
    input = Register(0, region=1, access="ro", stored=False, doc="digital input: bit 7 disk change")
    rate_control = Register(0, region=1, access="wo", stored=False, doc="data rate")

    command_byte = State(U8, 0)
    motors = State(Integer(0, 0x23), 0, doc="status register B's moving bits")
    step_and_unload = State(U8, 0, doc="SPECIFY: step rate in bits 3-0")
    head_load = State(U8, 0)
    configuration = State(U8, IMPLIED_SEEK | FIFO_OFF)
    precompensation = State(U8, 0)
    locked = State(BOOL, False)
    power_mode = State(U8, 0)

    def acpi(self, where: Resources) -> bytes:
        """FDC0 with its drives."""
        return floppy_aml(self.drives, where)

    # Resets.

    def reset(self) -> None:
        super().reset()
        self._soft_reset(interrupt=False)

    def after_load(self) -> None:
        self._line.set(self.irq)
        if self.phase == COMMAND:
            self.length = 1 + find_command(self.command_byte).parameters if self.position else 0
        if self.phase != DATA and (self.position > self.length or self.length > MOST_BYTES):
            self.ready_for_command()
        if self.phase == DATA and self.dor & DOR_DMA and not self.msr & MSR_READY:
            if self.action == "read_id":
                self._turn.arm(self._clock.now_ns() + TURN_NS)
            else:
                self.dma.request(self.serve_dma)

    def _soft_reset(self, *, interrupt: bool) -> None:
        """By the reset bits of DOR and DSR: everything stops, the drives go to track 0."""
        self.lower_irq()
        self._turn.cancel()
        self.dma.release()
        self.motors, self.dor, self.selected, self.resets_to_sense = 0, DOR_NOT_RESET | DOR_DMA, 0, 0
        for drive in self.drives:
            drive.recalibrate()
        self.ready_for_command()
        if interrupt:
            self.st0 |= ST0_READY_CHANGED
            self.raise_irq()
            self.resets_to_sense = 4

    # The registers.

    @status_b.on_read
    def _read_status_b(self) -> int:
        return SRB_ALWAYS | self.motors

    @output.on_read
    def _read_output(self) -> int:
        return self.dor | self.selected

    @output.on_write
    def _write_output(self, value: int) -> None:
        self.motors = value >> 4 & 3 | (SRB_DRIVE_0 if value & 1 else 0)
        if value & DOR_NOT_RESET and not self.dor & DOR_NOT_RESET:
            motors = self.motors
            self._soft_reset(interrupt=True)
            self.motors = motors
        self.dor, self.selected = value, value & DOR_SELECT

    @tape.on_read
    def _read_tape(self) -> int:
        return self.tdr

    @tape.on_write
    def _write_tape(self, value: int) -> None:
        if self.dor & DOR_NOT_RESET:
            self.tdr = value & TDR_BOOT

    @status.on_read
    def _read_status(self) -> int:
        self.dsr &= ~DSR_POWER_DOWN
        self.dor |= DOR_NOT_RESET
        return self.msr

    @rate_select.on_write
    def _write_rate_select(self, value: int) -> None:
        if not self.dor & DOR_NOT_RESET:
            return
        if value & (DSR_RESET | DSR_POWER_DOWN):
            self._soft_reset(interrupt=True)
        self.dsr = value

    @input.on_read
    def _read_input(self) -> int:
        return DISK_CHANGE if self.drive.changed else 0

    @rate_control.on_write
    def _write_rate_control(self, value: int) -> None:
        if self.dor & DOR_NOT_RESET:
            self.dsr = self.dsr & ~RATE | value & RATE

    @fifo_port.on_read
    def _read_fifo(self) -> int:
        self.dsr &= ~DSR_POWER_DOWN
        if not self.msr & MSR_READY or not self.msr & MSR_TO_HOST:
            return 0
        if self.phase == DATA:
            return self.read_data()
        value = self.fifo[self.position]
        self.position += 1
        if self.position >= self.length:
            self.ready_for_command()
            self.lower_irq()
        return value

    @fifo_port.on_write
    def _write_fifo(self, value: int) -> None:
        if not self.dor & DOR_NOT_RESET or not self.msr & MSR_READY or self.msr & MSR_TO_HOST:
            return
        self.dsr &= ~DSR_POWER_DOWN
        if self.phase == DATA:
            self.write_data(value)
            return
        if self.position == 0:
            self.command_byte = value
            self.length = 1 + find_command(value).parameters
            self.msr |= MSR_BUSY
        self.fifo[self.position] = value
        self.position += 1
        if self.position >= self.length:
            self._execute()

    def _execute(self) -> None:
        command = find_command(self.command_byte)
        self.action = command.action
        if command.transfer is not None:
            self.start_transfer(self.command_byte, command.transfer)
        else:
            getattr(self, f"_{command.action}")()

    # The commands that move no sectors. Parameters are in the FIFO from its second byte on.

    def _invalid(self) -> None:
        self.answer((ST0_INVALID,))

    def _seek(self) -> None:
        self._seek_to(self.select(self.fifo[1]), self.fifo[2])

    def _step_in(self) -> None:
        drive = self.select(self.fifo[1])
        self._seek_to(drive, max(min(drive.track + self.fifo[2], drive.most_tracks - 1), 0))

    def _step_out(self) -> None:
        drive = self.select(self.fifo[1])
        self._seek_to(drive, max(drive.track - self.fifo[2], 0))

    def _seek_to(self, drive: FloppyDrive, track: int) -> None:
        place = Place(track, drive.head, drive.sector)
        if drive.reaches(place) is Reach.THERE:
            drive.seek(place)
        self._seek_done()

    def _recalibrate(self) -> None:
        self.select(self.fifo[1]).recalibrate()
        self._seek_done()

    def _seek_done(self) -> None:
        self.ready_for_command()
        self.st0 |= ST0_SEEK_END
        self.raise_irq()

    def _sense_interrupt(self) -> None:
        if self.resets_to_sense:
            st0 = ST0_READY_CHANGED + 4 - self.resets_to_sense
            self.resets_to_sense -= 1
        elif not self.irq:
            self.answer((ST0_INVALID,))
            return
        else:
            st0 = self.st0 & 0xF8 | self.selected
        self.answer((st0, self.drive.track))
        self.lower_irq()

    def _sense_drive(self) -> None:
        drive = self.select(self.fifo[1])
        drive.head = self.fifo[1] >> 2 & 1
        st3 = ST3_ALWAYS | drive.head << 2 | self.selected
        st3 |= ST3_PROTECTED if drive.read_only else 0
        st3 |= ST3_TRACK_0 if drive.track == 0 else 0
        self.answer((st3,))

    def _read_id(self) -> None:
        drive = self.select(self.fifo[1])
        drive.head = self.fifo[1] >> 2 & 1
        self.phase, self.msr = DATA, MSR_BUSY
        self._turn.arm(self._clock.now_ns() + TURN_NS)

    def _turned(self) -> None:
        if self.action != "read_id" or self.phase != DATA:
            return
        drive = self.drive
        if drive.last_sector:
            drive.sector = drive.sector % drive.last_sector + 1
        if drive.rate != self.dsr & RATE:
            self.finish(ST0_ABNORMAL, ST1_MISSING_MARK)
        else:
            self.finish()

    def _format_track(self) -> None:
        """Sectors are numbered as the image has them; the filler byte is all that a format leaves of its data."""
        drive = self.select(self.fifo[1])
        sectors, filler = self.fifo[3], self.fifo[5]
        drive.fill_track(self.fifo[1] >> 2 & 1, sectors, filler)
        drive.last_sector = sectors
        self.finish()

    def _deleted_data(self) -> None:
        """Images have no deleted data address marks."""
        self.finish(ST0_ABNORMAL | ST0_SEEK_END)

    def _specify(self) -> None:
        self.step_and_unload, self.head_load = self.fifo[1] >> 4, self.fifo[2] >> 1
        self.dor = self.dor & ~DOR_DMA | (0 if self.fifo[2] & 1 else DOR_DMA)
        self.ready_for_command()

    def _perpendicular(self) -> None:
        if self.fifo[1] & 0x80:
            self.drive.perpendicular = self.fifo[1] & 7
        self.ready_for_command()

    def _configure(self) -> None:
        self.configuration, self.precompensation = self.fifo[2], self.fifo[3]
        self.ready_for_command()

    def _power_down(self) -> None:
        self.power_mode = self.fifo[1]
        self.answer((self.fifo[1],))

    def _option(self) -> None:
        self.ready_for_command()

    def _drive_specification(self) -> None:
        last = self.fifo[self.position - 1]
        if last & 0x40:
            self.answer((self.fifo[1], self.fifo[1], 0, 0))
        else:
            self.ready_for_command()

    def _lock(self) -> None:
        self.locked = bool(self.command_byte & 0x80)
        self.answer((self.locked << 4,))

    def _dump_registers(self) -> None:
        head_load = self.head_load << 1 | (1 if self.dor & DOR_DMA else 0)
        tracks = (self.numbered(0).track, self.numbered(1).track, 0, 0)
        self.answer((*tracks, self.step_and_unload, head_load & 0xFF, *self._mode()))

    def _mode(self) -> tuple[int, ...]:
        drive = self.drive
        return drive.last_sector, self.locked << 7 | drive.perpendicular << 2, self.configuration, self.precompensation

    def _save_registers(self) -> None:
        tracks = (0, 0, self.numbered(0).track, self.numbered(1).track, 0, 0)
        self.answer((*tracks, self.step_and_unload, self.head_load, *self._mode(), self.power_mode, 0, 0))

    def _restore(self) -> None:
        saved = self.fifo[1:18]
        drive = self.drive
        self.numbered(0).track, self.numbered(1).track = saved[2], saved[3]
        self.step_and_unload, self.head_load, drive.last_sector = saved[6:9]
        self.locked, drive.perpendicular = bool(saved[9] & 0x80), saved[9] >> 2 & 0xF
        self.configuration, self.precompensation, self.power_mode = saved[10:13]
        self.ready_for_command()

    def _version(self) -> None:
        self.answer((ENHANCED_CONTROLLER,))

    def _part_id(self) -> None:
        self.answer((STEPPING,))
