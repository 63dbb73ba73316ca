"""Hot-plug of PCI cards by ACPI, QEMU's registers (docs/specs/acpi_pci_hotplug): the DSDT's methods talk to them.

Doublewords: slots to look at because a card came (PCIU) or is to go (PCID), one bit for each; a write to B0EJ takes the
cards of those slots out; PCRM has the slots of which cards can be taken out; BSEL chooses the bus; INDX, written with a
slot, reads as the card's `acpi-index`.
"""

from collections.abc import Callable

from pellucid.machine.device import Device, Region, Register
from pellucid.machine.pci import PciBus
from pellucid.memory import AccessSizes

GPE_BIT = 1
ALL_SLOTS = 0xFFFF_FFFF


class AcpiPciHotplug(Device):
    """`bus` is the one that BSEL 0 chooses, None where no bus has it; `fixed_slots` are those that nothing leaves."""

    kind = "acpi-pci-hotplug"
    regions = (Region("acpi-pci-hotplug", 0x18, valid=AccessSizes(4, 4), impl=AccessSizes(4, 4)),)

    up = Register(0x00, size=4, access="ro", doc="slots that a card was put into; a read clears")
    down = Register(0x04, size=4, access="ro", doc="slots whose card is asked back")
    eject = Register(0x08, size=4, stored=False)
    removable = Register(0x0C, size=4, access="ro", stored=False)
    bus_select = Register(0x10, size=4)
    acpi_index = Register(0x14, size=4, doc="a slot, when written; what its card is called, when read")

    def __init__(self, bus: PciBus | None, raise_gpe: Callable[[int], None], fixed_slots: int = 0) -> None:
        self._bus, self._raise_gpe, self._fixed = bus, raise_gpe, fixed_slots
        super().__init__()

    def card_added(self, slot: int) -> None:
        """A card is there now: have the guest look."""
        self.up |= 1 << slot
        self._raise_gpe(GPE_BIT)

    def ask_back(self, slot: int) -> None:
        """The user wants the card of `slot` out: have the guest let go of it."""
        self.down |= 1 << slot
        self._raise_gpe(GPE_BIT)

    def _selected(self) -> PciBus | None:
        return self._bus if self.bus_select == 0 else None

    @up.on_read
    def _read_up(self) -> int:
        value = self.up if self._selected() else 0
        if value:
            self.up = 0
        return value

    @down.on_read
    def _read_down(self) -> int:
        return self.down if self._selected() else 0

    @eject.on_read
    def _read_eject(self) -> int:
        return 0

    @eject.on_write
    def _eject(self, value: int) -> None:
        bus = self._selected()
        if bus is None or not value:
            return
        slot = (value & -value).bit_length() - 1
        if self._fixed >> slot & 1:
            return
        for function in [found for devfn, found in bus.functions.items() if devfn >> 3 == slot]:
            bus.remove(function)
        self.up &= ~(1 << slot)
        self.down &= ~(1 << slot)

    @removable.on_read
    def _read_removable(self) -> int:
        return ALL_SLOTS & ~self._fixed if self._selected() else ALL_SLOTS

    @acpi_index.on_read
    def _read_acpi_index(self) -> int:
        bus, slot = self._selected(), self.acpi_index
        if bus is None or slot > 31:
            return 0
        function = bus.functions.get(slot << 3)
        return getattr(function, "acpi_index", 0)
