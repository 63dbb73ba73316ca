"""`info lbr`: the latest branches of a processor, of which `info registers` says nothing."""

from pellucid.cpu.lbr import INFO_ABORT, INFO_CYCLES, INFO_IN_TX
from pellucid.kvm.errors import MsrAccessError
from pellucid.kvm.lbr import LBR_FMT, MSR_LBR_SELECT, BranchRecord, branch_records, registers
from pellucid.monitor.command import command
from pellucid.monitor.session import Session

IA32_PERF_CAPABILITIES, IA32_DEBUGCTL = 0x345, 0x1D9


@command(info="lbr", help="show the last-branch records of the current CPU, latest first")
def lbr(session: Session) -> str:
    """A line about the registers, then one for each branch; empty entries are left out."""
    thread = session.thread(None)

    def read(indices: list[int]) -> dict[int, int]:
        return thread.run_on_cpu(lambda: thread.vcpu.get_msrs(indices))

    try:
        number = read([IA32_PERF_CAPABILITIES])[IA32_PERF_CAPABILITIES] & LBR_FMT
    except MsrAccessError:
        number = 0
    if not number:
        return "this CPU has no last-branch records: -cpu max,migratable=off or lbr-fmt= gives it some\n"
    msrs = read([IA32_DEBUGCTL, *registers(number)])
    state = "on" if msrs[IA32_DEBUGCTL] & 1 else "off"
    head = f"format={number} recording={state} LBR_SELECT={msrs[MSR_LBR_SELECT]:03x}\n"
    return head + "".join(map(_line, branch_records(msrs, number)))


def _line(record: BranchRecord) -> str:
    cycles = record.info & INFO_CYCLES
    more = f" cycles={cycles}" * bool(cycles) + " tx" * bool(record.info & INFO_IN_TX)
    return f"{record.source:016x} -> {record.target:016x}{more}{' abort' * bool(record.info & INFO_ABORT)}\n"
