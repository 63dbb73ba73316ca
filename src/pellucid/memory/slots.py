"""The listeners that keep a VM of the hypervisor in step with the machine's memory: RAM as memory slots, doorbells.

A slot is one range of guest-physical addresses backed by one range of host memory, both in whole pages. Everything that
is not in a slot exits and comes back through the `AddressSpace`.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from pellucid.kvm.clock import ClockValue
from pellucid.memory.access import ClockRegister, IoEventfd
from pellucid.memory.listener import MemoryListener, MemoryRegionSection
from pellucid.memory.ram_block import PAGE_SIZE, RamBlock
from pellucid.memory.region import RegionKind
from pellucid.records import dataclass

ADDRESS_SPACE_SHIFT = 16
"""Slot numbers have the address space in their bits from here on (KVM's)."""


class SlotVm(Protocol):
    """The part of `kvm.api.Vm` that backs memory."""

    def set_user_memory_region(self, slot: int, gpa: int, size: int, hva: int, readonly: bool = False) -> None:
        """Back [gpa, gpa+size) with host memory at `hva`; size 0 deletes the slot."""
        ...

    def memory_written(self, pieces: Sequence[tuple[int, int]]) -> None:
        """Memory that backs a slot was written by this process: an (hva, size) each."""
        ...


class IoeventfdVm(Protocol):
    """The part of `kvm.api.Vm` that takes doorbells."""

    def ioeventfd(
        self,
        fd: int,
        address: int,
        length: int,
        *,
        pio: bool = False,
        datamatch: int | None = None,
        assign: bool = True,
    ) -> None:
        """Signal `fd` on guest writes of `length` bytes (0: any) at `address`."""
        ...


class ClockRegisterVm(Protocol):
    """The part of `kvm.api.Vm` that takes clock registers."""

    def clock_register(
        self, address: int, size: int, value: ClockValue, *, pio: bool = False, assign: bool = True
    ) -> None:
        """Reads of `size` bytes at `address` give `value` by the VM's clock."""
        ...


class CoalescedZones(Protocol):
    """The part of `kvm.coalesced.CoalescedRing` that takes zones."""

    def register(self, address: int, size: int, *, pio: bool) -> None:
        """Collect writes there."""
        ...

    def unregister(self, address: int, size: int, *, pio: bool) -> None:
        """No more."""
        ...


@dataclass(frozen=True, slots=True)
class MemorySlot:
    """What slot `number` holds: `size` bytes of guest-physical memory at `gpa`, at `hva` in this process."""

    number: int
    gpa: int
    size: int
    hva: int
    readonly: bool


class MemorySlots(MemoryListener):
    """Gives the RAM and ROM of an address space to `vm`.

    Slot numbers are used again, the lowest free one first. Changes wait for the commit; where slots go and others come,
    they are made inside `exclusive()`, so that no vCPU runs while memory that stays (a block that is cut in two, say)
    is for a moment not there. This is the hypervisor's address space 0; `beside` makes the listener of another one.
    """

    priority = 10

    def __init__(
        self,
        vm: SlotVm,
        exclusive: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._vm = vm
        self._first_number = 0
        self._exclusive = exclusive
        self._slots: dict[int, MemorySlot] = {}
        self._hooked: set[RamBlock] = set()
        self._gone: list[MemorySlot] = []
        self._come: list[MemoryRegionSection] = []

    def beside(self, address_space: int) -> "MemorySlots":
        """For the hypervisor's address space of that number. A write to memory that both show is told once."""
        other = MemorySlots(self._vm, self._exclusive)
        other._first_number = address_space << ADDRESS_SPACE_SHIFT
        other._hooked = self._hooked
        return other

    @property
    def slots(self) -> list[MemorySlot]:
        """The slots in use, by guest-physical address."""
        return [self._slots[gpa] for gpa in sorted(self._slots)]

    def begin(self) -> None:
        """Part of `MemoryListener`."""
        self._gone.clear()
        self._come.clear()

    def region_add(self, section: MemoryRegionSection) -> None:
        """Part of `MemoryListener`."""
        if _backed(section) is not None:
            self._come.append(section)

    def region_del(self, section: MemoryRegionSection) -> None:
        """Part of `MemoryListener`."""
        gpa = -(-section.addr // PAGE_SIZE) * PAGE_SIZE
        slot = self._slots.get(gpa)
        if slot is not None and slot.gpa + slot.size <= section.addr + section.size:
            self._gone.append(slot)

    def commit(self) -> None:
        """Part of `MemoryListener`."""
        if self._gone and self._come:
            with self._exclusive():
                self._apply()
        else:
            self._apply()

    def _apply(self) -> None:
        for slot in self._gone:
            self._vm.set_user_memory_region(slot.number, slot.gpa, 0, slot.hva, slot.readonly)
            del self._slots[slot.gpa]
        for section in self._come:
            backed = _backed(section)
            assert backed is not None
            gpa, size, hva = backed
            if section.region.block is not None:
                self._watch(section.region.block)
            readonly = section.readonly or section.region.kind is RegionKind.ROM_DEVICE
            slot = MemorySlot(self._free_number(), gpa, size, hva, readonly)
            self._vm.set_user_memory_region(slot.number, gpa, size, hva, readonly)
            self._slots[gpa] = slot
        self._gone.clear()
        self._come.clear()

    def _watch(self, block: RamBlock) -> None:
        """Pass writes that do not come from a vCPU on to the hypervisor."""
        if block not in self._hooked:
            self._hooked.add(block)
            hva, vm = block.hva, self._vm
            block.add_write_hook(lambda pieces: vm.memory_written([(hva + at, size) for at, size in pieces]))

    def _free_number(self) -> int:
        used = {slot.number for slot in self._slots.values()}
        numbers = range(self._first_number, self._first_number + len(used) + 1)
        return next(number for number in numbers if number not in used)


class Ioeventfds(MemoryListener):
    """Gives the doorbells of an address space to `vm`; `pio` for the one of the ports."""

    def __init__(self, vm: IoeventfdVm, *, pio: bool) -> None:
        self._vm = vm
        self._pio = pio

    def eventfd_add(self, addr: int, eventfd: IoEventfd) -> None:
        """Part of `MemoryListener`."""
        self._assign(addr, eventfd, True)

    def eventfd_del(self, addr: int, eventfd: IoEventfd) -> None:
        """Part of `MemoryListener`."""
        self._assign(addr, eventfd, False)

    def _assign(self, addr: int, eventfd: IoEventfd, assign: bool) -> None:
        self._vm.ioeventfd(eventfd.fd, addr, eventfd.size, pio=self._pio, datamatch=eventfd.datamatch, assign=assign)


class ClockRegisters(MemoryListener):
    """Gives the clock registers of an address space to `vm`; `pio` for the one of the ports."""

    def __init__(self, vm: ClockRegisterVm, *, pio: bool) -> None:
        self._vm = vm
        self._pio = pio

    def clock_register_add(self, addr: int, register: ClockRegister) -> None:
        """Part of `MemoryListener`."""
        self._vm.clock_register(addr, register.size, register.value, pio=self._pio)

    def clock_register_del(self, addr: int, register: ClockRegister) -> None:
        """Part of `MemoryListener`."""
        self._vm.clock_register(addr, register.size, register.value, pio=self._pio, assign=False)


class CoalescedIo(MemoryListener):
    """Registers what may be collected of an address space's writes; `pio` for the one of the ports."""

    def __init__(self, ring: CoalescedZones, *, pio: bool) -> None:
        self._ring = ring
        self._pio = pio

    def coalesced_add(self, addr: int, size: int) -> None:
        """Part of `MemoryListener`."""
        self._ring.register(addr, size, pio=self._pio)

    def coalesced_del(self, addr: int, size: int) -> None:
        """Part of `MemoryListener`. What was collected is delivered before the vCPU that caused this goes on."""
        self._ring.unregister(addr, size, pio=self._pio)


def _backed(section: MemoryRegionSection) -> tuple[int, int, int] | None:
    """(gpa, size, hva) of the whole pages of a section that vCPUs may read directly; None when there are none."""
    region = section.region
    if not region.is_ram and not region.is_romd:
        return None
    gpa = -(-section.addr // PAGE_SIZE) * PAGE_SIZE
    end = (section.addr + section.size) // PAGE_SIZE * PAGE_SIZE
    hva = section.hva + gpa - section.addr
    # Pages whose host memory begins inside a page cannot be mapped; they exit and are copied.
    if gpa >= end or hva % PAGE_SIZE:
        return None
    return gpa, end - gpa, hva
