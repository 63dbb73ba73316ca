"""The local APIC: priorities, EOI, registers in both modes, mode changes, reset, errors, saved state."""

import random

import pytest

from pellucid.kvm.errors import MsrAccessError, StateError
from pellucid.kvm.irqchip import apicdef as d
from pellucid.kvm.irqchip.lapic_hooks import LapicFeatures
from pellucid.kvm.irqchip.state import LapicState
from tests.kvm.fakes import FakeVm

MSR = 0x800


def enabled(vm: FakeVm, mode: str) -> None:
    if mode == "x2apic":
        vm.x2apic()


def test_reset_state() -> None:
    vm = FakeVm(2)
    bsp, ap = (vcpu.lapic for vcpu in vm.vcpus)
    bsp.reset()
    ap.reset()
    assert bsp.apic_base == 0xFEE0_0900 and ap.apic_base == 0xFEE0_0800
    assert vm.vcpu.read(d.APIC_SPIV) == 0xFF and vm.vcpu.read(d.APIC_DFR) == 0xFFFF_FFFF
    assert vm.vcpu.read(d.APIC_LVR) == 0x5_0014
    assert vm.vcpus[1].read(d.APIC_ID) == 1 << 24
    assert [vm.vcpus[1].read(d.APIC_LVTT + 16 * index) for index in range(6)] == [d.LVT_MASKED] * 6
    assert vm.vcpu.read(d.APIC_LVT0) == 0x700, "the bootstrap processor hears the 8259 from the start"


def test_higher_class_interrupts_lower() -> None:
    vm = FakeVm()
    lapic = vm.vcpu.lapic
    lapic.deliver(d.DM_FIXED, 0x41)
    lapic.deliver(d.DM_FIXED, 0x43)
    assert vm.vcpu.take() == 0x43
    assert lapic.get_interrupt() is None, "0x41 is of the class in service"
    lapic.deliver(d.DM_FIXED, 0x50)
    assert vm.vcpu.take() == 0x50
    assert lapic.ppr == 0x50
    lapic.eoi()
    assert lapic.ppr == 0x40 and lapic.get_interrupt() is None
    lapic.eoi()
    assert vm.vcpu.take() == 0x41
    lapic.eoi()
    assert (lapic.irr, lapic.isr, lapic.ppr) == (0, 0, 0)
    lapic.eoi()  # nothing in service


def test_task_priority_holds_interrupts_back() -> None:
    vm = FakeVm()
    lapic = vm.vcpu.lapic
    lapic.cr8 = 5
    assert vm.vcpu.read(d.APIC_TASKPRI) == 0x50 and lapic.cr8 == 5
    lapic.deliver(d.DM_FIXED, 0x5F)
    assert lapic.get_interrupt() is None
    vm.vcpu.notified = 0
    vm.vcpu.write(d.APIC_TASKPRI, 0x4F)
    assert vm.vcpu.notified == 1 and lapic.get_interrupt() == 0x5F
    assert vm.vcpu.read(d.APIC_PROCPRI) == 0x4F


def test_task_priority_above_and_below_what_is_in_service() -> None:
    vm = FakeVm()
    lapic = vm.vcpu.lapic
    lapic.deliver(d.DM_FIXED, 0x55)
    vm.vcpu.take()
    for tpr, ppr in ((0x00, 0x50), (0x4F, 0x50), (0x58, 0x58), (0x7A, 0x7A)):
        lapic.set_tpr(tpr)
        assert lapic.ppr == ppr
    lapic.eoi()
    assert lapic.ppr == 0x7A


def test_software_disabled_apic_takes_no_new_interrupt_but_keeps_the_old() -> None:
    vm = FakeVm()
    lapic = vm.vcpu.lapic
    lapic.deliver(d.DM_FIXED, 0x60)
    vm.vcpu.write(d.APIC_SPIV, 0xFF)
    assert not lapic.deliver(d.DM_FIXED, 0x61)
    assert lapic.deliver(d.DM_NMI, 0) and vm.vcpu.nmis == 1
    assert lapic.deliver(d.DM_SMI, 0) and vm.vcpu.smis == 1
    assert vm.vcpu.take() == 0x60
    vm.vcpu.write(d.APIC_LVTERR, 0x55)
    assert vm.vcpu.read(d.APIC_LVTERR) == 0x55 | d.LVT_MASKED


def test_notified_once_for_each_request() -> None:
    vm = FakeVm()
    vm.vcpu.lapic.deliver(d.DM_FIXED, 0x60)
    vm.vcpu.lapic.deliver(d.DM_FIXED, 0x60)
    assert vm.vcpu.notified == 1


def test_trigger_mode_register_follows_the_last_request() -> None:
    vm = FakeVm()
    lapic = vm.vcpu.lapic
    lapic.deliver(d.DM_FIXED, 0x79, level=True)
    assert vm.vcpu.read(d.APIC_TMR + 0x30) == 1 << 25
    lapic.deliver(d.DM_FIXED, 0x79)
    assert vm.vcpu.read(d.APIC_TMR + 0x30) == 0
    assert not lapic.deliver(d.DM_FIXED, 0x7A, level=True, asserted=False)


def test_vector_registers_read_word_by_word() -> None:
    vm = FakeVm()
    for vector in (0x20, 0x3F, 0x40, 0xFF):
        vm.vcpu.lapic.deliver(d.DM_FIXED, vector)
    words = [vm.vcpu.read(d.APIC_IRR + 16 * word) for word in range(8)]
    assert words == [0, 0x8000_0001, 1, 0, 0, 0, 0, 0x8000_0000]
    vm.vcpu.take()
    assert vm.vcpu.read(d.APIC_ISR + 0x70) == 0x8000_0000
    assert vm.vcpu.read(d.APIC_ARBPRI) == 0xF0


def test_narrow_and_misaligned_access() -> None:
    vm = FakeVm()
    lapic = vm.vcpu.lapic
    vm.vcpu.write(d.APIC_TMICT, 0x1234_5678)
    assert lapic.mmio_read(d.APIC_TMICT + 1, 1) == 0x56
    assert lapic.mmio_read(d.APIC_TMICT + 2, 2) == 0x1234
    assert lapic.mmio_read(d.APIC_TMICT + 4, 4) == 0
    assert lapic.mmio_read(d.APIC_TMICT, 8) == 0
    lapic.mmio_write(d.APIC_TMICT, 2, 1)
    lapic.mmio_write(d.APIC_TMICT + 4, 4, 1)
    assert vm.vcpu.read(d.APIC_TMICT) == 0x1234_5678


def test_error_register_is_latched_by_a_write() -> None:
    vm = FakeVm()
    vm.vcpu.write(d.APIC_LVTERR, 0xFE)
    vm.vcpu.write(d.APIC_ICR, d.ICR_ASSERT | 1 << d.ICR_SHORTHAND_SHIFT | 0x0F)
    assert vm.vcpu.take() == 0xFE and vm.vcpu.lapic.irr == 0
    assert vm.vcpu.read(d.APIC_ESR) == 0
    vm.vcpu.write(d.APIC_ESR, 0)
    assert vm.vcpu.read(d.APIC_ESR) == d.ESR_SEND_ILLEGAL_VECTOR
    vm.vcpu.read(0x3F0)
    vm.vcpu.lapic.deliver(d.DM_FIXED, 3)
    vm.vcpu.write(d.APIC_ESR, 0)
    assert vm.vcpu.read(d.APIC_ESR) == d.ESR_ILLEGAL_REGISTER | d.ESR_RECEIVE_ILLEGAL_VECTOR


def test_error_entry_with_an_illegal_vector_does_not_recurse() -> None:
    vm = FakeVm()
    vm.vcpu.write(d.APIC_LVTERR, 3)
    vm.vcpu.lapic.deliver(d.DM_FIXED, 1)
    vm.vcpu.write(d.APIC_ESR, 0)
    assert vm.vcpu.read(d.APIC_ESR) == d.ESR_RECEIVE_ILLEGAL_VECTOR


def test_local_vector_table_delivers() -> None:
    vm = FakeVm()
    lapic = vm.vcpu.lapic
    vm.vcpu.write(d.APIC_LVT1, d.DM_NMI << 8)
    assert lapic.pulse_lint1() and vm.vcpu.nmis == 1
    vm.vcpu.write(d.APIC_LVT1, d.DM_NMI << 8 | d.LVT_MASKED)
    assert not lapic.pulse_lint1() and vm.vcpu.nmis == 1
    vm.vcpu.write(d.APIC_LVTPC, d.DM_NMI << 8)
    assert lapic.local_deliver(d.PERF_ENTRY) and vm.vcpu.nmis == 2
    assert vm.vcpu.read(d.APIC_LVTPC) & d.LVT_MASKED, "a performance interrupt masks its entry"
    vm.vcpu.write(d.APIC_LVTTHMR, 0x71)
    assert lapic.local_deliver(d.THERMAL_ENTRY) and vm.vcpu.take() == 0x71


def test_level_sensitive_lint0() -> None:
    vm = FakeVm()
    lapic = vm.vcpu.lapic
    vm.vcpu.write(d.APIC_LVT0, 0x61 | d.LVT_LEVEL)
    lapic.set_lint0(True)
    assert vm.vcpu.take() == 0x61 and vm.vcpu.read(d.APIC_LVT0) & d.LVT_REMOTE_IRR
    lapic.eoi()
    assert vm.vcpu.take() == 0x61, "still asserted"
    lapic.set_lint0(False)
    lapic.eoi()
    assert lapic.irr == 0 and not vm.vcpu.read(d.APIC_LVT0) & d.LVT_REMOTE_IRR


def test_edge_lint0() -> None:
    vm = FakeVm()
    vm.vcpu.write(d.APIC_LVT0, 0x62)
    vm.vcpu.lapic.set_lint0(True)
    vm.vcpu.lapic.set_lint0(True)
    assert vm.vcpu.take() == 0x62 and vm.vcpu.lapic.irr == 0


@pytest.mark.parametrize(
    ("old", "new", "legal"),
    [
        (0x800, 0xC00, True), (0x800, 0x000, True), (0x800, 0x400, False), (0xC00, 0x000, True), (0xC00, 0x800, False),
        (0xC00, 0x400, False), (0x000, 0x800, True), (0x000, 0xC00, False), (0x000, 0x400, False),
    ],
)  # fmt: skip
def test_apic_base_transitions(old: int, new: int, legal: bool) -> None:
    vm = FakeVm()
    lapic = vm.vcpu.lapic
    lapic.set_apic_base(0xFEE0_0100 | old, host_initiated=True)
    if legal:
        lapic.set_apic_base(0xFEE0_0100 | new)
        assert lapic.apic_base == 0xFEE0_0100 | new
    else:
        with pytest.raises(MsrAccessError):
            lapic.set_apic_base(0xFEE0_0100 | new)
        assert lapic.apic_base == 0xFEE0_0100 | old


def test_apic_base_reserved_bits() -> None:
    lapic = FakeVm(features=LapicFeatures(x2apic=False, maxphyaddr=40)).vcpu.lapic
    for value in (0xFEE0_0901, 0xFEE0_0B00, 1 << 40 | 0xFEE0_0900, 0xFEE0_0D00):
        with pytest.raises(MsrAccessError):
            lapic.set_apic_base(value)
    lapic.set_apic_base(0xFED4_0900)
    assert lapic.mmio_in_range(0xFED4_0030) and not lapic.mmio_in_range(0xFEE0_0030)


def nobody_answers(vm: FakeVm) -> bool:
    """All ones are read from the register page, and writes to it are lost."""
    lapic, before = vm.vcpu.lapic, vm.vcpu.lapic.get_state()
    for offset in (d.APIC_TASKPRI, d.APIC_EOI, d.APIC_ICR, d.APIC_TMICT):
        assert vm.chips.mmio_write(lapic, 0xFEE0_0000 + offset, 4, 0x55)
    found = {vm.chips.mmio_read(lapic, 0xFEE0_0030, size) for size in (1, 2, 4, 8)}
    return found == {(1 << 8 * size) - 1 for size in (1, 2, 4, 8)} and lapic.get_state() == before


def test_nobody_answers_for_a_disabled_or_x2apic_page_and_cr8_lives_on() -> None:
    vm = FakeVm()
    lapic = vm.vcpu.lapic
    lapic.set_apic_base(0xFEE0_0100)
    assert nobody_answers(vm) and not lapic.hw_enabled
    lapic.cr8 = 7
    assert lapic.cr8 == 7
    lapic.set_apic_base(0xFEE0_0900)
    assert lapic.mmio_read(d.APIC_TASKPRI, 4) == 0x70
    lapic.set_apic_base(0xFEE0_0D00)
    assert nobody_answers(vm)


def test_disabling_restores_the_id_and_stops_delivery() -> None:
    vm = FakeVm(2)
    lapic = vm.vcpus[1].lapic
    vm.vcpus[1].write(d.APIC_ID, 9 << 24)
    assert lapic.id == 9
    lapic.deliver(d.DM_FIXED, 0x60)
    lapic.set_apic_base(0xFEE0_0000)
    assert lapic.get_interrupt() is None
    lapic.set_apic_base(0xFEE0_0800)
    assert vm.vcpus[1].read(d.APIC_ID) == 1 << 24 and lapic.get_interrupt() == 0x60


def test_x2apic_registers() -> None:
    vm = FakeVm(18)
    vm.x2apic()
    lapic = vm.vcpus[17].lapic
    assert lapic.msr_read(MSR + 2) == 17
    assert lapic.msr_read(MSR + 0xD) == 1 << 16 | 1 << 1
    lapic.msr_write(MSR + 8, 0x20)
    assert lapic.msr_read(MSR + 0xA) == 0x20
    lapic.msr_write(MSR + 0x3F, 0x61)
    assert vm.vcpus[17].take() == 0x61
    lapic.msr_write(MSR + 0xB, 0)
    assert lapic.isr == 0


READ_ONLY = {0x2, 0x3, 0xA, 0xD, *range(0x10, 0x28), 0x39}
READ_WRITE = {0x8, 0xF, 0x28, 0x30, *range(0x32, 0x38), 0x38, 0x3E}
WRITE_ONLY = {0xB, 0x3F}


@pytest.mark.parametrize("mode", ["xapic", "x2apic"])
def test_which_x2apic_msrs_exist(mode: str) -> None:
    vm = FakeVm()
    enabled(vm, mode)
    lapic = vm.vcpu.lapic
    exists = mode == "x2apic"
    for number in range(0x100):
        if exists and number in READ_ONLY | READ_WRITE:
            value = lapic.msr_read(MSR + number)
            if number in READ_WRITE:
                lapic.msr_write(MSR + number, value)  # what was read may be written back
                assert lapic.msr_read(MSR + number) == value
        else:
            with pytest.raises(MsrAccessError):
                lapic.msr_read(MSR + number)
        if exists and number in WRITE_ONLY:
            lapic.msr_write(MSR + number, 0)
        elif not exists or number not in READ_WRITE:
            with pytest.raises(MsrAccessError):
                lapic.msr_write(MSR + number, 0)
        with pytest.raises(MsrAccessError):
            lapic.msr_write(MSR + number, (1 << 64) - 1)


@pytest.mark.parametrize(
    ("number", "value"),
    [(0xB, 1), (0x28, 1), (0x8, 0x100), (0xF, 1 << 12), (0x3F, 0x100), (0x32, 3 << 17), (0x32, 1 << 8), (0x37, 1 << 10),
     (0x3E, 4), (0x30, 1 << 13), (0x30, 1 << 20), (0x38, 1 << 32)],
)  # fmt: skip
def test_x2apic_reserved_bits_fault(number: int, value: int) -> None:
    vm = FakeVm()
    vm.x2apic()
    with pytest.raises(MsrAccessError):
        vm.vcpu.lapic.msr_write(MSR + number, value)


def test_features_decide_which_bits_exist() -> None:
    vm = FakeVm(features=LapicFeatures(tsc_deadline=False, directed_eoi=True))
    assert vm.vcpu.read(d.APIC_LVR) >> 24 == 1
    vm.vcpu.write(d.APIC_SPIV, 0x13FF)
    assert vm.vcpu.read(d.APIC_SPIV) == 0x13FF
    vm.vcpu.write(d.APIC_LVTT, d.LVT_TIMER_TSC_DEADLINE | 0x60)
    assert vm.vcpu.read(d.APIC_LVTT) == 0x60
    vm.x2apic()
    with pytest.raises(MsrAccessError):
        vm.vcpu.lapic.msr_write(MSR + 0x32, d.LVT_TIMER_TSC_DEADLINE)
    vm.vcpu.lapic.set_features(LapicFeatures())
    vm.vcpu.lapic.msr_write(MSR + 0x32, d.LVT_TIMER_TSC_DEADLINE)


def test_init_keeps_mode_and_id() -> None:
    vm = FakeVm(2)
    vm.x2apic()
    lapic = vm.vcpus[1].lapic
    lapic.cr8 = 3
    lapic.deliver(d.DM_FIXED, 0x60)
    lapic.init_reset()
    assert lapic.mode is d.ApicMode.X2APIC and lapic.msr_read(MSR + 2) == 1 and lapic.ldr == 2
    assert (lapic.irr, lapic.tpr, lapic.spiv, lapic.lvt[d.LINT0_ENTRY]) == (0, 0, 0xFF, d.LVT_MASKED)


def test_init_then_sipi() -> None:
    vm = FakeVm(2)
    vcpu = vm.vcpus[1]
    vcpu.lapic.deliver(d.DM_STARTUP, 0x12)
    vcpu.lapic.deliver(d.DM_INIT, 0)
    assert vcpu.lapic.take_sipi() is None, "INIT drops a SIPI that came before it"
    vcpu.lapic.deliver(d.DM_STARTUP, 0x9A)
    assert vcpu.lapic.take_init() and not vcpu.lapic.take_init()
    assert vcpu.lapic.take_sipi() == 0x9A and vcpu.lapic.take_sipi() is None
    assert vcpu.notified == 3
    assert not vcpu.lapic.deliver(d.DM_INIT, 0, level=True, asserted=False), "INIT de-assert is ignored"
    assert not vcpu.lapic.init_pending


@pytest.mark.parametrize("mode", ["xapic", "x2apic"])
def test_saved_state_round_trip(mode: str) -> None:
    vm = FakeVm(2)
    enabled(vm, mode)
    lapic = vm.vcpus[1].lapic
    for vector in (0x31, 0x82, 0xFE):
        lapic.deliver(d.DM_FIXED, vector, level=vector == 0x82)
    vm.vcpus[1].take()
    lapic.set_tpr(0x35)
    vm.vcpus[1].write(d.APIC_LVTT, 0xE0 | d.LVT_TIMER_PERIODIC)
    vm.vcpus[1].write(d.APIC_TDCR, 0xB)
    vm.vcpus[1].write(d.APIC_TMICT, 1_000_000)
    lapic.icr = 0x0300_0000_0004_4061 if mode == "xapic" else 0x1_0002_0000_0061
    vm.clock.advance(400_000)
    saved = lapic.get_state()

    other = FakeVm(2)
    enabled(other, mode)
    restored = other.vcpus[1].lapic
    restored.set_state(saved)
    assert restored.get_state() == saved
    assert (restored.irr, restored.isr, restored.tmr) == (lapic.irr, lapic.isr, lapic.tmr)
    assert restored.ppr == lapic.ppr == 0xF0 and other.vcpus[1].notified
    other.clock.advance(600_000)
    assert 0xE0 in other.vcpus[1].requested()
    assert other.vcpus[1].read(d.APIC_TMCCT) == 1_000_000


def test_hostile_state() -> None:
    vm = FakeVm()
    with pytest.raises(StateError):
        LapicState(b"\0" * 1023)
    vm.vcpu.lapic.set_state(LapicState(b"\xff" * 1024))
    lapic = vm.vcpu.lapic
    assert lapic.irr & 0xFFFF == 0 and lapic.lvt[d.TIMER_ENTRY] & d.LVT_TIMER_MODE == d.LVT_TIMER_TSC_DEADLINE
    vm.x2apic()
    with pytest.raises(StateError, match="x2APIC id"):
        lapic.set_state(LapicState(b"\xff" * 1024))


@pytest.mark.parametrize("seed", range(4))
def test_fuzz_registers(seed: int) -> None:
    """Random accesses in every mode: nothing but #GP is raised, registers keep their widths, time stays bounded."""
    rng = random.Random(seed)
    vm = FakeVm(3)
    for _ in range(6000):
        vcpu = rng.choice(vm.vcpus)
        value = rng.choice((rng.getrandbits(64), rng.getrandbits(32), rng.getrandbits(8), 1 << rng.randrange(64)))
        action = rng.randrange(9)
        try:
            if action < 3:
                offset = rng.choice((rng.randrange(0x1000), rng.randrange(0x40) << 4))
                vm.chips.mmio_write(vcpu.lapic, 0xFEE0_0000 + offset, 4, value)
            elif action == 3:
                size = rng.choice((1, 2, 4, 8))
                got = vm.chips.mmio_read(vcpu.lapic, 0xFEE0_0000 + rng.randrange(0x1000), size)
                nothing = (1 << 8 * size) - 1 if vcpu.lapic.mode is not d.ApicMode.XAPIC else None
                assert got is None or 0 <= got < 1 << 32 or got == nothing
            elif action == 4:
                vcpu.lapic.msr_write(MSR + rng.randrange(0x100), value)
            elif action == 5:
                assert 0 <= vcpu.lapic.msr_read(MSR + rng.randrange(0x100)) < 1 << 64
            elif action == 6 and rng.random() < 0.1:
                vcpu.lapic.set_apic_base(0xFEE0_0000 | rng.choice((0, 0x400, 0x800, 0xC00)))
            elif action == 7:
                vm.clock.advance(rng.randrange(1_000_000))
            else:
                vcpu.take()
                vcpu.lapic.set_tsc_deadline(value)
        except MsrAccessError:
            pass
        lapic = vcpu.lapic
        assert 0 <= lapic.irr < 1 << 256 and 0 <= lapic.isr < 1 << 256 and not lapic.irr & 0xFFFF
        assert 0 <= lapic.tpr < 256 and 0 <= lapic.icr < 1 << 64
    assert vm.clock.callbacks < 40_000
    for vcpu in vm.vcpus:
        vcpu.lapic.set_state(vcpu.lapic.get_state())
