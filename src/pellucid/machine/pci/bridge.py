"""A PCI-to-PCI bridge: a type 1 header, the bus behind it and the windows through which that bus is seen.

PCI-to-PCI Bridge Architecture Specification 1.2. A window is an alias: it shows the part of the secondary bus's space
that lies between base and limit at the same addresses on the primary side, while the command register lets it.
"""

from typing import ClassVar

from pellucid.machine.pci import config as cfg
from pellucid.machine.pci.bus import PciBus, PciSpaces, swizzle
from pellucid.machine.pci.config import ConfigRegister
from pellucid.machine.pci.function import PciFunction
from pellucid.memory import ADDRESS_SPACE_SIZE, MemoryRegion, MemoryTransaction

PORT_SPACE_SIZE = 0x1_0000
PREFETCHABLE_64_BIT = 0x01
BUS_RESET = 0x40
WINDOW_PRIORITY = 1


class PciBridge(PciFunction):
    """The bridge. `bus_behind` is there once the bridge is on a bus itself; `bus_name` is what users call it."""

    class_code = 0x060400
    header_type = cfg.HEADER_BRIDGE
    vendor_bytes_writable = False
    status_reset = cfg.STATUS_FAST_BACK
    express_behind: ClassVar[bool] = False

    primary = ConfigRegister(0x18, 1, writable=0xFF, doc="number of the bus that the bridge is on")
    secondary_number = ConfigRegister(0x19, 1, writable=0xFF, doc="number of the bus behind")
    subordinate = ConfigRegister(0x1A, 1, writable=0xFF, doc="highest number behind")
    secondary_latency = ConfigRegister(0x1B, 1, writable=0xFF)
    io_base = ConfigRegister(0x1C, 1, writable=0xF0)
    io_limit = ConfigRegister(0x1D, 1, writable=0xF0)
    secondary_status = ConfigRegister(0x1E, 2, write_clears=cfg.STATUS_ERRORS)
    memory_base = ConfigRegister(0x20, 2, writable=0xFFF0)
    memory_limit = ConfigRegister(0x22, 2, writable=0xFFF0)
    prefetchable_base = ConfigRegister(0x24, 2, reset=PREFETCHABLE_64_BIT, writable=0xFFF0)
    prefetchable_limit = ConfigRegister(0x26, 2, reset=PREFETCHABLE_64_BIT, writable=0xFFF0)
    prefetchable_base_high = ConfigRegister(0x28, 4, writable=0xFFFF_FFFF)
    prefetchable_limit_high = ConfigRegister(0x2C, 4, writable=0xFFFF_FFFF)
    bridge_control = ConfigRegister(0x3E, 2, writable=0x0BFF)

    def __init__(self, bus_name: str = "") -> None:
        self._bus_name = bus_name
        self._bus_behind: PciBus | None = None
        self._levels: dict[int, int] = {}
        self._memory = MemoryRegion.new_container("pci_bridge_pci")
        self._io = MemoryRegion.new_container("pci_bridge_io", PORT_SPACE_SIZE)
        self._windows = {
            "pci_bridge_io": MemoryRegion.new_alias("pci_bridge_io", self._io, 0, 0),
            "pci_bridge_mem": MemoryRegion.new_alias("pci_bridge_mem", self._memory, 0, 0),
            "pci_bridge_pref_mem": MemoryRegion.new_alias("pci_bridge_pref_mem", self._memory, 0, 0),
        }
        self._in_reset = False
        super().__init__()

    def attached(self) -> None:
        assert self.bus is not None
        above = self.bus.spaces
        with MemoryTransaction():
            for name, window in self._windows.items():
                container = above.io if name == "pci_bridge_io" else above.memory
                container.add_subregion_overlap(0, window, WINDOW_PRIORITY)
            spaces = PciSpaces(self._memory, self._io, above.dma, above.signal_msi)
            self._bus_behind = PciBus(
                self._bus_name or self.kind, spaces, self._route, express=self.express_behind, bridge=self
            )
        super().attached()
        self._update_windows()

    def detached(self) -> None:
        super().detached()
        with MemoryTransaction():
            for window in self._windows.values():
                if window.container is not None:
                    window.container.del_subregion(window)

    def secondary(self) -> PciBus | None:
        return self._bus_behind

    def config_write(self, offset: int, size: int, value: int) -> None:
        super().config_write(offset, size, value)
        self._update_windows()
        in_reset = bool(self.bridge_control & BUS_RESET)
        if in_reset and not self._in_reset and self._bus_behind is not None:
            for function in list(self._bus_behind.functions.values()):
                function.reset()
        self._in_reset = in_reset

    def reset(self) -> None:
        super().reset()
        self._in_reset = False
        self._update_windows()

    def after_load(self) -> None:
        super().after_load()
        self._update_windows()

    def window(self, name: str) -> tuple[int, int]:
        """(base, limit) as the registers have them; a limit below the base closes the window."""
        if name == "pci_bridge_io":
            return (self.io_base & 0xF0) << 8, (self.io_limit & 0xF0) << 8 | 0xFFF
        if name == "pci_bridge_mem":
            return (self.memory_base & 0xFFF0) << 16, (self.memory_limit & 0xFFF0) << 16 | 0xF_FFFF
        base = self.prefetchable_base_high << 32 | (self.prefetchable_base & 0xFFF0) << 16
        return base, self.prefetchable_limit_high << 32 | (self.prefetchable_limit & 0xFFF0) << 16 | 0xF_FFFF

    def _update_windows(self) -> None:
        if self._bus_behind is None:
            return
        with MemoryTransaction():
            for name, region in self._windows.items():
                base, limit = self.window(name)
                is_io = name == "pci_bridge_io"
                enable = cfg.COMMAND_IO if is_io else cfg.COMMAND_MEMORY
                space = PORT_SPACE_SIZE if is_io else ADDRESS_SPACE_SIZE
                is_open = bool(self.command & enable) and base <= limit < space
                region.set_address(base if is_open else 0)
                region.set_alias_offset(base if is_open else 0)
                region.set_size(limit - base + 1 if is_open else 0)

    def _route(self, slot: int, pin: int, level: bool) -> None:
        """A pin behind the bridge comes out of one of its own four, with whoever shares it."""
        assert self.bus is not None
        pin = swizzle(slot, pin)
        before = self._levels.get(pin, 0)
        after = self._levels[pin] = before + (1 if level else -1)
        if bool(before) != bool(after):
            self.bus.set_intx(self.devfn, pin, bool(after))
