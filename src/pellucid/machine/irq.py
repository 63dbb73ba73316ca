"""Interrupt lines as a device sees them: something to raise and lower, with no idea of what is behind."""

from typing import Protocol


class IrqLine(Protocol):
    """One input of an interrupt chip."""

    def set(self, level: bool) -> None:
        """Drive the line high (True) or low. Driving it to the level it has changes nothing."""
        ...

    def pulse(self) -> None:
        """High and low again: one edge."""
        ...


class GsiHost(Protocol):
    """What owns the interrupt chips: a `pellucid.kvm.api.Vm`."""

    def irq_line(self, gsi: int, level: bool) -> None: ...


class GsiLine:
    """A line to a global system interrupt of the VM's chips."""

    def __init__(self, vm: GsiHost, gsi: int) -> None:
        self._vm = vm
        self.gsi = gsi

    def set(self, level: bool) -> None:
        self._vm.irq_line(self.gsi, level)

    def pulse(self) -> None:
        self._vm.irq_line(self.gsi, True)
        self._vm.irq_line(self.gsi, False)
