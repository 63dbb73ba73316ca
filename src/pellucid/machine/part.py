"""A device in its place: what a board is a list of."""


from pellucid.machine.device import Device
from pellucid.machine.firmware.aml import Resources
from pellucid.records import dataclass


@dataclass(frozen=True)
class Part:
    """A device, the base of each of its regions in port space or in memory space, and its interrupt (for ACPI).

    `priority` is that of the regions; one that is not 0 lets them lie over others.
    """

    device: Device
    ports: tuple[int, ...] = ()
    mmio: tuple[int, ...] = ()
    gsi: int = 0
    priority: int = 0

    @property
    def resources(self) -> Resources:
        """The place without the device."""
        return Resources(self.ports, self.mmio, self.gsi)
