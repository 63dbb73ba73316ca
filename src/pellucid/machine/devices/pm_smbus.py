"""The SMBus host controller of PIIX4 and ICH9 (data sheet 316972, 19.2), and the serial EEPROMs of memory modules.

A write of START to the control register carries out one transaction of the SMBus 2.0 protocols at once: quick, byte,
byte data, word data, process call, block (through the 32-byte buffer), and I2C
read. INTR then says done, DEV_ERR that nobody acknowledged.
"""

from typing import Protocol

from pellucid.machine.device import Device, Region, Register, State
from pellucid.machine.irq import IrqLine
from pellucid.machine.state import U8, Memory
from pellucid.memory import AccessSizes

HOST_BUSY, INTR, DEV_ERR, FAILED, BYTE_DONE = 0x01, 0x02, 0x04, 0x10, 0x80
STATUS_CLEARS = INTR | DEV_ERR | 0x08 | FAILED | 0x20 | 0x40 | BYTE_DONE
INTR_EN, KILL, START = 0x01, 0x02, 0x40
E32B = 0x02
QUICK, BYTE, BYTE_DATA, WORD_DATA, PROCESS_CALL, BLOCK, I2C_READ = range(7)
BLOCK_MOST = 32
EEPROM_SIZE = 256


class SmbusSlave(Protocol):
    """A device on the bus, at its own address."""

    def receive_byte(self) -> int:
        """The next byte that the slave sends."""
        ...

    def write_data(self, data: bytes) -> None:
        """A command byte and what follows it."""
        ...


class SmbusEeprom:
    """256 bytes that keep what is written (`smbus-eeprom`); the read position is the last command, and goes on."""

    def __init__(self, content: bytes = b"") -> None:
        self.content = bytearray(content[:EEPROM_SIZE].ljust(EEPROM_SIZE, b"\0"))
        self.offset = 0

    def receive_byte(self) -> int:
        value = self.content[self.offset]
        self.offset = (self.offset + 1) % EEPROM_SIZE
        return value

    def write_data(self, data: bytes) -> None:
        self.offset = data[0]
        for byte in data[1:]:
            self.content[self.offset] = byte
            self.offset = (self.offset + 1) % EEPROM_SIZE


class PmSmbus(Device):
    """The controller's registers, in front of `slaves` by address (seven bits). `irq` hears of each completion.

    blocks: the auxiliary control begins with E32B set, as QEMU's PIIX4 has it.
    """

    kind = "pm-smbus"
    regions = (Region("pm-smbus", 64, valid=AccessSizes(1, 1), impl=AccessSizes(1, 1)),)

    status = Register(0x00, doc="HST_STS; a written 1 clears")
    control = Register(0x02, doc="HST_CNT: bit 0 interrupt, bits 4-2 protocol, bit 6 start")
    command = Register(0x03)
    address = Register(0x04, doc="XMIT_SLVA: bit 0 read, bits 7-1 the slave")
    data_0 = Register(0x05)
    data_1 = Register(0x06)
    block_data = Register(0x07, stored=False, doc="HOST_BLOCK_DB: the buffer; a read of control goes to its begin")
    auxiliary_control = Register(0x0D, doc="bit 1 E32B: blocks go through the buffer")

    buffer = State(Memory(BLOCK_MOST), bytes(BLOCK_MOST))
    buffer_index = State(U8, 0)

    def __init__(self, slaves: dict[int, SmbusSlave], irq: IrqLine | None = None, *, blocks: bool = False) -> None:
        self._slaves, self._irq, self._blocks = slaves, irq, blocks
        super().__init__()
        self.reset()

    def reset(self) -> None:
        super().reset()
        self.auxiliary_control = E32B if self._blocks else 0
        self._drive()

    def region_read(self, region: int, offset: int, size: int) -> int:
        # What is reserved reads as 0, not as an empty bus.
        return super().region_read(region, offset, size) if (region, offset) in self._readers else 0

    def after_load(self) -> None:
        self.buffer_index %= BLOCK_MOST
        self._drive()

    def _drive(self) -> None:
        if self._irq is not None:
            done = self.status & (INTR | DEV_ERR | FAILED | BYTE_DONE)
            self._irq.set(bool(done and self.control & INTR_EN))

    @status.on_write
    def _clear_status(self, value: int) -> None:
        self.status &= ~(value & STATUS_CLEARS)
        self._drive()

    @control.on_read
    def _read_control(self) -> int:
        self.buffer_index = 0
        return self.control & ~START

    @control.on_write
    def _write_control(self, value: int) -> None:
        self.control = value & ~(START | KILL)
        if value & KILL:
            self.status |= FAILED
        elif value & START:
            self.buffer_index = 0
            self.status |= INTR if self._transact(value >> 2 & 7) else DEV_ERR
        self._drive()

    @block_data.on_read
    def _read_block_data(self) -> int:
        value = self.buffer[self.buffer_index]
        self.buffer_index = (self.buffer_index + 1) % BLOCK_MOST
        return value

    @block_data.on_write
    def _write_block_data(self, value: int) -> None:
        self.buffer[self.buffer_index] = value
        self.buffer_index = (self.buffer_index + 1) % BLOCK_MOST

    def _transact(self, protocol: int) -> bool:
        """Carry out one transaction; False when nobody answers or there is no such protocol."""
        slave = self._slaves.get(self.address >> 1)
        if slave is None or protocol > I2C_READ:
            return False
        if protocol == QUICK:
            return True
        if protocol == BLOCK:
            return self._block(slave)
        if protocol == I2C_READ:
            slave.write_data(bytes((self.data_1,)))
            self._fill(slave, BLOCK_MOST)
            return True
        words = 2 if protocol in (WORD_DATA, PROCESS_CALL) else 1
        reading = bool(self.address & 1)
        if protocol == BYTE:
            if reading:
                self.data_0 = slave.receive_byte()
            else:
                slave.write_data(bytes((self.command,)))
            return True
        if protocol == PROCESS_CALL or not reading:
            slave.write_data(bytes((self.command, self.data_0, self.data_1)[: 1 + words]))
        else:
            slave.write_data(bytes((self.command,)))
        if reading or protocol == PROCESS_CALL:
            self.data_0 = slave.receive_byte()
            if words == 2:
                self.data_1 = slave.receive_byte()
        return True

    def _block(self, slave: SmbusSlave) -> bool:
        if self.address & 1:
            slave.write_data(bytes((self.command,)))
            self.data_0 = min(slave.receive_byte(), BLOCK_MOST)
            self._fill(slave, self.data_0)
            return self.data_0 > 0
        if not 0 < self.data_0 <= BLOCK_MOST:
            return False
        slave.write_data(bytes((self.command, self.data_0)) + bytes(self.buffer[: self.data_0]))
        return True

    def _fill(self, slave: SmbusSlave, count: int) -> None:
        for index in range(count):
            self.buffer[index] = slave.receive_byte()
