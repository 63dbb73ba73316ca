"""An IDE channel: two drives on one cable, reached through the ports of the task file (ATA/ATAPI-6, chapter 9).

Both drives hear every write to the registers; the device register selects who answers and executes. The channel is the
drives' `Transport`: its interrupt goes to the controller's line, its transfers to the controller's bus master.
"""

from collections.abc import Callable
from typing import ClassVar, Protocol

from pellucid.machine.device import Device, Region, State
from pellucid.machine.ide import registers as reg
from pellucid.machine.ide.drive import AtaDrive
from pellucid.machine.state import BOOL, U8
from pellucid.memory import AccessSizes

COMMAND_BLOCK, CONTROL_BLOCK = 0, 1
DEVICE_RESET, DIAGNOSTIC = 0x08, 0x90
PAIRED = {
    reg.FEATURES: ("features", "hob_features"),
    reg.COUNT: ("count", "hob_count"),
    reg.LBA_LOW: ("lba_low", "hob_low"),
    reg.LBA_MID: ("lba_mid", "hob_mid"),
    reg.LBA_HIGH: ("lba_high", "hob_high"),
}
"""Registers that remember what they held before, for 48-bit commands."""


class BusMaster(Protocol):
    """The controller's side of a channel."""

    def interrupt_raised(self) -> None:
        """The drives' interrupt line rose."""
        ...

    def transfer_ready(self) -> None:
        """The selected drive has a transfer to make."""
        ...

    def transfer_done(self) -> None:
        """It has been made, or given up."""
        ...


class NoDrive:
    """The registers of a place without a drive: written like any, with a status of 0."""

    def __init__(self) -> None:
        self.error, self.features, self.count, self.lba_low = 0, 0, 1, 1
        self.lba_mid, self.lba_high = reg.SIGNATURE_NONE
        self.hob_features = self.hob_count = self.hob_low = self.hob_mid = self.hob_high = 0
        self.select, self.status = reg.DEVICE_ALWAYS, 0


class IdeBus(Device):
    """One channel. `raise_line(level)` drives its interrupt; `name` is what users call it (`ide.0`)."""

    kind = "ide-bus"
    regions: ClassVar[tuple[Region, ...]] = (
        Region("ide", 8, valid=AccessSizes(1, 4), impl=AccessSizes(1, 4)),
        Region("ide", 1),
    )

    unit = State(U8, 0, doc="the selected drive")
    control = State(U8, 0, doc="bit 1 nIEN, bit 2 SRST, bit 7 HOB")
    line = State(BOOL, False, doc="the interrupt line")

    direct = False

    def __init__(self, name: str, drive_line: Callable[[bool], None]) -> None:
        self.name = name
        self.drives: list[AtaDrive | None] = [None, None]
        self.master: BusMaster | None = None
        self._places: list[AtaDrive | NoDrive] = [NoDrive(), NoDrive()]
        self._drive_line = drive_line
        super().__init__()

    def attach(self, unit: int, drive: AtaDrive) -> None:
        """Connect a drive as unit 0 (master) or 1 (slave). Raises ValueError when the place is taken."""
        if unit not in (0, 1) or self.drives[unit] is not None:
            raise ValueError(f"{self.name}: no free place {unit}")
        self.drives[unit] = self._places[unit] = drive
        drive.transport, drive.unit = self, unit

    @property
    def selected(self) -> AtaDrive | None:
        """The drive that answers."""
        return self.drives[self.unit]

    # The registers.

    def region_read(self, region: int, offset: int, size: int) -> int:
        if region == CONTROL_BLOCK:
            return self._status()
        if offset == reg.DATA:
            drive = self.selected
            return 0 if drive is None or size == 1 else drive.read_data(size)
        # A wide access of the other registers reaches each, as the bus bridge splits it.
        values = (self._read(offset + index) << 8 * index for index in range(min(size, 8 - offset)))
        return sum(values)

    def region_write(self, region: int, offset: int, size: int, value: int) -> None:
        if region == CONTROL_BLOCK:
            self._write_control(value & 0xFF)
        elif offset == reg.DATA:
            if size > 1 and self.selected is not None:
                self.selected.write_data(size, value)
        else:
            for index in range(min(size, 8 - offset)):
                self._write(offset + index, value >> 8 * index & 0xFF)

    def _read(self, offset: int) -> int:
        here = self._places[self.unit]
        if not any(self.drives):
            return 0
        if offset == reg.STATUS:
            if here.status and not isinstance(here, NoDrive):
                self.clear_interrupt()
            return self._status()
        if offset == reg.ERROR:
            old = bool(self.control & reg.CONTROL_HOB)
            return 0 if isinstance(here, NoDrive) else here.hob_features if old else here.error
        if offset == reg.DEVICE:
            return here.select | reg.DEVICE_ALWAYS
        names = PAIRED[offset]
        value: int = getattr(here, names[1] if self.control & reg.CONTROL_HOB else names[0])
        return value

    def _status(self) -> int:
        return self._places[self.unit].status

    def _write(self, offset: int, value: int) -> None:
        drive = self.selected
        if offset == reg.COMMAND:
            self._command(value)
            return
        if drive is not None and not drive.idle:
            return  # The registers belong to the drive while it works.
        self.control &= ~reg.CONTROL_HOB
        if offset == reg.DEVICE:
            for place in self._places:
                place.select = value | reg.DEVICE_ALWAYS
            self.unit = 1 if value & reg.DEVICE_UNIT else 0
            return
        now, before = PAIRED[offset]
        for place in self._places:
            setattr(place, before, getattr(place, now))
            setattr(place, now, value)

    def _command(self, value: int) -> None:
        self.control &= ~reg.CONTROL_HOB
        drive = self.selected
        if drive is None:
            return
        if value == DEVICE_RESET and drive.packet:
            drive.soft_reset()
            drive.status = drive.error = 0
        elif drive.idle:
            if value == DIAGNOSTIC:
                self._diagnose()
            else:
                drive.execute(value)

    def _diagnose(self) -> None:
        """EXECUTE DEVICE DIAGNOSTIC goes to both; the first one is selected afterwards."""
        self._reset_drives()
        self.interrupt()

    def _write_control(self, value: int) -> None:
        before, self.control = self.control, value
        if value & reg.CONTROL_SRST and not before & reg.CONTROL_SRST:
            for drive in filter(None, self.drives):
                drive.cancel()
                drive.status = reg.BSY | reg.DSC
                drive.error = reg.DIAGNOSTIC_PASSED
        elif before & reg.CONTROL_SRST and not value & reg.CONTROL_SRST:
            self._reset_drives()
        if value & reg.CONTROL_NIEN and self.line:
            self.clear_interrupt()

    def _reset_drives(self) -> None:
        for place in self._places:
            if isinstance(place, NoDrive):
                NoDrive.__init__(place)
                continue
            place.soft_reset()
            if place.packet:
                place.status = 0  # A packet device is not ready until it has had its first command.
        self.unit = 0
        if self.master is not None:
            self.master.transfer_done()

    def region_read_string(self, region: int, offset: int, size: int, count: int) -> bytes:
        drive = self.selected
        if region != COMMAND_BLOCK or offset != reg.DATA or size == 1 or drive is None:
            return b""
        return drive.data_string_in(size, count)

    # What the drives ask for.

    def packet(self) -> bytes:
        return b""

    def interrupt(self) -> None:
        if not self.control & reg.CONTROL_NIEN:
            self.line = True
            if self.master is not None:
                self.master.interrupt_raised()
            self._drive_line(True)

    def clear_interrupt(self) -> None:
        if self.line:
            self.line = False
            self._drive_line(False)

    def transfer_ready(self) -> None:
        if self.master is not None:
            self.master.transfer_ready()

    def transfer_done(self) -> None:
        if self.master is not None:
            self.master.transfer_done()

    def command_done(self) -> None:
        """The guest sees it in the status register."""

    # The life of the channel.

    def reset(self) -> None:
        super().reset()
        self.clear_interrupt()
        for place in self._places:
            if isinstance(place, NoDrive):
                NoDrive.__init__(place)

    def after_load(self) -> None:
        self.unit &= 1
        self._drive_line(self.line)
