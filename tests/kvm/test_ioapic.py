"""The I/O APIC, alone and with the local APICs that end its interrupts."""

import random

import pytest

from pellucid.kvm.errors import StateError
from pellucid.kvm.irqchip import apicdef as d
from pellucid.kvm.irqchip.ioapic import RTE_LEVEL, RTE_LOGICAL, RTE_MASKED, RTE_POLARITY, RTE_REMOTE_IRR
from pellucid.kvm.irqchip.lapic_hooks import LapicFeatures
from pellucid.kvm.irqchip.state import IoapicState
from tests.kvm.fakes import FakeVm

PIN = 14
EDGE, LEVEL = 0, RTE_LEVEL


def entry_of(vm: FakeVm, pin: int = PIN) -> int:
    return vm.ioapic_read(0x11 + 2 * pin) << 32 | vm.ioapic_read(0x10 + 2 * pin)


def set_line(vm: FakeVm, *levels: int, pin: int = PIN) -> None:
    for level in levels:
        vm.chips.routing.set_irq(pin, bool(level))


def test_registers() -> None:
    vm = FakeVm()
    assert vm.ioapic_read(1) == 0x17_0011
    vm.ioapic_write(1, 0)
    assert vm.ioapic_read(1) == 0x17_0011
    vm.ioapic_write(0, 0xFFFF_FFFF)
    assert vm.ioapic_read(0) == vm.ioapic_read(2) == 0x0F00_0000
    vm.ioapic_write(2, 0)
    assert vm.ioapic_read(2) == 0x0F00_0000
    assert entry_of(vm) == RTE_MASKED
    vm.redirect(PIN, (1 << 64) - 1)
    assert entry_of(vm) == 0xFF << 56 | 0x1_AFFF, "status bits are read-only, reserved bits are zero"
    assert vm.ioapic_read(0x40) == vm.ioapic_read(0xFF) == 0
    vm.ioapic_write(0x40, 5)
    assert vm.chips.mmio_read(vm.vcpu.lapic, 0xFEC0_0000, 4) == 0x40
    assert vm.chips.mmio_read(vm.vcpu.lapic, 0xFEC0_0014, 4) == 0


def test_edge() -> None:
    vm = FakeVm()
    vm.redirect(PIN, 0x76)
    set_line(vm, 1, 1, 0)
    assert vm.vcpu.take() == 0x76 and vm.vcpu.lapic.irr == 0
    set_line(vm, 1)
    assert vm.vcpu.requested() == {0x76}, "requested again while in service"


def test_edge_while_masked_is_lost() -> None:
    vm = FakeVm()
    vm.redirect(PIN, 0x81 | RTE_MASKED)
    set_line(vm, 1)
    vm.redirect(PIN, 0x81)
    assert vm.vcpu.requested() == set()
    set_line(vm, 0, 1)
    assert vm.vcpu.requested() == {0x81}


def test_level_waits_for_eoi_and_comes_again_while_asserted() -> None:
    vm = FakeVm()
    vm.redirect(PIN, 0x9A | LEVEL)
    set_line(vm, 1)
    assert entry_of(vm) & RTE_REMOTE_IRR
    assert vm.vcpu.take() == 0x9A
    set_line(vm, 0, 1)
    assert vm.vcpu.requested() == set(), "coalesced until the EOI"
    vm.vcpu.lapic.eoi()
    assert vm.vcpu.take() == 0x9A
    set_line(vm, 0)
    vm.vcpu.lapic.eoi()
    assert vm.vcpu.requested() == set() and not entry_of(vm) & RTE_REMOTE_IRR


def test_level_while_masked_comes_when_unmasked() -> None:
    vm = FakeVm()
    vm.redirect(PIN, 0x82 | LEVEL | RTE_MASKED)
    set_line(vm, 1)
    assert vm.vcpu.requested() == set()
    vm.redirect(PIN, 0x82 | LEVEL)
    assert vm.vcpu.requested() == {0x82}


def test_level_masked_in_the_handler_comes_again_when_unmasked() -> None:
    vm = FakeVm()
    vm.redirect(PIN, 0x83 | LEVEL)
    set_line(vm, 1)
    vm.vcpu.take()
    vm.redirect(PIN, 0x83 | LEVEL | RTE_MASKED)
    vm.vcpu.lapic.eoi()
    assert vm.vcpu.requested() == set() and not entry_of(vm) & RTE_REMOTE_IRR
    vm.redirect(PIN, 0x83 | LEVEL)
    assert vm.vcpu.take() == 0x83


def test_destination_rewritten_in_the_handler_still_gets_the_eoi() -> None:
    vm = FakeVm(2)
    vm.redirect(PIN, 0x64 | LEVEL)
    set_line(vm, 1)
    vm.vcpu.take()
    set_line(vm, 0)
    vm.ioapic_write(0x11 + 2 * PIN, 1 << 24)
    assert entry_of(vm) & RTE_REMOTE_IRR
    vm.vcpu.lapic.eoi()
    assert not entry_of(vm) & RTE_REMOTE_IRR


def test_switching_to_edge_clears_remote_irr() -> None:
    """How Linux ends a level interrupt on an IOAPIC without EOI register."""
    vm = FakeVm()
    vm.redirect(PIN, 0x84 | LEVEL)
    set_line(vm, 1)
    vm.ioapic_write(0x10 + 2 * PIN, 0x84 | RTE_MASKED)
    vm.ioapic_write(0x10 + 2 * PIN, 0x84 | LEVEL | RTE_MASKED)
    assert not entry_of(vm) & RTE_REMOTE_IRR


def test_polarity_is_kept_but_asserted_means_asserted() -> None:
    vm = FakeVm()
    vm.redirect(PIN, 0x85 | LEVEL | RTE_POLARITY)
    assert entry_of(vm) & RTE_POLARITY and vm.vcpu.requested() == set()
    set_line(vm, 1)
    assert vm.vcpu.requested() == {0x85}


def test_destinations() -> None:
    vm = FakeVm(4)
    vm.x2apic()
    vm.redirect(PIN, 0x86 | RTE_LOGICAL | LEVEL | 0x0D << 56)
    set_line(vm, 1)
    assert [0x86 in vcpu.requested() for vcpu in vm.vcpus] == [True, False, True, True]
    vm.redirect(15, 0x87 | 3 << 56)
    set_line(vm, 1, pin=15)
    assert 0x87 in vm.vcpus[3].requested()
    vm.redirect(16, d.DM_NMI << 8 | 1 << 56)
    set_line(vm, 1, pin=16)
    assert vm.vcpus[1].nmis == 1


def test_two_pins_with_one_vector() -> None:
    vm = FakeVm()
    for pin in (10, 11):
        vm.redirect(pin, 0x88 | LEVEL)
        set_line(vm, 1, pin=pin)
    vm.vcpu.take()
    vm.vcpu.lapic.eoi()
    assert entry_of(vm, 10) & RTE_REMOTE_IRR and entry_of(vm, 11) & RTE_REMOTE_IRR, "both are asserted still"
    vm.vcpu.take()
    set_line(vm, 0, pin=10)
    set_line(vm, 0, pin=11)
    vm.vcpu.lapic.eoi()
    assert not (entry_of(vm, 10) | entry_of(vm, 11)) & RTE_REMOTE_IRR


def test_directed_eoi() -> None:
    vm = FakeVm(split=True, features=LapicFeatures(directed_eoi=True))
    assert vm.ioapic_read(1) & 0xFF == 0x20
    vm.vcpu.write(d.APIC_SPIV, 0x1FF | d.SPIV_DIRECTED_EOI)
    vm.redirect(PIN, 0x89 | LEVEL)
    set_line(vm, 1)
    vm.vcpu.take()
    vm.vcpu.lapic.eoi()
    assert entry_of(vm) & RTE_REMOTE_IRR, "the broadcast is suppressed"
    vm.chips.ioapic.mmio_write(0x40, 4, 0x88)
    assert vm.vcpu.requested() == set()
    vm.chips.ioapic.mmio_write(0x40, 4, 0x89)
    assert vm.vcpu.requested() == {0x89}


def test_a_split_ioapic_sends_messages() -> None:
    vm = FakeVm(split=True)
    heard: list[tuple[int, int]] = []

    def carry(address: int, data: int) -> int:
        heard.append((address, data))
        return vm.chips.routing.signal_msi(address, data)

    vm.chips.carry_message = carry
    vm.redirect(PIN, 0x89 | LEVEL | 1 << 11 | 0x01 << 56)
    set_line(vm, 1)
    assert heard == [(0xFEE0_1004, 0xC089)], "bits 63:48 are the address's bits 19:4, bit 11 its bit 2"
    set_line(vm, 0)
    vm.redirect(PIN, 0x45 | 0x8001 << 48)
    set_line(vm, 1)
    assert heard[1:] == [(0xFEE8_0010, 0x4045)], "a handle and the remappable format"
    assert entry_of(vm) >> 48 == 0x8001


def test_version_11_has_no_eoi_register() -> None:
    vm = FakeVm()
    vm.redirect(PIN, 0x89 | LEVEL)
    set_line(vm, 1)
    vm.chips.ioapic.mmio_write(0x40, 4, 0x89)
    assert entry_of(vm) & RTE_REMOTE_IRR


def test_saved_state_round_trip() -> None:
    vm = FakeVm()
    vm.ioapic_write(0, 0x0500_0000)
    vm.redirect(PIN, 0x90 | LEVEL)
    vm.redirect(15, 0x91 | LEVEL | RTE_MASKED)
    set_line(vm, 1)
    set_line(vm, 1, pin=15)
    vm.vcpu.take()
    saved = vm.chips.ioapic.get_state()
    assert IoapicState.unpack(saved.pack()) == saved and len(saved.pack()) == 216

    other = FakeVm()
    other.chips.ioapic.set_state(saved)
    assert other.chips.ioapic.get_state() == saved
    assert other.vcpu.requested() == set(), "sent before the state was saved: remote IRR holds it back"
    other.redirect(15, 0x91 | LEVEL)
    assert other.vcpu.requested() == {0x91}


def test_restoring_a_level_that_was_not_sent_yet() -> None:
    vm = FakeVm()
    table = [RTE_MASKED] * 24
    table[3] = 0x44 | LEVEL
    table[4] = 0x45
    vm.chips.ioapic.set_state(IoapicState(base_address=0xFEC0_0000, irr=1 << 3 | 1 << 4, redirtbl=tuple(table)))
    assert vm.vcpu.requested() == {0x44}


def test_hostile_state() -> None:
    ioapic = FakeVm().chips.ioapic
    for base, irr in ((0xFEC0_0010, 0), (1 << 60, 0), (0xFEC0_0000, 1 << 24)):
        with pytest.raises(StateError):
            ioapic.set_state(IoapicState(base_address=base, irr=irr))
    ioapic.set_state(IoapicState(base_address=0xFEC0_0000, ioregsel=0xFFFF_FFFF, redirtbl=((1 << 64) - 1,) * 24))
    assert ioapic.mmio_read(0, 4) == 0xFF
    with pytest.raises(StateError):
        IoapicState(redirtbl=(0,) * 23)
    with pytest.raises(StateError):
        IoapicState(id=1 << 32)
    with pytest.raises(StateError):
        IoapicState.unpack(b"\0" * 215)


@pytest.mark.parametrize("seed", range(3))
def test_fuzz(seed: int) -> None:
    rng = random.Random(seed)
    vm = FakeVm(2, split=rng.choice((False, True)))
    ioapic = vm.chips.ioapic
    for _ in range(5000):
        action = rng.randrange(6)
        if action == 0:
            ioapic.mmio_write(
                rng.choice((0, 0x10, 0x40, rng.randrange(0x1000))), rng.choice((1, 2, 4, 8)), rng.getrandbits(64)
            )
        elif action == 1:
            vm.redirect(rng.randrange(24), rng.getrandbits(64))
        elif action == 2:
            assert (
                0 <= ioapic.mmio_read(rng.choice((0, 0x10, rng.randrange(0x1000))), rng.choice((1, 2, 4, 8))) < 1 << 32
            )
        elif action == 3:
            set_line(vm, rng.randrange(2), pin=rng.randrange(24))
        else:
            vcpu = rng.choice(vm.vcpus)
            vcpu.take()
            vcpu.lapic.eoi()
    ioapic.set_state(ioapic.get_state())
