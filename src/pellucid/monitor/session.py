"""What belongs to one user's conversation with a machine."""

from collections.abc import Callable, Sequence

from pellucid.machine.machine import Machine
from pellucid.monitor.control import Control
from pellucid.monitor.dump import Format
from pellucid.monitor.errors import CommandError
from pellucid.monitor.expression import evaluate
from pellucid.monitor.guest_state import CpuRegisters, cpu_registers
from pellucid.monitor.registers import register_value
from pellucid.records import dataclass, field
from pellucid.runtime import VcpuThread


def _no_history() -> Sequence[str]:
    return ()


@dataclass
class Session:
    """One conversation: the CPU it talks about, the formats it used last, and the lines of before.

    Every command function gets it first. The big lock is held.
    """

    control: Control
    cpu: int = 0
    format: Format = field(default_factory=Format)
    history: Callable[[], Sequence[str]] = _no_history

    @property
    def machine(self) -> Machine:
        return self.control.machine

    @property
    def threads(self) -> list[VcpuThread]:
        """The vCPUs."""
        return self.machine.vcpus.threads

    def thread(self, index: int | None = None) -> VcpuThread:
        """The vCPU with that number, else the one talked about. Raises CommandError."""
        number = self.cpu if index is None else index
        if not 0 <= number < len(self.threads):
            if index is None:
                raise CommandError("No CPU available")
            raise CommandError("Parameter 'cpu-index' expects a CPU number")
        return self.threads[number]

    def registers(self, cpu: int | None = None) -> CpuRegisters:
        """The registers of a CPU, by default of the one talked about."""
        return cpu_registers(self.machine, self.thread(cpu).index)

    def value(self, text: str) -> tuple[int, str]:
        """The value of the expression that `text` begins with, and the rest of it."""
        state: list[CpuRegisters] = []  # asked for once, and only when a register is named

        def register(name: str) -> int | None:
            if not state:
                state.append(self.registers())
            return register_value(state[0], name)

        return evaluate(text, register)
