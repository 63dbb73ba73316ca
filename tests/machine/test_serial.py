"""16550A: registers, FIFOs, interrupts in their priority, loopback, back-pressure, time-outs."""

from hypothesis import given
from hypothesis import strategies as st

from pellucid.machine.chardev.base import ChardevEvent, MemoryChardev
from pellucid.machine.devices import serial
from pellucid.machine.devices.serial import Serial
from tests.machine.helpers import HandClock, Wire, round_trip

RBR = THR = DLL = 0
IER = DLM = 1
IIR = FCR = 2
LCR, MCR, LSR, MSR, SCR = 3, 4, 5, 6, 7
ENABLE_ALL_FIFO_1, ENABLE_FIFO_8 = 0x01, 0x81


class Port:
    """A UART with everything around it."""

    def __init__(self) -> None:
        self.irq = Wire()
        self.line = MemoryChardev()
        self.clock = HandClock()
        self.uart = Serial(self.irq, self.line, self.clock)

    def read(self, offset: int) -> int:
        return self.uart.read(offset, 1)

    def write(self, offset: int, value: int) -> None:
        self.uart.write(offset, 1, value)


class FullChardev(MemoryChardev):
    """Takes `left` more bytes, then nothing."""

    left = 0

    def write(self, data: bytes) -> int:
        taken = super().write(data[: self.left])
        self.left -= taken
        return taken

    def free(self, count: int) -> None:
        self.left += count
        self._writable()


def test_a_byte_goes_straight_out() -> None:
    port = Port()
    for byte in b"hello":
        assert port.read(LSR) == 0x60
        port.write(THR, byte)
    assert port.line.output == b"hello"
    assert port.read(LSR) == 0x60


def test_thr_empty_interrupt_rises_anew_for_each_write() -> None:
    port = Port()
    port.write(IER, 0x02)
    assert port.irq.level and port.irq.edges == 1
    assert port.read(IIR) == 0x02
    assert not port.irq.level
    assert port.read(IIR) == 0x01
    port.write(THR, 0x41)
    port.write(THR, 0x42)
    assert port.irq.level and port.irq.edges == 3


def test_enabling_the_thr_interrupt_again_raises_it_again() -> None:
    port = Port()
    port.write(IER, 0x02)
    port.read(IIR)
    port.write(IER, 0x02)
    assert port.read(IIR) == 0x01, "unchanged, so no new interrupt"
    port.write(IER, 0x00)
    port.write(IER, 0x02)
    assert port.read(IIR) == 0x02


def test_divisor_latch_hides_data_and_ier() -> None:
    port = Port()
    port.write(LCR, 0x83)
    port.write(DLL, 0x01)
    port.write(DLM, 0x02)
    assert (port.read(DLL), port.read(DLM)) == (0x01, 0x02)
    port.write(LCR, 0x03)
    assert port.read(IER) == 0
    assert port.uart.character_ns() == 10 * 0x201 * 1_000_000_000 // 115200
    assert port.line.output == b""


def test_zero_divisor_is_no_division_by_zero() -> None:
    port = Port()
    port.write(LCR, 0x80)
    port.write(DLL, 0)
    port.write(DLM, 0)
    assert port.uart.character_ns() > 0


def test_16550a_is_detected() -> None:
    port = Port()
    port.write(FCR, 0x01)
    assert port.read(IIR) >> 6 == 3
    port.write(FCR, 0x00)
    assert port.read(IIR) >> 6 == 0
    port.write(SCR, 0x5A)
    assert port.read(SCR) == 0x5A
    port.write(IER, 0xFF)
    assert port.read(IER) == 0x0F


def test_without_fifo_one_byte_at_a_time_is_pulled() -> None:
    port = Port()
    port.write(IER, 0x01)
    port.line.feed(b"abc")
    received = bytearray()
    while port.read(LSR) & 0x01:
        assert port.read(IIR) == 0x04 and port.irq.level
        received.append(port.read(RBR))
    assert received == b"abc"
    assert not port.irq.level and not port.read(LSR) & 0x02, "no overrun"


def test_fifo_raises_at_its_trigger_level() -> None:
    port = Port()
    port.write(FCR, ENABLE_FIFO_8)
    port.write(IER, 0x01)
    port.line.feed(b"1234567")
    assert port.read(IIR) == 0xC1
    port.line.feed(b"8")
    assert port.read(IIR) == 0xC4
    port.read(RBR)
    assert port.read(IIR) == 0xC1


def test_character_timeout_after_four_characters() -> None:
    port = Port()
    port.write(LCR, 0x03)
    port.write(FCR, ENABLE_FIFO_8)
    port.write(IER, 0x01)
    port.line.feed(b"ab")
    port.clock.advance(4 * port.uart.character_ns() - 1)
    assert port.read(IIR) == 0xC1
    port.clock.advance(1)
    assert port.read(IIR) == 0xCC and port.irq.level
    assert port.read(RBR) == ord("a")
    assert port.read(IIR) == 0xC1 and not port.irq.level
    port.clock.advance(4 * port.uart.character_ns())
    assert port.read(IIR) == 0xCC
    port.read(RBR)
    port.clock.advance(10**9)
    assert port.read(IIR) == 0xC1


def test_pasting_never_overruns() -> None:
    port = Port()
    port.write(FCR, 0xC1)
    text = bytes(range(256)) * 4
    port.line.feed(text)
    received = bytearray()
    while (status := port.read(LSR)) & 0x01:
        assert not status & 0x02
        received.append(port.read(RBR))
    assert received == text


def test_back_pressure_fills_the_fifo_and_clears_thre() -> None:
    port = Port()
    line = FullChardev()
    uart = Serial(port.irq, line, port.clock)
    uart.write(FCR, 1, 0x01)
    uart.write(IER, 1, 0x02)
    uart.read(IIR, 1)
    uart.write(THR, 1, ord("a"))
    assert not uart.read(LSR, 1) & 0x60 and not port.irq.level
    for byte in b"bcd":
        uart.write(THR, 1, byte)
    line.free(2)
    assert line.output == b"ab" and not uart.read(LSR, 1) & 0x20
    line.free(10)
    assert line.output == b"abcd"
    assert uart.read(LSR, 1) & 0x60 == 0x60 and port.irq.level


def test_a_guest_that_ignores_thre_loses_the_oldest() -> None:
    port = Port()
    line = FullChardev()
    uart = Serial(port.irq, line, port.clock)
    uart.write(FCR, 1, 0x01)
    for byte in range(40):
        uart.write(THR, 1, byte)
    line.free(100)
    assert line.output == bytes(range(24, 40))


def test_priorities_of_the_iir() -> None:
    port = Port()
    port.write(FCR, ENABLE_ALL_FIFO_1)
    port.write(IER, 0x0F)
    port.write(MCR, 0x10)
    port.write(MCR, 0x1F)
    port.write(THR, 0x55)
    port.uart.lsr |= serial.LSR_OVERRUN
    assert port.read(IIR) == 0xC6
    assert port.read(LSR) & 0x02
    assert port.read(IIR) == 0xC4
    assert port.read(RBR) == 0x55
    assert port.read(IIR) == 0xC2
    assert port.read(IIR) == 0xC0
    assert port.read(MSR) & 0x0F
    assert port.read(IIR) == 0xC1
    assert not port.irq.level


def test_loopback_wires_outputs_to_inputs() -> None:
    port = Port()
    port.write(MCR, 0x10)
    port.read(MSR)
    for output, line in ((0x01, 0x20), (0x02, 0x10), (0x04, 0x40), (0x08, 0x80)):
        port.write(MCR, 0x10 | output)
        assert port.read(MSR) & 0xF0 == line
    port.write(MCR, 0x10)
    assert port.read(MSR) & 0x0F == 0x08, "DCD fell"
    port.write(MCR, 0x14)
    assert not port.read(MSR) & 0x04, "RI counts on its trailing edge"
    port.write(MCR, 0x10)
    assert port.read(MSR) & 0x0F == 0x04
    port.write(THR, 0x99)
    assert port.line.output == b"" and port.read(RBR) == 0x99


def test_loopback_cuts_the_line_off() -> None:
    port = Port()
    port.write(MCR, 0x10)
    port.line.feed(b"x")
    assert not port.read(LSR) & 0x01
    port.write(MCR, 0x00)
    assert port.read(RBR) == ord("x")


def test_loopback_can_overrun() -> None:
    port = Port()
    port.write(MCR, 0x10)
    port.write(THR, 1)
    port.write(THR, 2)
    assert port.read(LSR) & 0x03 == 0x03
    assert port.read(LSR) & 0x02 == 0
    assert port.read(RBR) == 2, "without a FIFO the old byte is overwritten"
    port.write(FCR, 0x01)
    for byte in range(17):
        port.write(THR, byte)
    assert port.read(LSR) & 0x02
    assert port.read(RBR) == 0, "with the FIFO the new byte is lost"


def test_fcr_clears_fifos() -> None:
    port = Port()
    port.write(FCR, 0x01)
    port.line.feed(b"abc")
    port.write(FCR, 0x03)
    assert not port.read(LSR) & 0x01
    port.line.feed(b"d")
    port.write(FCR, 0x00)
    assert not port.read(LSR) & 0x01, "switching the FIFO clears it"


def test_break_is_a_status_and_a_zero_byte() -> None:
    port = Port()
    port.write(IER, 0x04)
    port.line.signal_event(ChardevEvent.BREAK)
    assert port.irq.level and port.read(IIR) == 0x06
    assert port.read(LSR) & 0x11 == 0x11
    assert port.read(RBR) == 0
    assert not port.irq.level


def test_reset_lowers_the_line() -> None:
    port = Port()
    port.write(IER, 0x02)
    assert port.irq.level
    port.uart.reset()
    assert not port.irq.level and port.read(IER) == 0 and port.read(MSR) == 0xB0


def test_saved_state_continues() -> None:
    port, other = Port(), Port()
    port.write(FCR, ENABLE_FIFO_8)
    port.write(IER, 0x01)
    port.line.feed(b"ab")
    round_trip(port.uart, other.uart)
    assert not other.irq.level
    other.clock.advance(4 * other.uart.character_ns())
    assert other.irq.level and other.read(IIR) == 0xCC and other.read(RBR) == ord("a")


@given(st.binary(max_size=64), st.integers(0, 3))
def test_whatever_is_fed_comes_through_in_order(data: bytes, trigger: int) -> None:
    port = Port()
    port.write(FCR, 0x01 | trigger << 6)
    port.line.feed(data)
    received = bytearray()
    while port.read(LSR) & 0x01:
        received.append(port.read(RBR))
    assert received == data
