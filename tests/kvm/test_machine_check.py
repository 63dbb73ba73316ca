"""Machine-check registers, and the errors that a processor is told of."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from pellucid.cpu.state import CR4_MCE
from pellucid.kvm.api import IntrExit, IoExit, ShutdownExit, VcpuEvents
from pellucid.kvm.errors import MsrAccessError
from pellucid.kvm.machine_check import (
    IA32_MC0_CTL,
    IA32_MCG_CAP,
    IA32_MCG_CTL,
    IA32_MCG_STATUS,
    MACHINE_CHECK_MSRS,
    MCG_STATUS_MCIP,
    MCI_STATUS_OVER,
    MCI_STATUS_UC,
    MCI_STATUS_VAL,
    MachineCheck,
    MachineCheckRegisters,
    McOutcome,
)
from pellucid.records import replace

from .test_soft_msrs import be
from .test_soft_smp import Guest

ALL = (1 << 64) - 1
UNCORRECTED = MachineCheck(2, MCI_STATUS_VAL | MCI_STATUS_UC | 0x17, MCG_STATUS_MCIP, 0x1234, 0x8C)
CORRECTED = replace(UNCORRECTED, status=MCI_STATUS_VAL | 0x11, addr=0x99)
BANK2 = IA32_MC0_CTL + 8
HANDLER, CODE, MC_VECTOR = 0x900, 0x7000, 18


@pytest.fixture
def guest() -> Iterator[Guest]:
    made = Guest(1)
    yield made
    made.close()


def start(guest: Guest, code: str, *, enabled: bool) -> None:
    """Real mode at CODE with interrupts off; #MC says 5 at port 0x99."""
    vcpu = be(guest.vcpus[0], "max")
    guest.put(CODE, code)
    guest.put(HANDLER, "b005 e699")
    guest.put(MC_VECTOR * 4, "0009 0000")
    sregs = vcpu.get_sregs()
    sregs.cs = replace(sregs.cs, base=0, selector=0)
    sregs.cr4 = CR4_MCE if enabled else 0
    vcpu.set_sregs(sregs)
    vcpu.set_regs(replace(vcpu.get_regs(), rip=CODE, rsp=0x6000))


@pytest.mark.parametrize("code", ["b007 e699", "f4 b007 e699"], ids=["running", "halted"])
def test_an_uncorrected_error_raises_machine_check(guest: Guest, code: str) -> None:
    """Whatever RFLAGS.IF says, and out of HLT."""
    start(guest, code, enabled=True)
    vcpu = guest.vcpus[0]
    if code.startswith("f4"):
        vcpu.kick()
        assert vcpu.run() == IntrExit()
    assert vcpu.set_mce(UNCORRECTED) is McOutcome.RAISED
    assert vcpu.run() == IoExit(0x99, 1, True, 5)
    assert vcpu.msrs.read(BANK2 + 1) == UNCORRECTED.status and vcpu.msrs.read(BANK2 + 2) == 0x1234
    assert vcpu.msrs.read(IA32_MCG_STATUS) == MCG_STATUS_MCIP


def test_one_that_waits_is_saved_and_restored(guest: Guest) -> None:
    start(guest, "b007 e699", enabled=True)
    vcpu = guest.vcpus[0]
    assert vcpu.set_mce(UNCORRECTED) is McOutcome.RAISED
    saved = vcpu.get_vcpu_events()
    vcpu.set_vcpu_events(VcpuEvents())
    assert vcpu.run() == IoExit(0x99, 1, True, 7), "it was taken away"
    vcpu.set_regs(replace(vcpu.get_regs(), rip=CODE))
    vcpu.set_vcpu_events(saved)
    assert vcpu.run() == IoExit(0x99, 1, True, 5)


def test_what_cannot_be_taken_shuts_down(guest: Guest) -> None:
    start(guest, "b007 e699", enabled=False)
    vcpu = guest.vcpus[0]
    assert vcpu.set_mce(UNCORRECTED) is McOutcome.SHUTDOWN_NOT_ENABLED
    assert isinstance(vcpu.run(), ShutdownExit)
    assert vcpu.msrs.read(BANK2 + 1) == 0
    start(guest, "b007 e699", enabled=True)
    assert vcpu.set_mce(UNCORRECTED) is McOutcome.RAISED
    assert vcpu.set_mce(UNCORRECTED) is McOutcome.SHUTDOWN_IN_PROGRESS
    assert isinstance(vcpu.run(), ShutdownExit)


def test_a_corrected_error_interrupts_nobody(guest: Guest) -> None:
    start(guest, "b007 e699", enabled=True)
    vcpu = guest.vcpus[0]
    assert vcpu.set_mce(CORRECTED) is McOutcome.LOGGED
    assert vcpu.run() == IoExit(0x99, 1, True, 7)


def test_overflow_keeps_what_is_worse() -> None:
    bank = MachineCheckRegisters()
    assert bank.report(CORRECTED, True) is McOutcome.LOGGED and bank.report(CORRECTED, True) is McOutcome.LOGGED
    assert bank.read(BANK2 + 1) == CORRECTED.status | MCI_STATUS_OVER
    bank.write(BANK2 + 1, 0)
    bank.report(UNCORRECTED, True)
    assert bank.report(CORRECTED, True) is McOutcome.LOGGED
    assert bank.read(BANK2 + 1) == UNCORRECTED.status | MCI_STATUS_OVER and bank.read(BANK2 + 2) == 0x1234
    bank.reset()
    assert bank.read(IA32_MCG_STATUS) == 0 and bank.read(BANK2 + 2) == 0x1234


@pytest.mark.parametrize(("error", "outcome"), [
    (replace(UNCORRECTED, bank=10), McOutcome.NO_SUCH_BANK), (replace(UNCORRECTED, bank=-1), McOutcome.NO_SUCH_BANK),
    (replace(UNCORRECTED, status=MCI_STATUS_UC), McOutcome.NOT_VALID)])
def test_errors_that_make_no_sense(error: MachineCheck, outcome: McOutcome) -> None:
    assert MachineCheckRegisters().report(error, True) is outcome


def test_reporting_can_be_switched_off() -> None:
    bank = MachineCheckRegisters()
    bank.write(BANK2, 0)
    assert bank.report(UNCORRECTED, True) is McOutcome.BANK_DISABLED
    bank.write(IA32_MCG_CTL, 0)
    assert bank.report(UNCORRECTED, True) is McOutcome.DISABLED
    assert bank.report(CORRECTED, True) is McOutcome.LOGGED


@pytest.mark.parametrize(("index", "fine", "refused"), [
    (IA32_MCG_CAP, (), (0, 10)), (IA32_MCG_STATUS, (0, 7), (8, ALL)), (IA32_MCG_CTL, (0, ALL), (1,)),
    (BANK2, (0, ALL), (1, 1 << 63)), (BANK2 + 1, (0,), (1, ALL)), (BANK2 + 2, (0, ALL), ()), (BANK2 + 3, (5,), ())])
def test_what_may_be_written(guest: Guest, index: int, fine: tuple[int, ...], refused: tuple[int, ...]) -> None:
    msrs = be(guest.vcpus[0], "max").msrs
    for value in fine:
        msrs.write(index, value)
        assert msrs.read(index) == value
    for value in refused:
        before = msrs.read(index)
        with pytest.raises(MsrAccessError):
            msrs.write(index, value)
        assert msrs.read(index) == before


def test_a_processor_without_mca_has_none(guest: Guest) -> None:
    vcpu = be(guest.vcpus[0], "max", mca=False)
    assert vcpu.set_mce(UNCORRECTED) is McOutcome.NOT_SUPPORTED
    for index in MACHINE_CHECK_MSRS:
        with pytest.raises(MsrAccessError):
            vcpu.msrs.read(index)
    with pytest.raises(MsrAccessError):
        be(vcpu, "max").msrs.read(IA32_MC0_CTL + 40)


def test_any_write_is_answered() -> None:
    """Registers written at random raise #GP(0) or keep 64 bits; nothing else comes out."""
    rng, bank = random.Random(7), MachineCheckRegisters()
    for _ in range(3000):
        index, value = rng.choice(MACHINE_CHECK_MSRS), rng.choice((0, ALL, 7, rng.getrandbits(64)))
        try:
            bank.write(index, value)
        except MsrAccessError:
            pass
        assert 0 <= bank.read(index) <= ALL
        bank.report(MachineCheck(rng.randrange(-2, 20), rng.getrandbits(64), rng.getrandbits(64), value, 0), True)
