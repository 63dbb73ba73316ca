"""A PCI bus: functions by slot, the spaces they decode in, and where their interrupt pins lead."""

from collections.abc import Callable, Iterator
from typing import ClassVar, Protocol

from pellucid.machine.qdev import QdevBus, QdevNode
from pellucid.memory import MemoryRegion
from pellucid.records import dataclass

SLOTS, FUNCTIONS, PINS = 32, 8, 4
SECONDARY_BUS, SUBORDINATE_BUS = 0x19, 0x1A
CONFIG_SIZE = 256
"""Of a conventional function."""


@dataclass(frozen=True)
class PciSpaces:
    """What the functions of a bus see: where BARs go, what DMA reaches, and who takes messages."""

    memory: MemoryRegion
    io: MemoryRegion
    dma: MemoryRegion
    signal_msi: Callable[[int, int], object]


class Iommu(Protocol):
    """Stands between the masters of a root bus, and of all behind it, and memory."""

    def region_for(self, function: "Function") -> MemoryRegion:
        """What the DMA of `function` reaches, instead of `PciSpaces.dma`."""
        ...

    def signal_msi(self, source_id: int, address: int, data: int) -> object:
        """A message of the requester with that id."""
        ...


class Function(Protocol):
    """What a bus holds: a `PciFunction`."""

    bus: "PciBus | None"
    devfn: int
    config_size: ClassVar[int]

    @property
    def is_master(self) -> bool: ...
    def place_dma(self) -> None: ...

    def config_read(self, offset: int, size: int) -> int: ...
    def config_write(self, offset: int, size: int, value: int) -> None: ...
    def attached(self) -> None: ...
    def detached(self) -> None: ...
    def qdev_node(self, ident: str = "") -> QdevNode: ...
    def info_lines(self) -> Iterator[str]: ...
    def secondary(self) -> "PciBus | None": ...
    def reset(self) -> None: ...


def swizzle(slot: int, pin: int) -> int:
    """The pin of a bridge that its child's pin comes out of (PCI-to-PCI Bridge 1.2, 9.1). Pins count from 0."""
    return (slot + pin) % PINS


def source_id(function: Function) -> int:
    """The requester id that memory sees: bus number and devfn as the guest has numbered them (VT-d 3.4.1).

    A conventional bus has none of its own: the bridge to it takes ownership, an express one with devfn 0 of the bus
    behind it, a conventional one as itself.
    """
    bus = function.bus
    assert bus is not None
    found = bus.shown_number << 8 | function.devfn
    while bus.bridge is not None:
        bridge, above = bus.bridge, bus.bridge.bus
        assert above is not None
        if not bus.express:
            is_express = bridge.config_size > CONFIG_SIZE
            found = bus.shown_number << 8 if is_express else above.shown_number << 8 | bridge.devfn
        bus = above
    return found


class PciBus:
    """`route(slot, pin, level)` takes each change of a function's pin; the bus itself does not wire them together.

    `express` says which of QEMU's two types it is; `bridge` is the function that it is behind.
    """

    def __init__(
        self,
        name: str,
        spaces: PciSpaces,
        route: Callable[[int, int, bool], None],
        *,
        express: bool = False,
        bridge: "Function | None" = None,
    ) -> None:
        self.spaces, self.express, self.bridge = spaces, express, bridge
        self._route = route
        self._iommu: Iommu | None = None
        self.functions: dict[int, Function] = {}
        self.nodes: dict[int, QdevNode] = {}
        self.qdev = QdevBus(name, "PCIE" if express else "PCI", host=self)

    @property
    def iommu(self) -> Iommu | None:
        """That of the root bus."""
        above = self.bridge.bus if self.bridge is not None else None
        return self._iommu if above is None else above.iommu

    def set_iommu(self, iommu: Iommu) -> None:
        """Put `iommu` between the functions that are here, or come, and memory. For a root bus."""
        self._iommu = iommu
        for function in self.walk():
            function.place_dma()

    def walk(self) -> "Iterator[Function]":
        """The functions here and behind the bridges."""
        for function in self.functions.values():
            yield function
            behind = function.secondary()
            if behind is not None:
                yield from behind.walk()

    def signal_msi(self, source: Function, address: int, data: int) -> None:
        """A message that `source`, which is here or behind, sends; bridges pass it up while they may be masters."""
        at = self
        while at.bridge is not None:
            if not at.bridge.is_master or at.bridge.bus is None:
                return
            at = at.bridge.bus
        if at._iommu is not None:
            at._iommu.signal_msi(source_id(source), address, data)
        else:
            at.spaces.signal_msi(address, data)

    @property
    def shown_number(self) -> int:
        """The bus's number as the guest has set it in the bridge; 0 for the root."""
        return 0 if self.bridge is None else self.bridge.config_read(SECONDARY_BUS, 1)

    @property
    def name(self) -> str:
        """As users say it."""
        return self.qdev.name

    def add(self, slot: int, function: int, device: Function, ident: str = "") -> None:
        """Put `device` at SLOT.FUNCTION. Raises ValueError when the place is taken or does not exist."""
        devfn = slot << 3 | function
        if not (0 <= slot < SLOTS and 0 <= function < FUNCTIONS) or devfn in self.functions:
            raise ValueError(f"PCI bus {self.name}: no free place {slot:02x}.{function}")
        self.functions[devfn] = device
        device.bus, device.devfn = self, devfn
        self.nodes[devfn] = self.qdev.plug(device.qdev_node(ident))
        device.attached()
        behind = device.secondary()
        if behind is not None:
            self.nodes[devfn].buses.append(behind.qdev)

    def remove(self, device: Function) -> None:
        """Take a function out; what it had mapped is gone."""
        device.detached()
        del self.functions[device.devfn]
        self.qdev.unplug(self.nodes.pop(device.devfn))
        device.bus = None

    def node(self, device: Function) -> QdevNode:
        """The node of a function that is on the bus."""
        return self.nodes[device.devfn]

    def set_intx(self, devfn: int, pin: int, level: bool) -> None:
        """A function's pin (0 is INTA#) rose or fell."""
        self._route(devfn >> 3, pin, level)

    def config_read(self, bus: int, devfn: int, offset: int, size: int) -> int:
        """Read configuration space on bus number `bus`, this one being 0 for it; all ones where nobody is."""
        found = self._find(bus, devfn)
        if found is None or offset + size > found.config_size:
            return (1 << 8 * size) - 1
        return found.config_read(offset, size)

    def config_write(self, bus: int, devfn: int, offset: int, size: int, value: int) -> None:
        """Write configuration space; dropped where nobody is."""
        found = self._find(bus, devfn)
        if found is not None and offset + size <= found.config_size:
            found.config_write(offset, size, value)

    def _find(self, number: int, devfn: int) -> Function | None:
        return self.functions.get(devfn) if number == 0 else self._behind(number, devfn)

    def _behind(self, number: int, devfn: int) -> Function | None:
        """The function on the bus with that number, behind the bridges as the guest has numbered them.

        Numbers grow on the way down, or the way is not taken: a guest that numbers its buses in a circle finds nobody.
        """
        at: PciBus | None = self
        above = 0
        while at is not None:
            bridge = next((b for b in at._bridges() if above < b[0] <= number <= b[1]), None)
            if bridge is None:
                return None
            above, _, at = bridge
            if above == number:
                return at.functions.get(devfn)
        return None

    def _bridges(self) -> "list[tuple[int, int, PciBus]]":
        """(secondary number, subordinate number, bus behind) of each bridge here."""
        found = []
        for function in self.functions.values():
            behind = function.secondary()
            if behind is not None:
                found.append((function.config_read(SECONDARY_BUS, 1), function.config_read(SUBORDINATE_BUS, 1), behind))
        return found
