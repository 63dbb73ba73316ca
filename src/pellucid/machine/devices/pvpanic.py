"""`pvpanic`: one byte through which a guest says that it has crashed (QEMU's docs/specs/pvpanic).

Reading gives the events that the machine understands. Writing bit 0 says that the guest has panicked, bit 1 that it has
and its crash kernel is taking over.
"""

from collections.abc import Callable

from pellucid.machine.device import Device, Property, Region
from pellucid.machine.pci import Bar, PciFunction
from pellucid.machine.properties import UINT8, UINT16
from pellucid.memory import AccessSizes

PANICKED, CRASH_LOADED = 0x01, 0x02


class Pvpanic(Device):
    """The port of the ISA device. `panicked` stops the machine, `crash_loaded` only tells whoever listens."""

    kind = "pvpanic"
    regions = (Region("pvpanic", 1, valid=AccessSizes(1, 1), impl=AccessSizes(1, 1)),)

    ioport = Property(UINT16, 0x505)
    events = Property(UINT8, PANICKED | CRASH_LOADED)

    def __init__(self, panicked: Callable[[], None], crash_loaded: Callable[[], None]) -> None:
        super().__init__()
        self._panicked, self._crash_loaded = panicked, crash_loaded

    def region_read(self, region: int, offset: int, size: int) -> int:
        return self.events

    def region_write(self, region: int, offset: int, size: int, value: int) -> None:
        happened = value & self.events
        if happened & PANICKED:
            self._panicked()
        elif happened & CRASH_LOADED:
            self._crash_loaded()


class PvpanicPci(PciFunction):
    """The same behind a BAR of two bytes, of which each is the port."""

    kind = "pvpanic-pci"
    vendor_id, device_id, revision, class_code = 0x1B36, 0x0011, 0x01, 0x088000
    vendor_bytes_writable = False
    regions = (Region("pvpanic-pci", 2, valid=AccessSizes(1, 1), impl=AccessSizes(1, 1)),)

    events = Property(UINT8, PANICKED | CRASH_LOADED)

    def __init__(self, panicked: Callable[[], None], crash_loaded: Callable[[], None]) -> None:
        super().__init__()
        self._port = Pvpanic(panicked, crash_loaded)
        self.add_bar(Bar(0, self.regions[0].memory_region(self.ops())))

    def region_read(self, region: int, offset: int, size: int) -> int:
        return self.events

    def region_write(self, region: int, offset: int, size: int, value: int) -> None:
        self._port.events = self.events
        self._port.region_write(0, 0, 1, value)
