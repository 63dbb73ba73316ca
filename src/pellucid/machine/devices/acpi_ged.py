"""ACPI generic event device with the sleep and reset registers of a hardware-reduced platform, as QEMU's microvm has.

Region 0 is the event selector that the DSDT's _EVT method reads (which clears it) after the device's interrupt.
Region 1 holds the sleep control register, the sleep status register (ACPI 6.3, 4.8.3.7) and the reset register that
the FADT points at (4.8.3.6).
"""

from collections.abc import Callable

from pellucid.machine.device import Device, Region, Register
from pellucid.machine.firmware import aml
from pellucid.machine.irq import IrqLine
from pellucid.memory.access import AccessSizes

EVENT_POWER_BUTTON = 0x02
SLEEP_TYPE_S5 = 5
SLEEP_ENABLE = 0x20
WAKE_STATUS = 0x80
RESET_VALUE = 0x42


class AcpiGed(Device):
    """`power_off` and `request_reset` are what the guest can ask for; press_power_button() is what the user can."""

    kind = "acpi-ged-x86"
    regions = (Region("acpi-ged", 4, valid=AccessSizes(4, 4), impl=AccessSizes(4, 4)), Region("acpi-ged-regs", 3))

    selector = Register(0, size=4, writable=0, doc="pending events; cleared by reading")
    sleep_control = Register(0, region=1, stored=False, doc="bit 5 SLP_EN, bits 4-2 SLP_TYP; reads as 0")
    sleep_status = Register(1, region=1, doc="bit 7 WAK_STS, cleared by writing 1")
    reset_register = Register(2, region=1, stored=False, doc="0x42 resets the machine; reads as 0")

    def __init__(self, irq: IrqLine, power_off: Callable[[], None], request_reset: Callable[[], None]) -> None:
        self._irq = irq
        self._power_off = power_off
        self._request_reset = request_reset
        super().__init__()

    def press_power_button(self) -> None:
        """Tell the guest (`system_powerdown`)."""
        self.selector |= EVENT_POWER_BUTTON
        self._irq.pulse()

    def acpi(self, where: aml.Resources) -> bytes:
        """The event device, whose _EVT notifies the power button, and the button."""
        fetch = aml.store(aml.name_string("ESEL"), aml.local(0))
        pressed = aml.equal(aml.and_(aml.local(0), aml.integer(EVENT_POWER_BUTTON)), aml.integer(EVENT_POWER_BUTTON))
        event = aml.method(
            "_EVT",
            1,
            fetch + aml.if_(pressed, aml.notify("\\_SB.PWRB", 0x80)),
            serialized=True,
        )
        ged = aml.device(
            "GED",
            aml.name("_HID", aml.string("ACPI0013"))
            + aml.name("_UID", aml.integer(0))
            + aml.name("_CRS", aml.resource_template(aml.interrupt(where.gsi, edge=True)))
            + aml.operation_region("EREG", aml.SYSTEM_MEMORY, where.mmio[0], 4)
            + aml.field("EREG", aml.DWORD_ACCESS, (("ESEL", 32),))
            + event,
        )
        button = aml.device("PWRB", aml.name("_HID", aml.eisa_id("PNP0C0C")) + aml.name("_UID", aml.integer(0)))
        return ged + button

    @selector.on_read
    def _read_selector(self) -> int:
        events, self.selector = self.selector, 0
        return events

    @sleep_control.on_write
    def _write_sleep_control(self, value: int) -> None:
        if value & SLEEP_ENABLE and (value >> 2) & 7 == SLEEP_TYPE_S5:
            self._power_off()

    @sleep_status.on_write
    def _write_sleep_status(self, value: int) -> None:
        self.sleep_status &= ~(value & WAKE_STATUS)

    @reset_register.on_write
    def _write_reset(self, value: int) -> None:
        if value == RESET_VALUE:
            self._request_reset()
