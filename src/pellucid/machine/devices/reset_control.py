"""The reset control register of PIIX3 and ICH9 (data sheets 290550, 2.5.3 and 316972, 13.7.5): port 0xCF9."""

from collections.abc import Callable

from pellucid.machine.device import Device, Region, Register

FULL_RESET, SYSTEM_RESET, RESET_CPU = 0x08, 0x02, 0x04


class ResetControl(Device):
    """Port 0xCF9: bit 1 chooses between the processor's INIT and a reset of all, a rise of bit 2 does it.

    `name` is the region's: each chip has its own.
    """

    kind = "reset-control"

    control = Register(0, writable=FULL_RESET | SYSTEM_RESET, doc="bit 1 system reset, bit 2 do it, bit 3 full reset")

    def __init__(self, request_reset: Callable[[], None], name: str) -> None:
        self.regions = (Region(name, 1),)  # type: ignore[misc]
        super().__init__()
        self._request_reset = request_reset

    @control.on_write
    def _write(self, value: int) -> None:
        if value & RESET_CPU:
            self._request_reset()
        else:
            self.control = value & (FULL_RESET | SYSTEM_RESET)
