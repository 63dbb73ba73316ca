"""IPIs and destinations."""

import pytest

from pellucid.kvm.irqchip import apicdef as d
from pellucid.kvm.irqchip.apicdef import ApicMessage
from tests.kvm.fakes import FakeVm

VECTOR = 0xF1
SELF, ALL, OTHERS = 1, 2, 3


def receivers(vm: FakeVm, vector: int = VECTOR) -> set[int]:
    """Who got the vector; takes and ends it."""
    got = set()
    for index, vcpu in enumerate(vm.vcpus):
        if vector in vcpu.requested():
            got.add(index)
            assert vcpu.take() == vector
            vcpu.lapic.eoi()
    return got


def ipi(vm: FakeVm, low: int, dest: int = 0, sender: int = 0) -> None:
    lapic = vm.vcpus[sender].lapic
    if lapic.mode is d.ApicMode.X2APIC:
        lapic.msr_write(0x830, dest << 32 | low)
    else:
        lapic.mmio_write(d.APIC_ICR2, 4, dest << 24)
        lapic.mmio_write(d.APIC_ICR, 4, low)


def both_modes(vcpus: int) -> list[FakeVm]:
    other = FakeVm(vcpus)
    other.x2apic()
    return [FakeVm(vcpus), other]


def test_physical_destination_and_shorthands() -> None:
    for vm in both_modes(4):
        ipi(vm, VECTOR, 2)
        assert receivers(vm) == {2}
        ipi(vm, VECTOR, 9)
        assert receivers(vm) == set()
        ipi(vm, SELF << 18 | VECTOR, 2, sender=1)
        assert receivers(vm) == {1}
        ipi(vm, ALL << 18 | VECTOR)
        assert receivers(vm) == {0, 1, 2, 3}
        ipi(vm, OTHERS << 18 | VECTOR, sender=3)
        assert receivers(vm) == {0, 1, 2}


def test_physical_broadcast() -> None:
    xapic, x2apic = both_modes(3)
    ipi(xapic, VECTOR, 0xFF)
    assert receivers(xapic) == {0, 1, 2}
    ipi(x2apic, VECTOR, 0xFFFF_FFFF)
    assert receivers(x2apic) == {0, 1, 2}
    ipi(x2apic, VECTOR, 0xFF)
    assert receivers(x2apic) == set(), "in an x2APIC sender's ICR, 255 is an ordinary id"
    assert x2apic.chips.bus.deliver(ApicMessage(VECTOR, d.DM_FIXED, 0xFF)) == 3, "from the IOAPIC it is everybody"


@pytest.mark.parametrize("sender", [0, 1])
def test_logical_flat(sender: int) -> None:
    vm = FakeVm(3)
    for index, vcpu in enumerate(vm.vcpus):
        vcpu.write(d.APIC_DFR, 0xFFFF_FFFF)
        vcpu.write(d.APIC_LDR, 1 << index + 24)
    for dest in range(0xFF):
        ipi(vm, d.ICR_LOGICAL | VECTOR, dest, sender)
        assert receivers(vm) == {index for index in range(3) if dest >> index & 1}
    ipi(vm, d.ICR_LOGICAL | VECTOR, 0xFF, sender)
    assert receivers(vm) == {0, 1, 2}


def test_logical_cluster() -> None:
    vm = FakeVm(3)
    for vcpu, logical in zip(vm.vcpus, (0x21, 0x22, 0x31), strict=True):
        vcpu.write(d.APIC_DFR, 0)
        vcpu.write(d.APIC_LDR, logical << 24)
    for dest, expected in ((0x21, {0}), (0x23, {0, 1}), (0x2F, {0, 1}), (0x31, {2}), (0x3E, set()), (0x11, set())):
        ipi(vm, d.ICR_LOGICAL | VECTOR, dest)
        assert receivers(vm) == expected, hex(dest)
    vm.vcpu.write(d.APIC_DFR, 0x5000_0000)
    ipi(vm, d.ICR_LOGICAL | VECTOR, 0x21)
    assert receivers(vm) == set(), "a reserved model matches nothing"


def test_logical_x2apic() -> None:
    vm = FakeVm(20)
    vm.x2apic()
    ipi(vm, d.ICR_LOGICAL | VECTOR, 0b1010)
    assert receivers(vm) == {1, 3}
    ipi(vm, d.ICR_LOGICAL | VECTOR, 1 << 16 | 0b1001)
    assert receivers(vm) == {16, 19}


def test_equal_xapic_ids_all_receive() -> None:
    vm = FakeVm(2)
    vm.vcpus[1].write(d.APIC_ID, 0)
    ipi(vm, VECTOR, 0)
    assert receivers(vm) == {0, 1}
    vm.vcpus[1].write(d.APIC_ID, 7 << 24)
    ipi(vm, VECTOR, 7)
    assert receivers(vm) == {1}


def test_disabled_apics_are_not_on_the_bus() -> None:
    vm = FakeVm(2)
    vm.vcpus[1].lapic.set_apic_base(0xFEE0_0000)
    ipi(vm, VECTOR, 1)
    ipi(vm, ALL << 18 | VECTOR)
    assert receivers(vm) == {0}
    vm.vcpus[1].lapic.set_apic_base(0xFEE0_0800)
    ipi(vm, VECTOR, 1)
    assert receivers(vm) == {1}


def test_lowest_priority_goes_to_the_least_busy_then_in_turn() -> None:
    vm = FakeVm(3)
    for index, vcpu in enumerate(vm.vcpus):
        vcpu.write(d.APIC_LDR, 1 << index + 24)
    vm.vcpu.lapic.set_tpr(0x50)
    message = ApicMessage(VECTOR, d.DM_LOWEST, 7, logical=True)
    order: list[int] = []
    for _ in range(4):
        assert vm.chips.bus.deliver(message) == 1
        order += receivers(vm)
    assert sorted(order) == [1, 1, 2, 2]
    vm.vcpus[1].write(d.APIC_SPIV, 0xFF)
    vm.chips.bus.deliver(message)
    assert receivers(vm) == {2}, "a software-disabled APIC is not chosen"
    for vcpu in vm.vcpus:
        vcpu.write(d.APIC_SPIV, 0xFF)
    assert vm.chips.bus.deliver(message) == 0
    hinted = ApicMessage(VECTOR, d.DM_FIXED, 7, logical=True, redirection_hint=True)
    vm.vcpus[2].write(d.APIC_SPIV, 0x1FF)
    assert vm.chips.bus.deliver(hinted) == 1 and receivers(vm) == {2}


def test_nmi_smi_init_and_sipi_by_icr() -> None:
    for vm in both_modes(2):
        ipi(vm, d.DM_NMI << 8, 1)  # kvm-unit-tests sends it without the assert bit
        ipi(vm, d.DM_SMI << 8 | d.ICR_ASSERT, 1)
        assert (vm.vcpus[1].nmis, vm.vcpus[1].smis, vm.vcpu.nmis) == (1, 1, 0)
        ipi(vm, d.DM_INIT << 8 | d.ICR_LEVEL | d.ICR_ASSERT, 1)
        assert vm.vcpus[1].lapic.take_init()
        ipi(vm, d.DM_INIT << 8 | d.ICR_LEVEL, 1)
        assert not vm.vcpus[1].lapic.take_init(), "the level de-assert is ignored"
        ipi(vm, d.DM_STARTUP << 8 | 0x9F, 1)
        assert vm.vcpus[1].lapic.take_sipi() == 0x9F


def test_ipis_are_edge_triggered() -> None:
    vm = FakeVm()
    ipi(vm, SELF << 18 | d.ICR_LEVEL | d.ICR_ASSERT | VECTOR)
    assert vm.vcpu.lapic.tmr == 0 and receivers(vm) == {0}


def test_icr_reads_back_idle() -> None:
    xapic, x2apic = both_modes(1)
    ipi(xapic, d.ICR_BUSY | SELF << 18 | VECTOR, 0x12)
    assert xapic.vcpu.read(d.APIC_ICR) == SELF << 18 | VECTOR
    assert xapic.vcpu.read(d.APIC_ICR2) == 0x12 << 24
    ipi(x2apic, VECTOR, 0x1234_5678)
    assert x2apic.vcpu.lapic.msr_read(0x830) == 0x1234_5678 << 32 | VECTOR


def test_destroyed_apic_receives_nothing() -> None:
    vm = FakeVm(2)
    vm.chips.destroy_lapic(vm.vcpus[1].lapic)
    ipi(vm, ALL << 18 | VECTOR)
    assert receivers(vm) == {0}
