"""The monitor's view of a `Machine`, and how a monitor is put on one of its streams."""

from pellucid.kvm.api import Vcpu
from pellucid.machine.chardev import Chardev, MuxPort
from pellucid.machine.machine import Machine
from pellucid.machine.owners import name_owners
from pellucid.memory import PAGE_SIZE, info_mtree, info_ramblock
from pellucid.monitor.console import MonitorConsole
from pellucid.monitor.target import CpuRegisters
from pellucid.runtime import RunState, ShutdownCause, VcpuThread


class MachineTarget:
    """A `MonitorTarget` on a machine. What concerns a vCPU is asked on its own thread, between two instructions."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    @property
    def cpu_count(self) -> int:
        return len(self._machine.vcpus.threads)

    def cpu_registers(self, cpu: int) -> CpuRegisters:
        thread = self._thread(cpu)
        return thread.run_on_cpu(lambda: read_registers(thread.vcpu))

    def read_virtual(self, cpu: int, address: int, size: int) -> bytes | None:
        thread = self._thread(cpu)
        content = b""
        while len(content) < size:
            gva = (address + len(content)) & (1 << 64) - 1
            gpa = thread.run_on_cpu(lambda gva=gva: thread.vcpu.translate(gva))  # type: ignore[misc]
            if gpa is None:
                return None
            piece = self.read_physical(gpa, min(size - len(content), PAGE_SIZE - gva % PAGE_SIZE))
            if piece is None:
                return None
            content += piece
        return content

    def read_physical(self, address: int, size: int) -> bytes | None:
        """RAM and ROM only: a device's registers are not read, since that could change what the guest sees."""
        memory = self._machine.memory
        content = b""
        while len(content) < size:
            found = memory.find(address + len(content))
            if found is None:
                return None
            length = min(size - len(content), found.size)
            view = memory.direct_view(address + len(content), length, False)
            if view is None:
                return None
            content += bytes(view)
        return content

    def mtree(self, *, flat: bool, dispatch_tree: bool, owner: bool, disabled: bool) -> str:
        machine = self._machine
        spaces = machine.address_spaces
        if owner:
            name_owners(machine.config.board, spaces, machine.config.cpu_count)
        return info_mtree(spaces, flat=flat, dispatch_tree=dispatch_tree, owner=owner, disabled=disabled)

    def ramblock(self) -> str:
        return info_ramblock(self._machine.ram)

    def run_status(self) -> str:
        state = self._machine.system.run_state.state
        name = str(state.value)
        return name if state in (RunState.RUNNING, RunState.PAUSED) else f"paused ({name})"

    def stop(self) -> None:
        self._machine.system.vm_stop()

    def cont(self) -> None:
        self._machine.system.vm_start()

    def system_reset(self) -> None:
        self._machine.system.requests.reset(ShutdownCause.HOST_QMP_SYSTEM_RESET)

    def system_powerdown(self) -> None:
        self._machine.system.requests.powerdown()

    def system_wakeup(self) -> None:
        self._machine.system.request_wakeup()

    def quit(self) -> None:
        self._machine.system.requests.shutdown(ShutdownCause.HOST_QMP_QUIT)

    def _thread(self, cpu: int) -> VcpuThread:
        return self._machine.vcpus.threads[cpu]


def read_registers(vcpu: Vcpu) -> CpuRegisters:
    """What `info registers` shows of one vCPU; on its own thread, or while it does not run."""
    events = vcpu.get_vcpu_events()
    return CpuRegisters(
        regs=vcpu.get_regs(),
        sregs=vcpu.get_sregs(),
        fpu=vcpu.get_fpu(),
        debugregs=vcpu.get_debugregs(),
        mp_state=vcpu.get_mp_state(),
        interrupt_shadow=bool(events.interrupt_shadow),
        smm=bool(events.smi_smm),
    )


def attach_monitor(machine: Machine, chardev: Chardev) -> None:
    """Serve HMP on one of the machine's streams, from now until the stream is closed."""
    shared = isinstance(chardev, MuxPort)
    console = MonitorConsole(MachineTarget(machine), chardev, shared=shared)
    if isinstance(chardev, MuxPort):
        chardev.focused = console.focused
