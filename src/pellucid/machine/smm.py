"""System-management mode as a machine has it: the memory that is seen there, and the wires that lead there.

A chip set hides RAM (SMRAM, TSEG) from processors outside the mode and shows it to those inside. It puts what only they
see into a container, `smram`; here that container lies before the machine's memory in an address space of its own,
which the hypervisor gets as address space 1 (see `kvm.api.Vm.set_user_memory_region`).
"""

from collections.abc import Callable, Sequence

from pellucid.errors import UserError
from pellucid.kvm.api import Hypervisor
from pellucid.memory import ADDRESS_SPACE_SIZE, AddressSpace, MemoryRegion, MemorySlots, MemoryTransaction
from pellucid.runtime import VcpuThread

SMRAM_SIZE = 1 << 32
SMM_ADDRESS_SPACE = 1


def has_smm(hypervisor: Hypervisor, wanted: bool | None) -> bool:
    """Whether processors get system-management mode; UserError where that is asked for and the hypervisor has none."""
    available = bool(hypervisor.capabilities().get("x86_smm"))
    if wanted and not available:
        raise UserError("System Management Mode not supported by this hypervisor.")
    return available if wanted is None else wanted


class SystemManagement:
    """One machine's. `spaces`: one for each processor, all alike; `memory` is the first, which the hypervisor gets.

    `slots` is the listener of the machine's memory.
    """

    def __init__(
        self,
        slots: MemorySlots,
        system_memory: MemoryRegion,
        smram: MemoryRegion,
        cpu_count: int,
        threads: Callable[[], Sequence[VcpuThread]],
    ) -> None:
        self._threads = threads
        self.spaces = [AddressSpace(f"cpu-smm-{index}", _view(system_memory, smram)) for index in range(cpu_count)]
        self.memory = self.spaces[0]
        self.memory.add_listener(slots.beside(SMM_ADDRESS_SPACE))

    def raise_first(self) -> None:
        """SMI# at the boot processor: the PIIX4's wire."""
        self._threads()[0].vcpu.smi()

    def raise_current(self) -> None:
        """SMI# at the processor whose access this is (the ICH9's); at the first where it is nobody's."""
        threads = self._threads()
        next((thread for thread in threads if thread.is_current), threads[0]).vcpu.smi()

    def raise_all(self) -> None:
        """SMI# at every processor."""
        for thread in self._threads():
            thread.vcpu.smi()


def _view(system_memory: MemoryRegion, smram: MemoryRegion) -> MemoryRegion:
    """What a processor sees in SMM: `smram` before the machine's memory."""
    root = MemoryRegion.new_container("memory")
    with MemoryTransaction():
        root.add_subregion_overlap(0, MemoryRegion.new_alias("smram", smram, 0, SMRAM_SIZE), 1)
        root.add_subregion_overlap(0, MemoryRegion.new_alias("memory", system_memory, 0, ADDRESS_SPACE_SIZE), 0)
    return root
