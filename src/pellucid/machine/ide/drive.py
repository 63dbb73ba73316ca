"""What disks and CD drives have in common: the task file, PIO blocks, DMA transfers, the end of a command.

A drive does not know its controller. It is given a `Transport`, which raises the interrupt and moves a transfer's bytes
when it is ready to: the PIIX's bus master when the guest has started it, AHCI at once. With an AHCI transport
(`direct`) there is no data register, so PIO data is a transfer too.

A command goes on through named steps (`self.step`), so that a drive in the middle of a PIO command can be saved.
Disk requests complete later; `_token` tells a completion whether its command is still the one under way.
"""

from collections.abc import Callable, Iterator
from typing import ClassVar, Protocol

from pellucid.block import BlockBackend
from pellucid.machine.block_device import BLOCK_PROPERTIES, BLOCK_SIZE_SHOWN, BlockDevice
from pellucid.machine.device import Property, State
from pellucid.machine.dma import ScatterList
from pellucid.machine.ide import registers as reg
from pellucid.machine.ide.identify import MODES, Modes, Names
from pellucid.machine.properties import BOOT_INDEX, ON_ERROR, STRING, UINT32, UINT64
from pellucid.machine.state import BOOL, U8, U32, U64, Buffer, Integer, Text

LONGEST_BUFFER = 1 << 20
"""Bytes of one PIO block, or of one answer of a packet command, and a bit."""
NO_TRANSFER, DISK_TRANSFER, BUFFER_TRANSFER = range(3)
ANY_UNIT = 0xFFFF_FFFF


CHECKED_FEATURES = frozenset((0x05, 0x42, 0x55, 0x66, 0x67, 0x69, 0x82, 0x85, 0x96, 0x9A, 0xAA, 0xC2, 0xCC, 0x02))
"""Of SET FEATURES: those that are accepted; of these only the write cache (0x02, 0x82) changes anything."""


class Transport(Protocol):
    """A controller as a drive sees it."""

    @property
    def direct(self) -> bool:
        """Whether every transfer goes between drive and memory: there is no data register."""
        ...

    def packet(self) -> bytes:
        """The command packet, where it comes with the command; empty where it comes through the data register."""
        ...

    def interrupt(self) -> None:
        """The drive wants the guest's attention."""
        ...

    def clear_interrupt(self) -> None:
        """The drive takes its interrupt back: its status was read, or it has a new command."""
        ...

    def transfer_ready(self) -> None:
        """`drive.transfer_length` bytes can be moved: call `drive.run_transfer` when memory is ready too."""
        ...

    def transfer_done(self) -> None:
        """The bytes have been moved, or will not be."""
        ...

    def command_done(self) -> None:
        """The drive is idle: its status holds how the command ended."""
        ...


class AtaDrive(BlockDevice):
    """The base. `backend` is the drive's end of the block layer; `number` counts the drives of the machine from 1.

    unit: where it is connected.
    """

    packet: ClassVar[bool] = False
    slow_steps: ClassVar[frozenset[str]] = frozenset()
    """Those behind a transfer that ask the host for more, and during which the controller stays active."""
    default_model: ClassVar[str] = "QEMU HARDDISK"

    error = State(U8, 0)
    features = State(U8, 0)
    count = State(U8, 0)
    lba_low = State(U8, 0)
    lba_mid = State(U8, 0)
    lba_high = State(U8, 0)
    select = State(U8, reg.DEVICE_ALWAYS, doc="the device register")
    status = State(U8, reg.IDLE)
    hob_features = State(U8, 0, doc="what the register held before: the high half of a 48-bit command's")
    hob_count = State(U8, 0)
    hob_low = State(U8, 0)
    hob_mid = State(U8, 0)
    hob_high = State(U8, 0)
    buffer = State(Buffer(LONGEST_BUFFER), b"", doc="the PIO block, or a transfer's bytes")
    position = State(U32, 0, doc="of the next byte of the PIO block")
    block_out = State(BOOL, False, doc="the PIO block comes from the guest")
    step = State(Text(), "", doc="what goes on when the block or the transfer is through")
    transfer_kind = State(Integer(NO_TRANSFER, BUFFER_TRANSFER), NO_TRANSFER)
    transfer_length = State(U32, 0)
    transfer_offset = State(U64, 0, doc="on the medium")
    transfer_in = State(BOOL, False, doc="to memory")
    transfer_pio = State(BOOL, False, doc="the guest thinks of it as PIO")

    rerror = Property(ON_ERROR, "auto", doc="what a failed read does")
    werror = Property(ON_ERROR, "auto", doc="what a failed write does")
    ver = Property(STRING, "2.5+", doc="firmware revision")
    wwn = Property(UINT64, 0, doc="world wide name")
    serial = Property(STRING, "", doc="serial number; QMnnnnn by default")
    model = Property(STRING, "", doc="model name")
    unit = Property(UINT32, ANY_UNIT, doc="the place on the bus")
    bootindex = Property(BOOT_INDEX, -1, doc="place in the firmware's boot order; -1 for none")

    def __init__(self, backend: BlockBackend, number: int) -> None:
        self.backend = backend
        self.number = number
        self.transport: Transport | None = None
        self.unit = 0
        self.drive = backend.name
        self.discard_granularity = BLOCK_SIZE_SHOWN
        self.modes = Modes()
        self._token = 0
        super().__init__()
        backend.user = self
        self.set_signature()

    @property
    def names(self) -> Names:
        """What IDENTIFY and INQUIRY say."""
        return Names(self.serial or f"QM{self.number:05}", self.ver, self.model or self.default_model, self.wwn)

    @property
    def wire(self) -> Transport:
        """The controller's end."""
        assert self.transport is not None
        return self.transport

    @property
    def idle(self) -> bool:
        """Whether a command would be taken."""
        return not self.status & (reg.BSY | reg.DRQ)

    def medium_changed(self) -> None:
        """Of a removable drive."""

    # Resets.

    def reset(self) -> None:
        super().reset()
        self.modes = Modes()
        self.soft_reset()

    def soft_reset(self) -> None:
        """SRST, an AHCI port's COMRESET, DEVICE RESET: what is under way is forgotten, the signature is shown."""
        self.cancel()
        self.status, self.error, self.select = reg.IDLE, reg.DIAGNOSTIC_PASSED, reg.DEVICE_ALWAYS
        self.set_signature()

    def cancel(self) -> None:
        """Forget the command under way. What the host does for it is waited for first: it writes into guest memory."""
        if self._token & 1:
            self.backend.drain()
        self._token = (self._token | 1) + 1
        self.step, self.transfer_kind, self.position = "", NO_TRANSFER, 0
        self.buffer.clear()

    def set_signature(self) -> None:
        """What tells a driver that a disk is here, or a packet device."""
        self.count = self.lba_low = 1
        self.lba_mid, self.lba_high = reg.SIGNATURE_PACKET if self.packet else reg.SIGNATURE_DISK
        self.select &= 0xF0

    # Commands.

    def execute(self, command: int) -> None:
        """The guest wrote the command register; the drive is idle."""
        self.error = 0
        self.status = reg.IDLE | reg.BSY
        self.wire.clear_interrupt()
        name = self.command_name(command)
        if name is None:
            self.abort()
        else:
            getattr(self, name)()

    def command_name(self, command: int) -> str | None:
        """The method that executes a command; None for one that the drive does not have."""
        raise NotImplementedError

    def succeed(self, status: int = reg.IDLE) -> None:
        """The command is done: an interrupt."""
        self.status = status
        self.step = ""
        self.wire.interrupt()
        self.wire.command_done()

    def fail(self, error: int) -> None:
        """The command has failed: error bits, an interrupt."""
        self.error = error
        self.succeed(reg.IDLE | reg.ERR)

    def abort(self) -> None:
        """The drive does not do that."""
        self.error = reg.ABRT
        self.succeed(reg.DRDY | reg.ERR)

    def wait(self, done: Callable[[int], None]) -> Callable[[int], None]:
        """A completion for a disk request of this command: BSY until then; not called when the command was cancelled.

        An odd token is that of a command which waits for the host.
        """
        self.status = self.status & ~reg.DRQ | reg.BSY
        self._token += 1
        token = self._token

        def finish(error: int) -> None:
            if self._token == token:
                self._token += 1
                self.status &= ~reg.BSY
                done(error)

        return finish

    # PIO blocks, or what takes their place.

    def send(self, content: bytes | bytearray, step: str = "_nothing_left") -> None:
        """Have the guest read `content` from the data register, then go on with `step`."""
        self.buffer[:] = content
        self._offer(len(content), out=False, step=step)

    def receive(self, length: int, step: str) -> None:
        """Have the guest write `length` bytes into the data register, which are `buffer` in `step`."""
        self.buffer[:] = bytes(length)
        self._offer(length, out=True, step=step)

    def _offer(self, length: int, *, out: bool, step: str) -> None:
        self.step, self.position, self.block_out = step, 0, out
        self.status = self.status & ~(reg.BSY | reg.ERR) | reg.IDLE | reg.DRQ
        if self.wire.direct:
            self.start_transfer(BUFFER_TRANSFER, length, into_memory=not out, step=step, pio=True)

    def read_data(self, size: int) -> int:
        """The data register: the next `size` bytes of the block; zeros when there is none."""
        if not self.status & reg.DRQ or self.block_out or self.transfer_kind != NO_TRANSFER:
            return 0
        at = self.position
        self.position = at + size
        value = int.from_bytes(self.buffer[at : at + size], "little")
        if self.position >= len(self.buffer):
            self._block_done()
        return value

    def write_data(self, size: int, value: int) -> None:
        """The data register: the next `size` bytes of the block; dropped when none is wanted."""
        if not self.status & reg.DRQ or not self.block_out or self.transfer_kind != NO_TRANSFER:
            return
        at, end = self.position, min(self.position + size, len(self.buffer))
        self.buffer[at:end] = value.to_bytes(size, "little")[: end - at]
        self.position = end
        if end >= len(self.buffer):
            self._block_done()

    def data_string_in(self, size: int, count: int) -> bytes:
        """The next elements of `size` bytes each, `count` at most, and at least one when the block has one."""
        if not self.status & reg.DRQ or self.block_out or self.transfer_kind != NO_TRANSFER:
            return b""
        at = self.position
        whole = (len(self.buffer) - at) // size * size
        content = bytes(self.buffer[at : at + min(whole, size * count)])
        self.position = at + len(content)
        if content and self.position >= len(self.buffer):
            self._block_done()
        return content

    def _block_done(self) -> None:
        self.status &= ~reg.DRQ
        self._go_on()

    def _go_on(self) -> None:
        step, self.step = self.step, ""
        if step:
            getattr(self, step)()

    def _nothing_left(self) -> None:
        """The end of a command whose last block needs no interrupt."""
        self.status = reg.IDLE
        self.wire.command_done()

    # Transfers.

    def start_transfer(
        self, kind: int, length: int, *, into_memory: bool, step: str, offset: int = 0, pio: bool = False
    ) -> None:
        """Offer a transfer to the controller."""
        self.transfer_kind, self.transfer_length, self.transfer_offset = kind, length, offset
        self.transfer_in, self.transfer_pio, self.step = into_memory, pio, step
        self.status = self.status & ~reg.BSY | reg.IDLE | reg.DRQ
        self.wire.transfer_ready()

    def run_transfer(self, scatter: ScatterList) -> None:
        """Memory is ready: move the bytes.

        A list that is too short for sectors, or for what the guest is to give, moves nothing and ends the command
        without an interrupt; of an answer, it takes the beginning.
        """
        kind, self.transfer_kind = self.transfer_kind, NO_TRANSFER
        short = scatter.size < self.transfer_length
        if short and (kind == DISK_TRANSFER or not self.transfer_in):
            self.status = reg.IDLE
            self.wire.transfer_done()
            self.wire.command_done()
        elif kind == DISK_TRANSFER:
            self._run_disk_transfer(scatter)
        else:
            if self.transfer_in:
                scatter.fill(self.buffer)
            else:
                self.buffer[:] = scatter.gather()
            self.status &= ~reg.DRQ
            if self.step in self.slow_steps:
                self._go_on()  # which says when the transfer is over
            else:
                self.wire.transfer_done()
                self._go_on()

    def _run_disk_transfer(self, scatter: ScatterList) -> None:
        def moved(error: int) -> None:
            if self.transfer_in:
                scatter.finish()
            self.wire.transfer_done()
            if error:
                self.transfer_failed(error)
            else:
                self._go_on()

        request = self.backend.read if self.transfer_in else self.backend.write
        request(self.transfer_offset, scatter.views, self.wait(moved))

    def transfer_failed(self, error: int) -> None:
        """The host could not read or write the medium; `error` is an errno."""
        self.fail(reg.UNC if self.transfer_in else reg.ABRT)

    # Commands of both kinds.

    def _flush(self) -> None:
        self.backend.flush(self.wait(lambda error: self.fail(reg.ABRT) if error else self.succeed()))

    def _set_features(self) -> None:
        if self.features == 0x03:
            self._set_transfer_mode()
        elif self.features in CHECKED_FEATURES:
            if self.features in (0x02, 0x82):
                self.modes.write_cache = self.features == 0x02
            if self.features == 0x82:
                self._flush()  # What the cache holds is written before it goes.
            else:
                self.succeed()
        else:
            self.abort()

    def _set_transfer_mode(self) -> None:
        choose = MODES.get(self.count >> 3)
        if choose is None:
            self.abort()
        else:
            choose(self.modes, 1 << (self.count & 7) + 8)
            self.succeed()

    # What the user sees.

    def describe(self) -> Iterator[tuple[str, str]]:
        common = dict(super().describe())
        common["serial"] = f'"{self.names.serial}"'
        unit = common.pop("unit")
        del common["bootindex"]
        shared = {declared.name for declared in AtaDrive.properties}
        # The block layer's first, then what all drives have, then a disk's own.
        for name in sorted(common, key=lambda name: 0 if name in BLOCK_PROPERTIES else 1 if name in shared else 2):
            yield name, common[name]
        yield "unit", unit

    # The life of the drive.

    def after_load(self) -> None:
        if self.step and not hasattr(self, self.step):
            self.step = ""
