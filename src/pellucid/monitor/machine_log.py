"""The log of a machine's CPUs (-d, the monitor's `log`): who hears them, as the items change."""

import functools
import itertools
from typing import TYPE_CHECKING

from pellucid.kvm.api import Vcpu
from pellucid.machine.log import logged_items
from pellucid.machine.machine import Machine
from pellucid.monitor.guest_state import read_physical
from pellucid.runtime import ShutdownCause

if TYPE_CHECKING:
    from pellucid.monitor.cpu_log import CpuLog

CPU_ITEMS = frozenset(("in_asm", "int", "exec", "cpu", "cpu_reset", "mmu", "pcall"))


class MachineLog:
    """The log of a machine's CPUs: what is logged follows the items chosen."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._numbers = itertools.count()
        self._logs: list[CpuLog] = []

    def choose(self) -> "list[tuple[Vcpu, CpuLog | None]]":
        """Who hears each vCPU by the items that are chosen now."""
        items, ranges = frozenset(logged_items()), self._machine.config.log_ranges
        vcpus = [thread.vcpu for thread in self._machine.vcpus.threads]
        self._logs = []
        if not items & CPU_ITEMS:
            return [(vcpu, None) for vcpu in vcpus]
        from pellucid.monitor.cpu_log import CpuLog  # with a decoder that no other machine needs

        self._logs = [CpuLog(n, vcpu, items, ranges, self._numbers, self._read) for n, vcpu in enumerate(vcpus)]
        return list(zip(vcpus, self._logs, strict=True))

    def _read(self, address: int, size: int) -> bytes | None:
        return read_physical(self._machine, address, size)

    def follow(self) -> None:
        """Other items were chosen while the machine runs. The big lock is held."""
        for thread, (vcpu, log) in zip(self._machine.vcpus.threads, self.choose(), strict=True):
            thread.run_on_cpu(functools.partial(vcpu.set_log, log))

    def before_reset(self, _: ShutdownCause | None = None) -> None:
        """The machine is about to be reset, or has just been made."""
        for log in self._logs:
            log.reset()


def attach_log(machine: Machine) -> None:
    """Hear the CPUs of `machine`, which have just been made; their threads do not run yet."""
    log = MachineLog(machine)
    machine.system.on_reset.insert(0, log.before_reset)
    machine.on_log_items.append(log.follow)
    for vcpu, hears in log.choose():
        vcpu.set_log(hears)
    log.before_reset()
