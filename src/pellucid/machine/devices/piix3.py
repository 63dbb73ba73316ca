"""PIIX3, the PCI-to-ISA bridge (Intel 82371SB data sheet, 290550): interrupt routing.

Four PIRQ lines come from the bus's pins; each of the registers 0x60-0x63 sends one of them to an ISA interrupt, or
nowhere.
"""

from collections.abc import Sequence

from pellucid.machine.devices.pirq import PirqLines
from pellucid.machine.irq import IrqLine
from pellucid.machine.pci import ConfigRegister, PciFunction
from pellucid.machine.pci import config as cfg
from pellucid.machine.pci.bus import PINS


class Piix3(PciFunction):
    """The function at 01.0. `isa_irqs` are the 16 interrupt inputs of the PIC pair."""

    kind = "PIIX3"
    vendor_id, device_id, class_code = 0x8086, 0x7000, 0x060100
    is_multifunction = True
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
        self._pirqs = PirqLines(
            PINS, lambda slot, pin: (slot + pin - 1) % PINS, lambda line: self.config[0x60 + line], isa_irqs
        )
        super().__init__()

    def route(self, slot: int, pin: int, level: bool) -> None:
        """A pin of a function on the root bus rose or fell; slots are wired to the PIRQ lines in rotation."""
        self._pirqs.change(slot, pin, level)

    @pirq_routing.after_write
    def _drive(self) -> None:
        self._pirqs.drive()

    def reset(self) -> None:
        super().reset()
        self._drive()

    def after_load(self) -> None:
        super().after_load()
        self._drive()
