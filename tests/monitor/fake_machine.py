"""A machine for monitor tests: memory in pieces, one CPU's registers, and a record of what was asked of it."""

from dataclasses import dataclass, field

from pellucid.errors import PellucidError
from pellucid.kvm.regs import DebugRegs, DTable, Fpu, Regs, Segment, Sregs
from pellucid.monitor.target import CpuRegisters

DATA_16 = Segment(type=3)
NULL = Segment(limit=0, unusable=True)


def reset_registers() -> CpuRegisters:
    """A CPU as RESET leaves it (SDM vol. 3, table 10-1), with QEMU's processor signature in EDX."""
    sregs = Sregs(
        cs=Segment(base=0xFFFF0000, selector=0xF000, type=11),
        ds=DATA_16,
        es=DATA_16,
        fs=DATA_16,
        gs=DATA_16,
        ss=DATA_16,
        tr=Segment(type=11, s=False),
        ldt=Segment(type=2, s=False),
        gdt=DTable(),
        idt=DTable(),
        cr0=0x60000010,
        cr2=0,
        cr3=0,
        cr4=0,
        cr8=0,
        efer=0,
        apic_base=0xFEE00900,
    )
    return CpuRegisters(Regs(rdx=0x60FB1, rip=0xFFF0), sregs, Fpu(), DebugRegs())


@dataclass
class FakeMachine:
    """`physical` and `virtual` map a start address to the bytes there."""

    cpus: list[CpuRegisters] = field(default_factory=lambda: [reset_registers()])
    physical: dict[int, bytes] = field(default_factory=dict)
    virtual: dict[int, bytes] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    status: str = "running"
    refuse_cont: bool = False

    @property
    def cpu_count(self) -> int:
        return len(self.cpus)

    def cpu_registers(self, cpu: int) -> CpuRegisters:
        return self.cpus[cpu]

    def read_virtual(self, cpu: int, address: int, size: int) -> bytes | None:
        return _read(self.virtual, address, size)

    def read_physical(self, address: int, size: int) -> bytes | None:
        return _read(self.physical, address, size)

    def mtree(self, *, flat: bool, dispatch_tree: bool, owner: bool, disabled: bool) -> str:
        return f"flat={flat} dispatch={dispatch_tree} owner={owner} disabled={disabled}\n"

    def ramblock(self) -> str:
        return "Block Name\n"

    def run_status(self) -> str:
        return self.status

    def stop(self) -> None:
        self.calls.append("stop")

    def cont(self) -> None:
        if self.refuse_cont:
            raise PellucidError("a machine that is 'shutdown' must be reset before it can run")
        self.calls.append("cont")

    def system_reset(self) -> None:
        self.calls.append("system_reset")

    def system_powerdown(self) -> None:
        self.calls.append("system_powerdown")

    def system_wakeup(self) -> None:
        self.calls.append("system_wakeup")

    def quit(self) -> None:
        self.calls.append("quit")


def _read(pieces: dict[int, bytes], address: int, size: int) -> bytes | None:
    for start, content in pieces.items():
        if start <= address and address + size <= start + len(content):
            return content[address - start : address - start + size]
    return None
