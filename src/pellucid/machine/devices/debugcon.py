"""Debug console (`-device isa-debugcon`, port 0xE9): a byte written is a byte out; reading says that it is there."""

from pellucid.machine.chardev.base import Chardev
from pellucid.machine.device import Device, Property, Region, Register
from pellucid.machine.state import U8


class DebugCon(Device):
    """One port without handshake: what the chardev does not take at once is lost."""

    kind = "isa-debugcon"
    regions = (Region("isa-debugcon", 1),)

    readback = Property(U8, 0xE9, doc="what a read returns")

    port = Register(0, stored=False)

    def __init__(self, chardev: Chardev, *, readback: int = 0xE9) -> None:
        super().__init__()
        self._chardev = chardev
        self.readback = readback

    @port.on_read
    def _read_port(self) -> int:
        return self.readback

    @port.on_write
    def _write_port(self, value: int) -> None:
        self._chardev.write(bytes((value,)))
