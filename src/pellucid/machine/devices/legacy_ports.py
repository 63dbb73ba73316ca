"""Two ports of the AT's board that today hold nothing but must be there: 0x80 (POST codes) and 0xF0 (coprocessor)."""

from collections.abc import Callable

from pellucid.machine.device import Device, Region, Register


class PostPort(Device):
    """Port 0x80: firmware writes progress codes, kernels write to wait a microsecond. Nobody looks; reads float."""

    kind = "ioport80"
    regions = (Region("ioport80", 1),)

    code = Register(0, access="wo", doc="the last POST code")


class CoprocessorPort(Device):
    """Port 0xF0: a write ends the coprocessor's error interrupt (`clear_error`). Reads float."""

    kind = "ioportF0"
    regions = (Region("ioportF0", 1),)

    clear = Register(0, access="wo", stored=False)

    def __init__(self, clear_error: Callable[[], None]) -> None:
        super().__init__()
        self._clear_error = clear_error

    @clear.on_write
    def _write(self, value: int) -> None:
        self._clear_error()
