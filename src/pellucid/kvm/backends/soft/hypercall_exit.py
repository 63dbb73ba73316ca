"""VMCALL and VMMCALL on a soft vCPU: the registers, and what KVM answers."""

from pellucid.cpu.state import MODE_64, MODE_SIZE, CpuState
from pellucid.kvm.hypercalls import Hypercall, HypercallTarget, hypercall

RAX, RCX, RDX, RBX, RSI = 0, 1, 2, 3, 6


def answer(state: CpuState, vm: HypercallTarget) -> None:
    """Carry out the hypercall behind which the processor has stopped; its result goes to RAX."""
    gpr, wide = state.gpr, state.mode & MODE_SIZE == MODE_64
    mask = (1 << 64) - 1 if wide else (1 << 32) - 1
    number, a0, a1, a2, a3 = (int(gpr[register]) & mask for register in (RAX, RBX, RCX, RDX, RSI))
    gpr[RAX] = hypercall(Hypercall(number, a0, a1, a2, a3, wide), state.cpl, vm) & mask
