"""`info memtype`: which memory type an address has, and why."""

from typing import Annotated

from pellucid.kvm.errors import MsrAccessError
from pellucid.machine.cpu_model import configured_model
from pellucid.monitor.command import Address, Marker, command
from pellucid.monitor.errors import CommandError
from pellucid.monitor.guest_state import WRAP, read_physical
from pellucid.monitor.memtype import MSRS, MemtypeInfo, Source, explain_linear, explain_physical, memtype_text
from pellucid.monitor.session import Session

A20 = 1 << 20


@command(
    "x-query-memtype",
    info="memtype",
    help="show the memory type of a linear address and what it follows from (-p: of a physical address)",
    syntax="[-p] addr",
    text=memtype_text,
)
def query_memtype(
    session: Session,
    physical: Annotated[bool, Marker("flag", "p")] = False,
    *,
    addr: Address,
    cpu_index: int | None = None,
) -> MemtypeInfo:
    """The effective type of an access by a CPU, with every step of the manual's rules."""
    machine = session.machine
    thread = session.thread(cpu_index)
    registers = session.registers(cpu_index)
    try:
        msrs = thread.run_on_cpu(lambda: thread.vcpu.get_msrs(MSRS))
    except MsrAccessError as error:
        raise CommandError(f"this CPU model has no MTRRs or no PAT: {error}") from None
    source = Source(
        registers.sregs,
        msrs,
        lambda address, size: read_physical(machine, address, size),
        configured_model(machine.config.cpu, warn=False).phys_bits,
        WRAP if registers.a20 else WRAP & ~A20,
    )
    return (explain_physical if physical else explain_linear)(source, addr & WRAP)
