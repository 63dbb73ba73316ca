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


class SharedLine:
    """A line that several sources drive: high while any of them is. `gsi` is its global number, for who asks."""

    def __init__(self, line: IrqLine, gsi: int = 0) -> None:
        self._line, self.gsi = line, gsi
        self._high: set[int] = set()
        self._inputs = 0

    def input(self) -> "SharedInput":
        """One more source."""
        self._inputs += 1
        return SharedInput(self, self._inputs)

    def drive(self, source: int, level: bool) -> None:
        """What a source asks for changed."""
        (self._high.add if level else self._high.discard)(source)
        self._line.set(bool(self._high))


class SharedInput:
    """One source's end of a `SharedLine`."""

    def __init__(self, line: SharedLine, number: int) -> None:
        self._line, self._number, self.gsi = line, number, line.gsi

    def set(self, level: bool) -> None:
        self._line.drive(self._number, level)

    def pulse(self) -> None:
        self.set(True)
        self.set(False)
