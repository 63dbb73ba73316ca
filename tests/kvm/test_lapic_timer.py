"""The local APIC timer in its three modes."""

import pytest

from pellucid.kvm.irqchip import apicdef as d
from pellucid.kvm.irqchip.lapic_timer import MAX_ARM_NS, MIN_PERIOD_NS, divide_of
from tests.kvm.fakes import FakeVm

VECTOR = 0xE0
DIVIDE_BY_1 = 0xB


def timer_vm(mode: int = 0, divide: int = DIVIDE_BY_1) -> FakeVm:
    vm = FakeVm()
    vm.vcpu.write(d.APIC_LVTT, mode | VECTOR)
    vm.vcpu.write(d.APIC_TDCR, divide)
    return vm


def fired(vm: FakeVm) -> bool:
    """Whether the timer's vector was requested; takes and ends it."""
    if vm.vcpu.take() is None:
        return False
    vm.vcpu.lapic.eoi()
    return True


def test_divide_configuration() -> None:
    assert [divide_of(bits) for bits in (0, 1, 2, 3, 8, 9, 10, 11)] == [2, 4, 8, 16, 32, 64, 128, 1]


@pytest.mark.parametrize(("divide", "factor"), [(DIVIDE_BY_1, 1), (0x0, 2), (0x3, 16), (0xA, 128)])
def test_one_shot(divide: int, factor: int) -> None:
    vm = timer_vm(divide=divide)
    vm.vcpu.write(d.APIC_TMICT, 10_000)
    assert vm.vcpu.read(d.APIC_TMCCT) == 10_000
    vm.clock.advance(4_000 * factor)
    assert vm.vcpu.read(d.APIC_TMCCT) == 6_000
    vm.clock.advance(6_000 * factor - 1)
    assert not fired(vm)
    vm.clock.advance(1)
    assert fired(vm) and vm.vcpu.read(d.APIC_TMCCT) == 0 and vm.vcpu.read(d.APIC_TMICT) == 10_000
    vm.clock.advance(10**9)
    assert not fired(vm)


def test_periodic() -> None:
    vm = timer_vm(d.LVT_TIMER_PERIODIC)
    vm.vcpu.write(d.APIC_TMICT, 1_000_000)
    for _ in range(3):
        vm.clock.advance(999_999)
        assert not fired(vm)
        vm.clock.advance(1)
        assert fired(vm)
    vm.vcpu.write(d.APIC_TMICT, 0)
    vm.clock.advance(10**9)
    assert not fired(vm)


def test_periodic_catches_up_without_a_burst() -> None:
    vm = timer_vm(d.LVT_TIMER_PERIODIC)
    vm.vcpu.write(d.APIC_TMICT, 1_000_000)
    vm.clock.now += 5_400_000  # the timer thread did not get to run
    vm.clock.advance(0)
    assert fired(vm) and not fired(vm) and vm.clock.callbacks == 1
    assert vm.vcpu.read(d.APIC_TMCCT) == 600_000
    vm.clock.advance(600_000)
    assert fired(vm)


def test_reading_the_count_agrees_with_a_late_timer_thread() -> None:
    vm = timer_vm()
    vm.vcpu.write(d.APIC_TMICT, 1000)
    vm.clock.now += 1000
    assert vm.vcpu.read(d.APIC_TMCCT) == 0
    assert fired(vm)
    vm.clock.advance(0)  # the thread arrives: nothing is left to do
    assert not fired(vm)


def test_shortest_period_is_bounded() -> None:
    vm = timer_vm(d.LVT_TIMER_PERIODIC)
    vm.vcpu.write(d.APIC_TMICT, 1)
    vm.clock.advance(100 * MIN_PERIOD_NS)
    assert vm.clock.callbacks <= 101
    assert vm.vcpu.read(d.APIC_TMCCT) <= 1


def test_masked_timer_counts_silently() -> None:
    vm = timer_vm()
    vm.vcpu.write(d.APIC_LVTT, VECTOR | d.LVT_MASKED)
    vm.vcpu.write(d.APIC_TMICT, 1000)
    assert vm.vcpu.read(d.APIC_TMCCT) == 1000
    vm.clock.advance(2000)
    assert not fired(vm)


def test_changing_between_one_shot_and_periodic_keeps_the_count() -> None:
    vm = timer_vm()
    vm.vcpu.write(d.APIC_TMICT, 1_000_000)
    vm.clock.advance(600_000)
    vm.vcpu.write(d.APIC_LVTT, VECTOR | d.LVT_TIMER_PERIODIC)
    assert vm.vcpu.read(d.APIC_TMCCT) == 400_000
    vm.clock.advance(400_000)
    assert fired(vm) and vm.vcpu.read(d.APIC_TMCCT) == 1_000_000, "wrapped around"
    vm.clock.advance(700_000)
    vm.vcpu.write(d.APIC_LVTT, VECTOR)
    assert vm.vcpu.read(d.APIC_TMCCT) == 300_000
    vm.clock.advance(300_000)
    assert fired(vm)
    vm.vcpu.write(d.APIC_LVTT, VECTOR | d.LVT_TIMER_PERIODIC)
    vm.clock.advance(10**9)
    assert vm.vcpu.read(d.APIC_TMCCT) == 0 and not fired(vm), "a count that has run out stays at zero"


def test_changing_the_divider_while_counting() -> None:
    vm = timer_vm()
    vm.vcpu.write(d.APIC_TMICT, 1000)
    vm.clock.advance(400)
    vm.vcpu.write(d.APIC_TDCR, 0x1)  # by 4
    assert vm.vcpu.read(d.APIC_TMCCT) == 600
    vm.clock.advance(2399)
    assert not fired(vm)
    vm.clock.advance(1)
    assert fired(vm)


def test_tsc_deadline() -> None:
    vm = timer_vm(d.LVT_TIMER_TSC_DEADLINE)
    lapic = vm.vcpu.lapic
    deadline = 2 * (vm.clock.now + 1000)
    lapic.set_tsc_deadline(deadline)
    assert lapic.tsc_deadline == deadline
    vm.vcpu.write(d.APIC_TMICT, 5)
    assert vm.vcpu.read(d.APIC_TMICT) == 0 and vm.vcpu.read(d.APIC_TMCCT) == 0
    vm.clock.advance(999)
    assert not fired(vm)
    vm.clock.advance(1)
    assert fired(vm) and lapic.tsc_deadline == 0


def test_tsc_deadline_in_the_past_fires_at_once() -> None:
    vm = timer_vm(d.LVT_TIMER_TSC_DEADLINE)
    vm.vcpu.lapic.set_tsc_deadline(2 * vm.clock.now)
    assert fired(vm) and vm.vcpu.lapic.tsc_deadline == 0


def test_tsc_deadline_disarm_and_replace() -> None:
    vm = timer_vm(d.LVT_TIMER_TSC_DEADLINE)
    lapic = vm.vcpu.lapic
    lapic.set_tsc_deadline(2 * (vm.clock.now + 1000))
    lapic.set_tsc_deadline(0)
    vm.clock.advance(2000)
    assert not fired(vm)
    lapic.set_tsc_deadline(2 * (vm.clock.now + 1000))
    lapic.set_tsc_deadline(2 * (vm.clock.now + 5000))
    vm.clock.advance(4999)
    assert not fired(vm)
    vm.clock.advance(1)
    assert fired(vm)


def test_tsc_deadline_is_ignored_in_other_modes_and_dropped_by_leaving() -> None:
    vm = timer_vm()
    lapic = vm.vcpu.lapic
    lapic.set_tsc_deadline(5)
    assert lapic.tsc_deadline == 0 and not fired(vm)
    vm.vcpu.write(d.APIC_TMICT, 1000)
    vm.vcpu.write(d.APIC_LVTT, VECTOR | d.LVT_TIMER_TSC_DEADLINE)
    assert vm.vcpu.read(d.APIC_TMICT) == 0
    lapic.set_tsc_deadline(2 * (vm.clock.now + 3000))
    vm.vcpu.write(d.APIC_LVTT, VECTOR)
    assert lapic.tsc_deadline == 0
    vm.clock.advance(5000)
    assert not fired(vm)


def test_far_deadline_sleeps_in_steps() -> None:
    vm = timer_vm(d.LVT_TIMER_TSC_DEADLINE)
    vm.vcpu.lapic.set_tsc_deadline((1 << 64) - 1)
    deadline = vm.clock.next_deadline()
    assert deadline is not None and deadline <= vm.clock.now + MAX_ARM_NS
    vm.clock.advance(3 * MAX_ARM_NS)
    assert not fired(vm) and vm.clock.next_deadline() is not None


def test_moving_the_tsc_moves_the_deadline() -> None:
    vm = FakeVm()
    offset = 0
    lapic = vm.chips.create_lapic(5, vm.vcpu.lapic._hooks, lambda tsc: tsc // 2 + offset)
    lapic.mmio_write(d.APIC_SPIV, 4, 0x1FF)
    lapic.mmio_write(d.APIC_LVTT, 4, d.LVT_TIMER_TSC_DEADLINE | VECTOR)
    lapic.set_tsc_deadline(2 * (vm.clock.now + 1000))
    offset = 500
    lapic.tsc_changed()
    vm.clock.advance(1000)
    assert lapic.get_interrupt() is None
    vm.clock.advance(500)
    assert lapic.get_interrupt() == VECTOR


def test_stale_callback_after_reset_does_nothing() -> None:
    vm = timer_vm()
    vm.vcpu.write(d.APIC_TMICT, 1000)
    callback = vm.clock.timers[0].callback
    vm.vcpu.lapic.reset()
    vm.clock.now += 5000
    callback()
    assert vm.vcpu.lapic.irr == 0


def test_a_count_read_while_time_goes_on_is_never_below_zero() -> None:
    vm = timer_vm()
    vm.vcpu.write(d.APIC_TMICT, 1000)
    timer, start, times = vm.vcpu.lapic.timer, vm.clock.now, iter((999, 1001))
    timer._now_ns = lambda: start + next(times)  # type: ignore[method-assign]
    assert timer.current_count() == 0
