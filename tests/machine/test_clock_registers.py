"""Which registers the boards let the hypervisor answer from the clock, as the guest moves and changes them."""

from pathlib import Path

import pytest

from pellucid.kvm.clock import ClockValue
from pellucid.machine.devices.hpet import Hpet
from tests.machine.fake_hypervisor import FakeVm
from tests.machine.pc_machine import device, outl_config, pc_machine

HPET = 0xFED0_0000
PM_TIMER = ClockValue(3_579_545, 0xFF_FFFF)
PIIX4_PM = 1 << 3 | 3


def test_the_pm_timer_is_where_the_guest_puts_it(tmp_path: Path) -> None:
    with pc_machine(tmp_path) as machine:
        assert isinstance(machine.vm, FakeVm)
        registers = machine.vm.clock_registers
        assert not registers
        outl_config(machine, PIIX4_PM, 0x40, 0x601)
        outl_config(machine, PIIX4_PM, 0x80, 1, 1)
        assert registers == [(True, 0x608, 4, PM_TIMER)]
        outl_config(machine, PIIX4_PM, 0x40, 0xB001)
        assert registers == [(True, 0xB008, 4, PM_TIMER)]
        outl_config(machine, PIIX4_PM, 0x80, 0, 1)
        assert not registers


def test_the_hpets_counter_while_it_counts(tmp_path: Path) -> None:
    with pc_machine(tmp_path) as machine:
        assert isinstance(machine.vm, FakeVm)
        registers, hpet = machine.vm.clock_registers, device(machine, Hpet)
        machine.memory.write(HPET + 0xF0, 4, 77)
        assert not registers
        machine.memory.write(HPET + 0x10, 4, 1)
        low, high = (ClockValue(10**8, (1 << 64) - 1, hpet.base, shift) for shift in (0, 32))
        assert registers == [(False, HPET + 0xF0, 4, low), (False, HPET + 0xF4, 4, high)]
        assert low.at(machine.clock.now_ns()) == machine.memory.read(HPET + 0xF0, 4) == 77
        machine.memory.write(HPET + 0xF4, 4, 5)
        (_, _, _, low), (_, _, _, high) = registers
        assert (low.at(0), high.at(0)) == (5 << 32 | 77, 5)
        saved = hpet.save()
        hpet.reset()
        assert not registers
        hpet.load(saved)
        assert len(registers) == 2
        machine.memory.write(HPET + 0x10, 4, 0)
        assert not registers


@pytest.mark.parametrize("now", [0, 1, 10**9 - 1, 10**9, 123_456_789_012_345_678])
def test_the_counters_are_exact_at_any_time(now: int) -> None:
    assert PM_TIMER.at(now) == now * 3_579_545 // 10**9 % (1 << 24)
