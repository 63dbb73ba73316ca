"""Delivery of exceptions and interrupts through the IDT (SDM vol. 3, chapter 6), with double and triple faults."""

from pellucid.cpu.state import DB, EXIT_EXCEPTION
from pellucid.native import native


@native(inline=False)
def deliver_exception(s) -> bool:
    return False


@native(inline=False)
def single_step_trap(s) -> None:
    """#DB after an instruction that began with RFLAGS.TF set."""
    s.dr[6] = s.dr[6] | 0x4000
    s.exit_reason = EXIT_EXCEPTION
    s.exc_vector = DB
    s.exc_has_error = 0
    s.exc_soft = 0
