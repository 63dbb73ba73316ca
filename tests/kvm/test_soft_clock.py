"""The soft backend's kvmclock and TSCs when the machine is stopped and goes on, and when vCPUs are restored."""

import time

import pytest

from pellucid.kvm.api import KVM_REQ_CLOCK_UPDATE, ClockData
from pellucid.kvm.backends.soft.system import SoftHypervisor, SoftVm
from pellucid.kvm.backends.soft.vcpu import SoftVcpu
from pellucid.kvm.errors import InvalidRequestError
from pellucid.kvm.pvclock import time_scale
from pellucid.runtime import VirtualClock

TSC, TSC_ADJUST = 0x10, 0x3B
U64 = (1 << 64) - 1


@pytest.fixture
def vm():  # type: ignore[no-untyped-def]
    clock = VirtualClock()
    made = SoftHypervisor(clock).create_vm()
    made.create_irqchip()
    made.create_vcpu(0)
    made.create_vcpu(1)
    yield made
    made.close()
    clock.close()


def tscs(vm: SoftVm) -> list[int]:
    return [vcpu.guest_tsc() for vcpu in vm.vcpus]


def test_a_stop_leaves_no_trace_in_clock_and_tsc(vm: SoftVm) -> None:
    assert isinstance(vm.clock, VirtualClock)
    vm.clock.start()
    vm.vcpus[1].msrs.write(TSC, vm.vcpus[1].guest_tsc() + 1_000_000)  # the guest's own doing
    vm.clock.stop()
    before = vm.get_clock()
    apart = vm.vcpus[1].state.tsc_offset - vm.vcpus[0].state.tsc_offset & U64
    time.sleep(0.05)
    vm.set_clock(before)
    vm.clock.start()
    after = vm.get_clock()
    assert before.host_tsc is not None and after.host_tsc is not None
    assert 0 <= after.host_tsc - before.host_tsc < vm.tsc_hz * 0.04
    assert 0 <= after.clock - before.clock < 40_000_000
    assert vm.vcpus[1].state.tsc_offset - vm.vcpus[0].state.tsc_offset & U64 == apart
    assert all(vcpu.requests.test(KVM_REQ_CLOCK_UPDATE) for vcpu in vm.vcpus)
    assert vm.master_clock.at(vm.guest_tsc()) >= before.clock, "what the guest computes does not go back"


def test_set_clock_alone_leaves_the_tscs(vm: SoftVm) -> None:
    offsets = [vcpu.state.tsc_offset for vcpu in vm.vcpus]
    vm.set_clock(ClockData(123_000_000))
    assert [vcpu.state.tsc_offset for vcpu in vm.vcpus] == offsets
    assert vm.get_clock().clock >= 123_000_000


def test_the_guest_hears_that_it_was_stopped(vm: SoftVm) -> None:
    vcpu = vm.vcpus[0]
    vcpu.requests.take()
    vcpu.kvmclock_ctrl()
    assert vcpu.requests.test(KVM_REQ_CLOCK_UPDATE)


def restore(vcpu: SoftVcpu, value: int) -> None:
    vcpu.set_msrs({TSC: value, TSC_ADJUST: 0})


def test_restored_tscs_are_in_step(vm: SoftVm) -> None:
    vm.vcpus[0].msrs.write(TSC, 5 << 40)
    assert vm.vcpus[0].get_msrs((TSC_ADJUST,))[TSC_ADJUST]
    for vcpu in vm.vcpus:
        restore(vcpu, 1000)
        time.sleep(0.001)
    assert vm.vcpus[0].state.tsc_offset == vm.vcpus[1].state.tsc_offset
    assert all(vcpu.get_msrs((TSC_ADJUST,))[TSC_ADJUST] == 0 for vcpu in vm.vcpus)
    assert all(1000 <= value < vm.tsc_hz for value in tscs(vm))
    restore(vm.vcpus[1], 7 << 40)
    assert tscs(vm)[1] >= 7 << 40 > tscs(vm)[0]


def test_a_tsc_of_another_frequency() -> None:
    clock = VirtualClock()
    vm = SoftHypervisor(clock).create_vm()
    vm.set_tsc_hz(1_000_000_000)
    vm.create_irqchip()
    vcpu = vm.create_vcpu(0)
    try:
        with pytest.raises(InvalidRequestError):
            vm.set_tsc_hz(2_000_000_000)
        before, start = vcpu.guest_tsc(), time.monotonic_ns()
        time.sleep(0.05)
        after, end = vcpu.guest_tsc(), time.monotonic_ns()
        assert abs(after - before - (end - start)) < 2_000_000, "a tick is a nanosecond"
        assert abs(vm.guest_tsc() - vcpu.guest_tsc()) < 1_000_000_000
        clock.start()
        assert abs(vcpu._tsc_to_ns(vcpu.guest_tsc() + 1_000_000) - clock.now_ns() - 1_000_000) < 50_000_000
        assert (vm.master_clock.mul, vm.master_clock.shift) == time_scale(1_000_000_000)
        vcpu.msrs.write(TSC, 5)
        assert vcpu.msrs.read(TSC) < 1_000_000_000
        assert vcpu.msrs.read(TSC_ADJUST) >> 63, "the counter went back"
        vcpu.msrs.write(TSC_ADJUST, 0)
        assert vcpu.guest_tsc() >= after
    finally:
        vm.close()
        clock.close()


@pytest.mark.parametrize("hz", [0, 999, 1000 << 32])
def test_frequencies_out_of_range(hz: int) -> None:
    vm = SoftHypervisor(VirtualClock()).create_vm()
    with pytest.raises(InvalidRequestError, match="out of range"):
        vm.set_tsc_hz(hz)
