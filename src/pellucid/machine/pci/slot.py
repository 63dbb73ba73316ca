"""The slot registers of a PCI Express port (PCIe 5.0, 7.5.3.9): presence, power, indicators, and the interrupt.

A card that comes sets presence detect changed. A guest lets one go by switching the slot's power off while the power
indicator is off; the card is then taken out. Each write to the control register sets command completed.
"""

from collections.abc import Callable

from pellucid.machine.pci.express import PcieCapability
from pellucid.machine.pci.function import PciFunction

CAPABILITIES, CONTROL, STATUS, LINK_STATUS = 0x14, 0x18, 0x1A, 0x12
SLOT_CAPABILITIES = 0x0002_007B
"""Attention button, power controller, both indicators, hot-plug capable and with surprise; interlock."""
HOT_PLUG_CAPABLE, POWER_CONTROLLER = 0x60, 0x02
BUTTON_PRESSED, PRESENCE_CHANGED, COMMAND_COMPLETED = 0x0001, 0x0008, 0x0010
PRESENT, INTERLOCK, LINK_CHANGED = 0x0040, 0x0080, 0x0100
EVENTS = BUTTON_PRESSED | 0x0002 | 0x0004 | PRESENCE_CHANGED | COMMAND_COMPLETED | LINK_CHANGED
CONTROL_WRITABLE = 0x1FFF & ~0x0006
INTERRUPT_ENABLE, INDICATOR_OFF, INDICATOR_ON, POWER_OFF, TOGGLE_INTERLOCK = 0x0020, 0x0300, 0x0100, 0x0400, 0x0800
INDICATOR = 0x0300
ATTENTION_OFF = 0x00C0
LINK_ACTIVE = 0x2000


class Slot:
    """The registers inside `capability` of `port`. `power_off` takes the card out, `interrupt` follows the level."""

    def __init__(
        self,
        port: PciFunction,
        capability: PcieCapability,
        number: int,
        power_off: Callable[[], None],
        interrupt: Callable[[bool], None],
    ) -> None:
        self._port, self._at = port, capability.offset
        self._power_off, self._interrupt = power_off, interrupt
        self.present = False
        self._raised = False
        put = port.put_template
        put(self._at + CAPABILITIES, 4, SLOT_CAPABILITIES | number << 19)
        put(self._at + CONTROL, 2, ATTENTION_OFF | INDICATOR_OFF | POWER_OFF, writable=CONTROL_WRITABLE & 0x07F9)
        put(self._at + STATUS, 2, 0, write_clears=EVENTS, dynamic=PRESENT | INTERLOCK | EVENTS)
        put(self._at + LINK_STATUS, 2, capability.link.bits, dynamic=LINK_ACTIVE)
        root_control, root_status = 0x1C, 0x20
        put(self._at + root_control, 2, 0, writable=0x0007)
        put(self._at + root_status, 4, 0)
        self._before = 0

    def _get(self, register: int) -> int:
        return self._port.config_read(self._at + register, 2)

    def _set(self, register: int, value: int) -> None:
        place = slice(self._at + register, self._at + register + 2)
        self._port.config[place] = (value & 0xFFFF).to_bytes(2, "little")

    def set_present(self, present: bool, *, announce: bool) -> None:
        """A card is in the slot, or no longer. `announce` raises the event: the machine runs."""
        self.present = present
        status = self._get(STATUS) & ~PRESENT | (PRESENT if present else 0)
        if announce:
            status |= PRESENCE_CHANGED | LINK_CHANGED
        self._set(STATUS, status)
        self._set(LINK_STATUS, self._get(LINK_STATUS) & ~LINK_ACTIVE | (LINK_ACTIVE if present else 0))
        self._drive()

    def press_button(self) -> None:
        """The user wants the card out: the attention button."""
        self._set(STATUS, self._get(STATUS) | BUTTON_PRESSED)
        self._drive()

    def reset(self) -> None:
        """The port was reset: a card that is there has power."""
        if self.present:
            self._set(CONTROL, ATTENTION_OFF | INDICATOR_ON)
        self.set_present(self.present, announce=False)

    def before_write(self) -> None:
        """Configuration space is about to be written."""
        self._before = self._get(CONTROL)

    def written(self, offset: int, size: int, value: int) -> None:
        """Configuration space was written: `size` bytes at `offset`."""
        at = self._at + CONTROL
        if offset < at + 2 and at < offset + size:
            shifted = value << 8 * (offset - at) if offset >= at else value >> 8 * (at - offset)
            status = self._get(STATUS) | COMMAND_COMPLETED
            if shifted & TOGGLE_INTERLOCK:
                status ^= INTERLOCK
            self._set(STATUS, status)
            now = self._get(CONTROL)
            off = POWER_OFF | INDICATOR_OFF
            if self.present and now & off == off and self._before & off != off:
                self._power_off()
                self.set_present(False, announce=True)
        self._drive()

    def _drive(self) -> None:
        control = self._get(CONTROL)
        level = bool(control & INTERRUPT_ENABLE and self._get(STATUS) & control & EVENTS)
        if level != self._raised:
            self._raised = level
            self._interrupt(level)
