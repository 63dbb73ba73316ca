"""`edu` (QEMU's docs/specs/edu): a PCI function to learn and to test drivers with.

    0x00  identification, 0x010000ED            0x60  raise: written bits are set in the interrupt status
    0x04  liveness: reads back inverted         0x64  acknowledge: written bits are cleared
    0x08  factorial: write n, read n!           0x80  DMA source
    0x20  status: bit 0 computing (never seen   0x88  DMA destination
          here), bit 7 interrupt when done      0x90  DMA bytes
    0x24  interrupt status                      0x98  DMA command: bit 0 start, bit 1 to memory, bit 2 interrupt

Registers below 0x80 take accesses of 4 bytes, those above 4 or 8. DMA goes between memory and 4 KiB of the device's own
at 0x40000, 100 ms after the command; a transfer that does not lie in them does nothing (QEMU ends there). The interrupt
is a message where the guest has enabled it, else INTA#.
"""

from pellucid.kvm.clock import Clock
from pellucid.machine.device import Property, Region, State
from pellucid.machine.pci import Bar, Msi, PciFunction
from pellucid.machine.properties import UINT64
from pellucid.machine.state import BOOL, S64, U32, U64, Memory
from pellucid.memory import AccessSizes

BAR_SIZE = 1 << 20
IDENTIFICATION, ALIVE, FACTORIAL, STATUS, INTERRUPT_STATUS = 0x00, 0x04, 0x08, 0x20, 0x24
RAISE, ACKNOWLEDGE, SOURCE, DESTINATION, COUNT, COMMAND = 0x60, 0x64, 0x80, 0x88, 0x90, 0x98
FIRST_WIDE = 0x80
VALUE_OF_IDENTIFICATION = 0x0100_00ED
INTERRUPT_WHEN_DONE = 0x80
START, TO_MEMORY, INTERRUPT_AFTER_DMA = 1, 2, 4
FACTORIAL_INTERRUPT, DMA_INTERRUPT = 0x001, 0x100
BUFFER, BUFFER_SIZE = 0x4_0000, 4096
DMA_DELAY_NS = 100_000_000
FIRST_ZERO_FACTORIAL = 34
"""From here on n! is a multiple of 2**32."""
NEVER = -1
ONES = (1 << 64) - 1


class Edu(PciFunction):
    """The function."""

    kind = "edu"
    vendor_id, device_id, revision, class_code = 0x1234, 0x11E8, 0x10, 0x00FF00
    interrupt_pin = 1
    regions = (Region("edu-mmio", BAR_SIZE, valid=AccessSizes(4, 8), impl=AccessSizes(4, 8)),)

    dma_mask = Property(UINT64, (1 << 28) - 1)

    alive = State(U32, 0)
    factorial = State(U32, 0)
    interrupt_when_done = State(BOOL, False)
    interrupts = State(U32, 0)
    source = State(U64, 0)
    destination = State(U64, 0)
    count = State(U64, 0)
    dma_command = State(U64, 0)
    due = State(S64, NEVER, doc="when the transfer is made, on the machine's clock; -1 while there is none")
    buffer = State(Memory(BUFFER_SIZE), bytes(BUFFER_SIZE))

    def __init__(self, clock: Clock, dma_mask: int = (1 << 28) - 1) -> None:
        self._clock = clock
        self._transfer = clock.timer(self._make_transfer)
        super().__init__()
        self.dma_mask = dma_mask
        self.add_bar(Bar(0, self.regions[0].memory_region(self.ops())))
        self._msi = Msi(self, 0x40, maskable=False)

    def reset(self) -> None:
        super().reset()
        self._transfer.cancel()
        self.set_intx(False)

    def after_load(self) -> None:
        super().after_load()
        if self.due == NEVER:
            self._transfer.cancel()
        else:
            self._transfer.arm(self.due)

    def region_read(self, region: int, offset: int, size: int) -> int:
        if size == 8 and offset < FIRST_WIDE:
            return ONES
        values = {
            IDENTIFICATION: VALUE_OF_IDENTIFICATION, ALIVE: self.alive, FACTORIAL: self.factorial,
            STATUS: INTERRUPT_WHEN_DONE if self.interrupt_when_done else 0, INTERRUPT_STATUS: self.interrupts,
            SOURCE: self.source, DESTINATION: self.destination, COUNT: self.count, COMMAND: self.dma_command,
        }  # fmt: skip
        return values.get(offset, ONES)

    def region_write(self, region: int, offset: int, size: int, value: int) -> None:
        if offset >= FIRST_WIDE:
            self._write_dma(offset, value)
        elif size == 8:
            return
        elif offset == ALIVE:
            self.alive = ~value & 0xFFFF_FFFF
        elif offset == FACTORIAL:
            self.factorial = factorial(value)
            if self.interrupt_when_done:
                self._raise(FACTORIAL_INTERRUPT)
        elif offset == STATUS:
            self.interrupt_when_done = bool(value & INTERRUPT_WHEN_DONE)
        elif offset == RAISE:
            self._raise(value)
        elif offset == ACKNOWLEDGE:
            self.interrupts &= ~value
            if not self.interrupts and not self._msi.enabled:
                self.set_intx(False)

    def _write_dma(self, offset: int, value: int) -> None:
        if self.dma_command & START:
            return
        if offset == SOURCE:
            self.source = value
        elif offset == DESTINATION:
            self.destination = value
        elif offset == COUNT:
            self.count = value
        elif offset == COMMAND and value & START:
            self.dma_command = value
            self.due = self._clock.now_ns() + DMA_DELAY_NS
            self._transfer.arm(self.due)

    def _raise(self, bits: int) -> None:
        self.interrupts |= bits
        if not self.interrupts:
            return
        if self._msi.enabled:
            self._msi.notify(0)
        else:
            self.set_intx(True)

    def _make_transfer(self) -> None:
        command, self.due = self.dma_command, NEVER
        if not command & START:
            return
        inside, outside = self.destination, self.source & self.dma_mask
        if command & TO_MEMORY:
            inside, outside = self.source, self.destination & self.dma_mask
        if BUFFER <= inside and inside + self.count <= BUFFER + BUFFER_SIZE:
            place = slice(inside - BUFFER, inside - BUFFER + self.count)
            if command & TO_MEMORY:
                self.dma.write_bytes(outside, bytes(self.buffer[place]))
            else:
                self.buffer[place] = self.dma.read_bytes(outside, self.count)
        self.dma_command = command & ~START
        if command & INTERRUPT_AFTER_DMA:
            self._raise(DMA_INTERRUPT)


def factorial(n: int) -> int:
    """n! modulo 2**32."""
    if n >= FIRST_ZERO_FACTORIAL:
        return 0
    product = 1
    for factor in range(2, n + 1):
        product = product * factor & 0xFFFF_FFFF
    return product
