"""Model-specific registers of a soft vCPU: by number, a reader and a writer, or a field of the native state."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from pellucid.cpu.memtype import valid_pat
from pellucid.cpu.mtrr import FIXED, IA32_MTRR_DEF_TYPE, IA32_MTRRCAP, MTRR_MSRS, MTRRCAP, VARIABLE, valid_mtrr
from pellucid.cpu.shadow import valid_cet, valid_ssp
from pellucid.cpu.state import (
    DEBUGCTL_BTF, DEBUGCTL_BUS_LOCK, DEBUGCTL_FREEZE_LBRS, DEBUGCTL_FREEZE_PERFMON, DEBUGCTL_LBR, FEATURE_BUS_LOCK,
    FEATURE_LA57, FEATURES_SYSTEM, MISC_ENABLE_FAST_STRINGS, MISC_ENABLE_MONITOR)
from pellucid.isa.features import place_of
from pellucid.kvm.api import KVM_REQ_STEAL_UPDATE, MSR_KVM_INTERNAL_GUEST_SSP
from pellucid.kvm.async_pf import MSR_KVM_ASYNC_PF_ACK, MSR_KVM_ASYNC_PF_EN, MSR_KVM_ASYNC_PF_INT
from pellucid.kvm.errors import MsrAccessError
from pellucid.kvm.lbr import FORMATS, LBR_FMT, LBR_MSRS
from pellucid.kvm.machine_check import MACHINE_CHECK_MSRS, MachineCheckRegisters
from pellucid.kvm.pmu import IA32_PERF_CAPABILITIES, PMU_MSRS
from pellucid.kvm.pv_eoi import MSR_KVM_PV_EOI_EN
from pellucid.kvm.pvclock import PVCLOCK_MSRS
from pellucid.kvm.steal_time import MSR_KVM_STEAL_TIME

if TYPE_CHECKING:
    from pellucid.kvm.backends.soft.vcpu import SoftVcpu

U64 = (1 << 64) - 1
IA32_TSC, IA32_APIC_BASE, IA32_TSC_ADJUST, IA32_TSC_DEADLINE, IA32_EFER = 0x10, 0x1B, 0x3B, 0x6E0, 0xC000_0080
IA32_PAT, IA32_MISC_ENABLE, IA32_XSS = 0x277, 0x1A0, 0xDA0
IA32_UMWAIT_CONTROL, IA32_TSX_CTRL, IA32_DEBUGCTL = 0xE1, 0x122, 0x1D9
# IA32_MISC_ENABLE: that there are counters, which ignores writes; and that there are neither BTS nor PEBS, which no
# write may change.
MISC_ENABLE_COUNTERS, MISC_ENABLE_READ_ONLY = 1 << 7, 1 << 11 | 1 << 12
IA32_FS_BASE, IA32_GS_BASE = 0xC000_0100, 0xC000_0101
X2APIC_FIRST, X2APIC_LAST = 0x800, 0x8FF

# What IA32_CORE_CAPABILITIES says where CPUID has it: LOCK on memory that is not write-back can be made to raise
# #GP(0), and split locks to raise #AC, each by a bit of MSR_MEMORY_CTRL (also called MSR_TEST_CTRL), 24 bits further.
IA32_CORE_CAPABILITIES, MSR_MEMORY_CTRL, IA32_ARCH_CAPABILITIES = 0xCF, 0x33, 0x10A
UC_LOCK, SPLIT_LOCK = 1 << 4, 1 << 5
CORE_CAPABILITIES, MEMORY_CTRL_SHIFT = UC_LOCK | SPLIT_LOCK, 24

IA32_SPEC_CTRL, IA32_PRED_CMD, AMD_LEAF = 0x48, 0x49, 0x8000_0008
# Bits of IA32_SPEC_CTRL (IBRS, STIBP, SSBD, BHI_DIS_S), and where CPUID, Intel's or AMD's, tells of each.
SPEC_CTRL_FEATURES = {
    1: ((7, 0, "edx", 26), (AMD_LEAF, 0, "ebx", 14)), 2: ((7, 0, "edx", 27), (AMD_LEAF, 0, "ebx", 15)),
    4: ((7, 0, "edx", 31), (AMD_LEAF, 0, "ebx", 24)), 0x400: ((7, 2, "edx", 4),)}
SPEC_CTRL_PLACES = [place for places in SPEC_CTRL_FEATURES.values() for place in places]
# AMD's OS-visible workarounds: how many errata have a bit, and the bits. None.
OSVW = (0xC001_0140, 0xC001_0141)

# MSRs whose value is a field of CpuState, with the bits that may be set.
FIELDS = {0x174: ("sysenter_cs", 0xFFFF_FFFF), 0x175: ("sysenter_esp", U64), 0x176: ("sysenter_eip", U64),
          0xC000_0081: ("star", U64), 0xC000_0082: ("lstar", U64), 0xC000_0083: ("cstar", U64),
          0xC000_0084: ("sfmask", 0xFFFF_FFFF), 0xC000_0102: ("kernel_gs_base", U64),
          0xC000_0103: ("tsc_aux", 0xFFFF_FFFF), 0x6A8: ("ssp_table", U64),
          IA32_UMWAIT_CONTROL: ("umwait_control", 0xFFFF_FFFD), IA32_TSX_CTRL: ("tsx_ctrl", 3)}
CANONICAL = (0x6A8, 0x175, 0x176, 0xC000_0082, 0xC000_0083, 0xC000_0102)

IA32_BIOS_SIGN_ID = 0x8B  # the revision of microcode, which guests cannot change
# MSRs kept as plain values: reset value and the bits that may be set.
VALUES = {IA32_BIOS_SIGN_ID: (0, U64), IA32_SPEC_CTRL: (0, 0x407), 0x140: (0, 0)}
# MSRs of single models that guests read without asking, with what KVM answers on any: IA32_P5_MC_ADDR and _TYPE,
# EBL_CR_POWERON, EBC_FREQUENCY_ID, FSB_FREQ, BBL_CR_CTL3, IA32_PERF_STATUS and _CTL, the RAPL counters of energy.
OF_MODELS = {0: 0, 1: 0, 0x2A: 0, 0x2C: 1 << 24, 0xCD: 3, 0x11E: 0xBE70_2111, 0x198: 4 << 40 | 1000, 0x199: 0,
             **dict.fromkeys((0x606, 0x611, 0x619, 0x639, 0x641), 0)}
# MSRs that only read, with their value.
CONSTANTS = {**dict.fromkeys(OSVW, 0), **OF_MODELS,
             0x17: 0, 0x3A: 1, 0xCE: 0, IA32_MTRRCAP: MTRRCAP, 0x1C9: 0}
# AMD's four event selects, then their counters. None counts: they take any value, and read as 0, as QEMU's do.
AMD_COUNTERS = range(0xC001_0000, 0xC001_0008)
# What takes any value and does nothing: updates of microcode (0xC0010020 is AMD's), BBL_CR_CTL3, and these.
WITHOUT_EFFECT = frozenset((0x79, 0x11E, 0xC001_0020, *AMD_COUNTERS))

# AMD's, with their reset value and the bits that may be set: SYSCFG has none of the memory extensions that it could
# switch (APM vol. 2, 7.9), NB_CFG is kept for a northbridge that no board has, and DE_CFG says that LFENCE serializes
# (bit 1), as it does here whatever is written.
# HWCR keeps McStatusWrEn and TscFreqSel, which tells that the TSC counts at the rate of P0.
HWCR, HWCR_TSC_FREQUENCY = 0xC001_0015, 1 << 24
AMD_VALUES = {0xC001_0010: (0, 0), HWCR: (HWCR_TSC_FREQUENCY, HWCR_TSC_FREQUENCY | 1 << 18), 0xC001_001F: (0, U64),
              0xC001_1029: (2, 0x202)}
# Those that only read: CLK_CTL, the messages of interrupts pending, where configuration space, TSEG and the host's
# save area are, and the configurations of caches. Nothing of it is anywhere.
AMD_CONSTANTS = {0xC001_001B: 0x2000_0000, **dict.fromkeys(
    (0xC001_0055, 0xC001_0058, 0xC001_0112, 0xC001_0113, 0xC001_0117,
     0xC001_1022, 0xC001_1023, 0xC001_102A, 0xC001_102C), 0)}
VALUES |= AMD_VALUES
CONSTANTS |= AMD_CONSTANTS
AMD_MSRS = frozenset((*AMD_COUNTERS, *AMD_VALUES, *AMD_CONSTANTS, 0xC001_0020))

# What IA32_ARCH_CAPABILITIES says where CPUID has it: an interpreter leaks nothing that these name
# (RDCL_NO, SKIP_L1DFL, SSB_NO, MDS_NO, PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, BHI_NO, PBRSB_NO,
# GDS_NO, RFDS_NO, ITS_NO); IBRS_ALL saves guests their retpolines; TSX_CTRL tells of IA32_TSX_CTRL.
TSX_CTRL = 1 << 7
ARCH_CAPABILITIES = 0x4000_0000_0D10_E17B | TSX_CTRL
SUPPORTED_CAPABILITIES = {IA32_ARCH_CAPABILITIES: ARCH_CAPABILITIES, IA32_CORE_CAPABILITIES: CORE_CAPABILITIES}

IA32_PKRS = 0x6E1
# MSRs of system-management mode, fields of CpuState: the first is only read by guests, the second not even that.
IA32_SMI_COUNT, IA32_SMBASE = 0x34, 0x9E
# And the shadow-stack pointer, which is no MSR to a guest.
HIDDEN_FIELDS = {IA32_SMI_COUNT: ("smi_count", U64), IA32_SMBASE: ("smbase", 0xFFFF_FFFF),
                 MSR_KVM_INTERNAL_GUEST_SSP: ("ssp", U64)}
# Control-flow enforcement: shadow stacks or branch tracking; the stack pointers with shadow stacks only.
IA32_U_CET, IA32_S_CET, IA32_SSP_TABLE, IA32_PL_SSP = 0x6A0, 0x6A2, 0x6A8, range(0x6A4, 0x6A8)
CET = ((7, 0, "ecx", 7), (7, 0, "edx", 20))
# MSRs that CPUID tells of: (leaf, subleaf, register, bit); where none of a register's bits is set it is not there.
FEATURES = {0x3B: ((7, 0, "ebx", 1),), IA32_SPEC_CTRL: tuple(SPEC_CTRL_PLACES),
            IA32_PRED_CMD: ((7, 0, "edx", 26), (AMD_LEAF, 0, "ebx", 12)),
            **dict.fromkeys(OSVW, ((0x8000_0001, 0, "ecx", 9),)),
            **dict.fromkeys((IA32_CORE_CAPABILITIES, MSR_MEMORY_CTRL), ((7, 0, "edx", 30),)),
            IA32_ARCH_CAPABILITIES: ((7, 0, "edx", 29),),
            IA32_PKRS: ((7, 0, "ecx", 31),), IA32_XSS: ((0xD, 1, "eax", 3),), IA32_PAT: ((1, 0, "edx", 16),),
            **dict.fromkeys((IA32_MTRRCAP, *MTRR_MSRS), ((1, 0, "edx", 12),)),
            IA32_UMWAIT_CONTROL: ((7, 0, "ecx", 5),), IA32_U_CET: CET, IA32_S_CET: CET,
            **dict.fromkeys((*IA32_PL_SSP, IA32_SSP_TABLE, MSR_KVM_INTERNAL_GUEST_SSP), CET[:1]),
            **dict.fromkeys(MACHINE_CHECK_MSRS, ((1, 0, "edx", 14),)),
            IA32_PERF_CAPABILITIES: ((1, 0, "ecx", 15),),
            0xC000_0103: ((0x8000_0001, 0, "edx", 27), (7, 0, "ecx", 22))}


class Msrs:
    """The MSRs of one vCPU."""

    def __init__(self, vcpu: SoftVcpu) -> None:
        self._vcpu = vcpu
        self.capabilities = {IA32_ARCH_CAPABILITIES: ARCH_CAPABILITIES, IA32_CORE_CAPABILITIES: CORE_CAPABILITIES}
        """What they say where CPUID has them; a write from outside the guest makes it less (KVM_SET_MSRS)."""
        self.has_transactions: bool = False
        self.spec_ctrl_allowed: int = VALUES[IA32_SPEC_CTRL][1]
        self.machine_check = MachineCheckRegisters()
        self.absent: frozenset[int] = frozenset()
        self._special: dict[int, tuple[Callable[[], int], Callable[[int], None]]] = {
            IA32_TSC: (self._read_tsc, self._write_tsc),
            IA32_TSC_ADJUST: (lambda: self._tsc_adjust, self._write_tsc_adjust),
            IA32_APIC_BASE: (lambda: vcpu.apic_base, vcpu.set_apic_base),
            IA32_TSC_DEADLINE: (lambda: vcpu.lapic.tsc_deadline, vcpu.lapic.set_tsc_deadline),
            IA32_EFER: (lambda: int(vcpu.processor.state.efer), self._write_efer),
            IA32_PAT: (lambda: int(vcpu.processor.state.pat), self._write_pat),
            IA32_PKRS: (lambda: int(vcpu.processor.state.pkrs), self._write_pkrs),
            IA32_XSS: (lambda: int(vcpu.processor.state.xss), self._write_xss),
            MSR_MEMORY_CTRL: (self._read_memory_ctrl, self._write_memory_ctrl),
            IA32_U_CET: (lambda: int(vcpu.processor.state.u_cet), lambda v: self._write_cet(IA32_U_CET, "u_cet", v)),
            IA32_S_CET: (lambda: int(vcpu.processor.state.s_cet), lambda v: self._write_cet(IA32_S_CET, "s_cet", v)),
            **{IA32_PL_SSP[n]: (partial(self._read_ssp, n), partial(self._write_ssp, n)) for n in range(4)},
            IA32_MISC_ENABLE: (lambda: int(vcpu.processor.state.misc_enable) | vcpu.pmu.misc_enable,
                                self._write_misc_enable),
            IA32_DEBUGCTL: (lambda: int(vcpu.processor.state.debugctl), self._write_debugctl),
            MSR_KVM_PV_EOI_EN: (lambda: vcpu.pv_eoi.value, vcpu.pv_eoi.msr_write),
            MSR_KVM_ASYNC_PF_EN: (lambda: vcpu.async_pf.value, vcpu.async_pf.write_enable),
            MSR_KVM_ASYNC_PF_INT: (lambda: vcpu.async_pf.interrupt, vcpu.async_pf.write_interrupt),
            MSR_KVM_ASYNC_PF_ACK: (lambda: 0, vcpu.async_pf.write_ack),
            MSR_KVM_STEAL_TIME: (lambda: vcpu.steal_time.value, self._write_steal_time),
            IA32_FS_BASE: (lambda: int(vcpu.processor.state.seg_base[4]), lambda v: self._write_base(4, v)),
            IA32_GS_BASE: (lambda: int(vcpu.processor.state.seg_base[5]), lambda v: self._write_base(5, v)),
        } if vcpu.has_lapic else {}
        self._restore: dict[int, Callable[[int], None]] = {
            IA32_APIC_BASE: lambda v: vcpu.set_apic_base(v, host_initiated=True),
            IA32_TSC: vcpu.set_tsc,
            IA32_TSC_ADJUST: self._restore_tsc_adjust,
        }
        """What a write from outside the guest does where that differs: it moves one register, and nothing with it."""
        self.reset()

    def reset(self) -> None:
        """Values after RESET."""
        self._values = {index: reset for index, (reset, _) in VALUES.items()}
        self._mtrrs = dict.fromkeys(MTRR_MSRS, 0)
        for index in MTRR_MSRS:
            self._show_mtrr(index)
        self.machine_check.reset()
        self._tsc_adjust = 0
        state = self._vcpu.processor.state
        word, bit = place_of("monitor")
        state.misc_enable = MISC_ENABLE_FAST_STRINGS | MISC_ENABLE_MONITOR * bool(state.features[word] & bit)
        state.debugctl = state.uc_lock = state.split_lock = state.lock_types = 0
        for name, _ in FIELDS.values():
            setattr(self._vcpu.processor.state, name, 0)

    def read(self, index: int, host_initiated: bool = False) -> int:
        """RDMSR; MsrAccessError where the guest gets #GP(0)."""
        special = self._special.get(index)
        if index in self.absent or self._is_refused(index):
            raise MsrAccessError(index)
        if special is not None:
            return special[0]()
        if index in FIELDS:
            return int(getattr(self._vcpu.processor.state, FIELDS[index][0]))
        if index in HIDDEN_FIELDS and (host_initiated or index == IA32_SMI_COUNT):
            return int(getattr(self._vcpu.processor.state, HIDDEN_FIELDS[index][0]))
        if index in self._values:
            return self._values[index]
        if index in self._mtrrs:
            return self._mtrrs[index]
        if index in MACHINE_CHECK_MSRS:
            return self.machine_check.read(index)
        if index in CONSTANTS and not (index in LBR_MSRS and self._vcpu.lbr.present):
            return CONSTANTS[index]
        if index in AMD_COUNTERS:
            return 0
        if index in PMU_MSRS:
            return self._vcpu.pmu.read(index)
        if index in LBR_MSRS:
            return self._vcpu.lbr.read(index)
        if index == IA32_PERF_CAPABILITIES:
            return self._vcpu.pmu.capabilities
        if X2APIC_FIRST <= index <= X2APIC_LAST:
            return self._vcpu.lapic.msr_read(index)
        if index in PVCLOCK_MSRS:
            return self._vcpu.pvclock.msr_read(index)
        if index in self.capabilities:
            return self._capabilities(index)
        raise MsrAccessError(index)

    def write(self, index: int, value: int, host_initiated: bool = False) -> None:
        """WRMSR; MsrAccessError where the guest gets #GP(0)."""
        if X2APIC_FIRST <= index <= X2APIC_LAST:
            self._vcpu.lapic.msr_write(index, value)
            return
        special = self._special.get(index)
        if self._is_refused(index) or index in self.absent and not (host_initiated and index in self.capabilities):
            raise MsrAccessError(index, value)
        if special is not None:
            (self._restore.get(index, special[1]) if host_initiated else special[1])(value)
        elif index in FIELDS:
            name, allowed = FIELDS[index]
            if value & ~allowed or index in CANONICAL and not self.is_canonical(value):
                raise MsrAccessError(index, value)
            setattr(self._vcpu.processor.state, name, value)
        elif index in HIDDEN_FIELDS and host_initiated:
            setattr(self._vcpu.processor.state, HIDDEN_FIELDS[index][0], value & HIDDEN_FIELDS[index][1])
        elif index == IA32_BIOS_SIGN_ID and not host_initiated:
            pass
        elif index in self._values:
            if value & ~(self.spec_ctrl_allowed if index == IA32_SPEC_CTRL else VALUES[index][1]):
                raise MsrAccessError(index, value)
            self._values[index] = value
        elif index in self._mtrrs:
            if not valid_mtrr(index, value, int(self._vcpu.processor.state.maxphyaddr)):
                raise MsrAccessError(index, value)
            self._mtrrs[index] = value
            self._show_mtrr(index)
        elif index in self.capabilities and host_initiated:
            if value & ~SUPPORTED_CAPABILITIES[index]:
                raise MsrAccessError(index, value)
            self.capabilities[index] = value
        elif index in PVCLOCK_MSRS:
            self._vcpu.pvclock.msr_write(index, value, host_initiated)
        elif index in MACHINE_CHECK_MSRS:
            self.machine_check.write(index, value, host_initiated)
        elif index in PMU_MSRS:
            self._vcpu.pmu.write(index, value, host_initiated)
        elif index in LBR_MSRS and self._vcpu.lbr.present:
            self._vcpu.lbr.write(index, value, host_initiated)
        elif host_initiated and CONSTANTS.get(index) == value:
            pass  # what was read from it is put back
        elif index == IA32_PERF_CAPABILITIES and host_initiated:
            self._write_perf_capabilities(value)
        elif index not in WITHOUT_EFFECT and (index != IA32_PRED_CMD or value & ~1):
            raise MsrAccessError(index, value)

    def _capabilities(self, index: int) -> int:
        """IA32_TSX_CTRL is told of only where there are transactions."""
        without = index == IA32_ARCH_CAPABILITIES and not self.has_transactions
        return self.capabilities[index] & ~(TSX_CTRL if without else 0)

    def _is_refused(self, index: int) -> bool:
        """Whether an MSR is not there because of what the capabilities do not tell of."""
        if index == IA32_TSX_CTRL:
            return IA32_ARCH_CAPABILITIES in self.absent or not self._capabilities(IA32_ARCH_CAPABILITIES) & TSX_CTRL
        return index == MSR_MEMORY_CTRL and not self.capabilities[IA32_CORE_CAPABILITIES] & CORE_CAPABILITIES

    def _read_tsc(self) -> int:
        return self._vcpu.guest_tsc()

    def _write_tsc(self, value: int) -> None:
        delta = (value - self._vcpu.guest_tsc()) & U64
        self._move_tsc(delta)
        self._tsc_adjust = (self._tsc_adjust + delta) & U64

    def _write_tsc_adjust(self, value: int) -> None:
        self._move_tsc((value - self._tsc_adjust) & U64)
        self._tsc_adjust = value

    def _restore_tsc_adjust(self, value: int) -> None:
        self._tsc_adjust = value

    def _move_tsc(self, delta: int) -> None:
        state = self._vcpu.processor.state
        state.tsc_offset = (state.tsc_offset + delta) & U64
        self._vcpu.lapic.tsc_changed()
        self._vcpu.tsc_moved()

    def _write_efer(self, value: int) -> None:
        state = self._vcpu.processor.state
        lme = 1 << 8
        if value & ~state.efer_allowed or (value ^ state.efer) & lme and state.cr0 >> 31:
            raise MsrAccessError(IA32_EFER, value)
        state.efer = value & ~(1 << 10) | state.efer & 1 << 10
        self._vcpu.processor.flush_tlb()
        self._vcpu.processor.refresh_mode()

    def _write_pat(self, value: int) -> None:
        if not valid_pat(value):
            raise MsrAccessError(IA32_PAT, value)
        state = self._vcpu.processor.state
        state.pat = value
        if state.lock_types:
            self._vcpu.processor.flush_tlb()

    def _write_pkrs(self, value: int) -> None:
        if value >> 32:
            raise MsrAccessError(IA32_PKRS, value)
        self._vcpu.processor.state.pkrs = value
        self._vcpu.processor.flush_tlb()

    def _write_xss(self, value: int) -> None:
        state = self._vcpu.processor.state
        if value & ~state.xss_allowed:
            raise MsrAccessError(IA32_XSS, value)
        state.xss = value

    def _read_memory_ctrl(self) -> int:
        state = self._vcpu.processor.state
        return (UC_LOCK * int(state.uc_lock) | SPLIT_LOCK * int(state.split_lock)) << MEMORY_CTRL_SHIFT

    def _write_memory_ctrl(self, value: int) -> None:
        if value & ~((self.capabilities[IA32_CORE_CAPABILITIES] & CORE_CAPABILITIES) << MEMORY_CTRL_SHIFT):
            raise MsrAccessError(MSR_MEMORY_CTRL, value)
        state, asked = self._vcpu.processor.state, value >> MEMORY_CTRL_SHIFT
        state.uc_lock, state.split_lock = int(asked & UC_LOCK != 0), int(asked & SPLIT_LOCK != 0)
        self._look_at_lock_types()

    def _look_at_lock_types(self) -> None:
        """Memory types matter to locked accesses, or no longer do: see `cpu.bus_lock`."""
        state = self._vcpu.processor.state
        state.lock_types = int(state.uc_lock != 0 or state.debugctl & DEBUGCTL_BUS_LOCK != 0)
        self._vcpu.processor.flush_tlb()

    def _show_mtrr(self, index: int) -> None:
        """To native code."""
        state = self._vcpu.processor.state
        if index == IA32_MTRR_DEF_TYPE:
            state.mtrr_def_type = self._mtrrs[index]
        elif index in FIXED:
            state.mtrr_fixed[list(FIXED).index(index)] = self._mtrrs[index]
        else:
            state.mtrr_variable[index - VARIABLE[0]] = self._mtrrs[index]
        if state.lock_types:
            self._vcpu.processor.flush_tlb()

    def _write_cet(self, index: int, name: str, value: int) -> None:
        state = self._vcpu.processor.state
        if not valid_cet(state, value):
            raise MsrAccessError(index, value)
        setattr(state, name, value)
        self._vcpu.processor.refresh_mode()

    def _read_ssp(self, level: int) -> int:
        return int(self._vcpu.processor.state.pl_ssp[level])

    def _write_ssp(self, level: int, value: int) -> None:
        state = self._vcpu.processor.state
        if not valid_ssp(state, value):
            raise MsrAccessError(IA32_PL_SSP[level], value)
        state.pl_ssp[level] = value

    def _write_misc_enable(self, value: int) -> None:
        state, counters = self._vcpu.processor.state, self._vcpu.pmu.misc_enable
        if (value ^ (state.misc_enable | counters)) & MISC_ENABLE_READ_ONLY:
            raise MsrAccessError(IA32_MISC_ENABLE, value)
        state.misc_enable = value & ~(MISC_ENABLE_COUNTERS | MISC_ENABLE_READ_ONLY)

    def _write_debugctl(self, value: int) -> None:
        vcpu = self._vcpu
        detects = bool(vcpu.state.features[FEATURES_SYSTEM] & FEATURE_BUS_LOCK)
        allowed = (DEBUGCTL_LBR | DEBUGCTL_BTF | DEBUGCTL_BUS_LOCK * detects
                   | DEBUGCTL_FREEZE_PERFMON * vcpu.pmu.present
                   | DEBUGCTL_FREEZE_LBRS * (vcpu.pmu.present and vcpu.lbr.present))
        if value & ~allowed:
            raise MsrAccessError(IA32_DEBUGCTL, value)
        before, vcpu.state.debugctl = int(vcpu.state.debugctl), value
        if (before ^ value) & DEBUGCTL_LBR:
            vcpu.lbr.switched(on=bool(value & DEBUGCTL_LBR))
        if (before ^ value) & DEBUGCTL_BUS_LOCK:
            self._look_at_lock_types()

    def _write_perf_capabilities(self, value: int) -> None:
        """Which counters are written how, and which format last-branch records have."""
        vcpu = self._vcpu
        if value & LBR_FMT not in (0, *FORMATS):
            raise MsrAccessError(IA32_PERF_CAPABILITIES, value)
        changed = (vcpu.pmu.capabilities ^ value) & LBR_FMT
        vcpu.pmu.set_capabilities(value)
        if changed:
            vcpu.lbr.show(value & LBR_FMT)

    def _write_steal_time(self, value: int) -> None:
        self._vcpu.steal_time.msr_write(value)
        self._vcpu.request(KVM_REQ_STEAL_UPDATE)

    def _write_base(self, segment: int, value: int) -> None:
        if not self.is_canonical(value):
            raise MsrAccessError(IA32_FS_BASE + segment - 4, value)
        self._vcpu.processor.state.seg_base[segment] = value

    def is_canonical(self, value: int) -> bool:
        """Whether a register may hold this linear address: see `paging.canonical_base`."""
        unused = 56 if self._vcpu.processor.state.features[FEATURES_SYSTEM] & FEATURE_LA57 else 47
        return value >> unused in (0, U64 >> unused)
