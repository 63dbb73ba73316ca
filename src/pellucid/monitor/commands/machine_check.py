"""`mce`: hand a machine-check error to a processor; the words are QEMU's."""

from typing import Annotated

from pellucid.kvm.machine_check import MCG_STATUS_MCIP, MCG_STATUS_RIPV, MCI_STATUS_UC, MCI_STATUS_VAL, MachineCheck
from pellucid.kvm.machine_check import McOutcome as Mc
from pellucid.monitor.command import Address, Marker, command
from pellucid.monitor.session import Session
from pellucid.runtime import VcpuThread

REFUSED = {
    Mc.NOT_SUPPORTED: "MCE injection not supported\n",
    Mc.NO_SUCH_BANK: "Invalid MCE bank number\n",
    Mc.NOT_VALID: "Invalid MCE status code\n",
}
"""What is wrong with the command."""
UNTAKEN = {
    Mc.DISABLED: "CPU {cpu}: Uncorrected error reporting disabled\n",
    Mc.BANK_DISABLED: "CPU {cpu}: Uncorrected error reporting disabled for bank {bank}\n",
    Mc.SHUTDOWN_NOT_ENABLED: "CPU {cpu}: MCE capability is not enabled, raising triple fault\n",
    Mc.SHUTDOWN_IN_PROGRESS: "CPU {cpu}: Previous MCE still in progress, raising triple fault\n",
}
"""What the processor makes of it."""
BROADCAST = MachineCheck(1, MCI_STATUS_VAL | MCI_STATUS_UC, MCG_STATUS_MCIP | MCG_STATUS_RIPV, 0, 0)
"""What `-b` tells the other processors."""


@command(
    hmp="mce",
    syntax="[-b] cpu bank status mcgstatus addr misc",
    help="inject a MCE on the given CPU [and broadcast to other CPUs with -b option]",
)
def mce(
    session: Session,
    broadcast: Annotated[bool, Marker("flag", "b")],
    cpu_index: int,
    bank: int,
    status: Address,
    mcg_status: Address,
    addr: Address,
    misc: Address,
) -> str:
    """Set a bank's registers; an uncorrected error raises #MC as well. Nothing for a CPU that is not there."""
    threads = session.threads
    if not 0 <= cpu_index < len(threads):
        return ""
    first = threads[cpu_index]
    error = MachineCheck(bank, status, mcg_status, addr, misc)
    if broadcast and not first.vcpu.broadcasts_mce:
        return "Guest CPU does not support MCA broadcast\n"
    text = _tell(first, error)
    if broadcast and text not in REFUSED.values():
        text += "".join(_tell(other, BROADCAST) for other in threads if other is not first)
    return text


def _tell(thread: VcpuThread, error: MachineCheck) -> str:
    outcome = thread.vcpu.set_mce(error)
    text = REFUSED.get(outcome) or UNTAKEN.get(outcome, "")
    return text.format(cpu=thread.index, bank=error.bank)
