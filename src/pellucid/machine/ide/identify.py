"""IDENTIFY DEVICE and IDENTIFY PACKET DEVICE: 256 words (ATA8-ACS, 7.16 and 7.17), with QEMU's names and numbers."""

from collections.abc import Callable

from pellucid.machine.ide.geometry import Geometry
from pellucid.records import dataclass

MULTIPLE_MOST = 16
SMART, WRITE_CACHE, NOP = 0x0001, 0x0020, 0x4000
FLUSH_EXT, FLUSH, LBA48 = 0x2000, 0x1000, 0x0400
ALWAYS_ONE, WWN = 0x4000, 0x0100
MOST_LBA28 = (1 << 28) - 1
NCQ_DEPTH = 32


@dataclass(frozen=True)
class Names:
    """What a drive is called: serial number, firmware, model and world wide name (0 for none)."""

    serial: str
    firmware: str
    model: str
    wwn: int = 0

    @property
    def padded(self) -> tuple[bytes, bytes]:
        """Serial number and model as SCSI has them: ASCII filled up with blanks to 20 and 40 bytes."""
        serial, model = (text.encode("ascii", "replace") for text in (self.serial, self.model))
        return serial[:20].ljust(20), model[:40].ljust(40)


@dataclass
class Modes:
    """What SET FEATURES has chosen: the fields of words 62, 63 and 88, and the sectors of READ MULTIPLE."""

    single_dma: int = 0x0007
    multi_dma: int = 0x0007
    ultra_dma: int = 0x203F
    multiple: int = MULTIPLE_MOST
    write_cache: bool = True


def _choose(modes: Modes, single: int, multi: int, ultra: int) -> None:
    modes.single_dma, modes.multi_dma, modes.ultra_dma = 0x07 | single, 0x07 | multi, 0x3F | ultra


MODES: dict[int, Callable[[Modes, int], None]] = {
    0: lambda modes, bit: _choose(modes, 0, 0, 0),
    1: lambda modes, bit: _choose(modes, 0, 0, 0),
    2: lambda modes, bit: _choose(modes, bit, 0, 0),
    4: lambda modes, bit: _choose(modes, 0, bit, 0),
    8: lambda modes, bit: _choose(modes, 0, 0, bit),
}
"""What SET FEATURES 0x03 does, by bits 7:3 of its count: PIO twice, single word, multiword and ultra DMA."""


def _text(words: list[int], first: int, count: int, text: str) -> None:
    """Two characters a word, the first in the high byte, filled up with blanks."""
    padded = text.encode("ascii", "replace")[: 2 * count].ljust(2 * count)
    for index in range(count):
        words[first + index] = padded[2 * index] << 8 | padded[2 * index + 1]


def _names(words: list[int], names: Names) -> None:
    words[20:23] = 3, 512, 4
    _text(words, 10, 10, names.serial)
    _text(words, 23, 4, names.firmware)
    _text(words, 27, 20, names.model)


def _dma(words: list[int], modes: Modes) -> None:
    words[53] = 0x0007
    words[62], words[63], words[88] = modes.single_dma, modes.multi_dma, modes.ultra_dma
    words[64] = 0x0003


def _packed(words: list[int]) -> bytearray:
    return bytearray(b"".join(word.to_bytes(2, "little") for word in words))


def _long(words: list[int], first: int, count: int, value: int) -> None:
    for index in range(count):
        words[first + index] = value >> 16 * index & 0xFFFF


def identify_disk(sectors: int, geometry: Geometry, names: Names, modes: Modes, *, queued: bool) -> bytearray:
    """A disk of `sectors` blocks of 512 bytes. `queued`: behind a controller with native command queuing."""
    words = [0] * 256
    words[0] = 0x0040
    words[1], words[3], words[6] = geometry.cylinders, geometry.heads, geometry.sectors
    words[4], words[5] = 512 * geometry.sectors, 512
    _names(words, names)
    words[47], words[48], words[49] = 0x8000 | MULTIPLE_MOST, 1, 0x0B00
    words[51] = words[52] = 0x0200
    words[54], words[55], words[56] = geometry.cylinders, geometry.heads, geometry.sectors
    _long(words, 57, 2, geometry.cylinders * geometry.heads * geometry.sectors)
    words[59] = 0x0100 | modes.multiple if modes.multiple else 0
    _long(words, 60, 2, min(sectors, MOST_LBA28))
    _dma(words, modes)
    words[65:69] = [120] * 4
    words[69] = 0x4000
    if queued:
        words[75], words[76] = NCQ_DEPTH - 1, 0x0100
    words[80], words[81] = 0x00F0, 0x0016
    wwn = WWN if names.wwn else 0
    words[82], words[83], words[84] = NOP | WRITE_CACHE | SMART, 0x4000 | FLUSH_EXT | FLUSH | LBA48, ALWAYS_ONE | wwn
    words[85] = NOP | SMART | (WRITE_CACHE if modes.write_cache else 0)
    words[86], words[87] = FLUSH_EXT | FLUSH | LBA48, ALWAYS_ONE | wwn
    words[93] = 0x6001
    _long(words, 100, 4, sectors)
    words[106] = 0x6000
    for index in range(4):
        words[108 + index] = names.wwn >> 16 * (3 - index) & 0xFFFF
    words[169] = 0x0001
    return _packed(words)


def identify_packet(names: Names, modes: Modes, *, queued: bool) -> bytearray:
    """A CD or DVD drive that takes packets of 12 bytes and answers within 50 us."""
    words = [0] * 256
    words[0] = 0x85C0
    _names(words, names)
    words[48], words[49] = 1, 0x0300
    _dma(words, modes)
    words[65:69] = [0xB4, 0xB4, 0x12C, 0xB4]
    words[71] = words[72] = 30
    if queued:
        words[75], words[76] = NCQ_DEPTH - 1, 0x0100
    words[80] = 0x001E
    wwn = WWN if names.wwn else 0
    words[84] = words[87] = wwn
    for index in range(4):
        words[108 + index] = names.wwn >> 16 * (3 - index) & 0xFFFF
    return _packed(words)
