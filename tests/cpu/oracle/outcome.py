"""What running a case gives, and the interface of whoever runs one."""

from __future__ import annotations

from typing import Protocol

from . import layout
from .state import UserState

from pellucid.records import dataclass

DE, DB, NMI, BP, OF, BR, UD, NM, DF = range(9)
TS, NP, SS, GP, PF = range(10, 15)
MF, AC, MC, XM = range(16, 20)
VECTOR_NAMES = {
    DE: "#DE", DB: "#DB", NMI: "NMI", BP: "#BP", OF: "#OF", BR: "#BR", UD: "#UD", NM: "#NM", DF: "#DF",
    TS: "#TS", NP: "#NP", SS: "#SS", GP: "#GP", PF: "#PF", MF: "#MF", AC: "#AC", MC: "#MC", XM: "#XM",
}  # fmt: skip
VECTORS_WITH_ERROR_CODE = frozenset((DF, TS, NP, SS, GP, PF, AC))


@dataclass(frozen=True)
class Fault:
    """An exception: vector, error code (0 where the vector has none), and the linear address for #PF (else None)."""

    vector: int
    error_code: int = 0
    address: int | None = None

    def __str__(self) -> str:
        text = VECTOR_NAMES.get(self.vector, f"vector {self.vector}")
        if self.vector in VECTORS_WITH_ERROR_CODE:
            text += f"({self.error_code:#x})"
        return text if self.address is None else f"{text} at {self.address:#x}"


@dataclass
class Outcome:
    """The state afterwards; `fault` is the exception that ended the case, None when it ran into the INT3 filling.

    On a fault `state.rip` is what the exception would push: the instruction itself for faults, the next one for traps.
    `lost` says why there is no meaningful state: the case made a system call, hung, or killed its process.
    """

    state: UserState
    fault: Fault | None = None
    lost: str | None = None


class Executor(Protocol):
    """Runs machine code at CPL 3 in the layout of `layout`, from `state`, until the INT3 filling or an exception.

    `code` is placed at `state.rip`; `bits` is 64 or 32. The given state is left alone.
    """

    def run(self, code: bytes, state: UserState, bits: int = 64) -> Outcome:
        """Run one case."""
        ...


def classify(code: bytes, start: int, rip: int, vector: int, error_code: int, address: int) -> tuple[int, Fault | None]:
    """Tell the end of a case from an exception in it; returns the final RIP and the fault, if it was one.

    `rip`, `vector`, `error_code` and `address` (CR2) are those of the exception that stopped the processor. A #BP
    whose INT3 lies outside the code under test is the filling: the case ended there.
    """
    if vector == BP and not start < rip <= start + len(code):
        return rip - 1, None
    fault_address = address if vector == PF else None
    return rip, Fault(vector, error_code if vector in VECTORS_WITH_ERROR_CODE else 0, fault_address)


def check_placement(code: bytes, state: UserState) -> None:
    """Raise ValueError when `code` at `state.rip` does not lie in the CODE area or is too long."""
    end = state.rip + len(code)
    if not layout.CODE <= state.rip <= end <= layout.CODE + layout.CODE_SIZE or len(code) > layout.MAX_CODE:
        raise ValueError(f"{len(code)} bytes of code at {state.rip:#x} do not fit the code area")
