"""A CD or DVD drive (`ide-cd`): the packet feature set (ATA/ATAPI-6, 9.8) and the block requests behind it.

A packet command's data goes in blocks of at most the byte count that the guest has set, each announced by an interrupt,
or as one transfer by DMA. What the commands answer is in `mmc.py`.
"""

from typing import ClassVar

from pellucid.machine.device import State
from pellucid.machine.ide import mmc
from pellucid.machine.ide import registers as reg
from pellucid.machine.ide.drive import BUFFER_TRANSFER, DISK_TRANSFER, LONGEST_BUFFER, AtaDrive
from pellucid.machine.ide.identify import identify_packet
from pellucid.machine.state import BOOL, U8, U16, U32, Buffer

PACKET_SIZE = 12
BLOCK = mmc.BLOCK
FETCH = 31
"""Blocks of the medium that are read ahead for PIO: what fits below the largest byte count."""
FEATURE_DMA = 0x01

COMMANDS = {
    0x00: "_nop",
    0x90: "_diagnose",
    0xA0: "_packet_command",
    0xA1: "_identify",
    0xE7: "_ready",
    0xEF: "_set_features",
    **dict.fromkeys((0x20, 0xEC), "_wrong_kind"),
}


class IdeCd(AtaDrive):
    """The drive; its medium can be changed."""

    kind = "ide-cd"
    packet: ClassVar[bool] = True
    default_model = "QEMU DVD-ROM"

    sense_key = State(U8, 0)
    sense_code = State(U8, 0, doc="additional sense code")
    sense_qualifier = State(U8, 0)
    attention = State(BOOL, False, doc="the medium was changed, and the guest has not been told")
    new_medium = State(BOOL, False, doc="likewise for GET EVENT STATUS NOTIFICATION")
    eject_wanted = State(BOOL, False, doc="somebody pressed the button")
    use_dma = State(BOOL, False)
    limit = State(U16, 0xFFFE, doc="bytes of one PIO block")
    rest = State(Buffer(LONGEST_BUFFER), b"", doc="fetched or answered, not yet sent")
    next_block = State(U32, 0, doc="of the medium")
    blocks_left = State(U32, 0)

    def command_name(self, command: int) -> str | None:
        return COMMANDS.get(command)

    @property
    def blocks(self) -> int:
        """Of the medium, 2048 bytes each; 0 without one."""
        return self.backend.size // BLOCK if self.backend.inserted else 0

    def medium_changed(self) -> None:
        self.attention = self.new_medium = self.backend.node is not None

    def soft_reset(self) -> None:
        super().soft_reset()
        self.sense_key = self.sense_code = self.sense_qualifier = 0
        self.attention = self.backend.locked = self.backend.tray_open = False

    # ATA commands.

    def _nop(self) -> None:
        self.abort()

    def _ready(self) -> None:
        self.succeed()

    def _wrong_kind(self) -> None:
        """A disk's command: the signature tells the driver what is here (ATA/ATAPI-4, 8.27.5.2)."""
        self.set_signature()
        self.abort()

    def _diagnose(self) -> None:
        self.soft_reset()
        self.status = 0
        self.wire.command_done()

    def _identify(self) -> None:
        self.send(identify_packet(self.names, self.modes, queued=self.wire.direct))
        self.wire.interrupt()

    # The packet.

    def _packet_command(self) -> None:
        self.use_dma = bool(self.features & FEATURE_DMA)
        limit = self.lba_mid | self.lba_high << 8
        self.limit = 0xFFFE if limit in (0, 0xFFFF) else limit
        self.rest.clear()
        self.blocks_left = 0
        if packet := self.wire.packet():
            self.buffer[:] = packet.ljust(PACKET_SIZE, b"\0")[:PACKET_SIZE]
            self._packet()
            return
        self.count = reg.REASON_COMMAND
        self.receive(PACKET_SIZE, "_packet")

    def _packet(self) -> None:
        packet = bytes(self.buffer)
        self.status = self.status & ~reg.DRQ | reg.BSY
        mmc.execute(self, packet)

    def check_condition(self, key: int, code: int, qualifier: int = 0) -> None:
        """The packet command has failed: what REQUEST SENSE will say."""
        self.sense_key, self.sense_code, self.sense_qualifier = key, code, qualifier
        self.count = self.count & ~7 | reg.REASON_INPUT | reg.REASON_COMMAND
        self.error = key << 4
        self.succeed(reg.DRDY | reg.ERR)

    def good(self) -> None:
        """The packet command is done."""
        self.sense_key = self.sense_code = self.sense_qualifier = 0
        self.finish()

    def finish(self) -> None:
        """The packet command is done; the sense data stay."""
        self.error = 0
        self.count = self.count & ~7 | reg.REASON_INPUT | reg.REASON_COMMAND
        self.succeed()

    def reply(self, content: bytes, allocated: int) -> None:
        """Answer with as much of `content` as the guest has room for."""
        content = content[:allocated]
        if not content:
            self.good()
        elif self.use_dma or self.wire.direct:
            self.buffer[:] = content
            self.start_transfer(BUFFER_TRANSFER, len(content), into_memory=True, step="good")
        else:
            self.rest[:] = content
            self._next_piece()

    def read_blocks(self, first: int, count: int) -> None:
        """READ: blocks of the medium."""
        if self.use_dma or self.wire.direct:
            self.start_transfer(DISK_TRANSFER, count * BLOCK, into_memory=True, step="good", offset=first * BLOCK)
        else:
            self.next_block, self.blocks_left = first, count
            self._next_piece()

    def read_then(self, first: int, count: int, allocated: int, form: mmc.Form) -> None:
        """READ CD: blocks of the medium in another form than that of their 2048 bytes."""
        content = bytearray(count * BLOCK)

        def ready(error: int) -> None:
            if error:
                self.transfer_failed(error)
            else:
                self.reply(form(first, content), allocated)

        self.backend.read(first * BLOCK, [memoryview(content)], self.wait(ready))

    def transfer_failed(self, error: int) -> None:
        self.check_condition(*mmc.UNRECOVERED_READ)

    # PIO.

    def _next_piece(self) -> None:
        if self.rest:
            size = min(self.limit, len(self.rest))
            if size < len(self.rest):
                size &= ~1  # Only the last block may be odd.
            piece = bytes(self.rest[: size or 1])
            del self.rest[: size or 1]
            self.lba_mid, self.lba_high = len(piece) & 0xFF, len(piece) >> 8
            self.count = self.count & ~7 | reg.REASON_INPUT
            self.send(piece, "_next_piece")
            self.wire.interrupt()
        elif self.blocks_left:
            self._fetch()
        else:
            self.good()

    def _fetch(self) -> None:
        size = min(self.blocks_left, FETCH)
        content = bytearray(size * BLOCK)

        def ready(error: int) -> None:
            if error:
                self.transfer_failed(error)
                return
            self.next_block += size
            self.blocks_left -= size
            self.rest[:] = content
            self._next_piece()

        self.backend.read(self.next_block * BLOCK, [memoryview(content)], self.wait(ready))
