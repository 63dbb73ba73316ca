"""`intel-iommu`: a VT-d unit for all of PCI Express, at 0xFED90000, with QEMU's capabilities.

DMA of each function goes through a tree of its own: `vtd-SS.F` shows either memory as it is (`vtd-nodmar`) or, while
translation is on, an IOMMU region that asks the tables (`machine/vtd/`). Messages of functions, and of a split IOAPIC,
go through the interrupt table while remapping is on. A DMA write into the interrupt range, which would be a message
without the device's own MSI registers, is dropped: not built yet.

Where QEMU 7.2 lets compatibility-format interrupts through while remapping is on, this blocks them unless the guest
has enabled them, as the specification says (5.1.4).
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from pellucid.errors import NotBuiltError, UserError
from pellucid.machine.device import Device, Property, Region, State
from pellucid.machine.pci.bus import Function, source_id
from pellucid.machine.properties import BOOL, ON_OFF_AUTO, UINT8, UINT32
from pellucid.machine.qdev import QdevNode
from pellucid.machine.state import U64, Memory
from pellucid.machine.vtd import registers as reg
from pellucid.machine.vtd.faults import Events, FaultError, Reason
from pellucid.machine.vtd.invalidation import SIZE, Queue, invalidate_contexts, invalidate_pages
from pellucid.machine.vtd.registers import Features, RegisterFile
from pellucid.machine.vtd.remapping import REMAPPABLE, entry_index, remap
from pellucid.machine.vtd.tables import Translator
from pellucid.memory import (
    ADDRESS_SPACE_SIZE,
    AccessSizes,
    AddressSpace,
    MemoryRegion,
    MemoryTransaction,
    Translated,
)

_log = logging.getLogger("pellucid.machine.unimp")

INTERRUPT_RANGE, INTERRUPT_RANGE_SIZE = 0xFEE0_0000, 0x10_0000
IOAPIC_SOURCE = 0xFF00
"""Its id in fault records; its entries are not verified by it."""
Signal = Callable[[int, int], int]


class IntelIommu(Device):
    """The unit. `memory` holds the tables and is what DMA reaches; `system` its root region."""

    kind = "intel-iommu"
    regions = (Region("intel_iommu", reg.SIZE, valid=AccessSizes(4, 8), impl=AccessSizes(4, 8)),)

    unit_version = Property(UINT32, 0, name="version")
    eim = Property(ON_OFF_AUTO, "auto")
    buggy_eim = Property(BOOL, False, name="x-buggy-eim")
    aw_bits = Property(UINT8, 39, name="aw-bits")
    caching_mode = Property(BOOL, False, name="caching-mode")
    scalable_mode = Property(BOOL, False, name="x-scalable-mode")
    snoop_control = Property(BOOL, False, name="snoop-control")
    pasid_mode = Property(BOOL, False, name="x-pasid-mode")
    dma_drain = Property(BOOL, True, name="dma-drain")
    dma_translation = Property(BOOL, True, name="dma-translation")
    intremap = Property(ON_OFF_AUTO, "auto")
    device_iotlb = Property(BOOL, False, name="device-iotlb")
    pt = Property(BOOL, True)

    register_bytes = State(Memory(reg.SIZE), bytes(reg.SIZE))
    root_table = State(U64, 0, doc="latched by a command, as the two below")
    interrupt_table = State(U64, 0)
    queue_table = State(U64, 0)

    def __init__(self, features: Features, memory: AddressSpace, system: MemoryRegion, signal_msi: Signal) -> None:
        self.features, self._memory, self._signal_msi = features, memory, signal_msi
        self._regs = RegisterFile(features)
        self._events = Events(self._regs, signal_msi)
        self._translator = Translator(memory, features)
        self._queue = Queue(memory, self._translator, self._events)
        self._interrupts = MemoryRegion.new_io("vtd-ir", INTERRUPT_RANGE_SIZE, _InterruptRange())
        self._untranslated = MemoryRegion.new_container("vtd-nodmar")
        alias = MemoryRegion.new_alias("vtd-sys-alias", system, 0, ADDRESS_SPACE_SIZE)
        self._untranslated.add_subregion_overlap(0, alias, 0)
        self._untranslated.add_subregion_overlap(INTERRUPT_RANGE, self._interrupts, 1)
        self._places: dict[Function, tuple[AddressSpace, MemoryRegion, MemoryRegion]] = {}
        self._on_write: tuple[tuple[int, Callable[[], None]], ...] = (
            (reg.GLOBAL_COMMAND, self._command), (reg.CONTEXT_COMMAND + 4, self._context_command),
            (reg.IOTLB_COMMAND + 4, self._iotlb_command), (reg.QUEUE_TAIL, self._run_queue),
            (reg.FAULT_STATUS, self._fault_status), (reg.DONE_STATUS, self._events.status_written),
            (reg.FAULT_RECORD + 12, self._events.status_written),
            (reg.FAULT_CONTROL, lambda: self._control(reg.FAULT_CONTROL, reg.FAULT_DATA, reg.FAULT_ADDRESS)),
            (reg.DONE_CONTROL, lambda: self._control(reg.DONE_CONTROL, reg.DONE_DATA, reg.DONE_ADDRESS)),
        )  # fmt: skip
        super().__init__()
        self.__dict__["register_bytes"] = self._regs.content

    def reset(self) -> None:
        super().reset()
        self._regs.reset()
        self._apply()

    def after_load(self) -> None:
        self._regs.load(self.register_bytes)
        self._apply()

    def _apply(self) -> None:
        """Everything that follows from the state."""
        self.__dict__["register_bytes"] = self._regs.content
        self._translator.root = self.root_table & ~0xFFF
        self._translator.forget()
        self._switch()

    def qdev_node(self, ident: str = "") -> QdevNode:
        node = super().qdev_node(ident)
        node.details = lambda: iter((f"mmio 00000000fed90000/{reg.SIZE:016x}",))
        return node

    def _is_on(self, bit: int) -> bool:
        return bool(self._regs.get(reg.GLOBAL_STATUS) & bit)

    # ---- registers

    def region_read(self, region: int, offset: int, size: int) -> int:
        return self._regs.read(offset, size)

    def region_write(self, region: int, offset: int, size: int, value: int) -> None:
        with self._events.lock:
            self._regs.write(offset, size, value)
        for at, act in self._on_write:
            if offset <= at < offset + size:
                act()

    def _command(self) -> None:
        """The global command register was written (11.4.4.1): one-shot bits, and what differs from the status."""
        regs = self._regs
        wanted, status = regs.get(reg.GLOBAL_COMMAND), regs.get(reg.GLOBAL_STATUS)
        if wanted & reg.SET_ROOT_TABLE:
            self.root_table = regs.get(reg.ROOT_TABLE, 8)
            self._translator.root = self.root_table & ~0xFFF
            self._translator.forget()
            status |= reg.SET_ROOT_TABLE
        if wanted & reg.SET_INTERRUPT_TABLE and self.features.remapping:
            self.interrupt_table = regs.get(reg.INTERRUPT_TABLE, 8)
            if not self.features.extended:
                self.interrupt_table &= ~reg.EXTENDED_MODE
            status |= reg.SET_INTERRUPT_TABLE
        followed = reg.ENABLE_TRANSLATION
        if self.features.remapping:
            followed |= reg.ENABLE_REMAPPING | reg.COMPATIBILITY
        regs.put(reg.GLOBAL_STATUS, status & ~followed | wanted & followed)
        if (wanted ^ status) & reg.ENABLE_QUEUE:
            self._enable_queue(bool(wanted & reg.ENABLE_QUEUE))
        if (wanted ^ status) & reg.ENABLE_TRANSLATION:
            self._translator.forget()
            self._switch()

    def _enable_queue(self, on: bool) -> None:
        regs = self._regs
        if on and regs.get(reg.QUEUE_TAIL, 8):
            return  # Software has to begin with an empty queue (6.5.2): the status tells it that it did not.
        self.queue_table = regs.get(reg.QUEUE_ADDRESS, 8)
        regs.put(reg.QUEUE_HEAD, 0, 8)
        regs.change(reg.GLOBAL_STATUS, reg.ENABLE_QUEUE, reg.ENABLE_QUEUE if on else 0)

    def _run_queue(self) -> None:
        regs = self._regs
        if not self._is_on(reg.ENABLE_QUEUE) or regs.get(reg.FAULT_STATUS) & reg.QUEUE_ERROR:
            return
        tail = regs.get(reg.QUEUE_TAIL, 8) & ~(SIZE - 1)
        regs.put(reg.QUEUE_HEAD, self._queue.run(self.queue_table, regs.get(reg.QUEUE_HEAD, 8), tail), 8)

    def _context_command(self) -> None:
        """Register-based invalidation of contexts (11.4.7.1)."""
        command = self._regs.get(reg.CONTEXT_COMMAND, 8)
        if not command & reg.COMMAND_DUE or self._is_on(reg.ENABLE_QUEUE):
            return
        kind = command >> 61 & 3
        invalidate_contexts(self._translator, kind, command & 0xFFFF, command >> 16 & 0xFFFF, command >> 32 & 3)
        self._regs.change(reg.CONTEXT_COMMAND, reg.COMMAND_DUE | 3 << 59, kind << 59, 8)

    def _iotlb_command(self) -> None:
        """Register-based invalidation of translations (11.4.7.2); the status says 0 where it cannot be done."""
        command = self._regs.get(reg.IOTLB_COMMAND, 8)
        if not command & reg.COMMAND_DUE or self._is_on(reg.ENABLE_QUEUE):
            return
        kind, address = command >> 60 & 3, self._regs.get(reg.INVALIDATE_ADDRESS, 8)
        done = invalidate_pages(self._translator, kind, command >> 32 & 0xFFFF, address)
        self._regs.change(reg.IOTLB_COMMAND, reg.COMMAND_DUE | 3 << 57, (kind if done else 0) << 57, 8)

    def _fault_status(self) -> None:
        self._events.status_written()
        self._run_queue()

    def _control(self, control: int, data: int, address: int) -> None:
        self._events.control_written(control, data, address)

    # ---- DMA

    @property
    def spaces(self) -> list[AddressSpace]:
        """What each function sees, for `info mtree`."""
        return [space for space, _, _ in self._places.values()]

    def region_for(self, function: Function) -> MemoryRegion:
        """The root of what `function` sees."""
        if function not in self._places:
            self._places[function] = self._new_place(function)
        return self._places[function][0].root

    def _new_place(self, function: Function) -> tuple[AddressSpace, MemoryRegion, MemoryRegion]:
        name = f"vtd-{function.devfn >> 3:02x}.{function.devfn & 7:x}"

        def translate(address: int, is_write: bool) -> Translated | None:
            source = source_id(function)
            try:
                page = self._translator.translate(source, address, is_write)
            except FaultError as fault:
                if not fault.silent:
                    self._events.record(fault.reason, source, address, is_read=not is_write)
                return None
            inside = address & (1 << page.shift) - 1
            return Translated(self._memory, page.address + inside, (1 << page.shift) - inside)

        root = MemoryRegion.new_container(name)
        with MemoryTransaction():
            plain = MemoryRegion.new_alias("vtd-nodmar", self._untranslated, 0, ADDRESS_SPACE_SIZE)
            translated = MemoryRegion.new_iommu(f"{name}-dmar", ADDRESS_SPACE_SIZE, translate)
            messages = MemoryRegion.new_alias("vtd-ir", self._interrupts, 0, INTERRUPT_RANGE_SIZE)
            translated.add_subregion_overlap(INTERRUPT_RANGE, messages, 1)
            root.add_subregion_overlap(0, translated, 0)
            root.add_subregion_overlap(0, plain, 0)
            self._choose(plain, translated)
        return AddressSpace("vtd-root", root), plain, translated

    def _switch(self) -> None:
        with MemoryTransaction():
            for _, plain, translated in self._places.values():
                self._choose(plain, translated)

    def _choose(self, plain: MemoryRegion, translated: MemoryRegion) -> None:
        on = self._is_on(reg.ENABLE_TRANSLATION)
        plain.set_enabled(not on)
        translated.set_enabled(on)

    # ---- interrupts

    def signal_msi(self, source: int, address: int, data: int) -> int:
        """A message of the requester with that id; how many processors took it."""
        return self._remapped(source, source, address, data)

    def signal_ioapic_msi(self, address: int, data: int) -> int:
        """The same for the IOAPIC. From any thread."""
        return self._remapped(IOAPIC_SOURCE, None, address, data)

    def _remapped(self, source: int, verified: int | None, address: int, data: int) -> int:
        status = self._regs.get(reg.GLOBAL_STATUS)
        if not status & reg.ENABLE_REMAPPING:
            return self._signal_msi(address, data)
        index = 0
        try:
            if not address & REMAPPABLE:
                if status & reg.COMPATIBILITY and not self.interrupt_table & reg.EXTENDED_MODE:
                    return self._signal_msi(address, data)
                raise FaultError(Reason.COMPATIBILITY_BLOCKED)
            index = entry_index(address, data)
            return self._signal_msi(*remap(self._memory, self.interrupt_table, verified, index))
        except FaultError as fault:
            if not fault.silent:
                self._events.record(fault.reason, source, (index & 0xFFFF) << 48, is_read=False)
            return 0


class _InterruptRange:
    """The addresses at which a write is a message."""

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        _log.info("intel-iommu: a DMA write into the interrupt range, at %#x: not built yet", INTERRUPT_RANGE + offset)


def chosen_features(values: Mapping[str, Any], *, split: bool) -> Features:
    """What the user's properties ask for. Raises UserError in QEMU's words, NotBuiltError for what there is not yet."""
    for name in ("x-scalable-mode", "x-pasid-mode"):
        if values[name]:
            raise NotBuiltError(f"{name}=on is not built yet: leave it out")
    if values["version"]:
        raise NotBuiltError(f"version={values['version']} is not built yet: leave it out")
    if values["aw-bits"] not in (39, 48):
        raise UserError("Supported values for aw-bits are: 39, 48")
    if values["intremap"] == "on" and not split:
        raise UserError("Intel Interrupt Remapping cannot work with kernel-irqchip=on, please use 'split|off'.")
    remapping = split if values["intremap"] == "auto" else values["intremap"] == "on"
    if values["eim"] == "on" and not remapping:
        raise UserError("eim=on cannot be selected without intremap=on")
    return Features(
        values["aw-bits"], remapping, remapping if values["eim"] == "auto" else values["eim"] == "on",
        values["caching-mode"], values["device-iotlb"], values["pt"], values["snoop-control"], values["dma-drain"],
        values["dma-translation"],
    )  # fmt: skip
