"""System control port A (port 0x92): fast A20 gate and fast reset (IBM PS/2 Technical Reference)."""

from collections.abc import Callable

from pellucid.machine.device import Device, Region, Register

FAST_RESET, FAST_A20 = 0x01, 0x02


class Port92(Device):
    """Bit 0 resets the processor; bit 1 is what every write puts the A20 gate to.

    Port and gate need not agree: the gate is open after a reset, and the keyboard controller moves the same one.
    """

    kind = "port92"
    regions = (Region("port92", 1, one_port=True),)

    control = Register(0, doc="bit 0 fast reset, bit 1 A20 gate; the rest is only remembered")

    def __init__(self, request_reset: Callable[[], None], set_a20: Callable[[bool], None] | None = None) -> None:
        self._request_reset = request_reset
        self._set_a20 = set_a20
        super().__init__()

    @control.on_write
    def _write_control(self, value: int) -> None:
        self.control = value & ~FAST_RESET
        if self._set_a20 is not None:
            self._set_a20(bool(value & FAST_A20))
        if value & FAST_RESET:
            self._request_reset()
