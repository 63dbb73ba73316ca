"""The 8254: counters, outputs, reading and writing, and the ticks of counter 0."""

import random

import pytest

from pellucid.kvm.errors import StateError
from pellucid.kvm.irqchip.pit import MIN_PERIOD_NS
from pellucid.kvm.irqchip.pit_channel import PIT_FREQUENCY, ns_for
from pellucid.kvm.irqchip.state import PitChannelState, PitState
from tests.kvm.fakes import FakeVm

CONTROL = 0x43
VECTOR = 0x30


@pytest.fixture
def vm() -> FakeVm:
    """The timer on IOAPIC pin 2, edge-triggered, as a PC's guest sets it up."""
    machine = FakeVm()
    machine.chips.create_pit()
    machine.redirect(2, VECTOR)
    return machine


def program(vm: FakeVm, channel: int, mode: int, count: int, bcd: int = 0) -> None:
    vm.outb(CONTROL, channel << 6 | 3 << 4 | mode << 1 | bcd)
    vm.outb(0x40 + channel, count & 0xFF)
    vm.outb(0x40 + channel, count >> 8)


def count(vm: FakeVm, channel: int) -> int:
    """Latch and read the count."""
    vm.outb(CONTROL, channel << 6)
    return vm.inb(0x40 + channel) | vm.inb(0x40 + channel) << 8


def out(vm: FakeVm) -> int:
    """OUT of counter 2, seen at port 0x61."""
    return vm.inb(0x61) >> 5 & 1


def tick(vm: FakeVm, pulses: int) -> None:
    """Let the clock run to just past this many pulses after the last round moment."""
    vm.clock.advance(ns_for(pulses))


def ticks_taken(vm: FakeVm) -> int:
    """How many timer interrupts the guest takes and ends now."""
    taken = 0
    while vm.vcpu.take() == VECTOR:
        taken += 1
        vm.vcpu.lapic.eoi()
    return taken


# ---- the six modes, on counter 2, whose gate and output are at port 0x61


def test_mode_0_interrupt_on_terminal_count(vm: FakeVm) -> None:
    vm.outb(0x61, 1)
    program(vm, 2, 0, 1000)
    assert out(vm) == 0 and count(vm, 2) == 1000
    tick(vm, 400)
    assert out(vm) == 0 and count(vm, 2) == 600
    tick(vm, 600)
    assert out(vm) == 1 and count(vm, 2) == 0
    tick(vm, 10)
    assert out(vm) == 1 and count(vm, 2) == 0xFFF6, "it counts on through 0xffff"


def test_mode_0_gate_pauses(vm: FakeVm) -> None:
    program(vm, 2, 0, 1000)
    tick(vm, 500)
    assert count(vm, 2) == 1000, "the gate is low"
    vm.outb(0x61, 1)
    tick(vm, 300)
    vm.outb(0x61, 0)
    tick(vm, 5000)
    assert count(vm, 2) == 700 and out(vm) == 0
    vm.outb(0x61, 1)
    tick(vm, 700)
    assert out(vm) == 1


def test_mode_0_first_byte_stops_the_count(vm: FakeVm) -> None:
    vm.outb(0x61, 1)
    program(vm, 2, 0, 1000)
    tick(vm, 2000)
    assert out(vm) == 1
    vm.outb(0x42, 0xE8)
    assert out(vm) == 0
    tick(vm, 5000)
    assert out(vm) == 0
    vm.outb(0x42, 0x03)
    tick(vm, 1000)
    assert out(vm) == 1


def test_mode_1_one_shot_starts_with_the_gate(vm: FakeVm) -> None:
    program(vm, 2, 1, 1000)
    tick(vm, 5000)
    assert out(vm) == 1
    vm.outb(0x61, 1)
    assert out(vm) == 0
    tick(vm, 999)
    assert out(vm) == 0
    vm.outb(0x61, 0)
    vm.outb(0x61, 1)  # a new trigger starts over
    tick(vm, 999)
    assert out(vm) == 0
    tick(vm, 1)
    assert out(vm) == 1


def test_mode_1_new_count_waits_for_the_trigger(vm: FakeVm) -> None:
    program(vm, 2, 1, 1000)
    vm.outb(0x61, 1)
    vm.outb(0x42, 100)
    vm.outb(0x42, 0)
    tick(vm, 999)
    assert out(vm) == 0
    tick(vm, 1)
    assert out(vm) == 1
    vm.outb(0x61, 0)
    vm.outb(0x61, 1)
    tick(vm, 100)
    assert out(vm) == 1


def test_mode_2_rate_generator(vm: FakeVm) -> None:
    vm.outb(0x61, 1)
    program(vm, 2, 2, 1000)
    assert out(vm) == 1 and count(vm, 2) == 1000
    tick(vm, 998)
    assert out(vm) == 1 and count(vm, 2) == 2
    tick(vm, 1)
    assert out(vm) == 0 and count(vm, 2) == 1
    tick(vm, 1)
    assert out(vm) == 1 and count(vm, 2) == 1000
    vm.outb(0x61, 0)
    assert out(vm) == 1
    tick(vm, 999)
    assert out(vm) == 1, "the gate holds the output high"
    vm.outb(0x61, 1)
    tick(vm, 999)
    assert out(vm) == 0, "and its rise begins a new period"


def test_mode_3_square_wave(vm: FakeVm) -> None:
    vm.outb(0x61, 1)
    program(vm, 2, 3, 1000)
    levels = []
    for _ in range(8):
        levels.append(out(vm))
        tick(vm, 250)
    assert levels == [1, 1, 0, 0, 1, 1, 0, 0]
    assert count(vm, 2) == 1000
    tick(vm, 100)
    assert count(vm, 2) == 800, "it counts by two"
    program(vm, 2, 3, 7)
    levels = []
    for _ in range(7):
        levels.append(out(vm))
        tick(vm, 1)
    assert levels == [1, 1, 1, 1, 0, 0, 0], "an odd count is high for the longer half"


@pytest.mark.parametrize("mode", [2, 3])
def test_new_count_begins_with_the_next_period(vm: FakeVm, mode: int) -> None:
    vm.outb(0x61, 1)
    program(vm, 2, mode, 1000)
    tick(vm, 2300)
    vm.outb(0x42, 100)
    vm.outb(0x42, 0)
    vm.outb(CONTROL, 0xE8)
    assert vm.inb(0x42) & 0x40, "null count: written, not yet loaded"
    assert count(vm, 2) == (700 if mode == 2 else 400)
    tick(vm, 700)
    assert count(vm, 2) == 100
    tick(vm, 30)
    assert count(vm, 2) == (70 if mode == 2 else 40)


def test_mode_4_software_strobe(vm: FakeVm) -> None:
    vm.outb(0x61, 1)
    program(vm, 2, 4, 1000)
    assert out(vm) == 1
    tick(vm, 1000)
    assert out(vm) == 0
    tick(vm, 1)
    assert out(vm) == 1


def test_mode_5_hardware_strobe(vm: FakeVm) -> None:
    program(vm, 2, 5, 1000)
    tick(vm, 1000)
    assert out(vm) == 1
    vm.outb(0x61, 1)
    tick(vm, 1000)
    assert out(vm) == 0
    tick(vm, 1)
    assert out(vm) == 1


# ---- reading and writing


def test_a_count_of_zero_is_the_largest(vm: FakeVm) -> None:
    vm.outb(0x61, 1)
    program(vm, 2, 0, 0)
    tick(vm, 0xFFFF)
    assert out(vm) == 0
    tick(vm, 1)
    assert out(vm) == 1


def test_bcd(vm: FakeVm) -> None:
    vm.outb(0x61, 1)
    program(vm, 2, 0, 0x1000, bcd=1)
    tick(vm, 1)
    assert count(vm, 2) == 0x0999
    tick(vm, 999)
    assert out(vm) == 1
    tick(vm, 1)
    assert count(vm, 2) == 0x9999
    program(vm, 2, 0, 0, bcd=1)
    tick(vm, 9999)
    assert out(vm) == 0
    tick(vm, 1)
    assert out(vm) == 1


def test_single_byte_access(vm: FakeVm) -> None:
    vm.outb(0x61, 1)
    vm.outb(CONTROL, 0x90)  # counter 2, low byte only, mode 0
    vm.outb(0x42, 200)
    tick(vm, 50)
    assert vm.inb(0x42) == 150 and vm.inb(0x42) == 150
    vm.outb(CONTROL, 0xA0)  # high byte only
    vm.outb(0x42, 2)
    assert vm.inb(0x42) == 2
    tick(vm, 1)
    assert vm.inb(0x42) == 1


def test_latch_holds_until_read(vm: FakeVm) -> None:
    vm.outb(0x61, 1)
    program(vm, 2, 0, 1000)
    vm.outb(CONTROL, 0x80)
    tick(vm, 100)
    vm.outb(CONTROL, 0x80)  # ignored: one is held
    assert vm.inb(0x42) | vm.inb(0x42) << 8 == 1000
    assert vm.inb(0x42) | vm.inb(0x42) << 8 == 900


def test_read_back(vm: FakeVm) -> None:
    vm.outb(0x61, 1)
    program(vm, 2, 3, 1000)
    program(vm, 0, 2, 2000)
    tick(vm, 100)
    vm.outb(CONTROL, 0xC2 | 0x08)  # count and status of counters 0 and 2
    tick(vm, 100)
    assert vm.inb(0x42) == 0x80 | 3 << 4 | 3 << 1
    assert vm.inb(0x42) | vm.inb(0x42) << 8 == 800
    assert vm.inb(0x40) == 0x80 | 3 << 4 | 2 << 1
    assert vm.inb(0x40) | vm.inb(0x40) << 8 == 1900
    vm.outb(CONTROL, 0xB0)
    vm.outb(CONTROL, 0xE8)
    assert vm.inb(0x42) == 0x40 | 3 << 4, "OUT low, null count, mode 0"
    assert vm.inb(CONTROL) == 0


def test_modes_6_and_7_are_2_and_3(vm: FakeVm) -> None:
    for mode in (6, 7):
        program(vm, 2, mode, 100)
        vm.outb(CONTROL, 0xE8)
        assert vm.inb(0x42) >> 1 & 7 == mode - 4


def test_speaker_port(vm: FakeVm) -> None:
    pit = vm.chips.pit
    assert pit is not None
    vm.outb(0x61, 0xFF)
    assert vm.inb(0x61) & 0xCF & 3 == 3 and pit.speaker_on
    vm.outb(0x61, 0)
    assert vm.inb(0x61) & 3 == 0 and not pit.speaker_on
    seen = set()
    for _ in range(4):
        seen.add(vm.inb(0x61) & 0x10)
        vm.clock.advance(15_085)
    assert seen == {0, 0x10}, "the refresh bit toggles"


# ---- ticks


@pytest.mark.parametrize("mode", [2, 3])
def test_periodic_ticks(vm: FakeVm, mode: int) -> None:
    program(vm, 0, mode, 11_932)  # 100 Hz
    taken = 0
    for _ in range(100):
        vm.clock.advance(10_000_000)
        taken += ticks_taken(vm)
    assert taken in (99, 100)
    frequency = taken * 11_932 / PIT_FREQUENCY
    assert 0.98 < frequency < 1.02


def test_one_shot_tick(vm: FakeVm) -> None:
    program(vm, 0, 0, 1000)
    vm.clock.advance(ns_for(1000) - 1)
    assert ticks_taken(vm) == 0
    vm.clock.advance(1)
    assert ticks_taken(vm) == 1
    vm.clock.advance(10**10)
    assert ticks_taken(vm) == 0


def test_control_word_stops_the_ticks(vm: FakeVm) -> None:
    program(vm, 0, 2, 1193)
    vm.outb(CONTROL, 0x34)
    vm.clock.advance(10**9)
    assert ticks_taken(vm) == 0


def test_ticks_that_came_too_fast_are_made_up_for(vm: FakeVm) -> None:
    program(vm, 0, 2, 1193)
    vm.clock.advance(ns_for(1193 * 5) + 10)
    assert ticks_taken(vm) == 5
    vm.clock.now += ns_for(1193 * 3)  # the timer thread was late, too
    vm.clock.advance(0)
    assert ticks_taken(vm) == 3


def test_without_reinjection_they_merge(vm: FakeVm) -> None:
    assert vm.chips.pit is not None
    vm.chips.reinject_control(False)
    program(vm, 0, 2, 1193)
    vm.clock.advance(ns_for(1193 * 5))
    assert ticks_taken(vm) == 1


def test_ticks_swallowed_by_a_mask_are_not_owed(vm: FakeVm) -> None:
    vm.redirect(2, VECTOR | 1 << 16)
    program(vm, 0, 2, 1193)
    vm.clock.advance(ns_for(1193 * 50))
    vm.redirect(2, VECTOR)
    assert ticks_taken(vm) == 0
    vm.clock.advance(ns_for(1193 * 2))
    assert ticks_taken(vm) == 2


def test_ticks_through_the_8259() -> None:
    vm = FakeVm()
    vm.chips.create_pit()
    vm.init_pic()
    program(vm, 0, 2, 1193)
    vm.clock.advance(ns_for(1193 * 3))
    for _ in range(3):
        assert vm.vcpu.take() == 0x20
        vm.outb(0x20, 0x20)
    assert vm.vcpu.take() is None


def test_ticks_are_bounded(vm: FakeVm) -> None:
    program(vm, 0, 2, 1)
    vm.clock.advance(100 * MIN_PERIOD_NS)
    assert vm.clock.callbacks <= 101
    assert ticks_taken(vm) < 300


# ---- saved state


def test_saved_state_round_trip(vm: FakeVm) -> None:
    vm.outb(0x61, 3)
    program(vm, 0, 2, 11_932)
    program(vm, 2, 0, 5000)
    vm.outb(CONTROL, 0x80)
    tick(vm, 1000)
    vm.outb(0x61, 2)
    pit = vm.chips.pit
    assert pit is not None
    saved = pit.get_state()
    assert len(saved.pack()) == 112 and PitState.unpack(saved.pack()) == saved

    other = FakeVm()
    other.redirect(2, VECTOR)
    other.clock.now = vm.clock.now
    restored = other.chips.create_pit()
    restored.set_state(saved)
    assert restored.get_state() == saved
    assert other.inb(0x42) | other.inb(0x42) << 8 == 5000, "the latched count"
    other.clock.advance(10**6)
    assert count(other, 2) == 4000, "paused by its gate"
    other.clock.advance(ns_for(11_932))
    assert ticks_taken(other) == 1


@pytest.mark.parametrize(
    "bad", [{"count": 0x10001}, {"mode": 6}, {"rw_mode": 4}, {"read_state": 5}, {"gate": 2}, {"count_latched": 9}]
)
def test_hostile_state(vm: FakeVm, bad: dict[str, int]) -> None:
    assert vm.chips.pit is not None
    channels = (PitChannelState(), PitChannelState(**bad), PitChannelState())
    with pytest.raises(StateError):
        vm.chips.pit.set_state(PitState(channels=channels))


def test_strange_but_legal_state(vm: FakeVm) -> None:
    pit = vm.chips.pit
    assert pit is not None
    extremes = [PitChannelState(mode=2, count_load_time=time) for time in (-(1 << 63), 0, (1 << 63) - 1)]
    pit.set_state(PitState(channels=tuple(extremes), flags=0xFFFF_FFFF))
    assert pit.get_state().flags == 3
    vm.clock.advance(10**9)
    assert ticks_taken(vm) == 0, "with the HPET in its place counter 0 drives nothing"
    pit.set_state(PitState(channels=(PitChannelState(mode=0xFF),) * 3))
    assert [vm.inb(0x40 + channel) for channel in range(3)] == [0, 0, 0]


@pytest.mark.parametrize("seed", range(3))
def test_fuzz(vm: FakeVm, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(6000):
        port = rng.choice((0x40, 0x41, 0x42, 0x43, 0x43, 0x61))
        action = rng.randrange(5)
        if action < 2:
            vm.outb(port, rng.getrandbits(8))
        elif action == 2:
            assert 0 <= vm.inb(port) < 256
        elif action == 3:
            vm.clock.advance(rng.choice((1, 838, 1000, 100_000, 10**7)))
        else:
            vm.vcpu.take()
            vm.vcpu.lapic.eoi()
    assert vm.clock.callbacks < 100_000
    assert vm.chips.pit is not None
    vm.chips.pit.set_state(vm.chips.pit.get_state())
