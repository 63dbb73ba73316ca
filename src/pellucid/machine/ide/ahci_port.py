"""A port of an AHCI controller (AHCI 1.3.1, chapters 3.3, 4 and 5): its registers, command list and received FISes.

Commands are taken from the list in the order of their slots. A queued one (READ and WRITE FPDMA QUEUED) goes to the
host at once and is reported finished by its bit in a set device bits FIS; any other has the drive for itself. Data goes
straight between the host's file and the guest's memory, by the command's descriptor table.

What one write to PxCI can cost is bounded: 32 commands, each with at most 65,535 descriptors, read as far as needed.
"""

import struct
from collections.abc import Callable, Iterator

from pellucid.machine.device import Device, Region, Register, State
from pellucid.machine.dma import ScatterList
from pellucid.machine.ide import registers as reg
from pellucid.machine.ide.disk import SECTOR, IdeHd
from pellucid.machine.ide.drive import AtaDrive
from pellucid.machine.state import BOOL, U32
from pellucid.memory import AccessSizes, AddressSpace, MemTxResult
from pellucid.records import dataclass

SLOTS = 32
CMD_ST, CMD_SUD, CMD_POD, CMD_CLO, CMD_FRE = 0x01, 0x02, 0x04, 0x08, 0x10
CMD_FR, CMD_CR, CMD_ATAPI = 0x4000, 0x8000, 0x0100_0000
CMD_KEPT = 0x0F82_0017
"""What a write to PxCMD stores: ST, SUD, POD, FRE, PMA, APSTE, ATAPI, DLAE, ALPE, ASP."""
IS_DHRS, IS_PSS, IS_SDBS, IS_HBFS, IS_TFES = 0x01, 0x02, 0x08, 0x2000_0000, 0x4000_0000
NO_DEVICE_STATUS, NO_SIGNATURE = 0x7F, 0xFFFF_FFFF
LINK_UP = 0x113
"""PxSSTS: device present, generation 1, active."""
DETECTION, COMRESET = 0x0F, 0x01
HEADER_PACKET, HEADER_RESET, HEADER_CLEAR_BUSY = 0x20, 0x100, 0x400
FIS_HOST, FIS_REGISTER, FIS_PIO_SETUP, FIS_SET_BITS = 0x27, 0x34, 0x5F, 0xA1
FIS_INTERRUPT, FIS_TO_HOST = 0x40, 0x20
PIO_SETUP_AT, REGISTER_AT, SET_BITS_AT = 0x20, 0x40, 0x58
READ_QUEUED, WRITE_QUEUED = 0x60, 0x61
DESCRIPTORS_AT_ONCE, DESCRIPTOR_SIZE = 64, 16
TABLE_DESCRIPTORS, TABLE_PACKET = 0x80, 0x40


@dataclass(frozen=True)
class Command:
    """A slot's command header, and the FIS in its table."""

    slot: int
    flags: int
    descriptors: int
    table: int
    fis: bytes


class AhciPort(Device):
    """One port. `changed(port)` tells the controller that the interrupt status or its mask has changed.

    It is the `Transport` of its drive.
    """

    kind = "ahci-port"
    regions = (Region("ahci-port", 0x80, valid=AccessSizes(4, 4), impl=AccessSizes(4, 4)),)

    list_low = Register(0x00, size=4, doc="PxCLB")
    list_high = Register(0x04, size=4)
    received_low = Register(0x08, size=4, doc="PxFB")
    received_high = Register(0x0C, size=4)
    interrupt_status = Register(0x10, size=4, doc="PxIS")
    interrupt_enable = Register(0x14, size=4, writable=0xFDC0_00FF, doc="PxIE")
    command = Register(0x18, size=4, reset=CMD_SUD | CMD_POD, doc="PxCMD")
    task_file = Register(0x20, size=4, reset=NO_DEVICE_STATUS, writable=0, doc="PxTFD")
    signature = Register(0x24, size=4, reset=NO_SIGNATURE, writable=0, doc="PxSIG")
    sata_status = Register(0x28, size=4, writable=0, doc="PxSSTS")
    sata_control = Register(0x2C, size=4, doc="PxSCTL")
    sata_error = Register(0x30, size=4, doc="PxSERR")
    active = Register(0x34, size=4, doc="PxSACT")
    issue = Register(0x38, size=4, doc="PxCI")

    signature_sent = State(BOOL, False, doc="the guest has had the FIS that ends a reset")
    halted = State(BOOL, False, doc="a command failed: nothing more until ST is cleared")
    in_reset = State(BOOL, False, doc="a soft reset has begun")
    finished = State(U32, 0, doc="queued commands that are done and not reported")

    direct = True

    def __init__(self, name: str, dma: AddressSpace, changed: Callable[[], None]) -> None:
        self.name, self._dma, self._changed = name, dma, changed
        self.drive: AtaDrive | None = None
        self._current: Command | None = None
        self._moved = 0
        self._pio = False
        self._running = False
        self._generation = 0
        super().__init__()

    @property
    def drives(self) -> tuple[AtaDrive | None]:
        """What is connected, by unit: there is one."""
        return (self.drive,)

    def attach(self, unit: int, drive: AtaDrive) -> None:
        """Connect the port's one drive. Raises ValueError when it has one."""
        if unit != 0 or self.drive is not None:
            raise ValueError(f"{self.name}: no free place {unit}")
        self.drive = drive
        drive.transport, drive.unit = self, 0
        self.sata_status = LINK_UP

    # Registers.

    @interrupt_status.on_write
    def _clear_status(self, value: int) -> None:
        self.interrupt_status &= ~value
        self._changed()

    @interrupt_enable.after_write
    def _enable_written(self) -> None:
        self._changed()

    @command.on_write
    def _write_command(self, value: int) -> None:
        before = self.command
        kept = value & CMD_KEPT
        if value & CMD_CLO:
            self.task_file &= ~(reg.BSY | reg.DRQ)
        if before & CMD_ST and not kept & CMD_ST:
            self._stop()
        self.command = kept | (CMD_CR if kept & CMD_ST else 0) | (CMD_FR if kept & CMD_FRE else 0)
        if kept & CMD_FRE and not self.signature_sent:
            self._send_signature()
        self._run()

    @sata_control.on_write
    def _write_control(self, value: int) -> None:
        before, self.sata_control = self.sata_control, value
        if before & DETECTION == COMRESET and value & DETECTION == 0:
            self.link_reset()

    @sata_error.on_write
    def _clear_error(self, value: int) -> None:
        self.sata_error &= ~value

    @active.on_write
    def _set_active(self, value: int) -> None:
        self.active |= value

    @issue.on_write
    def _set_issue(self, value: int) -> None:
        self.issue |= value
        self._run()

    # Resets.

    def reset(self) -> None:
        super().reset()
        self._forget()
        if self.drive is not None:
            self.sata_status = LINK_UP

    def link_reset(self) -> None:
        """COMRESET: the drive begins anew and sends its signature."""
        self._stop()
        self.sata_error = 0
        self.task_file, self.signature, self.signature_sent = NO_DEVICE_STATUS, NO_SIGNATURE, False
        if self.drive is not None:
            self.drive.soft_reset()
            self.sata_status = LINK_UP
            self._send_signature()

    def _stop(self) -> None:
        """ST was cleared: commands are forgotten, once the host is through with what it does for them."""
        if self.drive is not None:
            self._forget()
            if self._current is not None or not self.drive.idle:
                self.drive.cancel()
                self.drive.status = reg.IDLE
            self.drive.backend.drain()
        self._forget()

    def _forget(self) -> None:
        self._generation += 1
        self._current = None
        self.issue = self.active = self.finished = 0
        self.halted = False

    def _send_signature(self) -> None:
        drive = self.drive
        if drive is None or not self.command & CMD_FRE:
            return
        self.signature_sent = True
        self.signature = drive.lba_high << 24 | drive.lba_mid << 16 | drive.lba_low << 8 | drive.count
        self._show_task_file(drive)
        self._send_registers(drive, 0)

    # The command list.

    def _run(self) -> None:
        """Take commands as long as the drive takes them."""
        if self._running:
            return  # A command ended at once; whoever started it goes on.
        self._running = True
        try:
            while (slot := self._next_slot()) is not None:
                self._start(slot)
        finally:
            self._running = False
        self._report_finished()

    def _next_slot(self) -> int | None:
        if not self.command & CMD_ST or self.halted or self._current is not None or not self.issue:
            return None
        return (self.issue & -self.issue).bit_length() - 1

    def _start(self, slot: int) -> None:
        command = self._fetch(slot)
        drive = self.drive
        if command is None or drive is None:
            self.halted = True
            self.interrupt_status |= IS_HBFS
            self._changed()
        elif not command.fis[1] & 0x80:
            self._device_control(command, drive)
        elif command.fis[2] in (READ_QUEUED, WRITE_QUEUED) and isinstance(drive, IdeHd):
            self._queue(command, drive)
        else:
            self._current, self._moved, self._pio = command, 0, False
            _load_task_file(drive, command.fis)
            drive.execute(command.fis[2])

    def _fetch(self, slot: int) -> Command | None:
        """The command in a slot; None for one that is not in memory or not a register FIS."""
        base = (self.list_high << 32 | self.list_low) & ~0x3FF
        header, result = self._dma.try_read_bytes(base + 32 * slot, 16)
        if result is not MemTxResult.OK:
            return None
        options, _, low, high = struct.unpack("<IIII", header)
        table = (high << 32 | low) & ~0x7F
        fis, result = self._dma.try_read_bytes(table, 20)
        if result is not MemTxResult.OK or fis[0] != FIS_HOST:
            return None
        return Command(slot, options & 0xFFFF, options >> 16, table, bytes(fis))

    def _device_control(self, command: Command, drive: AtaDrive) -> None:
        """A FIS that writes the control register: a soft reset has two, one that begins it and one that ends it."""
        self.issue &= ~(1 << command.slot)
        if command.fis[15] & reg.CONTROL_SRST:
            self.in_reset = True
        elif self.in_reset:
            self.in_reset = False
            drive.soft_reset()
            self._send_signature()

    # Queued commands.

    def _queue(self, command: Command, drive: IdeHd) -> None:
        fis, bit = command.fis, 1 << command.slot
        self.issue &= ~bit
        sectors = (fis[3] | fis[11] << 8) or 0x1_0000
        first = int.from_bytes(fis[4:7] + fis[8:11], "little")
        if fis[12] >> 3 != command.slot or first + sectors > drive.sectors:
            self._queued_failed(drive, reg.ABRT, command.slot, first)
            return
        reading = fis[2] == READ_QUEUED
        scatter = ScatterList(self._dma, self._descriptors(command), sectors * SECTOR, to_memory=reading)
        if scatter.size < sectors * SECTOR:
            self._queued_failed(drive, reg.ABRT, command.slot, first)
            return
        generation = self._generation
        flushes = not reading and bool(fis[7] & 0x80)  # FUA

        def moved(error: int) -> None:
            if reading:
                scatter.finish()
            if error or not flushes:
                done(error)
            else:
                drive.backend.flush(done)

        def done(error: int) -> None:
            if self._generation != generation:
                return
            if error:
                self._queued_failed(drive, reg.UNC if reading else reg.ABRT, command.slot, first)
                return
            self.finished |= bit
            if not self._running:
                self._report_finished()

        request = drive.backend.read if reading else drive.backend.write
        request(first * SECTOR, scatter.views, moved)

    def _queued_failed(self, drive: IdeHd, error: int, tag: int, sector: int) -> None:
        """The drive stops; the guest reads from log page 10h which command it was, and begins again."""
        self.halted = True
        drive.error, drive.status = error, reg.IDLE | reg.ERR
        drive.note_queue_error(tag, sector)
        self._show_task_file(drive)
        self._send_finished(drive)
        self.interrupt_status |= IS_TFES
        self._changed()

    def _report_finished(self) -> None:
        if self.finished and self.drive is not None and not self.halted:
            self._send_finished(self.drive)
            self._changed()

    def _send_finished(self, drive: AtaDrive) -> None:
        bits, self.finished = self.finished, 0
        self.active &= ~bits
        fis = struct.pack("<BBBBI", FIS_SET_BITS, FIS_INTERRUPT, drive.status & 0x77, drive.error, bits)
        self._receive(SET_BITS_AT, fis)
        self.task_file = drive.error << 8 | self.task_file & 0x88 | drive.status & 0x77
        self.interrupt_status |= IS_SDBS

    # What the drive asks for.

    def packet(self) -> bytes:
        command = self._current
        if command is None:
            return b""
        return self._dma.read_bytes(command.table + TABLE_PACKET, 12)

    def interrupt(self) -> None:
        """The interrupt comes with the FIS that ends the command."""

    def clear_interrupt(self) -> None:
        """Interrupts are cleared in PxIS."""

    def transfer_ready(self) -> None:
        command, drive = self._current, self.drive
        assert drive is not None
        pieces = self._descriptors(command) if command is not None else iter(())
        length, self._pio = drive.transfer_length, drive.transfer_pio and drive.transfer_in
        scatter = ScatterList(self._dma, pieces, length, to_memory=drive.transfer_in)
        self._moved = min(scatter.size, length)
        drive.run_transfer(scatter)

    def transfer_done(self) -> None:
        """Told with the command's end."""

    def command_done(self) -> None:
        command, drive = self._current, self.drive
        if command is None or drive is None:
            return
        self._current = None
        base = (self.list_high << 32 | self.list_low) & ~0x3FF
        self._dma.write_bytes(base + 32 * command.slot + 4, self._moved.to_bytes(4, "little"))
        self._show_task_file(drive)
        failed = bool(drive.status & reg.ERR)
        if self._pio and not failed:
            self._send_pio_setup(drive)
        else:
            self._send_registers(drive, FIS_INTERRUPT)
            self.interrupt_status |= IS_DHRS
        if failed:
            self.halted = True
            self.interrupt_status |= IS_TFES
        else:
            self.issue &= ~(1 << command.slot)
        self._changed()
        self._run()

    def _descriptors(self, command: Command) -> Iterator[tuple[int, int]]:
        """(address, bytes) of each entry of the physical region descriptor table."""
        at = command.table + TABLE_DESCRIPTORS
        left = command.descriptors
        while left:
            count = min(left, DESCRIPTORS_AT_ONCE)
            table, result = self._dma.try_read_bytes(at, count * DESCRIPTOR_SIZE)
            if result is not MemTxResult.OK:
                return
            for low, high, _, size in struct.iter_unpack("<IIII", table):
                yield high << 32 | low, (size & 0x3F_FFFF) + 1
            at, left = at + len(table), left - count

    # Received FISes.

    def _receive(self, offset: int, fis: bytes) -> None:
        if self.command & CMD_FRE:
            self._dma.write_bytes(((self.received_high << 32 | self.received_low) & ~0xFF) + offset, fis)

    def _show_task_file(self, drive: AtaDrive) -> None:
        self.task_file = drive.error << 8 | drive.status

    def _send_registers(self, drive: AtaDrive, flags: int) -> None:
        self._receive(REGISTER_AT, _register_fis(FIS_REGISTER, flags, drive))

    def _send_pio_setup(self, drive: AtaDrive) -> None:
        fis = bytearray(_register_fis(FIS_PIO_SETUP, FIS_INTERRUPT | FIS_TO_HOST, drive))
        fis[2] = drive.status | reg.DRQ
        fis[15] = drive.status
        fis[16:18] = (self._moved & 0xFFFF).to_bytes(2, "little")
        self._receive(PIO_SETUP_AT, bytes(fis))
        self.interrupt_status |= IS_PSS


def _load_task_file(drive: AtaDrive, fis: bytes) -> None:
    drive.features, drive.lba_low, drive.lba_mid, drive.lba_high = fis[3], fis[4], fis[5], fis[6]
    drive.select = fis[7] | reg.DEVICE_ALWAYS
    drive.hob_low, drive.hob_mid, drive.hob_high, drive.hob_features = fis[8], fis[9], fis[10], fis[11]
    drive.count, drive.hob_count = fis[12], fis[13]


def _register_fis(kind: int, flags: int, drive: AtaDrive) -> bytes:
    """20 bytes of a register FIS, from the drive's task file."""
    low = (kind, flags, drive.status, drive.error, drive.lba_low, drive.lba_mid, drive.lba_high, drive.select)
    high = (drive.hob_low, drive.hob_mid, drive.hob_high, 0, drive.count, drive.hob_count)
    return bytes((*low, *high)).ljust(20, b"\0")
