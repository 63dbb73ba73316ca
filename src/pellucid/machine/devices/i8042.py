"""8042 keyboard controller with nothing plugged in: what a PC needs of it to reset, to gate A20 and to say so.

Region 0 is the data port (0x60), region 1 the command and status port (0x64). The controller answers its own commands;
a byte sent on to a keyboard or mouse gets what an empty socket gives, a time-out. (IBM PS/2 Technical Reference,
keyboard and auxiliary device controller.)
"""

from collections.abc import Callable

from pellucid.machine.device import Device, Region, Register, State
from pellucid.machine.state import BOOL, U8

STATUS_OUTPUT_FULL, STATUS_SYSTEM_FLAG, STATUS_COMMAND = 0x01, 0x04, 0x08
STATUS_NOT_INHIBITED, STATUS_TIMEOUT = 0x10, 0x40
OUTPUT_RESET, OUTPUT_A20 = 0x01, 0x02
"""Output port: bit 0 low resets the processor, bit 1 opens the A20 gate."""

READ_COMMAND_BYTE, WRITE_COMMAND_BYTE = 0x20, 0x60
DISABLE_AUX, ENABLE_AUX, TEST_AUX = 0xA7, 0xA8, 0xA9
SELF_TEST, TEST_KEYBOARD, DISABLE_KEYBOARD, ENABLE_KEYBOARD = 0xAA, 0xAB, 0xAD, 0xAE
READ_INPUT_PORT, READ_OUTPUT_PORT, WRITE_OUTPUT_PORT = 0xC0, 0xD0, 0xD1
WRITE_KEYBOARD_BUFFER, WRITE_AUX_BUFFER, WRITE_TO_AUX = 0xD2, 0xD3, 0xD4
DISABLE_A20, ENABLE_A20 = 0xDD, 0xDF
COMMANDS_WITH_DATA = (WRITE_COMMAND_BYTE, WRITE_OUTPUT_PORT, WRITE_KEYBOARD_BUFFER, WRITE_AUX_BUFFER, WRITE_TO_AUX)
ANSWERS = {SELF_TEST: 0x55, TEST_KEYBOARD: 0x00, TEST_AUX: 0x00, READ_INPUT_PORT: 0x80}
MODE_SYSTEM_FLAG, MODE_NO_KEYBOARD, MODE_NO_AUX = 0x04, 0x10, 0x20
NO_ANSWER = 0xFE
"""What the data port holds after a time-out."""


class I8042(Device):
    """The controller. `request_reset` asks the machine for a reset; `set_a20` tells it the gate's new state."""

    kind = "i8042"
    regions = (Region("i8042-data", 1, one_port=True), Region("i8042-cmd", 1, one_port=True))

    data = Register(0, doc="output buffer on read, data on write")
    status = Register(0, region=1, reset=STATUS_NOT_INHIBITED, access="ro", doc="status")
    command = Register(0, region=1, access="wo", doc="command; stored while it waits for its data byte, else 0")

    mode = State(U8, MODE_NO_KEYBOARD | MODE_NO_AUX, doc="the controller's command byte")
    output_port = State(U8, 0xCF)
    timed_out = State(BOOL, False)

    def __init__(self, request_reset: Callable[[], None], set_a20: Callable[[bool], None] | None = None) -> None:
        self._request_reset = request_reset
        self._set_a20 = set_a20
        super().__init__()

    @data.on_read
    def _read_data(self) -> int:
        self.status &= ~STATUS_OUTPUT_FULL
        return self.data

    @status.on_read
    def _read_status(self) -> int:
        timeout = STATUS_TIMEOUT if self.timed_out else 0
        return self.status | timeout | (self.mode & STATUS_SYSTEM_FLAG)

    @command.on_write
    def _write_command(self, value: int) -> None:
        self.status |= STATUS_COMMAND
        self.timed_out = False
        self.command = value if value in COMMANDS_WITH_DATA else 0
        if value in ANSWERS:
            if value == SELF_TEST:
                self.mode |= MODE_SYSTEM_FLAG
            self._answer(ANSWERS[value])
        elif value == READ_COMMAND_BYTE:
            self._answer(self.mode)
        elif value == READ_OUTPUT_PORT:
            self._answer(self.output_port)
        elif value in (DISABLE_KEYBOARD, ENABLE_KEYBOARD):
            self._mode_bit(MODE_NO_KEYBOARD, value == DISABLE_KEYBOARD)
        elif value in (DISABLE_AUX, ENABLE_AUX):
            self._mode_bit(MODE_NO_AUX, value == DISABLE_AUX)
        elif value in (DISABLE_A20, ENABLE_A20):
            self._write_output_port(self.output_port & ~OUTPUT_A20 | (OUTPUT_A20 if value == ENABLE_A20 else 0))
        elif value >= 0xF0 and not value & OUTPUT_RESET:
            # 0xF0-0xFF pulse the output port bits that are 0 in the command low for 6 us; bit 0 is the reset line.
            self._request_reset()

    @data.on_write
    def _write_data(self, value: int) -> None:
        self.status &= ~STATUS_COMMAND
        command, self.command = self.command, 0
        if command == WRITE_COMMAND_BYTE:
            self.mode = value
        elif command == WRITE_OUTPUT_PORT:
            self._write_output_port(value)
        elif command in (WRITE_KEYBOARD_BUFFER, WRITE_AUX_BUFFER):
            self._answer(value)
        else:
            self.timed_out = True
            self._answer(NO_ANSWER)

    def _answer(self, value: int) -> None:
        self.data = value
        self.status |= STATUS_OUTPUT_FULL

    def _mode_bit(self, bit: int, on: bool) -> None:
        self.mode = self.mode & ~bit | (bit if on else 0)

    def _write_output_port(self, value: int) -> None:
        self.output_port = value
        if self._set_a20 is not None:
            self._set_a20(bool(value & OUTPUT_A20))
        if not value & OUTPUT_RESET:
            self._request_reset()
