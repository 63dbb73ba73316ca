"""PIIX3, the PCI-to-ISA bridge (Intel 82371SB data sheet, 290550): interrupt routing and the reset control register.

Four PIRQ lines come from the bus's pins; each of the registers 0x60-0x63 sends one of them to an ISA interrupt, or
nowhere. Several may share one, so an ISA interrupt is high while any line that leads to it is.
"""

from collections.abc import Callable, Sequence

from pellucid.machine.device import Device, Region, Register
from pellucid.machine.irq import IrqLine
from pellucid.machine.pci import ConfigRegister, PciFunction
from pellucid.machine.pci import config as cfg
from pellucid.machine.pci.bus import PINS

ROUTING_DISABLED, ROUTED_TO = 0x80, 0x0F
UNROUTABLE = (0, 1, 2, 8, 13)
FULL_RESET, SYSTEM_RESET, RESET_CPU = 0x08, 0x02, 0x04


class Piix3(PciFunction):
    """The function at 01.0. `isa_irqs` are the 16 interrupt inputs of the PIC pair."""

    kind = "PIIX3"
    vendor_id, device_id, class_code = 0x8086, 0x7000, 0x060100
    multifunction = True
    hotpluggable = False
    status_reset = cfg.STATUS_DEVSEL_MEDIUM

    # The reset values are the data sheet's: ISA recovery time, X-bus chip selects, DMA and PCI clock registers.
    io_recovery = ConfigRegister(0x4C, 1, reset=0x4D, writable=0xFF)
    xbus_chip_select = ConfigRegister(0x4E, 1, reset=0x03, writable=0xFF)
    pirq_routing = ConfigRegister(0x60, 4, reset=0x8080_8080, writable=0xFFFF_FFFF, doc="PIRQRC[A:D]")
    top_of_memory = ConfigRegister(0x69, 1, reset=0x02, writable=0xFF)
    motherboard_irq = ConfigRegister(0x70, 1, reset=0x80, writable=0xFF)
    motherboard_dma = ConfigRegister(0x76, 2, reset=0x0C0C, writable=0xFFFF)
    chip_select_control = ConfigRegister(0x78, 1, reset=0x02, writable=0xFF)
    smi_control = ConfigRegister(0xA0, 1, reset=0x08, writable=0xFF)
    fast_off_timer = ConfigRegister(0xA8, 1, reset=0x0F, writable=0xFF)

    def __init__(self, isa_irqs: Sequence[IrqLine]) -> None:
        self._isa_irqs = isa_irqs
        self._pirq = [0] * PINS
        self._high: set[int] = set()
        super().__init__()

    def route(self, slot: int, pin: int, level: bool) -> None:
        """A pin of a function on the root bus rose or fell; slots are wired to the PIRQ lines in rotation."""
        self._pirq[(pin + slot - 1) % PINS] += 1 if level else -1
        self._drive()

    def routed_to(self, pirq: int) -> int | None:
        """The ISA interrupt that PIRQ line leads to; reserved ones are as good as none."""
        register = self.config[0x60 + pirq]
        irq = register & ROUTED_TO
        return None if register & ROUTING_DISABLED or irq in UNROUTABLE else irq

    @pirq_routing.after_write
    def _drive(self) -> None:
        routes = [self.routed_to(pirq) for pirq in range(PINS) if self._pirq[pirq]]
        high = {irq for irq in routes if irq is not None}
        for irq in self._high - high:
            self._isa_irqs[irq].set(False)
        for irq in high - self._high:
            self._isa_irqs[irq].set(True)
        self._high = high

    def reset(self) -> None:
        super().reset()
        self._drive()

    def after_load(self) -> None:
        super().after_load()
        self._drive()


class ResetControl(Device):
    """Port 0xCF9: bit 1 chooses between the processor's INIT and a reset of all, a rise of bit 2 does it."""

    kind = "piix3-reset-control"
    regions = (Region("piix3-reset-control", 1),)

    control = Register(0, writable=FULL_RESET | SYSTEM_RESET, doc="bit 1 system reset, bit 2 do it, bit 3 full reset")

    def __init__(self, request_reset: Callable[[], None]) -> None:
        super().__init__()
        self._request_reset = request_reset

    @control.on_write
    def _write(self, value: int) -> None:
        if value & RESET_CPU:
            self._request_reset()
        else:
            self.control = value & (FULL_RESET | SYSTEM_RESET)
