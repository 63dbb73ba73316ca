"""ioeventfd and irqfd."""

import os
import select
from collections.abc import Iterator

import pytest

from pellucid.kvm.errors import InvalidRequestError
from pellucid.kvm.eventfd import Ioeventfd
from pellucid.kvm.irqchip.ioapic import RTE_LEVEL
from pellucid.kvm.routing import MsiRoute
from tests.kvm.fakes import FakeVm

DOORBELL = 0xFE00_0050
LONG = 10  # seconds; only ever waited for when something is broken


@pytest.fixture
def vm() -> Iterator[FakeVm]:
    machine = FakeVm()
    yield machine
    machine.chips.close()


@pytest.fixture
def fds() -> Iterator[list[int]]:
    made = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(3)]
    yield made
    for fd in made:
        os.close(fd)


def signals(fd: int) -> int:
    """How often the eventfd was signalled since the last call."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def wait_readable(fd: int) -> None:
    assert select.select([fd], [], [], LONG)[0]


class Told:
    """Waits until the vCPU has been notified."""

    def __init__(self, vm: FakeVm) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC)
        vm.vcpu.lapic._notify = lambda: os.eventfd_write(self.fd, 1)

    def wait(self) -> None:
        wait_readable(self.fd)
        os.eventfd_read(self.fd)

    def close(self) -> None:
        os.close(self.fd)


@pytest.fixture
def told(vm: FakeVm) -> Iterator[Told]:
    waiter = Told(vm)
    yield waiter
    vm.chips.close()
    waiter.close()


def test_match_on_address_length_and_data(vm: FakeVm, fds: list[int]) -> None:
    any_data, one, two = fds
    registry = vm.chips.mmio_ioeventfds
    registry.assign(Ioeventfd(any_data, DOORBELL, 4))
    registry.assign(Ioeventfd(one, DOORBELL, 2, datamatch=1))
    registry.assign(Ioeventfd(two, DOORBELL, 2, datamatch=2))

    def write(address: int, size: int, value: int) -> bool:
        return vm.chips.mmio_write(vm.vcpu.lapic, address, size, value)

    assert write(DOORBELL, 4, 77) and write(DOORBELL, 2, 1) and write(DOORBELL, 2, 0xFFFF_0002)
    assert [signals(fd) for fd in fds] == [1, 1, 1]
    assert not write(DOORBELL, 2, 3) and not write(DOORBELL, 1, 1) and not write(DOORBELL + 4, 4, 77)
    assert [signals(fd) for fd in fds] == [0, 0, 0]
    registry.deassign(Ioeventfd(one, DOORBELL, 2, datamatch=1))
    assert not write(DOORBELL, 2, 1)
    assert vm.chips.mmio_read(vm.vcpu.lapic, DOORBELL, 4) is None, "reads are the machine's"


def test_any_length_and_ports(vm: FakeVm, fds: list[int]) -> None:
    vm.chips.pio_ioeventfds.assign(Ioeventfd(fds[0], 0xC010, 0))
    for size in (1, 2, 4):
        assert vm.chips.pio_bus.write(0xC010, size, 5)
    assert signals(fds[0]) == 3
    assert not vm.chips.mmio_bus.write(0xC010, 4, 5), "the two buses are apart"


def test_collisions_and_bad_entries(vm: FakeVm, fds: list[int]) -> None:
    registry = vm.chips.mmio_ioeventfds
    registry.assign(Ioeventfd(fds[0], DOORBELL, 4, datamatch=1))
    bad = [
        Ioeventfd(fds[1], DOORBELL, 4, 1), Ioeventfd(fds[1], DOORBELL, 4), Ioeventfd(fds[1], DOORBELL, 0),
        Ioeventfd(fds[1], DOORBELL, 3), Ioeventfd(fds[1], DOORBELL, 0, 1),
    ]  # fmt: skip
    for entry in bad:
        with pytest.raises(InvalidRequestError):
            registry.assign(entry)
        with pytest.raises(InvalidRequestError):
            registry.deassign(entry)
    registry.assign(Ioeventfd(fds[1], DOORBELL, 4, datamatch=2))


def test_a_full_counter_does_not_block(vm: FakeVm, fds: list[int]) -> None:
    os.eventfd_write(fds[0], (1 << 64) - 2)
    vm.chips.mmio_ioeventfds.assign(Ioeventfd(fds[0], DOORBELL, 4))
    assert vm.chips.mmio_bus.write(DOORBELL, 4, 0)


def test_irqfd_raises_a_gsi(vm: FakeVm, fds: list[int], told: Told) -> None:
    vm.chips.routing.set_routes([MsiRoute(30, 0xFEE0_0000, 0x66)])
    vm.chips.irqfds.assign(fds[0], 30)
    for _ in range(3):
        os.eventfd_write(fds[0], 1)
        told.wait()
        assert vm.vcpu.take() == 0x66
        vm.vcpu.lapic.eoi()


def test_a_signal_from_before_counts(vm: FakeVm, fds: list[int], told: Told) -> None:
    vm.redirect(5, 0x67)
    os.eventfd_write(fds[0], 1)
    vm.chips.irqfds.assign(fds[0], 5)
    told.wait()
    assert vm.vcpu.take() == 0x67


def test_irqfd_with_resampling(vm: FakeVm, fds: list[int], told: Told) -> None:
    vm.redirect(11, 0x68 | RTE_LEVEL)
    vm.chips.irqfds.assign(fds[0], 11, resamplefd=fds[1])
    os.eventfd_write(fds[0], 1)
    told.wait()
    assert vm.vcpu.take() == 0x68 and signals(fds[1]) == 0
    vm.vcpu.lapic.eoi()
    assert signals(fds[1]) == 1 and vm.vcpu.lapic.irr == 0, "the EOI lowers the level and asks the device"
    os.eventfd_write(fds[0], 1)
    told.wait()
    assert vm.vcpu.take() == 0x68


def test_deassigned_irqfd_is_silent(vm: FakeVm, fds: list[int], told: Told) -> None:
    vm.redirect(5, 0x69)
    vm.redirect(6, 0x6A)
    vm.chips.irqfds.assign(fds[0], 5)
    vm.chips.irqfds.assign(fds[1], 6)
    vm.chips.irqfds.deassign(fds[0], 5)
    os.eventfd_write(fds[0], 1)
    os.eventfd_write(fds[1], 1)
    told.wait()
    assert vm.vcpu.requested() == {0x6A} and signals(fds[0]) == 1


def test_bad_irqfds(vm: FakeVm, fds: list[int], tmp_path: os.PathLike[str]) -> None:
    vm.chips.irqfds.assign(fds[0], 5)
    with pytest.raises(InvalidRequestError, match="already"):
        vm.chips.irqfds.assign(fds[0], 6)
    with pytest.raises(InvalidRequestError):
        vm.chips.irqfds.deassign(fds[0], 6)
    with pytest.raises(InvalidRequestError, match="cannot be watched"):
        vm.chips.irqfds.assign(1 << 20, 5)
    with open(os.path.join(tmp_path, "plain"), "wb") as plain, pytest.raises(InvalidRequestError, match="watched"):
        vm.chips.irqfds.assign(plain.fileno(), 5)
    vm.chips.close()
    with pytest.raises(InvalidRequestError, match="closed"):
        vm.chips.irqfds.assign(fds[1], 5)


def test_what_is_no_eventfd_is_dropped_at_its_first_event(vm: FakeVm, fds: list[int], told: Told) -> None:
    reader, writer = os.pipe()
    try:
        vm.redirect(5, 0x6B)
        vm.chips.irqfds.assign(reader, 4)
        os.write(writer, b"short")  # eventfd_read wants eight bytes
        vm.chips.irqfds.assign(fds[0], 5)
        os.eventfd_write(fds[0], 1)
        told.wait()
        assert vm.vcpu.take() == 0x6B
    finally:
        vm.chips.close()
        os.close(reader)
        os.close(writer)
