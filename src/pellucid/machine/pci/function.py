"""One PCI function: its configuration space, BARs, interrupt pin and bus mastering.

    class Ide(PciFunction):
        kind = "piix3-ide"
        vendor_id, device_id, class_code = 0x8086, 0x7010, 0x010180
        timing = ConfigRegister(0x40, 2, writable=0xFFFF)

A subclass declares registers, adds BARs and capabilities in its constructor, and is put on a `PciBus`. Bytes from 0x40
on that are declared nowhere hold what is written, as they do in QEMU's functions (`vendor_bytes_writable`).

Saved is the configuration space; what follows from it (mappings, lines) is rebuilt after a load, in which read-only
bits keep the values that this function has.
"""

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from pellucid.machine.device import Device, Property, State
from pellucid.machine.pci import clash, details
from pellucid.machine.pci import config as cfg
from pellucid.machine.pci.bar import Bar
from pellucid.machine.pci.clash import guest_errors
from pellucid.machine.pci.config import ConfigRegister
from pellucid.machine.properties import BIT, PCI_ADDRESS, STRING, UINT32
from pellucid.machine.qdev import QdevNode
from pellucid.machine.state import BOOL, Memory
from pellucid.memory import ADDRESS_SPACE_SIZE, AddressSpace, MemoryRegion, MemoryTransaction

if TYPE_CHECKING:
    from pellucid.machine.pci.bus import PciBus

ROM_BAR = 6
BAR_PRIORITY = 1


class Capability:
    """A capability of a function: a piece of its configuration space that hears of writes."""

    id: ClassVar[int]

    def reset(self) -> None:
        """The function was reset; its bytes are already back."""

    def written(self) -> None:
        """The guest wrote to the capability, or a saved state was loaded."""


class PciFunction(Device):
    """The base of every function. `name` is what its bus master address space is called in `info mtree`."""

    vendor_id: ClassVar[int] = 0
    device_id: ClassVar[int] = 0
    revision: ClassVar[int] = 0
    class_code: ClassVar[int] = 0
    """Base class, subclass and programming interface, 24 bits."""
    subsystem: ClassVar[tuple[int, int]] = (0x1AF4, 0x1100)
    """Subsystem vendor and subsystem id; QEMU's, by which SeaBIOS knows on what it runs."""
    header_type: ClassVar[int] = 0
    is_multifunction: ClassVar[bool] = False
    interrupt_pin: ClassVar[int] = 0
    """1 to 4 for INTA# to INTD#, 0 for none."""
    status_reset: ClassVar[int] = 0
    command_reset: ClassVar[int] = 0
    command_writable: ClassVar[int] = 0x0507
    vendor_bytes_writable: ClassVar[bool] = True
    hotpluggable: ClassVar[bool] = True
    """Whether ACPI hot-plug may eject it; what the board is soldered to says False."""
    in_dsdt: ClassVar[bool] = False
    """Whether the DSDT names it although it is not its slot's function 0."""
    config_registers: ClassVar[tuple[ConfigRegister, ...]] = ()
    config_size: ClassVar[int] = cfg.CONFIG_SIZE
    """Bytes of configuration space; an express function has 4096."""

    addr = Property(PCI_ADDRESS, -1)
    romfile = Property(STRING, "")
    romsize = Property(UINT32, 0xFFFF_FFFF)
    rombar = Property(UINT32, 1)
    multifunction = Property(BIT, False)
    lnksta_dllla = Property(BIT, True, name="x-pcie-lnksta-dllla")
    extcap_init = Property(BIT, True, name="x-pcie-extcap-init")
    failover_pair_id = Property(STRING, "")
    acpi_index = Property(UINT32, 0, name="acpi-index")

    config = State(Memory(cfg.CONFIG_SIZE), bytes(cfg.CONFIG_SIZE), survives_reset=True, doc="configuration space")
    intx_level = State(BOOL, False, doc="what the function asks of its interrupt pin")

    command = ConfigRegister(cfg.COMMAND, 2)
    status = ConfigRegister(cfg.STATUS, 2, write_clears=cfg.STATUS_ERRORS)
    interrupt_line = ConfigRegister(cfg.INTERRUPT_LINE, 1, writable=0xFF)
    cache_line_size = ConfigRegister(cfg.CACHE_LINE_SIZE, 1, writable=0xFF)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        declared = {name: value for base in reversed(cls.__mro__) for name, value in vars(base).items()}
        cls.config_registers = tuple(value for value in declared.values() if isinstance(value, ConfigRegister))

    def __init__(self) -> None:
        self.bus: PciBus | None = None
        self.devfn = 0
        self.bars: list[Bar] = []
        self.capabilities: dict[int, Capability] = {}
        self._places: list[tuple[int, int, Capability]] = []
        self._template = bytearray(self.config_size)
        self._writable = bytearray(self.config_size)
        self._clears = bytearray(self.config_size)
        self._dynamic = bytearray(self.config_size)
        self.bus_master = MemoryRegion.new_container("bus master container")
        self._bus_master_alias: MemoryRegion | None = None
        self.dma = AddressSpace(self.kind, self.bus_master)
        self._driven = False
        self._describe_header()
        super().__init__()
        self.config[:] = self._template

    def _describe_header(self) -> None:
        put = self.put_template
        put(cfg.VENDOR_ID, 2, self.vendor_id)
        put(cfg.DEVICE_ID, 2, self.device_id)
        put(cfg.REVISION_ID, 1, self.revision)
        put(cfg.CLASS_CODE, 3, self.class_code)
        self.set_multifunction(self.is_multifunction)
        put(cfg.INTERRUPT_PIN, 1, self.interrupt_pin)
        if self.header_type == 0:
            put(cfg.SUBSYSTEM_VENDOR_ID, 2, self.subsystem[0])
            put(cfg.SUBSYSTEM_ID, 2, self.subsystem[1])
        if self.vendor_bytes_writable:
            self._writable[cfg.HEADER_SIZE :] = b"\xff" * (self.config_size - cfg.HEADER_SIZE)
        for register in self.config_registers:
            put(register.offset, register.size, register.reset, register.writable, register.write_clears)
        put(cfg.COMMAND, 2, self.command_reset, self.command_writable)
        put(cfg.STATUS, 2, self.status_reset, 0, cfg.STATUS_ERRORS)

    def put_template(
        self, offset: int, size: int, value: int, writable: int = 0, write_clears: int = 0, dynamic: int = 0
    ) -> None:
        """Say what a register holds after a reset and which of its bits a guest can change. From constructors only.

        `dynamic` are bits that only the function itself changes, and that its saved state has.
        """
        place = slice(offset, offset + size)
        self._template[place] = value.to_bytes(size, "little")
        self._writable[place] = writable.to_bytes(size, "little")
        self._clears[place] = write_clears.to_bytes(size, "little")
        self._dynamic[place] = dynamic.to_bytes(size, "little")
        if "config" in self.__dict__:
            self.config[place] = self._template[place]

    def add_bar(self, bar: Bar) -> None:
        """Have the guest place `bar.region`. From constructors only."""
        offset = self._bar_offset(bar)
        self.put_template(offset, bar.bytes, bar.flags, bar.address_mask)
        if bar.index == ROM_BAR:
            self.put_template(offset, bar.bytes, 0, bar.address_mask | 1)
        self.bars.append(bar)

    def _bar_offset(self, bar: Bar) -> int:
        if bar.index == ROM_BAR:
            return cfg.ROM_ADDRESS if self.header_type == 0 else 0x38
        return cfg.FIRST_BAR + 4 * bar.index

    def add_capability(self, offset: int, size: int, capability: Capability) -> None:
        """Put `capability` at `offset`, with `size` bytes, at the head of the list. From constructors only.

        Its bytes are read-only until `put_template` says otherwise.
        """
        head = self._template[cfg.CAPABILITY_LIST]
        self.put_template(offset, size, capability.id | head << 8)
        self._template[cfg.CAPABILITY_LIST] = offset
        status = int.from_bytes(self._template[cfg.STATUS : cfg.STATUS + 2], "little") | cfg.STATUS_CAPABILITIES
        self._template[cfg.STATUS : cfg.STATUS + 2] = status.to_bytes(2, "little")
        self._writable[offset : offset + size] = bytes(size)
        self.capabilities[capability.id] = capability
        self._places.append((offset, size, capability))
        self.config[:] = self._template

    def reset(self) -> None:
        super().reset()
        self.config[:] = self._template
        for capability in self.capabilities.values():
            capability.reset()
        self._update()

    def after_load(self) -> None:
        for offset in range(self.config_size):
            # Bits that software can neither set nor clear are not taken from a stream, the status register's apart.
            free = self._writable[offset] | self._clears[offset] | self._dynamic[offset]
            fixed = ~free & 0xFF
            self.config[offset] = self.config[offset] & free | self._template[offset] & fixed
        for capability in self.capabilities.values():
            capability.written()
        self._update()

    # Configuration accesses.

    def config_read(self, offset: int, size: int) -> int:
        """A guest's read of `size` bytes at `offset`, which do not pass the end; bytes of no register read 0."""
        return int.from_bytes(self.config[offset : offset + size], "little")

    def config_write(self, offset: int, size: int, value: int) -> None:
        """A guest's write, byte by byte through the masks, and what follows from it."""
        old_command = self.command
        for at in range(offset, min(offset + size, self.config_size)):
            byte = value & 0xFF
            value >>= 8
            writable = self._writable[at]
            kept = self.config[at] & ~writable | byte & writable
            self.config[at] = kept & ~(byte & self._clears[at]) & 0xFF
        touches_bar = offset < cfg.CAPABILITY_LIST and offset + size > cfg.FIRST_BAR
        if touches_bar or self.command != old_command or self._touches_rom(offset, size):
            self._update()
        for place, length, capability in self._places:
            if offset < place + length and place < offset + size:
                capability.written()
        for register in self.config_registers:
            if register.written_behaviour is not None and register.overlaps(offset, size):
                register.written_behaviour(self)

    def _touches_rom(self, offset: int, size: int) -> bool:
        return any(
            bar.index == ROM_BAR and offset < self._bar_offset(bar) + 4 and self._bar_offset(bar) < offset + size
            for bar in self.bars
        )

    # The tree of devices.

    def set_multifunction(self, on: bool) -> None:
        """Say in the header that the slot has more functions (`multifunction=on`). Before the function is on a bus."""
        self.__dict__["multifunction"] = on
        header = self.header_type | (cfg.HEADER_MULTIFUNCTION if on else 0)
        self.put_template(cfg.HEADER_TYPE, 1, header)

    def qdev_node(self, ident: str = "") -> QdevNode:
        node = super().qdev_node(ident)
        node.details = lambda: details.qtree_lines(self)
        return node

    def describe(self) -> Iterator[tuple[str, str]]:
        self.__dict__["addr"] = self.devfn
        return super().describe()

    def info_lines(self) -> Iterator[str]:
        """The function's lines in `info pci`."""
        assert self.bus is not None
        return details.function_lines(self, self.bus.node(self).id)

    # What follows from the registers.

    def attached(self) -> None:
        """The function was put on `self.bus`; map what its registers say."""
        assert self.bus is not None
        self.place_dma()
        self._update()

    def place_dma(self) -> None:
        """Show what DMA reaches, which an IOMMU may have taken over, in the bus master address space."""
        assert self.bus is not None
        iommu = self.bus.iommu
        target = self.bus.spaces.dma if iommu is None else iommu.region_for(self)
        with MemoryTransaction():
            if self._bus_master_alias is not None:
                self.bus_master.del_subregion(self._bus_master_alias)
            self._bus_master_alias = MemoryRegion.new_alias("bus master", target, 0, ADDRESS_SPACE_SIZE)
            self._bus_master_alias.set_enabled(self.is_master)
            self.bus_master.add_subregion(0, self._bus_master_alias)

    def detached(self) -> None:
        """The function is being taken from `self.bus`: unmap everything, let go of the pin."""
        with MemoryTransaction():
            for bar in self.bars:
                if bar.address is not None:
                    self._unmap(bar)
            if self._bus_master_alias is not None:
                self.bus_master.del_subregion(self._bus_master_alias)
                self._bus_master_alias = None
        self.set_intx(False)

    def _update(self) -> None:
        if self.bus is None:
            return
        before = [bar.address for bar in self.bars]
        with MemoryTransaction():
            for bar in self.bars:
                self._place(bar)
            if self._bus_master_alias is not None:
                self._bus_master_alias.set_enabled(bool(self.command & cfg.COMMAND_MASTER))
        if guest_errors.isEnabledFor(logging.DEBUG):
            for old, bar in zip(before, self.bars, strict=True):
                if bar.address not in (None, old):
                    clash.report(self.kind, self.devfn, bar, self.bus.spaces)
        self._drive_pin()

    def bar_address(self, bar: Bar) -> int | None:
        """Where the registers put `bar` now; None when it decodes nothing."""
        if not self.command & (cfg.COMMAND_IO if bar.is_io else cfg.COMMAND_MEMORY):
            return None
        offset = self._bar_offset(bar)
        register = int.from_bytes(self.config[offset : offset + bar.bytes], "little")
        if bar.index == ROM_BAR and not register & 1:
            return None
        return bar.decode(register)

    def _place(self, bar: Bar) -> None:
        assert self.bus is not None
        address = self.bar_address(bar)
        if address == bar.address:
            return
        if bar.address is not None:
            self._unmap(bar)
        if address is not None:
            bar.address = address
            container = self.bus.spaces.io if bar.is_io else self.bus.spaces.memory
            container.add_subregion_overlap(address, bar.region, BAR_PRIORITY)

    def _unmap(self, bar: Bar) -> None:
        assert bar.region.container is not None
        bar.region.container.del_subregion(bar.region)
        bar.address = None

    def secondary(self) -> "PciBus | None":
        """The bus behind a bridge; None for everything else."""
        return None

    # Interrupts.

    def set_intx(self, level: bool) -> None:
        """Drive the interrupt pin, as the device wants it; the command register may hold it back."""
        if level != self.intx_level:
            self.intx_level = level
            self._drive_pin()

    def _drive_pin(self) -> None:
        if not self.interrupt_pin or self.bus is None:
            return
        self.status = self.status & ~cfg.STATUS_INTERRUPT | (cfg.STATUS_INTERRUPT if self.intx_level else 0)
        level = self.intx_level and not self.command & cfg.COMMAND_INTX_DISABLE
        if level != self._driven:
            self._driven = level
            self.bus.set_intx(self.devfn, self.interrupt_pin - 1, level)

    def signal_msi(self, address: int, data: int) -> None:
        """Send a message as a master of the bus; nothing while bus mastering is off."""
        if self.is_master and self.bus is not None:
            self.bus.signal_msi(self, address, data)

    @property
    def is_master(self) -> bool:
        """Whether the command register lets it reach memory."""
        return bool(self.command & cfg.COMMAND_MASTER)
