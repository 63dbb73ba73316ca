"""16550A UART (National Semiconductor PC16550D data sheet), as on every PC's COM ports.

The transmitter has no wire to wait for: a byte goes to the chardev in the instruction that wrote it, and the holding
register is empty again before the next. Only when the chardev takes no more does the transmit FIFO fill and THRE
go down. Each such write still lowers and raises the THRE interrupt, because the interrupt input is edge-triggered.

Received bytes are pulled from the chardev only while the receive FIFO has room, so pasting never overruns. Below the
trigger level the character-timeout interrupt comes four character times after the last byte moved.

OUT2 does not gate the interrupt line (it does on a PC's board): firmware and small kernels written against QEMU rely
on that.
"""

from pellucid.kvm.clock import Clock
from pellucid.machine.chardev.base import Chardev, ChardevEvent
from pellucid.machine.device import Device, Property, Region, Register, State
from pellucid.machine.firmware import aml
from pellucid.machine.irq import IrqLine
from pellucid.machine.properties import UINT32
from pellucid.machine.state import BOOL, Queue

FIFO_SIZE = 16
TRIGGER_LEVELS = (1, 4, 8, 14)

IER_RECEIVED, IER_THR_EMPTY, IER_LINE_STATUS, IER_MODEM_STATUS = 0x01, 0x02, 0x04, 0x08
IIR_NONE, IIR_MODEM_STATUS, IIR_THR_EMPTY = 0x01, 0x00, 0x02
IIR_RECEIVED, IIR_LINE_STATUS, IIR_TIMEOUT = 0x04, 0x06, 0x0C
IIR_FIFOS = 0xC0
FCR_ENABLE, FCR_CLEAR_RECEIVER, FCR_CLEAR_TRANSMITTER = 0x01, 0x02, 0x04
LCR_TWO_STOP_BITS, LCR_PARITY, LCR_DLAB = 0x04, 0x08, 0x80
MCR_DTR, MCR_RTS, MCR_OUT1, MCR_OUT2, MCR_LOOP = 0x01, 0x02, 0x04, 0x08, 0x10
LSR_DATA_READY, LSR_OVERRUN, LSR_BREAK, LSR_THR_EMPTY, LSR_IDLE = 0x01, 0x02, 0x10, 0x20, 0x40
LSR_ERRORS = 0x1E
MSR_DELTAS, MSR_DELTA_RI = 0x0F, 0x04
MSR_CTS, MSR_DSR, MSR_RI, MSR_DCD = 0x10, 0x20, 0x40, 0x80
MSR_CONNECTED = MSR_CTS | MSR_DSR | MSR_DCD


def _dlab_clear(port: "Serial") -> bool:
    return not port.lcr & LCR_DLAB


def _dlab_set(port: "Serial") -> bool:
    return bool(port.lcr & LCR_DLAB)


class Serial(Device):
    """One COM port: eight byte registers, an interrupt line, a chardev."""

    kind = "isa-serial"
    regions = (Region("serial", 8),)

    index = Property(UINT32, 0, doc="which COM port it is, counted from 0")
    baudbase = Property(UINT32, 115200, doc="baud rate at divisor 1")

    rbr = Register(0, access="ro", bank=_dlab_clear, stored=False, doc="receiver buffer")
    thr = Register(0, access="wo", bank=_dlab_clear, stored=False, doc="transmitter holding")
    ier = Register(1, bank=_dlab_clear, doc="interrupt enable")
    dll = Register(0, reset=0x0C, bank=_dlab_set, doc="divisor, low byte")
    dlm = Register(1, bank=_dlab_set, doc="divisor, high byte")
    iir = Register(2, access="ro", stored=False, doc="interrupt identification")
    fcr = Register(2, access="wo", doc="FIFO control")
    lcr = Register(3, doc="line control")
    mcr = Register(4, reset=MCR_OUT2, writable=0x1F, doc="modem control")
    lsr = Register(5, access="ro", doc="line status; stored are the error bits")
    msr = Register(6, reset=MSR_CONNECTED, access="ro", doc="modem status")
    scr = Register(7, doc="scratch")

    receive_fifo = State(Queue(FIFO_SIZE), b"")
    transmit_fifo = State(Queue(FIFO_SIZE), b"", doc="bytes that the chardev has not taken yet")
    thr_interrupt = State(BOOL, False, doc="THR became empty and no IIR read or THR write has acknowledged it")
    timeout_interrupt = State(BOOL, False, doc="bytes lie in the FIFO, below the trigger level, for too long")

    def __init__(self, irq: IrqLine, chardev: Chardev, clock: Clock, *, index: int = 0, baudbase: int = 115200) -> None:
        self._irq = irq
        self._level = False
        self._chardev = chardev
        self._clock = clock
        self._timeout = clock.timer(self._character_timeout)
        super().__init__()
        self.index, self.baudbase = index, baudbase
        chardev.set_receiver(self.receive, self.can_receive, writable=self._drain, event=self._chardev_event)

    def reset(self) -> None:
        super().reset()
        self._timeout.cancel()
        self._update_irq()

    def after_load(self) -> None:
        self._arm_timeout()
        self._irq.set(self._level)
        self._update_irq()
        self._drain()

    def acpi(self, where: aml.Resources) -> bytes:
        """COM1 to COM4."""
        return aml.device(
            f"COM{self.index + 1}",
            aml.name("_HID", aml.eisa_id("PNP0501"))
            + aml.name("_UID", aml.integer(self.index + 1))
            + aml.name("_STA", aml.integer(0x0F))
            + aml.name("_CRS", aml.resource_template(aml.io_ports(where.ports[0], 8), aml.irq(where.gsi))),
        )

    # The transmitter.

    @thr.on_write
    def _write_thr(self, value: int) -> None:
        self.thr_interrupt = False
        if self._level:
            self._update_irq()
        byte = bytes((value,))
        if self.mcr & MCR_LOOP:
            self._push(byte)
        elif self.transmit_fifo or not self._chardev.write(byte):
            capacity = FIFO_SIZE if self.fcr & FCR_ENABLE else 1
            self.transmit_fifo = (self.transmit_fifo + byte)[-capacity:]
        self._thr_emptied()

    def _thr_emptied(self) -> None:
        if not self.transmit_fifo:
            self.thr_interrupt = True
        self._update_irq()

    def _drain(self) -> None:
        """The chardev has room again."""
        if self.transmit_fifo:
            self.transmit_fifo = self.transmit_fifo[self._chardev.write(self.transmit_fifo) :]
            self._thr_emptied()

    # The receiver.

    def can_receive(self) -> int:
        """Bytes that the chardev may deliver now; none in loopback, where the receiver is cut off from the line."""
        if self.mcr & MCR_LOOP:
            return 0
        return (FIFO_SIZE if self.fcr & FCR_ENABLE else 1) - len(self.receive_fifo)

    def receive(self, data: bytes) -> None:
        """Bytes from the line, at most can_receive() of them."""
        self._push(data)
        self._update_irq()

    def _push(self, data: bytes) -> None:
        """Into the receive FIFO; what finds no room is lost and shows as an overrun."""
        capacity = FIFO_SIZE if self.fcr & FCR_ENABLE else 1
        room = capacity - len(self.receive_fifo)
        if len(data) > room:
            self.lsr |= LSR_OVERRUN
        # With the FIFO on, the byte in the shift register is overwritten; with it off, the one in the buffer is.
        self.receive_fifo = (self.receive_fifo + data)[:capacity] if capacity > 1 else data[-1:]
        self._arm_timeout()

    def _chardev_event(self, event: ChardevEvent) -> None:
        if event is ChardevEvent.BREAK and not self.mcr & MCR_LOOP:
            self.lsr |= LSR_BREAK
            self.receive(b"\0")

    @rbr.on_read
    def _read_rbr(self) -> int:
        if not self.receive_fifo:
            return 0
        value = self.receive_fifo[0]
        self.receive_fifo = self.receive_fifo[1:]
        self.timeout_interrupt = False
        self._arm_timeout()
        self._update_irq()
        if self.can_receive():
            self._chardev.accept_input()
        return value

    def _arm_timeout(self) -> None:
        if self.receive_fifo and self.fcr & FCR_ENABLE:
            self._timeout.arm(self._clock.now_ns() + 4 * self.character_ns())
        else:
            self._timeout.cancel()

    def _character_timeout(self) -> None:
        if self.receive_fifo and self.fcr & FCR_ENABLE:
            self.timeout_interrupt = True
            self._update_irq()

    def character_ns(self) -> int:
        """Nanoseconds that one character takes on the line: start, data, parity and stop bits at the baud rate."""
        bits = 1 + 5 + (self.lcr & 3) + bool(self.lcr & LCR_PARITY) + 1 + bool(self.lcr & LCR_TWO_STOP_BITS)
        divisor = max(self.dll | self.dlm << 8, 1)
        return bits * divisor * 1_000_000_000 // self.baudbase

    # Control and status.

    @ier.on_write
    def _write_ier(self, value: int) -> None:
        if (value ^ self.ier) & IER_THR_EMPTY:
            # Enabling the interrupt while the register is empty raises it; drivers start transmission that way.
            self.thr_interrupt = bool(value & IER_THR_EMPTY) and not self.transmit_fifo
        self.ier = value & 0x0F
        self._update_irq()

    @fcr.on_write
    def _write_fcr(self, value: int) -> None:
        switched = (value ^ self.fcr) & FCR_ENABLE
        if switched or value & FCR_CLEAR_RECEIVER:
            self.receive_fifo = b""
            self.timeout_interrupt = False
            self._timeout.cancel()
        if switched or value & FCR_CLEAR_TRANSMITTER:
            self.transmit_fifo = b""
            self.thr_interrupt = True
        self.fcr = value & 0xC9
        self._update_irq()
        if self.can_receive():
            self._chardev.accept_input()

    @mcr.after_write
    def _mcr_written(self) -> None:
        lines = self._modem_lines()
        changed = (lines ^ self.msr) >> 4
        if lines & MSR_RI:
            changed &= ~MSR_DELTA_RI  # RI counts on its trailing edge only.
        self.msr = lines | (self.msr | changed) & MSR_DELTAS
        self._update_irq()
        if self.can_receive():
            self._chardev.accept_input()

    def _modem_lines(self) -> int:
        """The MSR's upper half: the modem's lines, or in loopback the four outputs of the MCR."""
        if not self.mcr & MCR_LOOP:
            return MSR_CONNECTED
        wires = ((MCR_RTS, MSR_CTS), (MCR_DTR, MSR_DSR), (MCR_OUT1, MSR_RI), (MCR_OUT2, MSR_DCD))
        return sum(line for output, line in wires if self.mcr & output)

    @lsr.on_read
    def _read_lsr(self) -> int:
        value = self.lsr
        if self.receive_fifo:
            value |= LSR_DATA_READY
        if not self.transmit_fifo:
            value |= LSR_THR_EMPTY | LSR_IDLE
        if self.lsr:
            self.lsr = 0
            self._update_irq()
        return value

    @msr.on_read
    def _read_msr(self) -> int:
        value = self.msr
        if value & MSR_DELTAS:
            self.msr &= ~MSR_DELTAS
            self._update_irq()
        return value

    @iir.on_read
    def _read_iir(self) -> int:
        source = self._source()
        if source == IIR_THR_EMPTY:
            self.thr_interrupt = False
            self._update_irq()
        return source | (IIR_FIFOS if self.fcr & FCR_ENABLE else 0)

    def _source(self) -> int:
        """The pending interrupt of highest priority, as the IIR names it."""
        enabled = self.ier
        if enabled & IER_LINE_STATUS and self.lsr & LSR_ERRORS:
            return IIR_LINE_STATUS
        if enabled & IER_RECEIVED and self.receive_fifo:
            if not self.fcr & FCR_ENABLE or len(self.receive_fifo) >= TRIGGER_LEVELS[self.fcr >> 6]:
                return IIR_RECEIVED
            if self.timeout_interrupt:
                return IIR_TIMEOUT
        if enabled & IER_THR_EMPTY and self.thr_interrupt:
            return IIR_THR_EMPTY
        if enabled & IER_MODEM_STATUS and self.msr & MSR_DELTAS:
            return IIR_MODEM_STATUS
        return IIR_NONE

    def _update_irq(self) -> None:
        level = self._source() != IIR_NONE
        if level != self._level:
            self._level = level
            self._irq.set(level)
