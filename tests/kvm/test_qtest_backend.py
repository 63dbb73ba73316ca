"""The backend that executes nothing, and what a machine may ask of a hypervisor's chips directly."""

import threading

import pytest

from pellucid.errors import UserError
from pellucid.kvm.api import Hypervisor, IntrExit, PitState, Regs, Vcpu, Vm
from pellucid.kvm.backends import create_hypervisor
from pellucid.kvm.backends.qtest import QtestHypervisor
from pellucid.kvm.errors import InvalidRequestError
from tests.machine.helpers import HandClock


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def vm(clock: HandClock) -> Vm:
    hypervisor: Hypervisor = QtestHypervisor(clock)
    made = hypervisor.create_vm()
    made.create_irqchip()
    made.create_pit()
    return made


def test_by_name(clock: HandClock) -> None:
    assert create_hypervisor("qtest", clock).name == "qtest"
    with pytest.raises(UserError, match="qtest"):
        create_hypervisor("qqtest", clock)


def test_a_vcpu_keeps_its_state_and_waits(vm: Vm) -> None:
    vcpu: Vcpu = vm.create_vcpu(0)
    assert vcpu.get_regs().rip == 0xFFF0 and vcpu.get_sregs().cs.base == 0xFFFF_0000
    vcpu.set_regs(Regs(rax=5))
    vcpu.get_regs().rax = 7
    assert vcpu.get_regs().rax == 5
    exits = []
    thread = threading.Thread(target=lambda: exits.append(vcpu.run()))
    thread.start()
    vcpu.kick()
    thread.join(timeout=60)
    assert exits == [IntrExit()]


def test_chips_answer_the_machine(vm: Vm) -> None:
    assert vm.chip_write(0x21, 1, 0x5A, pio=True)
    assert vm.chip_read(0x21, 1, pio=True) == 0x5A
    assert vm.chip_read(0x60, 1, pio=True) is None and not vm.chip_write(0x60, 1, 0, pio=True)
    assert vm.chip_write(0xFEC0_0000, 4, 1, pio=False)
    assert vm.chip_read(0xFEC0_0010, 4, pio=False) is not None
    assert vm.chip_read(0xFED0_0000, 4, pio=False) is None


def test_lines_can_be_heard_instead_of_the_chips(vm: Vm, clock: HandClock) -> None:
    heard: list[tuple[int, bool]] = []
    vm.irq_line(4, True)
    assert vm.irq_statistics() == {(0, 4): 1, (2, 4): 1}
    vm.intercept_irqs(lambda gsi, level: heard.append((gsi, level)))
    vm.irq_line(5, True)
    vm.irq_line(5, False)
    for value, port in ((0x34, 0x43), (0x00, 0x40), (0x10, 0x40)):
        vm.chip_write(port, 1, value, pio=True)
    clock.advance(10_000_000)
    assert heard[:2] == [(5, True), (5, False)]
    assert 2 <= heard.count((0, True)) <= 3, "the PIT goes on although nobody acknowledges"
    assert vm.irq_statistics() == {(0, 4): 1, (2, 4): 1}
    vm.intercept_irqs(None)
    vm.irq_line(5, True)
    assert vm.irq_statistics()[2, 5] == 1


def test_without_chips(clock: HandClock) -> None:
    vm = QtestHypervisor(clock).create_vm()
    assert vm.chip_read(0x21, 1, pio=True) is None and vm.irq_statistics() == {}
    with pytest.raises(InvalidRequestError):
        vm.get_irqchip(0)
    with pytest.raises(InvalidRequestError):
        vm.set_pit(PitState())
    vm.close()
