"""8042 keyboard controller with a keyboard and a mouse on it (IBM PS/2 Hardware Interface Technical Reference).

Region 0 is the data port (0x60), region 1 the command and status port (0x64). One byte at a time waits to be read;
whose it is shows in status bit 5, and the interrupt of that device stays high until then. While a byte waits, the
others keep theirs, the controller its answer to a command too. A device's byte is fetched when it is read, so that
a command sent meanwhile is answered instead. Bytes from the keyboard are translated from scan code set 2 to set 1 while
the command byte says so.
"""

from collections.abc import Callable

from pellucid.machine.device import Device, Region, Register, State
from pellucid.machine.devices.ps2 import Ps2Device, Ps2Keyboard, Ps2Mouse
from pellucid.machine.firmware import aml
from pellucid.machine.irq import IrqLine
from pellucid.machine.state import BOOL, U8, Integer

OUTPUT_FULL, SYSTEM_FLAG, WAS_COMMAND, NOT_INHIBITED, FROM_MOUSE = 0x01, 0x04, 0x08, 0x10, 0x20
MODE_KEYBOARD_IRQ, MODE_MOUSE_IRQ, MODE_SYSTEM = 0x01, 0x02, 0x04
MODE_NO_KEYBOARD, MODE_NO_MOUSE, MODE_TRANSLATE = 0x10, 0x20, 0x40
OUTPUT_RESET, OUTPUT_A20, OUTPUT_MOUSE_FULL, OUTPUT_KEYBOARD_FULL = 0x01, 0x02, 0x20, 0x10
READ_MODE, WRITE_MODE = 0x20, 0x60
DISABLE_MOUSE, ENABLE_MOUSE, TEST_MOUSE, SELF_TEST = 0xA7, 0xA8, 0xA9, 0xAA
TEST_KEYBOARD, DISABLE_KEYBOARD, ENABLE_KEYBOARD = 0xAB, 0xAD, 0xAE
READ_INPUT_PORT, READ_OUTPUT_PORT, WRITE_OUTPUT_PORT = 0xC0, 0xD0, 0xD1
WRITE_KEYBOARD_BUFFER, WRITE_MOUSE_BUFFER, WRITE_MOUSE = 0xD2, 0xD3, 0xD4
DISABLE_A20, ENABLE_A20 = 0xDD, 0xDF
WITH_DATA = (WRITE_MODE, WRITE_OUTPUT_PORT, WRITE_KEYBOARD_BUFFER, WRITE_MOUSE_BUFFER, WRITE_MOUSE)
ANSWERS = {SELF_TEST: 0x55, TEST_KEYBOARD: 0x00, TEST_MOUSE: 0x00, READ_INPUT_PORT: 0x80}
SWITCHES = {
    DISABLE_MOUSE: (MODE_NO_MOUSE, True),
    ENABLE_MOUSE: (MODE_NO_MOUSE, False),
    DISABLE_KEYBOARD: (MODE_NO_KEYBOARD, True),
    ENABLE_KEYBOARD: (MODE_NO_KEYBOARD, False),
}
NOBODY, REPLY, REPLY_AS_MOUSE, KEYBOARD, MOUSE = range(5)
RELEASE_PREFIX, RELEASE_SET_1 = b"\xf0", 0x80
# Set 2 codes 0x00 to 0x83 in set 1: the controller's translation table (PS/2 reference, keyboard, table 2-4).
TO_SET_1 = bytes.fromhex(
    "ff43413f3d3b3c5864444240 3e0f2959 6538 2a701d10 025a 66712c1f 1e11035b"
    "672e2d20 1205045c 68392f21 1413065d 69313023 2215075e 6a723224 1608095f"
    "6b332517 180b0a60 6c343526 27190c61 6d732874 1a0d626e 3a361c1b 752b6376"
    "55567778 797a0e7b 7c4f7d4b 477e7f6f 5253504c 4d480145 574e514a 37494654"
    "80818241"
)


class KeyboardController(Device):
    """The controller. `keyboard_irq` and `mouse_irq` are ISA interrupts 1 and 12; `set_a20` hears of the gate."""

    kind = "i8042"
    regions = (Region("i8042-data", 1, one_port=True), Region("i8042-cmd", 1, one_port=True))

    data = Register(0, doc="output buffer on read, data on write")
    status = Register(0, region=1, reset=NOT_INHIBITED | WAS_COMMAND, access="ro", doc="status")
    command = Register(0, region=1, access="wo", doc="command; stored while it waits for its data byte, else 0")

    mode = State(U8, MODE_KEYBOARD_IRQ | MODE_MOUSE_IRQ, doc="the controller's command byte")
    output_port = State(U8, OUTPUT_RESET | OUTPUT_A20 | 0xCC)
    source = State(Integer(NOBODY, MOUSE), NOBODY, doc="whose byte the output buffer holds")
    reply = State(U8, 0, doc="the controller's own byte")
    reply_waits = State(Integer(NOBODY, REPLY_AS_MOUSE), NOBODY, doc="that there is one, and on whose behalf")
    release = State(BOOL, False, doc="translation has seen a release prefix")

    def __init__(
        self,
        keyboard: Ps2Keyboard,
        mouse: Ps2Mouse,
        keyboard_irq: IrqLine,
        mouse_irq: IrqLine,
        request_reset: Callable[[], None],
        set_a20: Callable[[bool], None] | None = None,
    ) -> None:
        self.keyboard, self.mouse = keyboard, mouse
        self._irqs = (keyboard_irq, mouse_irq)
        self._request_reset, self._set_a20 = request_reset, set_a20
        self.on_input: list[Callable[[], None]] = []
        """Called when a key or the mouse may have something: it wakes a machine that is suspended."""
        super().__init__()

    def reset(self) -> None:
        super().reset()
        self.keyboard.reset()
        self.mouse.reset()
        self._update()

    def after_load(self) -> None:
        self._drive()

    def acpi(self, where: aml.Resources) -> bytes:
        """The keyboard and the mouse."""
        ports = aml.io_ports(where.ports[0], 1, alignment=1) + aml.io_ports(where.ports[1], 1, alignment=1)
        on = aml.name("_STA", aml.integer(0x0F))
        keyboard = aml.resource_template(ports, aml.irq(1))
        mouse = aml.resource_template(aml.irq(12))
        return aml.device(
            "KBD", aml.name("_HID", aml.eisa_id("PNP0303")) + on + aml.name("_CRS", keyboard)
        ) + aml.device("MOU", aml.name("_HID", aml.eisa_id("PNP0F13")) + on + aml.name("_CRS", mouse))

    # From the devices.

    def changed(self) -> None:
        """A device may have something: whoever presses keys or moves the mouse calls this afterwards."""
        self._update()
        for action in self.on_input:
            action()

    def _update(self, after: int = NOBODY) -> None:
        """Fill the output buffer if it is empty, and drive the interrupt lines."""
        if not self.status & OUTPUT_FULL:
            self.source = self._next_source(after)
            if self.source != NOBODY:
                self.status |= OUTPUT_FULL | (FROM_MOUSE if self.source in (REPLY_AS_MOUSE, MOUSE) else 0)
        self._drive()

    def _next_source(self, after: int) -> int:
        """Whose byte comes next; keyboard and mouse take turns."""
        if self.reply_waits:
            return self.reply_waits
        keyboard = not self.mode & MODE_NO_KEYBOARD and self._keyboard_has_byte()
        mouse = not self.mode & MODE_NO_MOUSE and bool(self.mouse.queue)
        if keyboard and not (mouse and after == KEYBOARD):
            return KEYBOARD
        return MOUSE if mouse else NOBODY

    def _keyboard_has_byte(self) -> bool:
        """Whether there is something for the host; a release prefix is taken in by the translation."""
        while self.mode & MODE_TRANSLATE and self.keyboard.queue[:1] == RELEASE_PREFIX:
            self.keyboard.take()
            self.release = True
        return bool(self.keyboard.queue)

    def _from_keyboard(self) -> int:
        """The keyboard's next byte as the host gets it."""
        if not self._keyboard_has_byte() or (byte := self.keyboard.take()) is None or not self.mode & MODE_TRANSLATE:
            return self.keyboard.last
        released, self.release = self.release, False
        translated = TO_SET_1[byte] if byte < len(TO_SET_1) else byte
        return translated | RELEASE_SET_1 if released else translated

    def _reply(self, byte: int, *, mouse: bool = False) -> None:
        """The controller's own byte; one that nobody has read yet goes."""
        self.reply, self.reply_waits = byte, REPLY_AS_MOUSE if mouse else REPLY

    def _drive(self) -> None:
        full, mouse = bool(self.status & OUTPUT_FULL), bool(self.status & FROM_MOUSE)
        self._irqs[0].set(full and not mouse and bool(self.mode & MODE_KEYBOARD_IRQ))
        self._irqs[1].set(full and mouse and bool(self.mode & MODE_MOUSE_IRQ))

    # The data port.

    @data.on_read
    def _read_data(self) -> int:
        source, self.source = self.source, NOBODY
        if source in (REPLY, REPLY_AS_MOUSE):
            self.data, self.reply_waits = self.reply, NOBODY
        elif source == KEYBOARD:
            self.data = self._from_keyboard()
        elif source == MOUSE:
            byte = self.mouse.take()
            self.data = self.mouse.last if byte is None else byte
        value = self.data
        self.status &= ~(OUTPUT_FULL | FROM_MOUSE)
        # The line falls before the next byte raises it: the interrupt controllers want an edge.
        self._drive()
        self._update(after=source)
        return value

    @data.on_write
    def _write_data(self, value: int) -> None:
        self.status &= ~WAS_COMMAND
        command, self.command = self.command, 0
        if command == WRITE_MODE:
            self.mode = value
        elif command == WRITE_OUTPUT_PORT:
            self._write_output_port(value)
        elif command in (WRITE_KEYBOARD_BUFFER, WRITE_MOUSE_BUFFER):
            self._reply(value, mouse=command == WRITE_MOUSE_BUFFER)
        elif command == WRITE_MOUSE:
            self._send(self.mouse, value, MODE_NO_MOUSE)
        else:
            self.release = False
            self._send(self.keyboard, value, MODE_NO_KEYBOARD)
        self._update()

    def _send(self, device: Ps2Device, value: int, disabled: int) -> None:
        """Sending to a device switches its clock on again."""
        self.mode &= ~disabled
        device.command(value)

    # The command port.

    @status.on_read
    def _read_status(self) -> int:
        return self.status | (self.mode & MODE_SYSTEM)

    @command.on_write
    def _write_command(self, value: int) -> None:
        self.status |= WAS_COMMAND
        self.command = value if value in WITH_DATA else 0
        if value in ANSWERS:
            if value == SELF_TEST:
                self.mode |= MODE_SYSTEM
            self._reply(ANSWERS[value])
        elif value == READ_MODE:
            self._reply(self.mode)
        elif value == READ_OUTPUT_PORT:
            self._reply(self._output_port_now())
        elif value in SWITCHES:
            bit, on = SWITCHES[value]
            self.mode = self.mode & ~bit | (bit if on else 0)
        elif value in (DISABLE_A20, ENABLE_A20):
            self._write_output_port(self.output_port & ~OUTPUT_A20 | (OUTPUT_A20 if value == ENABLE_A20 else 0))
        elif value >= 0xF0 and not value & OUTPUT_RESET:
            # 0xF0-0xFF pulse the output port bits that are 0 in the command low for 6 us; bit 0 is the reset line.
            self._request_reset()
        self._update()

    def _output_port_now(self) -> int:
        full = self.status & OUTPUT_FULL
        bits = OUTPUT_KEYBOARD_FULL | (OUTPUT_MOUSE_FULL if self.status & FROM_MOUSE else 0)
        return self.output_port & ~(OUTPUT_MOUSE_FULL | OUTPUT_KEYBOARD_FULL) | (bits if full else 0)

    def _write_output_port(self, value: int) -> None:
        gate_moved = (value ^ self.output_port) & OUTPUT_A20
        self.output_port = value
        if gate_moved and self._set_a20 is not None:
            self._set_a20(bool(value & OUTPUT_A20))
        if not value & OUTPUT_RESET:
            self._request_reset()
