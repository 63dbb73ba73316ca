"""The machine-check architecture of one vCPU (SDM vol. 3, chapter 16): its registers, and errors from outside.

No hardware fails here: an error is one that the host or a person at the monitor hands in (KVM_X86_SET_MCE). It goes
into a bank; an uncorrected one also raises #MC, or shuts the processor down where it cannot be taken. Corrected errors
interrupt nobody: CMCI, threshold counters and local machine checks are not announced.
"""

from __future__ import annotations

import threading
from enum import Enum, auto

from pellucid.kvm.errors import MsrAccessError
from pellucid.records import dataclass

U64 = (1 << 64) - 1
BANKS = 10
MCG_CTL_P, MCG_SER_P = 1 << 8, 1 << 24
MCG_CAP = MCG_SER_P | MCG_CTL_P | BANKS
"""IA32_MCG_CAP, as QEMU's processors have it: ten banks, IA32_MCG_CTL, software recovery."""

IA32_MCG_CAP, IA32_MCG_STATUS, IA32_MCG_CTL, IA32_MC0_CTL = 0x179, 0x17A, 0x17B, 0x400
CTL, STATUS, ADDR, MISC = range(4)
"""A bank's registers, in the order of their numbers."""
MACHINE_CHECK_MSRS = (IA32_MCG_CAP, IA32_MCG_STATUS, IA32_MCG_CTL, *range(IA32_MC0_CTL, IA32_MC0_CTL + 4 * BANKS))

MCG_STATUS_RIPV, MCG_STATUS_EIPV, MCG_STATUS_MCIP = 1, 2, 4
MCG_STATUS_WRITABLE = MCG_STATUS_RIPV | MCG_STATUS_EIPV | MCG_STATUS_MCIP
MCI_STATUS_VAL, MCI_STATUS_OVER, MCI_STATUS_UC = 1 << 63, 1 << 62, 1 << 61


@dataclass(frozen=True, slots=True)
class MachineCheck:
    """An error to report, 64-bit values of the registers of `bank` and of IA32_MCG_STATUS (struct kvm_x86_mce)."""

    bank: int
    status: int
    mcg_status: int
    addr: int
    misc: int


class McOutcome(Enum):
    """What became of an error."""

    LOGGED = auto()
    """It is in its bank; it was a corrected one."""
    RAISED = auto()
    """It is in its bank, and #MC is to be delivered."""
    NOT_SUPPORTED = auto()
    """CPUID does not have MCE and MCA."""
    NO_SUCH_BANK = auto()
    NOT_VALID = auto()
    """IA32_MCi_STATUS.VAL is clear."""
    DISABLED = auto()
    """IA32_MCG_CTL is not all ones: uncorrected errors are not reported."""
    BANK_DISABLED = auto()
    """Likewise IA32_MCi_CTL."""
    SHUTDOWN_NOT_ENABLED = auto()
    """CR4.MCE is clear: the processor shuts down."""
    SHUTDOWN_IN_PROGRESS = auto()
    """IA32_MCG_STATUS.MCIP is set: the processor shuts down."""


SHUTDOWNS = (McOutcome.SHUTDOWN_NOT_ENABLED, McOutcome.SHUTDOWN_IN_PROGRESS)


class MachineCheckRegisters:
    """IA32_MCG_* and the banks. Any thread may report an error; the vCPU's own reads and writes the registers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.mcg_status = 0
        self._mcg_ctl = U64
        self._banks = [[U64, 0, 0, 0] for _ in range(BANKS)]

    def reset(self) -> None:
        """After RESET: what the banks hold stays, for software to read after a crash (SDM vol. 3, 16.3.2)."""
        with self._lock:
            self.mcg_status = 0

    def read(self, index: int) -> int:
        """RDMSR of one of MACHINE_CHECK_MSRS."""
        if index < IA32_MC0_CTL:
            return {IA32_MCG_CAP: MCG_CAP, IA32_MCG_STATUS: self.mcg_status, IA32_MCG_CTL: self._mcg_ctl}[index]
        bank, register = divmod(index - IA32_MC0_CTL, 4)
        return self._banks[bank][register]

    def write(self, index: int, value: int, host_initiated: bool = False) -> None:
        """WRMSR of one of them; MsrAccessError where the guest gets #GP(0).

        Controls take all ones or all zeros (SDM vol. 3, 16.3.1.3), a status register only zeros (16.3.2.2). The
        address and miscellaneous registers take any value, as processors and KVM do, though the manual has them refuse
        all but zeros.
        """
        bank, register = divmod(index - IA32_MC0_CTL, 4)
        control = index == IA32_MCG_CTL or bank >= 0 and register == CTL
        refused = (
            index == IA32_MCG_CAP
            or index == IA32_MCG_STATUS and value & ~MCG_STATUS_WRITABLE
            or control and value not in (0, U64)
            or bank >= 0 and register == STATUS and value and not host_initiated
        )
        if refused:
            raise MsrAccessError(index, value)
        with self._lock:
            if index == IA32_MCG_STATUS:
                self.mcg_status = value
            elif index == IA32_MCG_CTL:
                self._mcg_ctl = value
            else:
                self._banks[bank][register] = value

    def report(self, error: MachineCheck, enabled: bool) -> McOutcome:
        """Take an error in; `enabled` is CR4.MCE. A bank that holds an uncorrected one keeps it (SDM, 16.3.2.2.1)."""
        with self._lock:
            if not 0 <= error.bank < BANKS:
                return McOutcome.NO_SUCH_BANK
            if not error.status & MCI_STATUS_VAL:
                return McOutcome.NOT_VALID
            bank = self._banks[error.bank]
            overflow = MCI_STATUS_OVER if bank[STATUS] & MCI_STATUS_VAL else 0
            if not error.status & MCI_STATUS_UC:
                if overflow and bank[STATUS] & MCI_STATUS_UC:
                    bank[STATUS] |= MCI_STATUS_OVER
                else:
                    bank[STATUS:] = error.status | overflow, error.addr, error.misc
                return McOutcome.LOGGED
            if self._mcg_ctl != U64:
                return McOutcome.DISABLED
            if bank[CTL] != U64:
                return McOutcome.BANK_DISABLED
            if not enabled:
                return McOutcome.SHUTDOWN_NOT_ENABLED
            if self.mcg_status & MCG_STATUS_MCIP:
                return McOutcome.SHUTDOWN_IN_PROGRESS
            bank[STATUS:] = error.status | overflow, error.addr, error.misc
            self.mcg_status = error.mcg_status
            return McOutcome.RAISED
