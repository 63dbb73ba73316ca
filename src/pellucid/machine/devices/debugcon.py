"""Debug console (`isa-debugcon`, port 0xE9 at first): a byte written is a byte out; reading says that it is there."""

from pellucid.machine.chardev.base import Chardev
from pellucid.machine.device import Device, Property, Region, Register
from pellucid.machine.properties import CHARDEV, UINT32


class DebugCon(Device):
    """One port without handshake: what the chardev does not take at once is lost."""

    kind = "isa-debugcon"
    regions = (Region("isa-debugcon", 1),)

    iobase = Property(UINT32, 0xE9)
    chardev = Property(CHARDEV, "")
    readback = Property(UINT32, 0xE9, doc="what a read returns")

    port = Register(0, stored=False)

    def __init__(self, chardev: Chardev) -> None:
        super().__init__()
        self._chardev = chardev

    @port.on_read
    def _read_port(self) -> int:
        return self.readback & 0xFF

    @port.on_write
    def _write_port(self, value: int) -> None:
        self._chardev.write(bytes((value,)))
