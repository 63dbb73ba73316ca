"""PS/2 keyboard and mouse as the controller's two ports see them: a command byte in, answers and events out.

IBM PS/2 Hardware Interface Technical Reference, keyboards and auxiliary devices; the wheel's knocking sequence is
Microsoft's. A device keeps at most 256 bytes that nobody has fetched; what comes then is lost, a keyboard says so.
"""

from pellucid.machine.device import Device, State
from pellucid.machine.state import BOOL, U8, Integer, Queue

ACK, RESEND, SELF_TEST_PASSED, ECHO = 0xFA, 0xFE, 0xAA, 0xEE
RESET, RESEND_LAST, SET_DEFAULTS, DISABLE, ENABLE, SET_RATE, IDENTIFY = 0xFF, 0xFE, 0xF6, 0xF5, 0xF4, 0xF3, 0xF2
SCAN_CODE_SET, SET_LEDS, GET_ECHO = 0xF0, 0xED, 0xEE
SET_REMOTE, SET_WRAP, RESET_WRAP, READ_DATA, SET_STREAM, STATUS_REQUEST = 0xF0, 0xEE, 0xEC, 0xEB, 0xEA, 0xE9
SET_RESOLUTION, SCALING_2_1, SCALING_1_1 = 0xE8, 0xE7, 0xE6
QUEUE_SIZE = 256
KEYBOARD_ID = b"\xab\x83"
WHEEL_KNOCK = (200, 100, 80)
S32 = Integer(-(1 << 31), (1 << 31) - 1)


class Ps2Device(Device):
    """What both have in common: the queue and the byte that a two-byte command waits for."""

    queue = State(Queue(QUEUE_SIZE), b"", doc="bytes for the controller")
    waiting = State(U8, 0, doc="command whose data byte comes next, else 0")
    last = State(U8, 0, doc="the last byte fetched, for a resend")
    enabled = State(BOOL, False, doc="reports what happens")

    def take(self) -> int | None:
        """The next byte for the host; None when there is none."""
        if not self.queue:
            return None
        byte, self.queue = self.queue[0], self.queue[1:]
        self.last = byte
        return byte

    def put(self, *data: int) -> None:
        """Queue bytes, all or none of them."""
        if len(self.queue) + len(data) <= QUEUE_SIZE:
            self.queue += bytes(data)

    def answer(self, *data: int) -> None:
        """Answer a command: whatever was waiting is older than the command and goes."""
        self.queue = bytes(data)

    def command(self, byte: int) -> None:
        """A byte from the host."""
        waiting, self.waiting = self.waiting, 0
        if waiting:
            self.data(waiting, byte)
        elif byte == RESET:
            self.reset()
            self.answer(ACK, SELF_TEST_PASSED, *self.after_reset())
        elif byte == RESEND_LAST:
            self.answer(self.last)
        else:
            self.own_command(byte)

    def data(self, command: int, byte: int) -> None:
        """The data byte of a command that waited for it."""
        raise AssertionError(f"{self.kind}: nothing waits for data")

    def own_command(self, byte: int) -> None:
        """A command of this device."""
        raise AssertionError(f"{self.kind}: no commands")

    def after_reset(self) -> bytes:
        """What follows the self-test's result."""
        return b""


class Ps2Keyboard(Ps2Device):
    """Scan code set 2 (translated to set 1 by the controller) or 1 or 3, as the host chooses."""

    kind = "ps2-kbd"

    enabled = State(BOOL, True)
    scan_code_set = State(Integer(1, 3), 2)
    leds = State(U8, 0, doc="bit 0 scroll lock, bit 1 num lock, bit 2 caps lock")

    def send(self, codes: bytes) -> None:
        """A key went down or up: its whole code in the set chosen, or nothing when it does not fit any more."""
        if self.enabled:
            self.put(*codes)

    def own_command(self, byte: int) -> None:
        if byte in (SET_LEDS, SET_RATE, SCAN_CODE_SET):
            self.waiting = byte
            self.answer(ACK)
        elif byte == IDENTIFY:
            self.answer(ACK, *KEYBOARD_ID)
        elif byte == GET_ECHO:
            self.answer(ECHO)
        elif byte in (ENABLE, DISABLE, SET_DEFAULTS):
            if byte != ENABLE:
                self.scan_code_set = 2
            self.enabled = byte != DISABLE
            self.answer(ACK)
        elif 0xF7 <= byte <= 0xFD or byte == 0:
            # Typematic and make/break settings of set 3: taken, and of no consequence here. QEMU acknowledges 0 too.
            self.answer(ACK)
        else:
            self.answer(RESEND)

    def data(self, command: int, byte: int) -> None:
        if command == SET_LEDS:
            self.leds = byte & 7
            self.answer(ACK)
        elif command == SCAN_CODE_SET and byte == 0:
            self.answer(ACK, self.scan_code_set)
        elif command == SCAN_CODE_SET and not 1 <= byte <= 3:
            self.answer(RESEND)
        else:
            if command == SCAN_CODE_SET:
                self.scan_code_set = byte
            self.answer(ACK)


class Ps2Mouse(Ps2Device):
    """Three buttons, and a wheel for hosts that knock."""

    kind = "ps2-mouse"

    identity = State(U8, 0, doc="0 standard, 3 with wheel")
    rate = State(U8, 100)
    rates = State(Queue(3), b"", doc="the last rates set: the knock")
    resolution = State(Integer(0, 3), 2)
    scaling = State(BOOL, False, doc="2:1")
    remote = State(BOOL, False)
    wrap = State(BOOL, False)
    buttons = State(Integer(0, 7), 0, doc="bit 0 left, bit 1 right, bit 2 middle")
    dx = State(S32, 0)
    dy = State(S32, 0)
    dz = State(S32, 0)

    def after_reset(self) -> bytes:
        return b"\0"

    def move(self, dx: int, dy: int, dz: int = 0, buttons: int = 0) -> None:
        """The mouse moved (dy up) by at most 2**31 in all, its wheel turned, or its buttons are now `buttons`."""
        self.dx, self.dy, self.dz = _clip(self.dx + dx), _clip(self.dy + dy), _clip(self.dz + dz)
        changed, self.buttons = (buttons & 7) != self.buttons, buttons & 7
        if self.enabled and not self.remote:
            while (changed or self.dx or self.dy or self.dz) and len(self.queue) + 4 <= QUEUE_SIZE:
                self.put(*self._packet())
                changed = False

    def _packet(self) -> bytes:
        """The next 3 bytes, or 4 with a wheel; takes what it reports from the movement."""
        dx, dy = (max(-255, min(255, value)) for value in (self.dx, self.dy))
        dz = max(-8, min(7, self.dz))
        self.dx, self.dy = self.dx - dx, self.dy - dy
        self.dz = self.dz - dz if self.identity else 0
        first = 0x08 | self.buttons | (dx < 0) << 4 | (dy < 0) << 5
        packet = bytes((first, dx & 0xFF, dy & 0xFF))
        return packet + bytes((dz & 0xFF,)) if self.identity else packet

    def command(self, byte: int) -> None:
        if self.wrap and byte not in (RESET, RESET_WRAP):
            self.answer(byte)
        else:
            super().command(byte)

    def own_command(self, byte: int) -> None:
        if byte in (SET_RATE, SET_RESOLUTION):
            self.waiting = byte
        elif byte in (SCALING_1_1, SCALING_2_1):
            self.scaling = byte == SCALING_2_1
        elif byte in (SET_STREAM, SET_REMOTE):
            self.remote = byte == SET_REMOTE
        elif byte in (SET_WRAP, RESET_WRAP):
            self.wrap = byte == SET_WRAP
        elif byte in (ENABLE, DISABLE):
            self.enabled = byte == ENABLE
        elif byte == SET_DEFAULTS:
            self.rate, self.resolution, self.scaling = 100, 2, False
            self.enabled = self.remote = False
        elif byte not in (IDENTIFY, STATUS_REQUEST, READ_DATA):
            self.answer(RESEND)
            return
        self.answer(ACK)
        if byte == IDENTIFY:
            self.put(self.identity)
        elif byte == STATUS_REQUEST:
            flags = self.remote << 6 | self.enabled << 5 | self.scaling << 4 | self.buttons
            self.put(flags, self.resolution, self.rate)
        elif byte == READ_DATA:
            self.put(*self._packet())

    def data(self, command: int, byte: int) -> None:
        if command == SET_RATE:
            self.rate = byte
            self.rates = (self.rates + bytes((byte,)))[-3:]
            if tuple(self.rates) == WHEEL_KNOCK:
                self.identity = 3
        else:
            self.resolution = byte & 3
        self.answer(ACK)


def _clip(value: int) -> int:
    return max(-(1 << 31), min((1 << 31) - 1, value))
