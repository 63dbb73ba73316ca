"""qtest, the protocol of QEMU's device tests: a line in, a line out, over the machine's buses.

    inb inw inl ADDR               outb outw outl ADDR VALUE
    readb readw readl readq ADDR   writeb writew writel writeq ADDR VALUE
    read ADDR SIZE                 write ADDR SIZE 0xHEX
    b64read ADDR SIZE              b64write ADDR SIZE BASE64
    memset ADDR SIZE VALUE         endianness
    clock_step [NS]                clock_set NS                         with -accel qtest
    irq_intercept_in PATH          irq_intercept_out PATH               then come lines IRQ raise N, IRQ lower N
    set_irq_in PATH NAME N LEVEL   module_load PREFIX NAME

Answers are `OK`, `OK VALUE` or `FAIL REASON`. QEMU ends itself on a malformed line; here it is a FAIL.
"""

import base64
import binascii
import logging
import re
import time
from collections.abc import Callable
from typing import TextIO

from pellucid.errors import PellucidError
from pellucid.machine.chardev.base import Chardev, ChardevEvent
from pellucid.machine.device import Device
from pellucid.machine.irq import GsiLine, SharedInput
from pellucid.monitor.control import Control
from pellucid.monitor.errors import CommandError
from pellucid.monitor.objects import find
from pellucid.monitor.output import Output
from pellucid.runtime import SteppedClock

_log = logging.getLogger("pellucid.monitor.qtest")

MOST_BYTES = 16 << 20
"""Of one read, write or memset."""
MOST_LINE = 2 * MOST_BYTES + 256
ENOUGH_OUTPUT = 64 << 10
SIZES = {"b": 1, "w": 2, "l": 4, "q": 8}
NUMBER = re.compile(r"(-?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)", re.ASCII)
INTERRUPT_CHIPS = ("ioapic", "isa-i8259", "pic")
"""The inputs of the machine's interrupt chips, which are numbered by global interrupt."""
MASK = (1 << 64) - 1

Handler = Callable[["QtestServer", list[str]], str]


class Failure(PellucidError):
    """The text behind FAIL."""


class QtestServer:
    """Connects the protocol to a chardev. Everything runs with the big lock held."""

    def __init__(self, control: Control, chardev: Chardev, log: TextIO | None = None) -> None:
        """`log`: gets every line, with the time."""
        self._control = control
        self._machine = control.machine
        self._chardev = chardev
        self._logfile = log
        self._started = time.monotonic()
        self._input = bytearray()
        self._output = Output(chardev)
        self._intercepted: object = None
        self._levels: dict[int, bool] = {}
        chardev.set_receiver(self._receive, self._room, writable=self._writable, event=self._event)

    # ---- bytes

    def _room(self) -> int:
        return 1 << 16 if len(self._output) < ENOUGH_OUTPUT else 0

    def _event(self, event: ChardevEvent) -> None:
        if event in (ChardevEvent.OPENED, ChardevEvent.CLOSED):
            self._input.clear()
            self._output.clear()
            self._levels.clear()

    def _receive(self, data: bytes) -> None:
        self._input += data
        self._work()

    def _work(self) -> None:
        while len(self._output) < ENOUGH_OUTPUT:
            end = self._input.find(b"\n")
            if end < 0:
                if len(self._input) > MOST_LINE:
                    self._input.clear()
                    self._send(f"FAIL a line has at most {MOST_LINE} bytes")
                return
            line = self._input[:end].decode("utf-8", "replace").rstrip("\r")
            del self._input[: end + 1]
            self._log_line("R +", line)
            self._send(self._execute(line))

    def _writable(self) -> None:
        self._output.flush()
        if len(self._output) < ENOUGH_OUTPUT:
            self._work()
            self._chardev.accept_input()

    def _send(self, line: str) -> None:
        self._log_line("S +", line)
        self._output.write(line.encode() + b"\n")

    def _log_line(self, mark: str, line: str) -> None:
        if self._logfile is not None:
            self._logfile.write(f"[{mark}{time.monotonic() - self._started:f}] {line}\n")
            self._logfile.flush()

    # ---- commands

    def _execute(self, line: str) -> str:
        name, *words = line.rstrip(" ").split(" ")
        handler = HANDLERS.get(name)
        try:
            if handler is None:
                raise Failure(f"Unknown command '{name}'")
            return handler(self, words)
        except PellucidError as error:
            return f"FAIL {error}"

    def _in(self, size: int, words: list[str]) -> str:
        port = _number(words, 0, "an address") & 0xFFFF
        return f"OK 0x{self._machine.port_read(port, size):04x}"

    def _out(self, size: int, words: list[str]) -> str:
        port, value = _number(words, 0, "an address") & 0xFFFF, _number(words, 1, "a value")
        self._machine.port_write(port, size, value & (1 << 8 * size) - 1)
        return "OK"

    def _read_unit(self, size: int, words: list[str]) -> str:
        value = self._machine.memory_read(_number(words, 0, "an address"), size)
        return f"OK 0x{value:016x}"

    def _write_unit(self, size: int, words: list[str]) -> str:
        address, value = _number(words, 0, "an address"), _number(words, 1, "a value")
        self._machine.memory_write(address, size, value & (1 << 8 * size) - 1)
        return "OK"

    def _read(self, words: list[str]) -> str:
        return f"OK 0x{self._bytes(words).hex()}"

    def _b64read(self, words: list[str]) -> str:
        return f"OK {base64.b64encode(self._bytes(words)).decode()}"

    def _bytes(self, words: list[str]) -> bytes:
        address = _number(words, 0, "an address")
        return self._machine.memory.read_bytes(address, _length(words))

    def _write(self, words: list[str]) -> str:
        address, length = _number(words, 0, "an address"), _length(words)
        digits = _word(words, 2, "data")
        if not re.fullmatch(r"0[xX](?:[0-9a-fA-F]{2})+", digits, re.ASCII):
            raise Failure("data is written 0x and two digits for each byte")
        self._store(address, length, bytes.fromhex(digits[2:]))
        return "OK"

    def _b64write(self, words: list[str]) -> str:
        address, length = _number(words, 0, "an address"), _length(words)
        try:
            data = base64.b64decode(_word(words, 2, "data"), validate=True)
        except binascii.Error:
            raise Failure("data is not valid base64") from None
        self._store(address, length, data)
        return "OK"

    def _store(self, address: int, length: int, data: bytes) -> None:
        """What is missing of the data is zeros, as with QEMU; what is too much is left out."""
        self._machine.memory.write_bytes(address, data[:length].ljust(length, b"\0"))

    def _memset(self, words: list[str]) -> str:
        address, value = _number(words, 0, "an address"), _number(words, 2, "a value")
        length = _number(words, 1, "a size")
        if length:
            self._machine.memory.write_bytes(address, bytes((value & 0xFF,)) * _length(words))
        return "OK"

    def _endianness(self, words: list[str]) -> str:
        return "OK little"

    def _clock_step(self, words: list[str]) -> str:
        clock = self._clock("clock_step")
        if words:
            return f"OK {clock.step_to(clock.now_ns() + _signed(_number(words, 0, 'nanoseconds')))}"
        deadline = clock.next_deadline()
        return f"OK {clock.now_ns() if deadline is None else clock.step_to(deadline)}"

    def _clock_set(self, words: list[str]) -> str:
        return f"OK {self._clock('clock_set').step_to(_signed(_number(words, 0, 'nanoseconds')))}"

    def _clock(self, command: str) -> SteppedClock:
        clock = self._machine.clock
        if not isinstance(clock, SteppedClock):
            # So says QEMU with another accelerator.
            raise Failure(f"Unknown command '{command}'")
        return clock

    def _irq_intercept_in(self, words: list[str]) -> str:
        path = _word(words, 0, "a path")
        device = self._chip_or_device(path)
        if device is not None:
            raise Failure(f"interception of the inputs of {device.kind} is not built yet: use ioapic")
        return self._intercept("in", lambda gsi, level: self._line_changed(gsi, level))

    def _irq_intercept_out(self, words: list[str]) -> str:
        path = _word(words, 0, "a path")
        device = self._chip_or_device(path)
        if device is None:
            raise Failure("interception of the interrupt chips' outputs is not built yet: use irq_intercept_in")
        lines = _output_lines(device)
        if not lines:
            raise Failure(f"interception of the outputs of {device.kind} is not built yet: use irq_intercept_in ioapic")
        numbers = {line.gsi: number for number, line in enumerate(lines)}

        def heard(gsi: int, level: bool) -> None:
            if gsi in numbers:
                self._line_changed(numbers[gsi], level)

        return self._intercept(device, heard)

    def _intercept(self, what: object, heard: Callable[[int, bool], None]) -> str:
        if self._intercepted is not None:
            if self._intercepted != what:
                raise Failure("IRQ intercept already enabled")
            return "OK"
        self._machine.vm.intercept_irqs(heard)
        self._intercepted = what
        return "OK"

    def _line_changed(self, number: int, level: bool) -> None:
        if self._levels.get(number, False) != level:
            self._levels[number] = level
            self._send(f"IRQ {'raise' if level else 'lower'} {number}")

    def _set_irq_in(self, words: list[str]) -> str:
        path, _ = _word(words, 0, "a path"), _word(words, 1, "a name")
        number, level = _number(words, 2, "a number"), _number(words, 3, "a level")
        device = self._chip_or_device(path)
        if device is not None:
            raise Failure(f"the inputs of {device.kind} are not built yet")
        if number >= 24:
            raise Failure(f"{path} has no input {number}")
        self._machine.vm.irq_line(number, bool(level))
        return "OK"

    def _chip_or_device(self, path: str) -> Device | None:
        """The device at a path; None for the interrupt chips. Raises Failure."""
        if path in INTERRUPT_CHIPS:
            return None
        try:
            found = find(self._machine, self._control.streams, path)
        except CommandError:
            raise Failure("Unknown device") from None
        if found.device is None:
            raise Failure("Unknown device")
        return found.device

    def _module_load(self, words: list[str]) -> str:
        raise Failure("there are no modules to load")


def _output_lines(device: Device) -> list[GsiLine | SharedInput]:
    """The lines that a device drives, in the order of its constructor."""
    found: list[GsiLine | SharedInput] = []
    for value in vars(device).values():
        several = value if isinstance(value, tuple | list) else (value,)
        found += [line for line in several if isinstance(line, GsiLine | SharedInput)]
    return found


def _word(words: list[str], index: int, what: str) -> str:
    if index >= len(words) or not words[index]:
        raise Failure(f"{what} is missing")
    return words[index]


def _number(words: list[str], index: int, what: str) -> int:
    """A C number, of 64 bits; a minus wraps around."""
    word = _word(words, index, what)
    found = NUMBER.fullmatch(word)
    if found is None or len(word) > 32:
        raise Failure(f"'{word[:40]}' is no number: {what} is expected")
    digits = found[2]
    value = int(digits, 16 if digits[:2] in ("0x", "0X") else 8 if digits[0] == "0" else 10)
    if value > MASK:
        raise Failure(f"'{word}' does not fit 64 bits")
    return -value & MASK if found[1] else value


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _length(words: list[str]) -> int:
    length = _number(words, 1, "a size")
    if not 0 < length <= MOST_BYTES:
        raise Failure(f"a size is 1 to {MOST_BYTES}, not {length}")
    return length


def _sized(name: str, method: Callable[[QtestServer, int, list[str]], str], letters: str) -> dict[str, Handler]:
    def handler(size: int) -> Handler:
        return lambda server, words: method(server, size, words)

    return {name + letter: handler(SIZES[letter]) for letter in letters}


HANDLERS: dict[str, Handler] = {
    **_sized("in", QtestServer._in, "bwl"),
    **_sized("out", QtestServer._out, "bwl"),
    **_sized("read", QtestServer._read_unit, "bwlq"),
    **_sized("write", QtestServer._write_unit, "bwlq"),
    "read": QtestServer._read,
    "write": QtestServer._write,
    "b64read": QtestServer._b64read,
    "b64write": QtestServer._b64write,
    "memset": QtestServer._memset,
    "endianness": QtestServer._endianness,
    "clock_step": QtestServer._clock_step,
    "clock_set": QtestServer._clock_set,
    "irq_intercept_in": QtestServer._irq_intercept_in,
    "irq_intercept_out": QtestServer._irq_intercept_out,
    "set_irq_in": QtestServer._set_irq_in,
    "module_load": QtestServer._module_load,
}
