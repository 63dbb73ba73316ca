"""`isa-debug-exit`: a write ends the process with status (value << 1) | 1, by which a test gives its verdict."""

from collections.abc import Callable

from pellucid.machine.device import Device, Property, Region
from pellucid.machine.properties import UINT32
from pellucid.memory import AccessSizes


class IsaDebugExit(Device):
    """`exit` ends the machine with a status. A status has eight bits on Linux."""

    kind = "isa-debug-exit"
    regions = (Region("isa-debug-exit", 2, impl=AccessSizes(1, 4)),)

    iobase = Property(UINT32, 0x501)
    iosize = Property(UINT32, 2)

    def __init__(self, exit: Callable[[int], None]) -> None:
        super().__init__()
        self._exit = exit

    def region_read(self, region: int, offset: int, size: int) -> int:
        return 0

    def region_write(self, region: int, offset: int, size: int, value: int) -> None:
        self._exit((value << 1 | 1) & 0xFF)
