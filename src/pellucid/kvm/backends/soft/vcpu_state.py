"""The half of a vCPU that the KVM API reads and writes while it does not run: its registers, one group at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pellucid.engine.processor import Processor
from pellucid.kvm.api import DebugRegs, Fpu, LapicState, Regs, Sregs
from pellucid.kvm.async_pf import AsyncPf
from pellucid.kvm.backends.soft import registers
from pellucid.kvm.backends.soft.msrs import Msrs
from pellucid.kvm.irqchip.lapic import Lapic


class VcpuState:
    """The groups; the vCPU that this is a part of makes what they lie in."""

    processor: Processor
    state: Any
    lapic: Lapic
    msrs: Msrs
    async_pf: AsyncPf

    @property
    def apic_base(self) -> int:
        """IA32_APIC_BASE."""
        return self.lapic.apic_base

    def set_apic_base(self, value: int, host_initiated: bool = False) -> None:
        """Write IA32_APIC_BASE; the CPUID bit follows."""
        self.lapic.set_apic_base(value, host_initiated)
        self.state.apic_base = value

    def get_regs(self) -> Regs:
        return registers.get_regs(self.processor)

    def set_regs(self, regs: Regs) -> None:
        self.state.replay_count = self.state.step_once = self.state.delivering = 0
        registers.set_regs(self.processor, regs)

    def get_sregs(self) -> Sregs:
        return registers.get_sregs(self.processor, self.apic_base, self.lapic.cr8)

    def set_sregs(self, sregs: Sregs) -> None:
        registers.set_sregs(self.processor, sregs)
        if sregs.apic_base:
            self.set_apic_base(sregs.apic_base, host_initiated=True)
        self.lapic.cr8 = sregs.cr8

    def get_fpu(self) -> Fpu:
        return registers.get_fpu(self.processor)

    def set_fpu(self, fpu: Fpu) -> None:
        registers.set_fpu(self.processor, fpu)

    def get_xsave(self) -> bytes:
        return registers.get_xsave(self.processor)

    def set_xsave(self, image: bytes) -> None:
        registers.set_xsave(self.processor, image)

    def get_xcr0(self) -> int:
        return int(self.state.xcr0)

    def set_xcr0(self, value: int) -> None:
        registers.set_xcr0(self.processor, value)

    def get_debugregs(self) -> DebugRegs:
        return registers.get_debugregs(self.processor)

    def set_debugregs(self, debugregs: DebugRegs) -> None:
        registers.set_debugregs(self.processor, debugregs)

    @property
    def broadcasts_mce(self) -> bool:
        signature = registers.signature(self.processor)
        family, model = signature >> 8 & 15, signature >> 12 & 0xF0 | signature >> 4 & 15
        return family > 6 or family == 6 and model >= 14

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        return {index: self.msrs.read(index, host_initiated=True) for index in indices}

    def set_msrs(self, msrs: Mapping[int, int]) -> None:
        for index, value in msrs.items():
            self.msrs.write(index, value, host_initiated=True)

    def get_lapic(self) -> LapicState:
        return self.lapic.get_state()

    def set_lapic(self, state: LapicState) -> None:
        self.lapic.set_state(state)
