"""Interrupt routing, MSI, notifiers, and the chips wired together."""

import random

import pytest

from pellucid.kvm.errors import InvalidRequestError
from pellucid.kvm.irqchip import apicdef as d
from pellucid.kvm.irqchip.ioapic import RTE_LEVEL
from pellucid.kvm.irqchip.state import IoapicState, PicState
from pellucid.kvm.msi import is_msi_address, msi_message
from pellucid.kvm.routing import IrqchipRoute, IrqSource, MsiRoute, RoutingEntry, default_irq_routing
from tests.kvm.fakes import FakeVm

PIC_MASTER, PIC_SLAVE, IOAPIC = range(3)


def test_default_table() -> None:
    table = default_irq_routing()
    assert IrqchipRoute(0, PIC_MASTER, 0) in table and IrqchipRoute(0, IOAPIC, 2) in table
    assert IrqchipRoute(4, PIC_MASTER, 4) in table and IrqchipRoute(4, IOAPIC, 4) in table
    assert IrqchipRoute(8, PIC_SLAVE, 0) in table and IrqchipRoute(23, IOAPIC, 23) in table
    assert not any(route.gsi == 2 for route in table), "gsi 2 is the cascade"
    assert len(table) == 15 + 23


def test_a_gsi_reaches_both_chips() -> None:
    vm = FakeVm()
    vm.init_pic()
    vm.redirect(4, 0x44)
    vm.chips.routing.set_irq(4, True)
    assert vm.chips.routing.lines(PIC_MASTER) == [4] and vm.chips.routing.lines(IOAPIC) == [4]
    assert vm.vcpu.take() == 0x24, "the 8259's ExtINT goes first"
    assert vm.vcpu.take() == 0x44


def test_sources_are_ored() -> None:
    vm = FakeVm()
    vm.redirect(10, 0x50 | RTE_LEVEL)
    routing = vm.chips.routing
    routing.set_irq(10, True)
    routing.set_irq(10, True, IrqSource.IRQFD_RESAMPLE)
    routing.set_irq(10, False)
    vm.vcpu.take()
    vm.vcpu.lapic.eoi()
    assert vm.vcpu.take() == 0x50, "the other source still asserts it"
    routing.set_irq(10, False, IrqSource.IRQFD_RESAMPLE)
    vm.vcpu.lapic.eoi()
    assert vm.vcpu.take() is None
    assert routing.set_irq(4000, True) == 0, "a gsi that leads nowhere"


def test_msi_route_sends_on_each_rise() -> None:
    vm = FakeVm(2)
    vm.chips.routing.set_routes([MsiRoute(24, 0xFEE0_1000, 0x4055)])
    assert vm.chips.routing.set_irq(24, True) == 1
    assert vm.chips.routing.set_irq(24, False) == 0
    assert vm.vcpus[1].take() == 0x55


def test_signal_msi() -> None:
    vm = FakeVm(2)
    assert vm.chips.routing.signal_msi(0xFEE0_1000, 0x61) == 1 and 0x61 in vm.vcpus[1].requested()
    assert vm.chips.routing.signal_msi(0xFEE0_7000, 0x61) == 0
    assert vm.chips.routing.signal_msi(0xFEEF_F000, 0x62) == 2, "0xff is everybody"
    assert vm.chips.routing.signal_msi(0xFEE0_1000, 0x0400) == 1 and vm.vcpus[1].nmis == 1


def test_msi_fields() -> None:
    message = msi_message(0x1200_FEE3_400C, 0xC1A7)
    assert (message.vector, message.delivery_mode, message.logical, message.redirection_hint) == (0xA7, 1, True, True)
    assert message.level and message.asserted
    assert msi_message(0x0000_1200_FEE3_4000, 0).dest_id == 0x1234
    assert is_msi_address(0xFEEF_FFFC) and not is_msi_address(0xFEF0_0000) and not is_msi_address(0x1_FEE0_0000)


@pytest.mark.parametrize(
    "entries",
    [
        [IrqchipRoute(1, 3, 0)],
        [IrqchipRoute(1, IOAPIC, 24)],
        [IrqchipRoute(1, PIC_MASTER, 8)],
        [IrqchipRoute(1, IOAPIC, 1), IrqchipRoute(1, IOAPIC, 2)],
        [MsiRoute(1, 0, 0), IrqchipRoute(1, IOAPIC, 2)],
        [IrqchipRoute(1, IOAPIC, 2), MsiRoute(1, 0, 0)],
        [MsiRoute(4096, 0, 0)],
        [MsiRoute(-1, 0, 0)],
        [MsiRoute(gsi, 0, 0) for gsi in range(4097)],
    ],
)
def test_bad_routes_change_nothing(entries: list[RoutingEntry]) -> None:
    vm = FakeVm()
    with pytest.raises(InvalidRequestError):
        vm.chips.routing.set_routes(entries)
    vm.redirect(4, 0x44)
    vm.chips.routing.set_irq(4, True)
    assert vm.vcpu.take() == 0x44


def test_ack_notifiers_hear_edge_and_level_ends() -> None:
    vm = FakeVm()
    heard: list[str] = []

    def notifier() -> None:
        heard.append("ack")

    vm.redirect(5, 0x45)
    vm.chips.routing.add_ack_notifier(5, notifier)
    vm.chips.routing.set_irq(5, True)
    vm.vcpu.take()
    vm.vcpu.lapic.eoi()
    assert heard == ["ack"]
    vm.redirect(5, 0x46 | RTE_LEVEL)
    vm.vcpu.take()
    vm.chips.routing.set_irq(5, False)
    vm.vcpu.lapic.eoi()
    assert heard == ["ack"] * 2
    vm.chips.routing.remove_ack_notifier(5, notifier)
    vm.redirect(5, 0x45)
    vm.chips.routing.set_irq(5, True)
    vm.vcpu.take()
    vm.vcpu.lapic.eoi()
    assert len(heard) == 2 and vm.chips.bus.eoi_vectors == 0


def test_in_kernel_devices_answer_and_others_do_not() -> None:
    vm = FakeVm()
    lapic = vm.vcpu.lapic
    assert vm.chips.pio_bus.read(0x21, 1) is not None
    assert vm.chips.pio_bus.read(0x40, 1) is None, "no PIT was made"
    vm.chips.create_pit()
    assert vm.chips.pio_bus.read(0x40, 1) is not None
    with pytest.raises(InvalidRequestError):
        vm.chips.create_pit()
    for port in (0x1F, 0x22, 0x44, 0x60, 0x62, 0x4D2, 0x3F8, 0xFFFF):
        assert vm.chips.pio_bus.read(port, 1) is None and not vm.chips.pio_bus.write(port, 1, 0)
    assert vm.chips.pio_bus.read(0x20, 4) is None, "wider than the device"
    assert vm.chips.mmio_read(lapic, 0xFEE0_0030, 4) == 0x5_0014
    assert vm.chips.mmio_read(lapic, 0xFEE0_1030, 4) is None
    assert not vm.chips.mmio_write(lapic, 0xFED0_0000, 4, 0)
    lapic.set_apic_base(0xFEE0_0000)
    assert vm.chips.mmio_read(lapic, 0xFEE0_0030, 4) == 0xFFFF_FFFF


def test_extint_reaches_only_those_who_listen() -> None:
    vm = FakeVm(2)
    vm.init_pic()
    vm.chips.routing.set_irq(1, True)
    first, second = vm.vcpus
    assert first.notified and vm.chips.has_interrupt(first.lapic) and not vm.chips.has_interrupt(second.lapic)
    first.write(d.APIC_LVT0, d.LVT_MASKED)
    assert not vm.chips.has_interrupt(first.lapic)
    second.notified = 0
    second.write(d.APIC_LVT0, d.DM_EXTINT << 8)
    assert second.notified and second.take() == 0x21


def test_extint_with_the_apic_turned_off() -> None:
    vm = FakeVm()
    vm.init_pic()
    vm.vcpu.write(d.APIC_LVT0, d.LVT_MASKED)
    vm.chips.routing.set_irq(1, True)
    assert not vm.chips.has_interrupt(vm.vcpu.lapic)
    vm.vcpu.lapic.set_apic_base(0xFEE0_0100)
    assert vm.vcpu.take() == 0x21


def test_duplicate_apic_id() -> None:
    vm = FakeVm()
    with pytest.raises(InvalidRequestError):
        vm.chips.create_lapic(0, vm.vcpu.lapic._hooks, lambda tsc: tsc)


def test_wrong_chip_number() -> None:
    chips = FakeVm().chips
    for chip, state in ((3, PicState()), (2, PicState()), (0, IoapicState())):
        with pytest.raises(InvalidRequestError):
            chips.set_irqchip(chip, state)
    with pytest.raises(InvalidRequestError):
        chips.get_irqchip(3)


def test_reset_and_close() -> None:
    vm = FakeVm()
    vm.chips.create_pit()
    vm.redirect(4, 0x44)
    vm.chips.reset()
    assert vm.ioapic_read(0x18) == 1 << 16
    vm.vcpu.write(d.APIC_LVTT, 0x50)
    vm.vcpu.write(d.APIC_TMICT, 100)
    vm.chips.close()
    assert vm.clock.next_deadline() is None


@pytest.mark.parametrize("seed", range(3))
def test_fuzz_the_whole(seed: int) -> None:
    """Lines, messages, IPIs, ports, acknowledges and time in any order, over all chips at once."""
    rng = random.Random(seed)
    vm = FakeVm(2)
    vm.chips.create_pit()
    vm.init_pic()
    ports = (0x20, 0x21, 0xA0, 0xA1, 0x40, 0x42, 0x43, 0x61, 0x4D0, 0x4D1)
    for _ in range(6000):
        vcpu = rng.choice(vm.vcpus)
        action = rng.randrange(8)
        if action == 0:
            vm.outb(rng.choice(ports), rng.getrandbits(8))
        elif action == 1:
            vm.chips.routing.set_irq(rng.randrange(32), bool(rng.randrange(2)), rng.choice(list(IrqSource)))
        elif action == 2:
            vm.chips.routing.signal_msi(rng.getrandbits(64), rng.getrandbits(32))
        elif action == 3:
            vm.redirect(rng.randrange(24), rng.getrandbits(64))
        elif action == 4:
            vm.chips.mmio_write(vcpu.lapic, 0xFEE0_0000 + (rng.randrange(0x40) << 4), 4, rng.getrandbits(32))
        elif action == 5:
            vm.clock.advance(rng.randrange(2_000_000))
        else:
            vector = vcpu.take()
            assert vector is None or 0 <= vector < 256
            vcpu.lapic.eoi()
    assert vm.clock.callbacks < 60_000
