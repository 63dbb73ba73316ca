"""How native code stops: the one exception of the engine, and the ways to raise it."""

from pellucid.cpu.state import AC, CP, DE, EXIT_EXCEPTION, GP, NM, PF, SS_FAULT, UD
from pellucid.native import NativeException, native, u32


class Stop(NativeException):
    """Leave the running block; CpuState.exit_reason and its companions say why."""


@native(inline=False)
def fault(s, vector, error) -> None:
    """An exception with an error code, at the current instruction."""
    s.exit_reason = EXIT_EXCEPTION
    s.exc_vector = vector
    s.exc_error = u32(error)
    s.exc_has_error = 1
    s.exc_soft = 0
    s.exc_access = 0
    raise Stop


@native(inline=False)
def fault_plain(s, vector) -> None:
    """An exception without error code, at the current instruction."""
    s.exit_reason = EXIT_EXCEPTION
    s.exc_vector = vector
    s.exc_error = 0
    s.exc_has_error = 0
    s.exc_soft = 0
    raise Stop


@native(inline=False)
def non_canonical(s, address) -> None:
    """#GP(0) for the address of an access; `dispatch.leave` makes it #SS(0) where that went through SS."""
    s.exit_reason = EXIT_EXCEPTION
    s.exc_vector = GP
    s.exc_error = 0
    s.exc_has_error = 1
    s.exc_soft = 0
    s.exc_access = 1
    s.exc_address = address
    raise Stop


@native(inline=False)
def page_fault(s, address, error) -> None:
    """#PF: `address` goes to CR2 at delivery."""
    s.exc_address = address
    fault(s, u32(PF), error)


@native
def general_protection(s, error) -> None:
    """#GP(error)."""
    fault(s, u32(GP), u32(error))


@native
def stack_fault(s, error) -> None:
    """#SS(error)."""
    fault(s, u32(SS_FAULT), u32(error))


@native
def control_protection(s, error) -> None:
    """#CP(error), error being CP_*."""
    fault(s, u32(CP), u32(error))


@native
def undefined(s) -> None:
    """#UD."""
    fault_plain(s, u32(UD))


@native
def divide_error(s) -> None:
    """#DE."""
    fault_plain(s, u32(DE))


@native
def not_available(s) -> None:
    """#NM."""
    fault_plain(s, u32(NM))


@native
def alignment(s) -> None:
    """#AC(0)."""
    fault(s, u32(AC), u32(0))
