"""PCI Express root ports: QEMU's `pcie-root-port` (1b36:000c) and Intel's `ioh3420` (8086:3420), a slot behind each.

A card in the slot is on a bus of its own. The port's interrupt, for events of the slot, is a message where the guest
has enabled them, else its pin.
"""

from typing import ClassVar

from pellucid.machine.device import Property, State
from pellucid.machine.pci import config as cfg
from pellucid.machine.pci.bar import Bar
from pellucid.machine.pci.bridge import PciBridge
from pellucid.machine.pci.express import (
    TYPE_ROOT_PORT,
    ExpressFunction,
    Link,
    PcieCapability,
    SubsystemIds,
    add_acs,
    add_aer,
)
from pellucid.machine.pci.msi import Msi, MsiX
from pellucid.machine.pci.slot import CAPABILITIES, HOT_PLUG_CAPABLE, POWER_CONTROLLER, Slot
from pellucid.machine.properties import BIT, BOOL, SIZE, UINT8, UINT16, UINT32, Words
from pellucid.machine.state import Memory
from pellucid.memory import MemoryRegion

NO_SIZE, NO_COUNT = (1 << 64) - 1, (1 << 32) - 1
SPEEDS = {"2_5": 1, "5": 2, "8": 3, "16": 4}
WIDTHS = {str(lanes): lanes for lanes in (1, 2, 4, 8, 12, 16, 32)}
MSIX_BAR_SIZE, MSIX_PENDING = 0x1000, 0x800
MSIX_TABLE = 16


class RootPort(ExpressFunction, PciBridge):
    """What both ports have. `slot_number` and the rest of the properties are fixed at construction."""

    interrupt_pin = 1
    status_reset = 0
    express_behind = True
    capability_at: ClassVar[int] = 0

    power_controller_present = Property(BIT, True)
    disable_acs = Property(BOOL, False, name="disable-acs")
    chassis = Property(UINT8, 0)
    slot_number = Property(UINT16, 0, name="slot")
    hotplug = Property(BOOL, True)
    native_hotplug = Property(BOOL, True, name="x-native-hotplug")
    port = Property(UINT8, 0)
    aer_log_max = Property(UINT16, 8)

    def __init__(self, bus_name: str, values: dict[str, object] | None = None) -> None:
        super().__init__(bus_name)
        self.set_properties(values or {})
        self.put_template(0x1C, 2, 0x00F0, writable=0xF0F0)
        self.put_template(0x20, 4, 0x0000_FFF0, writable=0xFFF0_FFF0)
        self.put_template(0x24, 4, 0x0001_FFF1, writable=0xFFF0_FFF0)
        self.put_template(0x3E, 2, 0, writable=0x005F)
        self.put_template(0x1E, 2, 0, write_clears=cfg.STATUS_ERRORS)

    def _add_slot(self, link: Link) -> None:
        capability = PcieCapability(self, self.capability_at, TYPE_ROOT_PORT, link, port=self.port, slot=True)
        self.slot_registers = Slot(self, capability, self.slot_number, self._take_card_out, self._slot_interrupt)
        lacking = (0 if self.hotplug else HOT_PLUG_CAPABLE) | (0 if self.power_controller_present else POWER_CONTROLLER)
        at = capability.offset + CAPABILITIES
        self.put_template(at, 4, int.from_bytes(self._template[at : at + 4], "little") & ~lacking)

    def reset(self) -> None:
        super().reset()
        self.slot_registers.reset()

    def config_write(self, offset: int, size: int, value: int) -> None:
        self.slot_registers.before_write()
        super().config_write(offset, size, value)
        self.slot_registers.written(offset, size, value)

    def card_added(self, *, announce: bool) -> None:
        """A function was put on the bus behind."""
        self.slot_registers.set_present(True, announce=announce)

    def _take_card_out(self) -> None:
        behind = self.secondary()
        if behind is not None:
            for function in list(behind.functions.values()):
                behind.remove(function)

    def _slot_interrupt(self, level: bool) -> None:
        raise NotImplementedError


class PcieRootPort(RootPort):
    """QEMU's own port, with MSI-X, at 16 GT/s and 32 lanes unless told otherwise."""

    kind = "pcie-root-port"
    vendor_id, device_id, revision = 0x1B36, 0x000C, 0x00
    capability_at = 0x54

    migrate_msix = Property(BOOL, True, name="x-migrate-msix")
    bus_reserve = Property(UINT32, NO_COUNT, name="bus-reserve")
    io_reserve = Property(SIZE, NO_SIZE, name="io-reserve")
    mem_reserve = Property(SIZE, NO_SIZE, name="mem-reserve")
    pref32_reserve = Property(SIZE, NO_SIZE, name="pref32-reserve")
    pref64_reserve = Property(SIZE, NO_SIZE, name="pref64-reserve")
    speed = Property(Words("PCIELinkSpeed", *SPEEDS), "16", name="x-speed")
    width = Property(Words("PCIELinkWidth", *WIDTHS), "32", name="x-width")

    msix_table = State(Memory(MSIX_TABLE), bytes(12) + b"\x01\0\0\0", doc="MSI-X table")
    msix_pending = State(Memory(8), bytes(8))

    def __init__(self, bus_name: str = "", values: dict[str, object] | None = None) -> None:
        super().__init__(bus_name, values)
        bar = Bar(0, MemoryRegion.new_container("pcie-root-port-msix", MSIX_BAR_SIZE))
        self.add_bar(bar)
        SubsystemIds(self, 0x40, self.vendor_id)
        self.messages = MsiX(self, 0x48, 1, bar, 0, MSIX_PENDING)
        self.messages.save_as("msix_table", "msix_pending")
        self._add_slot(Link(SPEEDS[self.speed], WIDTHS[self.width]))
        add_aer(self, 0x100, root=True)
        if not self.disable_acs:
            add_acs(self, 0x148)

    def _slot_interrupt(self, level: bool) -> None:
        if not self.messages.enabled:
            self.set_intx(level)
        elif level:
            self.messages.notify(0)


class Ioh3420(RootPort):
    """The port of Intel's 5520 chipset, with MSI."""

    kind = "ioh3420"
    vendor_id, device_id, revision = 0x8086, 0x3420, 0x02
    capability_at = 0x90

    def __init__(self, bus_name: str = "", values: dict[str, object] | None = None) -> None:
        super().__init__(bus_name, values)
        SubsystemIds(self, 0x40, self.vendor_id)
        self.messages = Msi(self, 0x60, 2, wide=False)
        self._add_slot(Link())
        add_aer(self, 0x100, root=True)

    def _slot_interrupt(self, level: bool) -> None:
        if not self.messages.enabled:
            self.set_intx(level)
        elif level:
            self.messages.notify(0)
