"""Suspend to RAM on a PC, device by device: what is left for firmware, what wakes, what the guest is told of it."""

from pathlib import Path

import pytest

from pellucid.kvm.api import ClockData
from pellucid.machine.devices.keyboard_controller import KeyboardController
from pellucid.machine.devices.piix4_pm import Piix4Pm
from pellucid.machine.devices.rtc import Rtc
from pellucid.machine.guest_clock import GuestClock
from pellucid.machine.machine import Machine
from pellucid.runtime import RunState
from tests.machine.fake_hypervisor import FakeVm
from tests.machine.pc_machine import inl_config, outl_config, pc_machine

PM, PM_BASE = 0x0B, 0x600
STATUS, ENABLE, CONTROL = PM_BASE, PM_BASE + 2, PM_BASE + 4
S3 = 1 << 10 | 1 << 13
WAK_STS, RTC_BIT, BUTTON, TIMER_BIT = 0x8000, 0x0400, 0x0100, 0x0001


@pytest.fixture
def machine(tmp_path: Path):  # type: ignore[no-untyped-def]
    with pc_machine(tmp_path) as built:
        built.create_vcpus([0], lambda apic_id: [])
        outl_config(built, PM, 0x40, PM_BASE | 1)
        outl_config(built, PM, 0x80, 1, 1)
        yield built


def suspend(machine: Machine, enable: int = 0) -> None:
    """What a kernel's last instruction does; then one turn of the main loop."""
    machine.system.vm_start()
    machine.ports.write(ENABLE, 2, enable)
    machine.ports.write(CONTROL, 2, S3)
    machine.system._carry_out_requests()
    assert machine.system.run_state.state is RunState.SUSPENDED


def woken(machine: Machine) -> bool:
    machine.system._carry_out_requests()
    return machine.system.run_state.running


def test_system_wakeup_resets_all_but_memory(machine: Machine) -> None:
    machine.memory.write(0x1234, 4, 0xCAFE)
    outl_config(machine, 0, 0x59, 0x10, 1)  # shadow RAM, as firmware leaves it
    suspend(machine)
    assert machine.device(Rtc).cmos[0x0F] == 0xFE
    machine.system.request_wakeup()
    assert woken(machine)
    assert machine.memory.read(0x1234, 4) == 0xCAFE and inl_config(machine, 0, 0x59, 1) == 0x10
    power = machine.device(Piix4Pm)
    assert power.pm1_status == WAK_STS | BUTTON and power.pm1_enable == power.pm1_control == 0
    assert isinstance(machine.vm, FakeVm) and machine.vm.chips_put_back


def test_a_key_wakes_without_being_asked(machine: Machine) -> None:
    suspend(machine)
    machine.device(KeyboardController).changed()
    assert woken(machine) and machine.device(Piix4Pm).pm1_status & (WAK_STS | BUTTON) == WAK_STS | BUTTON


@pytest.mark.parametrize("enabled", [True, False])
def test_the_power_button_leaves_a_sleeper_asleep(machine: Machine, enabled: bool) -> None:
    suspend(machine, BUTTON if enabled else 0)
    machine.system.requests.powerdown()
    assert not woken(machine) and machine.system.run_state.state is RunState.SUSPENDED
    assert bool(machine.device(Piix4Pm).pm1_status & BUTTON) is enabled


@pytest.mark.parametrize("enabled", [True, False])
def test_the_pm_timer_wakes_where_pm1_enables_it(machine: Machine, enabled: bool) -> None:
    suspend(machine, TIMER_BIT if enabled else 0)
    machine.device(Piix4Pm)._timer_overflowed()
    assert woken(machine) is enabled
    if enabled:
        assert machine.device(Piix4Pm).pm1_status & (TIMER_BIT | BUTTON | WAK_STS) == WAK_STS | TIMER_BIT


@pytest.mark.parametrize("enabled", [True, False])
def test_an_rtc_alarm_wakes_where_pm1_enables_it(machine: Machine, enabled: bool) -> None:
    rtc = machine.device(Rtc)
    now = machine.wall_ns()
    rtc._wall_ns = lambda: now
    for register, value in ((1, 0xFF), (3, 0xFF), (5, 0xFF), (0x0B, 0x22)):  # every second; alarm interrupt, 24 hours
        machine.ports.write(0x70, 1, register)
        machine.ports.write(0x71, 1, value)
    suspend(machine, RTC_BIT if enabled else 0)
    now += 1_000_000_000
    rtc._look_at_flags()
    assert woken(machine) is enabled
    if enabled:
        assert machine.device(Piix4Pm).pm1_status & (RTC_BIT | BUTTON | WAK_STS) == WAK_STS | RTC_BIT


def test_awake_nothing_is_woken(machine: Machine) -> None:
    machine.system.vm_start()
    for action in machine.system.on_powerdown:
        action()
    machine.device(KeyboardController).changed()
    assert machine.system.requests.take().wakeup is None
    assert machine.device(Piix4Pm).pm1_status & WAK_STS == 0


def test_the_guest_s_clock_goes_on_from_where_it_was_stopped(machine: Machine) -> None:
    vm = machine.vm
    assert isinstance(vm, FakeVm)
    machine.system.vm_start()
    assert vm.clocks_set == [ClockData(0)] and vm.vcpus[0].stops_told == 1
    vm.clock = 50
    machine.system.vm_stop()
    vm.clock = 90
    machine.system.vm_start()
    assert vm.clocks_set[1:] == [ClockData(50)] and vm.vcpus[0].stops_told == 2
    vm.clock = 120
    machine.system.vm_stop()
    vm.clock = 7
    machine.system.requests.reset(machine.system.shutdown_cause)
    machine.system._carry_out_requests()
    machine.system.vm_start()
    assert vm.clocks_set[2:] == [ClockData(7)], "a reset sets the time-stamp counters anew"


def test_time_goes_on_while_suspended() -> None:
    vm = FakeVm([])
    clock = GuestClock(vm, list)
    clock.run_state_changed(True, RunState.RUNNING)
    clock.run_state_changed(False, RunState.SUSPENDED)
    clock.run_state_changed(True, RunState.RUNNING)
    assert len(vm.clocks_set) == 1
