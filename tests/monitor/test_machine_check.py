"""`mce`: its words are QEMU's, whatever the processor makes of the error."""

from types import SimpleNamespace
from typing import Any

import pytest

from pellucid.kvm.machine_check import MachineCheck, McOutcome
from pellucid.monitor.commands.machine_check import BROADCAST, mce

ERROR = MachineCheck(3, 1 << 63, 5, 0x10, 0x20)


class Cpu:
    broadcasts_mce = True

    def __init__(self, outcome: McOutcome) -> None:
        self.outcome, self.told = outcome, list[MachineCheck]()

    def set_mce(self, error: MachineCheck) -> McOutcome:
        self.told.append(error)
        return self.outcome


def inject(*cpus: Cpu, broadcast: bool = False) -> str:
    session: Any = SimpleNamespace(threads=[SimpleNamespace(vcpu=cpu, index=n) for n, cpu in enumerate(cpus)])
    return mce(session, broadcast, 0, ERROR.bank, ERROR.status, ERROR.mcg_status, ERROR.addr, ERROR.misc)


@pytest.mark.parametrize(("outcome", "text"), [
    (McOutcome.LOGGED, ""), (McOutcome.RAISED, ""), (McOutcome.NO_SUCH_BANK, "Invalid MCE bank number\n"),
    (McOutcome.NOT_VALID, "Invalid MCE status code\n"),
    (McOutcome.DISABLED, "CPU 0: Uncorrected error reporting disabled\n"),
    (McOutcome.BANK_DISABLED, "CPU 0: Uncorrected error reporting disabled for bank 3\n"),
    (McOutcome.SHUTDOWN_NOT_ENABLED, "CPU 0: MCE capability is not enabled, raising triple fault\n"),
    (McOutcome.SHUTDOWN_IN_PROGRESS, "CPU 0: Previous MCE still in progress, raising triple fault\n")])
def test_what_it_says(outcome: McOutcome, text: str) -> None:
    cpu, other = Cpu(outcome), Cpu(McOutcome.RAISED)
    assert inject(cpu, other) == text
    assert cpu.told == [ERROR] and not other.told


def test_broadcast() -> None:
    first, second = Cpu(McOutcome.RAISED), Cpu(McOutcome.SHUTDOWN_NOT_ENABLED)
    assert inject(first, second, broadcast=True) == "CPU 1: MCE capability is not enabled, raising triple fault\n"
    assert first.told == [ERROR] and second.told == [BROADCAST]
    refused, other = Cpu(McOutcome.NO_SUCH_BANK), Cpu(McOutcome.RAISED)
    inject(refused, other, broadcast=True)
    assert not other.told, "a command that is wrong tells nobody"
