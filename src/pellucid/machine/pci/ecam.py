"""ECAM, the memory-mapped way to configuration space (PCI Express 5.0, 7.2.2): 4 KiB for each function.

Offset bits 27-20 are the bus, 19-12 device and function, 11-0 the register. A conventional function answers in the
first 256 bytes only; what is beyond reads as all ones.
"""

from pellucid.machine.device import Device, Region
from pellucid.machine.pci.bus import PciBus
from pellucid.memory import AccessSizes

LARGEST = 256 << 20


class Ecam(Device):
    """The window, in front of `bus`; the board says where it lies and how large it is."""

    kind = "pcie-mmcfg-mmio"
    regions = (Region("pcie-mmcfg-mmio", LARGEST, valid=AccessSizes(1, 4), impl=AccessSizes(1, 4)),)

    def __init__(self, bus: PciBus) -> None:
        super().__init__()
        self._bus = bus

    def region_read(self, region: int, offset: int, size: int) -> int:
        return self._bus.config_read(offset >> 20 & 0xFF, offset >> 12 & 0xFF, offset & 0xFFF, size)

    def region_write(self, region: int, offset: int, size: int, value: int) -> None:
        self._bus.config_write(offset >> 20 & 0xFF, offset >> 12 & 0xFF, offset & 0xFFF, size, value)
