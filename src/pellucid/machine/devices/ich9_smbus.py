"""ICH9's SMBus function, 1f.3 (data sheet 316972, 19.1): the controller of `pm_smbus.py` behind BAR 4."""

from pellucid.machine.devices.pm_smbus import PmSmbus, SmbusSlave
from pellucid.machine.pci import Bar, BarKind, ConfigRegister, PciFunction

HOST_ENABLE, SOFT_RESET = 0x01, 0x08


class Ich9Smbus(PciFunction):
    """The function. `controller` is its registers, a part of the machine of its own."""

    kind = "ICH9-SMB"
    vendor_id, device_id, revision, class_code = 0x8086, 0x2930, 0x02, 0x0C0500
    is_multifunction = True
    hotpluggable = False
    in_dsdt = True
    interrupt_pin = 1

    host_config = ConfigRegister(0x40, 1, writable=0xF7, doc="HOSTC: bit 0 enables, bit 3 resets the controller")

    def __init__(self, slaves: dict[int, SmbusSlave]) -> None:
        self.controller = PmSmbus(slaves, _Pin(self))
        super().__init__()
        region = PmSmbus.regions[0].memory_region(self.controller.ops())
        self.add_bar(Bar(4, region, BarKind.IO))
        self._region = region
        self._open()

    @host_config.after_write
    def _open(self) -> None:
        self._region.set_enabled(bool(self.host_config & HOST_ENABLE))

    def reset(self) -> None:
        super().reset()
        self._open()

    def after_load(self) -> None:
        super().after_load()
        self._open()


class _Pin:
    """INTA# as the controller drives it."""

    def __init__(self, function: Ich9Smbus) -> None:
        self._function = function

    def set(self, level: bool) -> None:
        self._function.set_intx(level)

    def pulse(self) -> None:
        self.set(True)
        self.set(False)
