"""8237A DMA controller (Intel 8237A data sheet, 231466) and the PC's page registers, twice on a PC.

Region 0 has address and count of the four channels, region 1 the command registers, regions 2 and 3 the page registers
that give address bits 23-16. The registers of the controller of 16-bit channels are two ports apart and count words.

A device gets a `DmaChannel`. It requests service, and is called when the guest lets the channel run; then it moves
data with `to_memory` and `from_memory`, each of which moves what is left of the block at most. Which way the data go,
the device says: its mode bits are not looked at. Addresses wrap within a page of 64 Ki units, as the chip's 16-bit
counter does.
"""

from collections.abc import Callable
from typing import ClassVar, Protocol

from pellucid.machine.device import Device, Region, State
from pellucid.machine.state import BOOL, U8, Memory
from pellucid.memory import MemTxResult

CHANNELS = 4
COMMAND, REQUEST, SINGLE_MASK, MODE, CLEAR_FLIP_FLOP, MASTER_CLEAR, CLEAR_MASK, ALL_MASK = range(8)
DISABLED = 0x04
MODE_AUTO, MODE_DOWN = 0x10, 0x20
PAGE_OF_OFFSET = {1: 2, 2: 3, 3: 1, 7: 0}
"""Which channel's page is behind each port of the page register block (PC/AT technical reference)."""


class DmaMemory(Protocol):
    """Memory as the controller reaches it: a `pellucid.memory.AddressSpace`."""

    def read_bytes(self, addr: int, length: int) -> bytes: ...
    def write_bytes(self, addr: int, data: bytes) -> MemTxResult: ...


class Dma8237(Device):
    """One controller. Addresses and counts are kept as 16-bit pairs: base (as programmed) and current."""

    kind = "i8257"
    shift: ClassVar[int] = 0
    regions = (Region("dma-chan", 8), Region("dma-cont", 8), Region("dma-page", 3), Region("dma-page", 1))

    base = State(Memory(4 * CHANNELS), bytes(4 * CHANNELS), doc="address and count as programmed, 16 bits each")
    current = State(Memory(4 * CHANNELS), bytes(4 * CHANNELS), doc="address and count now")
    pages = State(Memory(8), bytes(8), doc="page registers by port")
    modes = State(Memory(CHANNELS), bytes(CHANNELS))
    command = State(U8, 0)
    status = State(U8, 0, doc="bits 3-0 terminal count reached, bits 7-4 requests")
    mask = State(U8, 0x0F)
    high_byte = State(BOOL, False, doc="the flip-flop: the next byte is the upper one")

    def __init__(self, memory: DmaMemory) -> None:
        self._memory = memory
        self._waiting: dict[int, Callable[[], None]] = {}
        super().__init__()

    def reset(self) -> None:
        super().reset()
        self._waiting.clear()

    def after_load(self) -> None:
        self._serve()

    def region_read(self, region: int, offset: int, size: int) -> int:
        if region == 0:
            return self._read_channel(offset >> self.shift)
        if region == 1:
            return self._read_control(offset >> self.shift)
        return self.pages[_page_port(region, offset)]

    def region_write(self, region: int, offset: int, size: int, value: int) -> None:
        if region == 0:
            self._write_channel(offset >> self.shift, value & 0xFF)
        elif region == 1:
            self._write_control(offset >> self.shift, value & 0xFF)
        else:
            self.pages[_page_port(region, offset)] = value & 0xFF
        if region == 1:
            self._serve()

    def _read_channel(self, register: int) -> int:
        value = self.current[2 * register + self.high_byte]
        self.high_byte = not self.high_byte
        return value

    def _write_channel(self, register: int, value: int) -> None:
        self.base[2 * register + self.high_byte] = self.current[2 * register + self.high_byte] = value
        self.high_byte = not self.high_byte

    def _read_control(self, register: int) -> int:
        if register == COMMAND:
            # Reading the status clears the terminal counts.
            value, self.status = self.status, self.status & 0xF0
            return value
        return self.mask | 0xF0 if register == ALL_MASK else 0

    def _write_control(self, register: int, value: int) -> None:
        channel, bit = value & 3, 1 << (value & 3)
        if register == COMMAND:
            self.command = value
        elif register == REQUEST:
            self.status = self.status & ~(bit << 4) | (bit << 4 if value & 4 else 0)
        elif register == SINGLE_MASK:
            self.mask = self.mask & ~bit | (bit if value & 4 else 0)
        elif register == MODE:
            self.modes[channel] = value & 0xFC
        elif register == CLEAR_FLIP_FLOP:
            self.high_byte = False
        elif register == MASTER_CLEAR:
            self.command = self.status = 0
            self.mask, self.high_byte = 0x0F, False
        elif register == CLEAR_MASK:
            self.mask = 0
        elif register == ALL_MASK:
            self.mask = value & 0x0F

    # What a device does.

    def channel(self, number: int) -> "DmaChannel":
        """A device's end of a channel."""
        return DmaChannel(self, number)

    def request(self, channel: int, serve: Callable[[], None]) -> None:
        """DREQ rises: `serve` is called as soon as the channel may run, at once if it may now."""
        self._waiting[channel] = serve
        self.status |= 0x10 << channel
        self._serve()

    def release(self, channel: int) -> None:
        """DREQ falls."""
        self._waiting.pop(channel, None)
        self.status &= ~(0x10 << channel)

    def _serve(self) -> None:
        for channel in range(CHANNELS):
            if self.ready(channel) and (serve := self._waiting.pop(channel, None)) is not None:
                serve()

    def ready(self, channel: int) -> bool:
        """Whether the guest lets the channel run."""
        return not self.command & DISABLED and not self.mask >> channel & 1

    def left(self, channel: int) -> int:
        """Bytes to go until the terminal count."""
        return (self._word(self.current, channel, 1) + 1) << self.shift

    def to_memory(self, channel: int, data: bytes | bytearray) -> int:
        """A device has `data`; the number of bytes that were moved."""
        return self._move(channel, data, len(data))[0] if self.ready(channel) else 0

    def from_memory(self, channel: int, length: int) -> bytes:
        """A device wants `length` bytes; those that there are."""
        return self._move(channel, None, length)[1] if self.ready(channel) else b""

    def _move(self, channel: int, data: bytes | bytearray | None, length: int) -> tuple[int, bytes]:
        length = min(length, self.left(channel)) & -(1 << self.shift)
        down = bool(self.modes[channel] & MODE_DOWN)
        page = self.pages[next(port for port, owner in PAGE_OF_OFFSET.items() if owner == channel)]
        out = bytearray()
        while length > len(out):
            address = self._word(self.current, channel, 0)
            # Upwards the units up to the wrap lie side by side.
            size = 1 << self.shift if down else min(length - len(out), (0x10000 - address) << self.shift)
            place = (page & ~self.shift) << 16 | address << self.shift
            if data is not None:
                piece = bytes(data[len(out) : len(out) + size])
                self._memory.write_bytes(place, piece)
            else:
                piece = self._memory.read_bytes(place, size)
            out += piece
            units = size >> self.shift
            self._set_word(channel, 0, (address + (-units if down else units)) & 0xFFFF)
        count = self._word(self.current, channel, 1) - (length >> self.shift)
        self._set_word(channel, 1, count & 0xFFFF)
        if count < 0:
            self._terminal_count(channel)
        return length, bytes(out)

    def _terminal_count(self, channel: int) -> None:
        self.status |= 1 << channel
        if self.modes[channel] & MODE_AUTO:
            self.current[4 * channel : 4 * channel + 4] = self.base[4 * channel : 4 * channel + 4]
        else:
            self.mask |= 1 << channel

    def _word(self, memory: bytearray, channel: int, which: int) -> int:
        at = 4 * channel + 2 * which
        return int.from_bytes(memory[at : at + 2], "little")

    def _set_word(self, channel: int, which: int, value: int) -> None:
        at = 4 * channel + 2 * which
        self.current[at : at + 2] = value.to_bytes(2, "little")


class DmaChannel:
    """One channel as the device on it sees it."""

    def __init__(self, controller: Dma8237, number: int) -> None:
        self._controller, self._number = controller, number

    @property
    def left(self) -> int:
        """Bytes that the guest has programmed and that are still to go."""
        return self._controller.left(self._number)

    def request(self, serve: Callable[[], None]) -> None:
        """Raise DREQ; `serve` is called once, at once or when the guest lets the channel run."""
        self._controller.request(self._number, serve)

    def release(self) -> None:
        """Lower DREQ; who waits is forgotten."""
        self._controller.release(self._number)

    def to_memory(self, data: bytes | bytearray) -> int:
        """Give `data`; the number of bytes that went."""
        return self._controller.to_memory(self._number, data)

    def from_memory(self, length: int) -> bytes:
        """Take up to `length` bytes."""
        return self._controller.from_memory(self._number, length)


class Dma8237Wide(Dma8237):
    """The controller of the 16-bit channels."""

    shift = 1
    regions = (Region("dma-chan", 16), Region("dma-cont", 16), Region("dma-page", 3), Region("dma-page", 1))


def _page_port(region: int, offset: int) -> int:
    """The block of page registers begins one port below region 2; region 3 is its last port."""
    return 1 + offset if region == 2 else 7
