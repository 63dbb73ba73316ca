"""What the monitor looks at in a guest: registers and memory. What concerns a vCPU is asked on its own thread.

A call about a running vCPU interrupts it between two instructions and gives the big lock up meanwhile.
"""


from pellucid.kvm.api import Vcpu
from pellucid.kvm.regs import DebugRegs, Fpu, MpState, Regs, Sregs
from pellucid.machine.machine import Machine
from pellucid.memory import PAGE_SIZE
from pellucid.records import dataclass

WRAP = (1 << 64) - 1


@dataclass(frozen=True)
class CpuRegisters:
    """The registers of one vCPU, all taken between the same two of its instructions.

    interrupt_shadow: an STI or a load of SS holds interrupts off for one instruction.
    smm: the CPU is in system-management mode. a20: the A20 gate is open.
    """

    regs: Regs
    sregs: Sregs
    fpu: Fpu
    debugregs: DebugRegs
    mp_state: MpState = MpState.RUNNABLE
    interrupt_shadow: bool = False
    smm: bool = False
    a20: bool = True


def read_registers(vcpu: Vcpu) -> CpuRegisters:
    """All of it; on the vCPU's own thread, or while it does not run."""
    events = vcpu.get_vcpu_events()
    return CpuRegisters(
        regs=vcpu.get_regs(),
        sregs=vcpu.get_sregs(),
        fpu=vcpu.get_fpu(),
        debugregs=vcpu.get_debugregs(),
        mp_state=vcpu.get_mp_state(),
        interrupt_shadow=bool(events.interrupt_shadow),
        smm=bool(events.smi_smm),
        a20=vcpu.a20,
    )


def cpu_registers(machine: Machine, cpu: int) -> CpuRegisters:
    """The registers of vCPU number `cpu` now."""
    thread = machine.vcpus.threads[cpu]
    return thread.run_on_cpu(lambda: read_registers(thread.vcpu))


def read_virtual(machine: Machine, cpu: int, address: int, size: int) -> bytes | None:
    """`size` bytes at a linear address through the page tables of `cpu`; None when any of them is unmapped."""
    thread = machine.vcpus.threads[cpu]

    def read() -> bytes | None:
        content = bytearray()
        while len(content) < size:
            gva = (address + len(content)) & WRAP
            gpa = thread.vcpu.translate(gva)
            if gpa is None:
                return None
            piece = read_physical(machine, gpa, min(size - len(content), PAGE_SIZE - gva % PAGE_SIZE))
            if piece is None:
                return None
            content += piece
        return bytes(content)

    return thread.run_on_cpu(read)


def read_physical(machine: Machine, address: int, size: int) -> bytes | None:
    """`size` bytes of RAM and ROM at a guest-physical address; None when any of them is neither.

    A device's registers are not read, since that could change what the guest sees.
    """
    memory = machine.memory
    content = bytearray()
    while len(content) < size:
        place = address + len(content)
        found = memory.find(place)
        if found is None:
            return None
        view = memory.direct_view(place, min(size - len(content), found.size), False)
        if view is None:
            return None
        content += view
    return bytes(content)
