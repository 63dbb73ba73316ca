"""An ATA disk (`ide-hd`): ATA8-ACS's general and power management feature sets, 28 and 48 bits, PIO, DMA, SMART."""

from pellucid.block import BlockBackend
from pellucid.machine.device import Property, State
from pellucid.machine.ide import registers as reg
from pellucid.machine.ide import smart
from pellucid.machine.ide.drive import BUFFER_TRANSFER, DISK_TRANSFER, AtaDrive
from pellucid.machine.ide.geometry import TRANSLATIONS, chosen_geometry, guess_geometry
from pellucid.machine.ide.identify import MULTIPLE_MOST, Modes, identify_disk
from pellucid.machine.properties import BIOS_TRANSLATION, UINT16, UINT32
from pellucid.machine.state import BOOL, U16, U64, Buffer

SECTOR = 512
QUEUE_ERROR_LOG = 0x10
ACTIVE = 0xFF
"""CHECK POWER MODE's answer."""

COMMANDS = {
    0x00: "_nop",
    0x06: "_data_set_management",
    **dict.fromkeys(range(0x10, 0x11), "_ready"),
    **dict.fromkeys((0x20, 0x21, 0x24), "_read_sectors"),
    0x25: "_read_dma",
    0x27: "_native_max",
    0x29: "_read_multiple",
    **dict.fromkeys((0x2F, 0x47), "_read_log"),
    **dict.fromkeys((0x30, 0x31, 0x34, 0x3C), "_write_sectors"),
    0x35: "_write_dma",
    0x39: "_write_multiple",
    **dict.fromkeys((0x40, 0x41, 0x42), "_verify"),
    0x70: "_ready",
    0x90: "_diagnose",
    0x91: "_ready",
    **dict.fromkeys((0x94, 0x95, 0x96, 0x97, 0x99, 0xE0, 0xE1, 0xE2, 0xE3, 0xE6), "_power"),
    **dict.fromkeys((0x98, 0xE5), "_check_power"),
    0xB0: "_smart",
    0xC4: "_read_multiple",
    0xC5: "_write_multiple",
    0xC6: "_set_multiple",
    **dict.fromkeys((0xC8, 0xC9), "_read_dma"),
    **dict.fromkeys((0xCA, 0xCB), "_write_dma"),
    **dict.fromkeys((0xE7, 0xEA), "_flush"),
    0xEC: "_identify",
    0xEF: "_set_features",
    0xF5: "_ready",
    0xF8: "_native_max",
}
LBA48_COMMANDS = frozenset((0x24, 0x25, 0x27, 0x29, 0x34, 0x35, 0x39, 0x42, 0xEA))


class IdeHd(AtaDrive):
    """The disk."""

    kind = "ide-hd"
    slow_steps = frozenset(("_trim",))

    lba48 = State(BOOL, False, doc="the command under way has 48-bit addresses")
    sector = State(U64, 0, doc="the next to be read or written")
    left = State(U64, 0, doc="sectors of the command under way")
    per_block = State(U16, 1, doc="sectors of one PIO block")
    smart_enabled = State(BOOL, True)
    queue_error = State(Buffer(512), b"", doc="log page 10h: the queued command that failed")
    multiple = State(U16, MULTIPLE_MOST)

    cyls = Property(UINT32, 0, doc="of the geometry that the drive reports")
    heads = Property(UINT32, 0)
    secs = Property(UINT32, 0)
    lcyls = Property(UINT32, 0, doc="of the geometry that the BIOS is told")
    lheads = Property(UINT32, 0)
    lsecs = Property(UINT32, 0)
    bios_chs_trans = Property(BIOS_TRANSLATION, "auto", name="bios-chs-trans")
    rotation_rate = Property(UINT16, 0, doc="in turns a minute; 1 for none")

    def __init__(self, backend: BlockBackend, number: int) -> None:
        super().__init__(backend, number)
        self.choose_geometry((0, 0, 0), "auto")

    def choose_geometry(self, chosen: tuple[int, int, int], translation: str) -> None:
        """Take cylinders, heads and sectors, zeros for a guess. Raises UserError for what cannot be."""
        guess = guess_geometry(self.sectors, self._first_sector())
        self.geometry = shape = chosen_geometry(chosen, translation, guess)
        self.cyls, self.heads, self.secs = shape.cylinders, shape.heads, shape.sectors
        self.bios_chs_trans = TRANSLATIONS[shape.translation]

    def _first_sector(self) -> bytes:
        content = bytearray(SECTOR)
        if self.backend.node is not None and self.backend.size:
            self.backend.node.read(0, [memoryview(content)])
        return bytes(content)

    @property
    def sectors(self) -> int:
        """Of the whole disk."""
        return self.backend.size // SECTOR

    def command_name(self, command: int) -> str | None:
        self.lba48 = command in LBA48_COMMANDS
        return COMMANDS.get(command)

    # Addresses.

    def _address(self) -> int:
        """The first sector, in whichever of the three ways the registers hold it; -1 for one that cannot be."""
        if self.select & reg.DEVICE_LBA:
            low = self.lba_high << 16 | self.lba_mid << 8 | self.lba_low
            if self.lba48:
                return self.hob_high << 40 | self.hob_mid << 32 | self.hob_low << 24 | low
            return (self.select & 0x0F) << 24 | low
        cylinder, head = self.lba_high << 8 | self.lba_mid, self.select & 0x0F
        return (cylinder * self.geometry.heads + head) * self.geometry.sectors + self.lba_low - 1

    def _set_address(self, sector: int) -> None:
        """The registers show how far a command has got."""
        if self.select & reg.DEVICE_LBA:
            self.lba_low, self.lba_mid, self.lba_high = sector & 0xFF, sector >> 8 & 0xFF, sector >> 16 & 0xFF
            if self.lba48:
                self.hob_low, self.hob_mid, self.hob_high = (sector >> shift & 0xFF for shift in (24, 32, 40))
            else:
                self.select = self.select & 0xF0 | sector >> 24 & 0x0F
            return
        track, number = divmod(sector, self.geometry.sectors)
        cylinder, head = divmod(track, self.geometry.heads)
        self.lba_low, self.lba_mid, self.lba_high = number + 1 & 0xFF, cylinder & 0xFF, cylinder >> 8 & 0xFF
        self.select = self.select & 0xF0 | head & 0x0F

    def _start(self) -> bool:
        """Take the range that the registers name; an address past the end fails the command."""
        count = self.count | self.hob_count << 8 if self.lba48 else self.count
        self.left = count or (0x1_0000 if self.lba48 else 0x100)
        self.sector = max(first := self._address(), 0)
        if first < 0 or first + self.left > self.sectors:
            self.abort()
            return False
        return True

    def _advance(self, sectors: int) -> None:
        self.sector += sectors
        self.left -= sectors
        self._set_address(self.sector)
        self.count = self.left & 0xFF
        if self.lba48:
            self.hob_count = self.left >> 8 & 0xFF

    # Reading and writing.

    def _read_dma(self) -> None:
        if self._start():
            self._transfer_sectors(into_memory=True)

    def _write_dma(self) -> None:
        if self._start():
            self._transfer_sectors(into_memory=False)

    def _transfer_sectors(self, *, into_memory: bool, pio: bool = False) -> None:
        length, offset = self.left * SECTOR, self.sector * SECTOR
        self.start_transfer(
            DISK_TRANSFER, length, into_memory=into_memory, step="_transferred", offset=offset, pio=pio
        )

    def _transferred(self) -> None:
        self._advance(self.left)
        self.succeed()

    def _read_sectors(self) -> None:
        self._read_blocks(1)

    def _read_multiple(self) -> None:
        self._read_blocks(self.multiple)

    def _read_blocks(self, per_block: int) -> None:
        if not per_block:
            self.abort()
        elif self._start():
            self.per_block = per_block
            if self.wire.direct:
                self._transfer_sectors(into_memory=True, pio=True)
            else:
                self._read_next()

    def _read_next(self) -> None:
        if not self.left:
            self._nothing_left()
            return
        size = min(self.left, self.per_block)
        content = bytearray(size * SECTOR)

        def ready(error: int) -> None:
            if error:
                self.fail(reg.UNC)
                return
            self._advance(size)
            self.send(content, "_read_next")
            self.wire.interrupt()

        self.backend.read(self.sector * SECTOR, [memoryview(content)], self.wait(ready))

    def _write_sectors(self) -> None:
        self._write_blocks(1)

    def _write_multiple(self) -> None:
        self._write_blocks(self.multiple)

    def _write_blocks(self, per_block: int) -> None:
        if not per_block:
            self.abort()
        elif self._start():
            self.per_block = per_block
            if self.wire.direct:
                self._transfer_sectors(into_memory=False, pio=True)
            else:
                self.receive(min(self.left, per_block) * SECTOR, "_write_block")

    def _write_block(self) -> None:
        size = len(self.buffer) // SECTOR

        def written(error: int) -> None:
            if error:
                self.fail(reg.ABRT)
                return
            self._advance(size)
            if not self.left:
                self.succeed()
                return
            self.receive(min(self.left, self.per_block) * SECTOR, "_write_block")
            self.wire.interrupt()

        self.backend.write(self.sector * SECTOR, [memoryview(bytes(self.buffer))], self.wait(written))

    def _verify(self) -> None:
        if self._start():
            self.succeed()

    # The rest.

    def _nop(self) -> None:
        self.abort()

    def _ready(self) -> None:
        self.succeed()

    def _power(self) -> None:
        """Standby, idle and sleep modes: the disk is always up."""
        self.succeed(reg.DRDY)

    def _check_power(self) -> None:
        self.count = ACTIVE
        self.succeed()

    def _diagnose(self) -> None:
        """EXECUTE DEVICE DIAGNOSTIC; the bus has told the other drive too."""
        self.soft_reset()
        self.wire.interrupt()
        self.wire.command_done()

    def _native_max(self) -> None:
        self._set_address(max(self.sectors - 1, 0))
        self.succeed()

    def _identify(self) -> None:
        content = identify_disk(self.sectors, self.geometry, self.names, self._modes(), queued=self.wire.direct)
        content[434:436] = self.rotation_rate.to_bytes(2, "little")
        self.send(content)
        self.wire.interrupt()

    def _modes(self) -> Modes:
        self.modes.multiple = self.multiple
        return self.modes

    def _set_multiple(self) -> None:
        count = self.count
        if count > MULTIPLE_MOST or count & (count - 1):
            self.abort()
            return
        self.multiple = count
        self.succeed()

    def _smart(self) -> None:
        if (self.lba_mid, self.lba_high) != smart.SIGNATURE or not (self.smart_enabled or self.features == 0xD8):
            self.abort()
        elif self.features in smart.DATA:
            self.send(smart.DATA[self.features]())
            self.wire.interrupt()
        elif self.features in (0xD8, 0xD9):
            self.smart_enabled = self.features == 0xD8
            self.succeed()
        elif self.features in (0xD2, 0xD4):
            self.succeed()
        elif self.features == 0xDA:
            self.lba_mid, self.lba_high = smart.SIGNATURE
            self.succeed()
        else:
            self.abort()

    def note_queue_error(self, tag: int, sector: int) -> None:
        """A queued command has failed: what log page 10h says of it (ATA8-ACS, A.12), with its registers."""
        page = bytearray(512)
        low, high = sector.to_bytes(6, "little")[:3], sector.to_bytes(6, "little")[3:]
        page[0], page[2], page[3], page[4:7], page[7], page[8:11] = tag, self.status, self.error, low, 0x40, high
        page[511] = -sum(page) & 0xFF
        self.queue_error[:] = page

    def _read_log(self) -> None:
        """READ LOG EXT, READ LOG DMA EXT: the one page there is."""
        if self.lba_low == QUEUE_ERROR_LOG and self.queue_error and self.wire.direct:
            self.send(bytes(self.queue_error))
            self.queue_error.clear()
        else:
            self.abort()

    def _data_set_management(self) -> None:
        """TRIM (0x01): blocks of 64 ranges, each a 48-bit sector and a 16-bit count."""
        if self.features != 0x01:
            self.abort()
            return
        # QEMU looks at the low byte of the count only, although the command is one of 48 bits.
        length = (self.count or 1) * SECTOR
        self.buffer.clear()
        self.start_transfer(BUFFER_TRANSFER, min(length, 128 * SECTOR), into_memory=False, step="_trim")

    def _trim(self) -> None:
        ranges = [int.from_bytes(self.buffer[at : at + 8], "little") for at in range(0, len(self.buffer), 8)]
        wanted = [(entry & (1 << 48) - 1, entry >> 48) for entry in ranges if entry >> 48]
        if any(first + count > self.sectors for first, count in wanted):
            self._trimmed(reg.ABRT)
        else:
            self._trim_next(wanted)

    def _trimmed(self, error: int) -> None:
        self.wire.transfer_done()
        if error:
            self.fail(error)
        else:
            self.succeed()

    def _trim_next(self, wanted: list[tuple[int, int]]) -> None:
        """One range after the other; with discard=ignore they are all done at once."""
        if not wanted or not self.backend.policy.discard:
            self._trimmed(0)
            return
        first, count = wanted.pop()
        done = self.wait(lambda error: self._trimmed(reg.ABRT) if error else self._trim_next(wanted))
        self.backend.discard(first * SECTOR, count * SECTOR, done)
