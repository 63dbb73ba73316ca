"""The pair of 8259As."""

import random

import pytest

from pellucid.kvm.errors import StateError
from pellucid.kvm.irqchip.pic import PicPair
from pellucid.kvm.irqchip.state import PicState
from tests.kvm.fakes import FakeVm

MASTER, SLAVE = 0x20, 0xA0
EOI = 0x20


@pytest.fixture
def vm() -> FakeVm:
    machine = FakeVm()
    machine.init_pic()
    return machine


def raise_pin(vm: FakeVm, *pins: int) -> None:
    for pin in pins:
        vm.chips.pic.set_irq(pin, True)
        vm.chips.pic.set_irq(pin, False)


def inta(vm: FakeVm) -> int | None:
    """What the vCPU acknowledges; None when INTR is low."""
    return vm.chips.pic.read_irq() if vm.chips.pic.output else None


def test_vectors_and_priority(vm: FakeVm) -> None:
    raise_pin(vm, 3, 1, 9)
    assert inta(vm) == 0x21
    assert inta(vm) is None, "lower pins wait for the EOI"
    vm.outb(MASTER, EOI)
    assert inta(vm) == 0x29, "the slave is on pin 2, above 3"
    vm.outb(SLAVE, EOI)
    vm.outb(MASTER, EOI)
    assert inta(vm) == 0x23
    raise_pin(vm, 0)
    assert inta(vm) == 0x20, "a higher pin nests"


def test_the_slave_nests_only_in_special_fully_nested_mode(vm: FakeVm) -> None:
    raise_pin(vm, 12)
    assert inta(vm) == 0x2C
    raise_pin(vm, 8)
    assert inta(vm) is None
    vm.outb(SLAVE, EOI)
    vm.outb(MASTER, EOI)
    assert inta(vm) == 0x28
    machine = FakeVm()
    machine.init_pic()
    machine.outb(MASTER, 0x11)
    for value in (0x20, 4, 0x11, 0):
        machine.outb(MASTER + 1, value)
    raise_pin(machine, 12)
    assert inta(machine) == 0x2C
    raise_pin(machine, 8)
    assert inta(machine) == 0x28


def test_mask(vm: FakeVm) -> None:
    vm.outb(MASTER + 1, 0x08)
    assert vm.inb(MASTER + 1) == 0x08
    raise_pin(vm, 3)
    assert inta(vm) is None
    vm.outb(MASTER + 1, 0)
    assert inta(vm) == 0x23


def test_masking_the_slave_withdraws_the_cascade(vm: FakeVm) -> None:
    raise_pin(vm, 10)
    assert vm.chips.pic.output
    vm.outb(SLAVE + 1, 0xFF)
    assert not vm.chips.pic.output


def test_edge_and_level_by_elcr(vm: FakeVm) -> None:
    pic = vm.chips.pic
    pic.set_irq(5, True)
    assert inta(vm) == 0x25
    vm.outb(MASTER, EOI)
    assert inta(vm) is None, "an edge counts once"
    vm.outb(0x4D0, 0xFF)
    vm.outb(0x4D1, 0xFF)
    assert (vm.inb(0x4D0), vm.inb(0x4D1)) == (0xF8, 0xDE)
    pic.set_irq(5, False)
    pic.set_irq(5, True)
    assert inta(vm) == 0x25
    vm.outb(MASTER, EOI)
    assert inta(vm) == 0x25, "a level counts as long as it lasts"
    pic.set_irq(5, False)
    vm.outb(MASTER, EOI)
    assert inta(vm) is None


def test_withdrawn_requests(vm: FakeVm) -> None:
    vm.outb(0x4D0, 0xF8)
    vm.outb(0x4D1, 0xDE)
    pic = vm.chips.pic
    pic.set_irq(5, True)
    pic.set_irq(5, False)
    assert pic.read_irq() == 0x27
    vm.outb(MASTER, 0x0B)
    assert vm.inb(MASTER) == 0, "a spurious interrupt is not in service"
    pic.set_irq(10, True)
    assert pic.output
    pic.set_irq(10, False)
    assert not pic.output, "a level withdrawn at the slave withdraws the cascade"


def test_commands_for_eoi_and_rotation(vm: FakeVm) -> None:
    raise_pin(vm, 4)
    assert inta(vm) == 0x24
    vm.outb(MASTER, 0x60 | 3)
    raise_pin(vm, 5)
    assert inta(vm) is None, "the specific EOI was for another pin"
    vm.outb(MASTER, 0xE0 | 4)  # rotate on specific EOI: 4 becomes the lowest, 5 the highest
    assert inta(vm) == 0x25
    raise_pin(vm, 0, 6)
    vm.outb(MASTER, 0xA0)  # rotate on non-specific EOI: 5 becomes the lowest
    assert inta(vm) == 0x26
    vm.outb(MASTER, EOI)
    assert inta(vm) == 0x20
    vm.outb(MASTER, EOI)
    vm.outb(MASTER, 0xC0 | 7)  # set priority: 7 the lowest again
    raise_pin(vm, 7, 0)
    assert inta(vm) == 0x20


def test_read_back_irr_and_isr(vm: FakeVm) -> None:
    raise_pin(vm, 1, 4)
    inta(vm)
    vm.outb(MASTER, 0x0A)
    assert vm.inb(MASTER) == 0x10
    vm.outb(MASTER, 0x0B)
    assert vm.inb(MASTER) == 0x02
    vm.outb(MASTER, 0x08)
    assert vm.inb(MASTER) == 0x02, "the choice holds"


def test_poll(vm: FakeVm) -> None:
    vm.outb(MASTER, 0x0C)
    assert vm.inb(MASTER) == 0
    raise_pin(vm, 6)
    vm.outb(MASTER, 0x0C)
    assert vm.inb(MASTER) == 0x86
    vm.outb(MASTER, 0x0B)
    assert vm.inb(MASTER) == 0x40, "the poll was the acknowledge"


def test_special_mask_mode(vm: FakeVm) -> None:
    raise_pin(vm, 2 + 1)
    inta(vm)
    vm.outb(MASTER + 1, 0x08)
    raise_pin(vm, 6)
    assert inta(vm) is None
    vm.outb(MASTER, 0x68)
    assert inta(vm) == 0x26, "a masked pin in service holds nobody back"
    vm.outb(MASTER, 0x48)
    assert inta(vm) is None


def test_automatic_eoi_with_rotation() -> None:
    vm = FakeVm()
    vm.init_pic()
    vm.outb(MASTER, 0x11)
    for value in (0x20, 4, 0x03, 0):
        vm.outb(MASTER + 1, value)
    raise_pin(vm, 4, 5)
    assert (inta(vm), inta(vm)) == (0x24, 0x25), "nothing stays in service"
    vm.outb(MASTER, 0x80)
    raise_pin(vm, 0, 1)
    assert inta(vm) == 0x20
    raise_pin(vm, 0)
    assert inta(vm) == 0x21, "pin 0 became the lowest"


def test_automatic_eoi_tells_the_vcpu_of_the_next_one() -> None:
    vm = FakeVm()
    vm.init_pic()
    vm.outb(MASTER, 0x11)
    for value in (0x20, 4, 0x03, 0):
        vm.outb(MASTER + 1, value)
    raise_pin(vm, 4, 5)
    vm.vcpu.notified = 0
    assert vm.vcpu.take() == 0x24 and vm.vcpu.notified == 1 and vm.vcpu.take() == 0x25
    assert not vm.chips.has_interrupt(vm.vcpu.lapic)


def test_initialization_clears_and_keeps(vm: FakeVm) -> None:
    vm.outb(MASTER + 1, 0xFF)
    raise_pin(vm, 1)
    vm.outb(MASTER, 0x11)
    assert vm.inb(MASTER + 1) == 0 and vm.inb(MASTER) == 0, "mask and latched edges are cleared"
    vm.outb(MASTER + 1, 0x55)
    vm.outb(MASTER + 1, 4)
    vm.outb(MASTER + 1, 1)
    vm.outb(MASTER + 1, 0)
    raise_pin(vm, 1)
    assert inta(vm) == 0x51, "the vector's low bits are the pin"
    vm.outb(MASTER, 0x10)  # without ICW4
    vm.outb(MASTER + 1, 0x20)
    vm.outb(MASTER + 1, 4)
    vm.outb(MASTER + 1, 0xEE)
    assert vm.inb(MASTER + 1) == 0xEE


def test_pin_2_has_no_line_of_its_own(vm: FakeVm) -> None:
    raise_pin(vm, 2)
    assert not vm.chips.pic.output


def test_callbacks_tell_of_ends_and_masks() -> None:
    ended: list[int] = []
    masks: list[tuple[int, bool]] = []
    vm = FakeVm()
    pic = PicPair(vm.chips.lock, acked=ended.append, mask_changed=lambda pin, masked: masks.append((pin, masked)))
    pic.set_irq(9, True)
    pic.read_irq()
    pic.write(1, 0, EOI)
    pic.write(0, 0, EOI)
    assert ended == [9, 2]
    pic.write(1, 1, 0x03)
    pic.write(1, 1, 0x01)
    assert masks == [(8, True), (9, True), (9, False)]


def test_saved_state_round_trip(vm: FakeVm) -> None:
    vm.outb(0x4D0, 0x20)
    raise_pin(vm, 4)
    inta(vm)
    vm.chips.pic.set_irq(9, True)
    vm.outb(MASTER, 0x11)
    saved = [vm.chips.get_irqchip(chip) for chip in (0, 1)]
    assert [PicState.unpack(state.pack()) for state in saved] == saved and len(saved[0].pack()) == 16
    other = FakeVm()
    for chip, state in enumerate(saved):
        other.chips.set_irqchip(chip, state)
    assert [other.chips.get_irqchip(chip) for chip in (0, 1)] == saved
    for value in (0x30, 4, 1):
        other.outb(MASTER + 1, value)  # the initialization goes on where it was
    assert inta(other) == 0x29


@pytest.mark.parametrize(
    "bad", [{"priority_add": 8}, {"init_state": 4}, {"poll": 2}, {"irq_base": 0x21}, {"auto_eoi": 7}]
)
def test_hostile_state(vm: FakeVm, bad: dict[str, int]) -> None:
    with pytest.raises(StateError):
        vm.chips.set_irqchip(0, PicState(**bad))


@pytest.mark.parametrize("seed", range(3))
def test_fuzz(seed: int) -> None:
    rng = random.Random(seed)
    vm = FakeVm()
    pic = vm.chips.pic
    for _ in range(6000):
        action = rng.randrange(4)
        if action == 0:
            vm.outb(rng.choice((0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1)), rng.getrandbits(8))
        elif action == 1:
            assert 0 <= vm.inb(rng.choice((0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1))) < 256
        elif action == 2:
            pic.set_irq(rng.randrange(16), bool(rng.randrange(2)))
        else:
            assert 0 <= pic.read_irq() < 256
        for chip in (0, 1):
            state = pic.get_state(chip)
            assert state.elcr & ~state.elcr_mask == 0
    for chip in (0, 1):
        pic.set_state(chip, pic.get_state(chip))
