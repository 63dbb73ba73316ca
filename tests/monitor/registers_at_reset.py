"""A CPU's registers for tests."""

from pellucid.kvm.regs import DebugRegs, DTable, Fpu, Regs, Segment, Sregs
from pellucid.monitor.guest_state import CpuRegisters

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
