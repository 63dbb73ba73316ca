"""Configuration mechanism 1 (PCI 3.0, 3.2.2.3.2): an address port and a data port.

Region 0 is CONFIG_ADDRESS: it takes doublewords only. Bit 31 enables, bits 23-16 are the bus, 15-8 the function, 7-2
the register. Region 1 is CONFIG_DATA, a window of four bytes on that register. The two lowest bits are reserved there;
as QEMU has them, they are put to the register's offset by OR.

Port 0xCF9, in the middle of CONFIG_ADDRESS, is another chip's on the PC: it lies over this one at a higher priority,
and a doubleword that starts at 0xCF8 still comes here whole.
"""

from pellucid.machine.device import Device, Region, Register
from pellucid.machine.pci.bus import PciBus
from pellucid.memory import AccessSizes

ENABLE = 1 << 31


class ConfigMechanism1(Device):
    """The two ports of a host bridge, in front of `bus`."""

    kind = "pci-conf"
    regions = (
        Region("pci-conf-idx", 4, valid=AccessSizes(1, 4), impl=AccessSizes(1, 4)),
        Region("pci-conf-data", 4, valid=AccessSizes(1, 4), impl=AccessSizes(1, 4)),
    )

    address = Register(0, size=4, exact=True, doc="bit 31 enable, 23-16 bus, 15-8 device and function, 7-2 register")

    def __init__(self, bus: PciBus) -> None:
        super().__init__()
        self._bus = bus

    def region_read(self, region: int, offset: int, size: int) -> int:
        return self._read_data(offset, size) if region == 1 else super().region_read(region, offset, size)

    def region_write(self, region: int, offset: int, size: int, value: int) -> None:
        if region == 1:
            self._write_data(offset, size, value)
        else:
            super().region_write(region, offset, size, value)

    def _read_data(self, offset: int, size: int) -> int:
        if not self.address & ENABLE:
            return (1 << 8 * size) - 1
        register = self.address & 0xFF | offset
        return self._bus.config_read(self.address >> 16 & 0xFF, self.address >> 8 & 0xFF, register, size)

    def _write_data(self, offset: int, size: int, value: int) -> None:
        if self.address & ENABLE:
            register = self.address & 0xFF | offset
            self._bus.config_write(self.address >> 16 & 0xFF, self.address >> 8 & 0xFF, register, size, value)
