"""The state that the hypervisor's own parts have at power-on, taken once and put back at every reset.

A hypervisor shaped like KVM has no reset call: whoever owns the VM sets all state again, as QEMU does. The chips and
processors have just been made when this is taken, so what they hold is their power-on state.
"""


from pellucid.kvm.api import (
    DebugRegs,
    IoapicState,
    LapicState,
    MpState,
    PicState,
    PitState,
    Regs,
    Sregs,
    Vcpu,
    VcpuEvents,
    Vm,
)
from pellucid.kvm.errors import MsrAccessError
from pellucid.records import dataclass

IRQCHIPS = (0, 1, 2)
"""KVM_IRQCHIP_PIC_MASTER, _PIC_SLAVE, _IOAPIC."""

RESET_MSRS = (
    0x10,  # IA32_TIME_STAMP_COUNTER
    0x33,  # MSR_MEMORY_CTRL
    0x34,  # IA32_SMI_COUNT
    0x3B,  # IA32_TSC_ADJUST
    0x48,  # IA32_SPEC_CTRL
    0x9E,  # IA32_SMBASE
    0x17A,  # IA32_MCG_STATUS; the banks keep what they hold
    *range(0x174, 0x177),  # IA32_SYSENTER_CS, _ESP, _EIP
    *range(0xC1, 0xC9),  # IA32_PMC0 to 7
    *range(0x186, 0x18E),  # IA32_PERFEVTSEL0 to 7
    0x1A0,  # IA32_MISC_ENABLE
    0x1C8,  # MSR_LBR_SELECT
    0x1C9,  # MSR_LASTBRANCH_TOS
    0x1D9,  # IA32_DEBUGCTL
    0x1DD,  # MSR_LER_FROM_LIP
    0x1DE,  # MSR_LER_TO_LIP
    *range(0x200, 0x210),  # IA32_MTRR_PHYSBASE0 to PHYSMASK7
    0x250,
    0x258,
    0x259,
    *range(0x268, 0x270),  # the fixed-range MTRRs
    0x277,  # IA32_PAT
    0x2FF,  # IA32_MTRR_DEF_TYPE
    *range(0x309, 0x30C),  # IA32_FIXED_CTR0 to 2
    *range(0x38D, 0x390),  # IA32_FIXED_CTR_CTRL, IA32_PERF_GLOBAL_STATUS, _CTRL
    *range(0x680, 0x6A0),  # MSR_LASTBRANCH_0_FROM_IP to 31
    *range(0x6C0, 0x6E0),  # MSR_LASTBRANCH_0_TO_IP to 31
    0x6E0,  # IA32_TSC_DEADLINE
    0x6E1,  # IA32_PKRS
    0xDA0,  # IA32_XSS
    *range(0xDC0, 0xDE0),  # MSR_LBR_INFO_0 to 31
    *range(0xC000_0081, 0xC000_0085),  # IA32_STAR, _LSTAR, _CSTAR, _FMASK
    0xC000_0102,  # IA32_KERNEL_GS_BASE
    0xC000_0103,  # IA32_TSC_AUX
    0xC001_001F,  # NB_CFG
    0xC001_1029,  # DE_CFG
    0x11,  # MSR_KVM_WALL_CLOCK
    0x12,  # MSR_KVM_SYSTEM_TIME
    *range(0x4B56_4D00, 0x4B56_4D08),  # the paravirtual MSRs
)
"""MSRs that a guest changes and a reset puts back; those that a processor does not have are left out."""


@dataclass(frozen=True)
class VcpuState:
    """Everything the interface can get and set of one vCPU."""

    regs: Regs
    sregs: Sregs
    xsave: bytes
    xcr0: int
    debugregs: DebugRegs
    msrs: dict[int, int]
    lapic: LapicState
    events: VcpuEvents
    mp_state: MpState

    @classmethod
    def of(cls, vcpu: Vcpu) -> "VcpuState":
        """What `vcpu` holds now."""
        return cls(
            vcpu.get_regs(),
            vcpu.get_sregs(),
            vcpu.get_xsave(),
            vcpu.get_xcr0(),
            vcpu.get_debugregs(),
            _existing_msrs(vcpu),
            vcpu.get_lapic(),
            vcpu.get_vcpu_events(),
            vcpu.get_mp_state(),
        )

    def put_back(self, vcpu: Vcpu) -> None:
        """Set all of it. The APIC base comes first: it says which mode the LAPIC's registers are in."""
        vcpu.set_sregs(self.sregs)
        vcpu.set_regs(self.regs)
        vcpu.set_xsave(self.xsave)
        vcpu.set_xcr0(self.xcr0)
        vcpu.set_debugregs(self.debugregs)
        vcpu.set_lapic(self.lapic)
        vcpu.set_msrs(self.msrs)
        vcpu.set_vcpu_events(self.events)
        vcpu.set_mp_state(self.mp_state)


def _existing_msrs(vcpu: Vcpu) -> dict[int, int]:
    found: dict[int, int] = {}
    for index in RESET_MSRS:
        try:
            found.update(vcpu.get_msrs((index,)))
        except MsrAccessError:
            continue
    return found


class PowerOnState:
    """The state of a VM's chips and of every vCPU. Used while no vCPU runs."""

    def __init__(self, vm: Vm, vcpus: list[Vcpu], *, has_pit: bool) -> None:
        self._vm = vm
        self._vcpus = vcpus
        self._chips: dict[int, PicState | IoapicState] = {chip: vm.get_irqchip(chip) for chip in IRQCHIPS}
        self._pit: PitState | None = vm.get_pit() if has_pit else None
        self._states = [VcpuState.of(vcpu) for vcpu in vcpus]

    def put_back(self) -> None:
        """Everything as it was."""
        for chip, state in self._chips.items():
            self._vm.set_irqchip(chip, state)
        if self._pit is not None:
            self._vm.set_pit(self._pit)
        for vcpu, vcpu_state in zip(self._vcpus, self._states, strict=True):
            vcpu_state.put_back(vcpu)
