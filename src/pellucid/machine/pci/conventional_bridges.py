"""Bridges to a conventional bus: QEMU's `pci-bridge` (1b36:0001) and `pcie-pci-bridge` (1b36:000e).

Their standard hot-plug controllers (SHPC, BAR 0) are not built: both are as QEMU's with `shpc=off`.
"""

from pellucid.machine.device import Property
from pellucid.machine.pci import config as cfg
from pellucid.machine.pci.bridge import PciBridge
from pellucid.machine.pci.express import (
    CAP_SLOT_ID,
    TYPE_TO_PCI_BRIDGE,
    ExpressFunction,
    Link,
    PcieCapability,
    add_aer,
)
from pellucid.machine.pci.function import Capability, PciFunction
from pellucid.machine.pci.msi import Msi, PowerManagement
from pellucid.machine.properties import BIT, ON_OFF_AUTO, SIZE, UINT8, UINT32

NO_SIZE, NO_COUNT = (1 << 64) - 1, (1 << 32) - 1
STATUS_66_MHZ = 0x20
FIRST_IN_CHASSIS = 0x20


class SlotNumbering(Capability):
    """How many slots are behind the bridge, and the number of its chassis (PCI-to-PCI Bridge 1.2, chapter 13)."""

    id = CAP_SLOT_ID

    def __init__(self, function: PciFunction, offset: int, chassis: int) -> None:
        function.add_capability(offset, 4, self)
        function.put_template(offset + 2, 1, FIRST_IN_CHASSIS)
        function.put_template(offset + 3, 1, chassis, writable=0xFF)


class StandardPciBridge(PciBridge):
    """`pci-bridge`: a conventional bridge on either kind of bus."""

    kind = "pci-bridge"
    vendor_id, device_id = 0x1B36, 0x0001
    status_reset = cfg.STATUS_FAST_BACK | STATUS_66_MHZ

    chassis_nr = Property(UINT8, 0)
    msi_wanted = Property(ON_OFF_AUTO, "auto", name="msi")
    shpc = Property(BIT, False)
    bus_reserve = Property(UINT32, NO_COUNT, name="bus-reserve")
    io_reserve = Property(SIZE, NO_SIZE, name="io-reserve")
    mem_reserve = Property(SIZE, NO_SIZE, name="mem-reserve")
    pref32_reserve = Property(SIZE, NO_SIZE, name="pref32-reserve")
    pref64_reserve = Property(SIZE, NO_SIZE, name="pref64-reserve")

    def __init__(self, bus_name: str = "", values: dict[str, object] | None = None) -> None:
        super().__init__(bus_name)
        self.set_properties(values or {})
        self.put_template(0x1E, 2, cfg.STATUS_FAST_BACK | STATUS_66_MHZ, write_clears=cfg.STATUS_ERRORS)
        # Without a hot-plug controller there is nothing to interrupt for: no pin and no messages.
        SlotNumbering(self, 0x40, self.chassis_nr)


class PciePciBridge(ExpressFunction, PciBridge):
    """`pcie-pci-bridge`: from PCI Express to a conventional bus."""

    kind = "pcie-pci-bridge"
    vendor_id, device_id = 0x1B36, 0x000E
    interrupt_pin = 1
    status_reset = cfg.STATUS_FAST_BACK | STATUS_66_MHZ

    msi_wanted = Property(ON_OFF_AUTO, "auto", name="msi")

    def __init__(self, bus_name: str = "", values: dict[str, object] | None = None) -> None:
        super().__init__(bus_name)
        self.set_properties(values or {})
        self.put_template(0x1E, 2, cfg.STATUS_FAST_BACK | STATUS_66_MHZ, write_clears=cfg.STATUS_ERRORS)
        PcieCapability(self, 0x48, TYPE_TO_PCI_BRIDGE, Link())
        PowerManagement(self, 0x84, state=0, writable=0)
        if self.msi_wanted != "off":
            self.messages = Msi(self, 0x8C)
        add_aer(self, 0x100, root=False)
