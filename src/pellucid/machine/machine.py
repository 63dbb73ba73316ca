"""One virtual machine: the hypervisor's VM, memory, devices and processors, and what ties them together.

A board fills it: RAM and parts first, then the processors, then what boots. The big lock is held by the caller of
everything here, except run() and close().
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from pellucid.kvm.api import CpuidEntry, Exit, Hypervisor, ShutdownExit, Vcpu
from pellucid.machine.boot import BootPlan
from pellucid.machine.calendar import calendar
from pellucid.machine.config import MachineConfig
from pellucid.machine.cpu_model import feature_msrs, tsc_frequency
from pellucid.machine.device import Device
from pellucid.machine.drives import Drives
from pellucid.machine.guest_clock import GuestClock
from pellucid.machine.irq import GsiLine
from pellucid.machine.part import Part
from pellucid.machine.pci import PciBus, PciFunction
from pellucid.machine.power_on import PowerOnState
from pellucid.machine.qdev import QdevBus
from pellucid.machine.smm import SystemManagement
from pellucid.memory import (
    AddressSpace,
    ClockRegisters,
    CoalescedIo,
    FilePager,
    Ioeventfds,
    MemoryRegion,
    MemorySlots,
    MemoryTransaction,
    MemTxResult,
    RamBlock,
    RamList,
    UnassignedIoOps,
)
from pellucid.records import replace
from pellucid.runtime import (
    LockedClock,
    MainLoop,
    Outcome,
    ShutdownCause,
    System,
    VcpuGroup,
    VcpuThread,
    VirtualClock,
)

if TYPE_CHECKING:
    from pellucid.machine.devices.intel_iommu import IntelIommu

_log = logging.getLogger("pellucid.machine")

D = TypeVar("D", bound=Device)

PORT_SPACE_SIZE = 0x1_0000


class Machine:
    """The parts of one machine, by name.

    loop, clock: the main loop and the guest's clock; device_clock: the same time for devices, with the lock held.
    vm: of the hypervisor. memory, ports: the address spaces; ram: the blocks behind them.
    parts: the devices in their places. drives: what their disks hold. vcpus: the threads.
    system: run state, reset and shutdown requests.
    report: tells the user a text of several lines (a triple fault's history).
    """

    def __init__(
        self,
        config: MachineConfig,
        hypervisor: Hypervisor,
        loop: MainLoop,
        clock: VirtualClock,
        report: Callable[[str], None],
    ) -> None:
        self.config = config
        self.hypervisor = hypervisor
        self.loop = loop
        self.clock = clock
        self.report = report
        self.device_clock = LockedClock(clock, loop.bql)
        self.wall_ns = calendar(config.rtc, clock)
        """The calendar time that the guest's real-time clock starts from."""
        self.vcpus = VcpuGroup(loop.bql)
        self.system = System(
            loop, self.vcpus, clock, no_reboot=not config.reboot, no_shutdown=not config.exit_on_shutdown
        )
        self.system.panic_action = config.panic_action
        self.system.on_reset.append(self.reset)
        self.system.on_wakeup.append(lambda reason: self._reset_hardware())
        self.vm = hypervisor.create_vm()
        if config.icount is not None:
            self.vm.count_instructions(config.icount)
        if hz := tsc_frequency(config.cpu):
            self.vm.set_tsc_hz(hz)
        self._guest_clock = GuestClock(self.vm, self._vcpus)
        self.system.run_state.subscribe(self._guest_clock.run_state_changed)
        self.ram = RamList()
        self._pagers: list[FilePager] = []
        self.system_memory = MemoryRegion.new_container("system")
        self.system_io = MemoryRegion.new_io("io", PORT_SPACE_SIZE, UnassignedIoOps())
        self.memory = AddressSpace("memory", self.system_memory)
        self._cpu_memory = [
            AddressSpace(f"cpu-memory-{index}", self.system_memory) for index in range(config.cpu_count)
        ]
        self.ports = AddressSpace("I/O", self.system_io)
        self._slots = MemorySlots(self.vm, self.vcpus.exclusive)
        self.memory.add_listener(self._slots)
        self.memory.add_listener(Ioeventfds(self.vm, pio=False))
        self.ports.add_listener(Ioeventfds(self.vm, pio=True))
        self.memory.add_listener(ClockRegisters(self.vm, pio=False))
        self.ports.add_listener(ClockRegisters(self.vm, pio=True))
        self.memory.add_listener(CoalescedIo(self.vm.coalesced, pio=False))
        self.ports.add_listener(CoalescedIo(self.vm.coalesced, pio=True))
        self.drives = Drives(loop, self.system)
        self.smm: SystemManagement | None = None
        """None for a machine whose processors have no system-management mode."""
        self.coprocessor_error: Callable[[], None] | None = None
        """What the processors' FERR# is wired to; without it they wait there, as hardware does."""
        self.parts: list[Part] = []
        self.peripherals: list[tuple[str, Device]] = []
        """What -device has added, by the user's id (or "")."""
        self.qdev = QdevBus("main-system-bus", "System")
        self.pci: PciBus | None = None
        """The root bus, on boards that have one."""
        self.iommu: IntelIommu | None = None
        """What stands between it and memory, if anything."""
        self.boot: Callable[[], BootPlan] | None = None
        """Made anew for every start: what to load, and how the boot processor begins."""
        self.exit_status: int | None = None
        """What the process is to end with, when a guest has said it."""
        self.on_log_items: list[Callable[[], None]] = []
        """Called when other log items were chosen."""
        self.firmware: tuple[str, int, int] | None = None
        """The firmware's image: its file's name, address and bytes; None on boards without one."""
        self.has_pit = False
        self._power_on: PowerOnState | None = None
        self._closed = False

    @property
    def address_spaces(self) -> list[AddressSpace]:
        """All, for `info mtree`: bus masters' (and those behind an IOMMU), processors' (in SMM too), the ports."""
        functions = (device for device in self.devices if isinstance(device, PciFunction))
        smm = self.smm.spaces if self.smm is not None else []
        behind = self.iommu.spaces if self.iommu is not None else []
        return [*behind, *(function.dma for function in functions), self.memory, *self._cpu_memory, *smm, self.ports]

    @property
    def devices(self) -> Iterator[Device]:
        """Every device of the board."""
        return (part.device for part in self.parts)

    def device(self, kind: type[D]) -> D:
        """The board's device of that class, the first if there are several."""
        return next(device for device in self.devices if isinstance(device, kind))

    def gsi(self, number: int) -> GsiLine:
        """The line to a global system interrupt."""
        return GsiLine(self.vm, number)

    def add(self, part: Part) -> None:
        """Put a device in its place."""
        bases = part.ports or part.mmio
        container = self.system_io if part.ports else self.system_memory
        with MemoryTransaction():
            for index, (region, base) in enumerate(zip(part.device.regions, bases, strict=True)):
                node = region.memory_region(part.device.ops(index))
                part.device.region_made(index, node)
                if part.priority:
                    container.add_subregion_overlap(base, node, part.priority)
                else:
                    container.add_subregion(base, node)
        self.parts.append(part)

    def add_ram(self, name: str, size: int) -> RamBlock:
        """The machine's main memory, as -mem-path and -mem-resident have it."""
        block = self.ram.new(name, size, path=self.config.memory_path)
        if self.config.memory_resident is not None and self.config.memory_resident < size:
            self._pagers.append(FilePager(block, self.config.memory_resident, self.vm))
        return block

    def create_irqchip(self) -> None:
        """The hypervisor's interrupt chips."""
        self.vm.create_irqchip(split=self.config.kernel_irqchip == "split")

    def create_pit(self) -> None:
        """The hypervisor's timer."""
        self.vm.create_pit()
        self.has_pit = True

    def add_smm(self, smram: MemoryRegion) -> SystemManagement:
        """Give the processors system-management mode, where they see `smram` (a container of 4 GiB) before the rest.

        Before `create_vcpus`. The result has the SMI lines for the chips.
        """
        vcpus = self.vcpus
        self.smm = SystemManagement(
            self._slots, self.system_memory, smram, self.config.cpu_count, lambda: vcpus.threads
        )
        return self.smm

    def create_vcpus(self, apic_ids: Sequence[int], cpuid: Callable[[int], Sequence[CpuidEntry]]) -> None:
        """The processors, the first with APIC id 0; `cpuid(apic_id)` says what CPUID answers on each."""
        for index, apic_id in enumerate(apic_ids):
            vcpu = self.vm.create_vcpu(apic_id)
            leaves = cpuid(apic_id)
            vcpu.set_cpuid(leaves)
            vcpu.set_msrs(feature_msrs(self.config.cpu))
            for leaf in leaves:
                if leaf.function == 1:  # a reset leaves family, model and stepping in EDX (SDM vol. 3, table 10-1)
                    vcpu.set_regs(replace(vcpu.get_regs(), rdx=leaf.eax))
            self.vcpus.add(
                VcpuThread(
                    vcpu,
                    self.ports,
                    self.memory,
                    self.loop.bql,
                    self._vcpu_event,
                    coalesced=self.vm.coalesced,
                    index=index,
                    debug_threads=self.config.debug_threads,
                    smm_memory=self.smm.memory if self.smm is not None else None,
                    alone=self.vcpus.exclusive,
                )
            )
        if apic_ids:
            self._power_on = PowerOnState(self.vm, self._vcpus(), has_pit=self.has_pit)

    def power_on(self) -> None:
        """Load what boots, and start the processors' threads, still paused. Raises UserError when it does not fit."""
        self._load()
        for thread in self.vcpus.threads:
            thread.start()

    def reset(self, cause: ShutdownCause) -> None:
        """The whole machine as after power-on, RAM's contents apart; called while no vCPU runs."""
        _log.info("reset: %s", cause.value)
        self._reset_hardware()
        self._load()

    def _reset_hardware(self) -> None:
        """Devices and processors as after power-on."""
        for device in self.devices:
            device.reset()
        if self._power_on is not None:
            self._power_on.put_back()
        for vcpu in self._vcpus():
            vcpu.set_a20(True)
        self._guest_clock.was_reset()

    def port_read(self, port: int, size: int) -> int:
        """What a guest's IN of `size` bytes would get, from the hypervisor's own chips too."""
        self._deliver_coalesced()
        value = self.vm.chip_read(port, size, pio=True)
        return self.ports.read(port, size) if value is None else value & (1 << 8 * size) - 1

    def port_write(self, port: int, size: int, value: int) -> None:
        """What a guest's OUT would do."""
        self._deliver_coalesced()
        if not self.vm.chip_write(port, size, value, pio=True):
            self.ports.write(port, size, value)

    def memory_read(self, address: int, size: int) -> int:
        """What a guest's load of `size` bytes at a guest-physical address would get, local APICs left out."""
        self._deliver_coalesced()
        value = self.vm.chip_read(address, size, pio=False)
        return self.memory.read(address, size) if value is None else value & (1 << 8 * size) - 1

    def memory_write(self, address: int, size: int, value: int) -> None:
        """What a guest's store would do."""
        self._deliver_coalesced()
        if not self.vm.chip_write(address, size, value, pio=False):
            self.memory.write(address, size, value)

    def _deliver_coalesced(self) -> None:
        """What guests wrote before comes before."""
        for pio, address, size, value in self.vm.coalesced.take():
            (self.ports if pio else self.memory).write(address, size, value)

    def request_reset(self) -> None:
        """A device's reset line: the guest asks."""
        self.system.request_reset(ShutdownCause.GUEST_RESET)

    def set_a20(self, a20: bool) -> None:
        """The A20 gate, which is on the boot processor's line."""
        for thread in self.vcpus.threads[:1]:
            thread.vcpu.set_a20(a20)

    def request_shutdown(self) -> None:
        """A device's power switch: the guest asks."""
        self.system.request_shutdown(ShutdownCause.GUEST_SHUTDOWN)

    def exit(self, status: int) -> None:
        """End the process with `status`, whatever -no-shutdown says: a test's guest asks. The first call counts."""
        if self.exit_status is None:
            self.exit_status = status
        self.system.no_shutdown = False
        self.request_shutdown()

    def run(self) -> ShutdownCause:
        """Run until the machine goes down; why it did. On the main thread, without the lock."""
        return self.system.run()

    def close(self) -> None:
        """End the threads and give everything back."""
        if self._closed:
            return
        self._closed = True
        self.vcpus.end()
        self.clock.close()
        self.drives.close()
        for pager in self._pagers:
            pager.close()
        for vcpu in self._vcpus():
            vcpu.close()
        for space in self.address_spaces:
            space.close()
        self.vm.close()
        self.ram.close()

    def _vcpus(self) -> list[Vcpu]:
        return [thread.vcpu for thread in self.vcpus.threads]

    def _load(self) -> None:
        """Write what boots into RAM and set the boot processor's registers."""
        if self.boot is None:
            return
        plan = self.boot()
        _log.info("boot: %s", plan.how)
        for address, content in plan.segments:
            result = self.memory.write_bytes(address, content)
            assert result is MemTxResult.OK, f"boot segment at {address:#x} lies outside RAM"
        boot_processor = self.vcpus.threads[0].vcpu
        plan.sregs.apic_base = boot_processor.get_sregs().apic_base
        boot_processor.set_sregs(plan.sregs)
        boot_processor.set_regs(plan.regs)

    def _vcpu_event(self, thread: VcpuThread, outcome: Outcome, exit: Exit) -> None:
        if outcome is Outcome.COPROCESSOR_ERROR:
            if self.coprocessor_error is not None:
                self.coprocessor_error()
            return
        if isinstance(exit, ShutdownExit):
            what = "resets" if self.config.reboot else "ends (-no-reboot)"
            self.report(f"{thread.name}: triple fault, the machine {what}\n{exit.reason}")
        self.system.vcpu_event(thread, outcome, exit)
