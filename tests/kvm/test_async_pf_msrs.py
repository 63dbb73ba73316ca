"""The registers of asynchronous page faults and the record of steal time, and what a guest may do with them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from pellucid.kvm.api import IntrExit
from pellucid.kvm.async_pf import (
    DELIVERY_AS_INT,
    ENABLED,
    MOST_FAULTS,
    MSR_KVM_ASYNC_PF_ACK,
    MSR_KVM_ASYNC_PF_EN,
    MSR_KVM_ASYNC_PF_INT,
    SEND_ALWAYS,
    WAKE_ALL,
    AsyncPf,
)
from pellucid.kvm.cpuid import KvmFeature, kvm_leaves
from pellucid.kvm.errors import MsrAccessError
from pellucid.kvm.irqchip import apicdef as d
from pellucid.kvm.residency import Residency
from pellucid.kvm.steal_time import KVM_VCPU_FLUSH_TLB, KVM_VCPU_PREEMPTED, MSR_KVM_STEAL_TIME

from .fakes import FakeVm, GuestMemory
from .paged_guest import (
    CODE,
    DATA,
    DIRECTORY,
    RECORD,
    TAKES,
    Held,
    PagedGuest,
    out,
    running,
    wait_for,
)
from .test_soft_smp import RAM


@pytest.fixture
def guest() -> Iterator[PagedGuest]:
    made = PagedGuest()
    yield made
    made.close()


class Alone:
    """AsyncPf without a processor."""

    def __init__(self) -> None:
        self.vm, self.memory, self.wakes = FakeVm(), GuestMemory(), 0
        self.vm.vcpu.lapic.mmio_write(d.APIC_SPIV, 4, 0x1FF)
        self.pf = AsyncPf(0, self.vm.vcpu.lapic, self.memory.write, self.memory.read, self._woken)
        self.pf.write_interrupt(0xF3)
        self.residency = Residency(0, MOST_FAULTS * 3 << 12, Held(), nullcontext)

    def _woken(self) -> None:
        self.wakes += 1

    def words(self) -> tuple[int, int]:
        data = self.memory.data
        return tuple(int.from_bytes(data[at:at + 4], "little") for at in (RECORD, RECORD + 4))  # type: ignore[return-value]

    def seen(self) -> int:
        """The guest takes a 'ready': the token."""
        token = self.words()[1]
        self.memory.data[RECORD + 4:RECORD + 8] = bytes(4)
        self.pf.write_ack(1)
        return token


def test_registers_refuse_what_kvm_refuses() -> None:
    pf = Alone().pf
    for bad in (TAKES | 0x10, TAKES | 0x20, TAKES | 4, 1 << 40 | ENABLED | DELIVERY_AS_INT):
        with pytest.raises(MsrAccessError):
            pf.write_enable(bad)
    with pytest.raises(MsrAccessError):
        pf.write_interrupt(0x100)
    assert pf.value == 0 and not pf.enabled
    pf.write_enable(1 << 40 | ENABLED)   # not by interrupt: nothing will be written
    assert pf.value == 1 << 40 | ENABLED and not pf.enabled
    pf.write_enable(TAKES)
    assert pf.enabled and pf.takes_at(3) and not pf.takes_at(0)
    pf.write_enable(TAKES | SEND_ALWAYS)
    assert pf.takes_at(0)
    pf.reset()
    assert (pf.value, pf.interrupt, pf.under_way) == (0, 0, 0)


def test_ready_comes_one_by_one_and_faults_are_bounded() -> None:
    alone = Alone()
    pf, residency = alone.pf, alone.residency
    pf.write_enable(TAKES)
    pf.serve()
    assert alone.wakes == 1 and alone.vm.vcpu.requested() == {0xF3} and alone.seen() == WAKE_ALL
    tokens = [pf.begin(residency, page, True) for page in range(MOST_FAULTS + 5)]
    assert None not in tokens[:MOST_FAULTS] and tokens[MOST_FAULTS:] == [None] * 5
    assert len(set(tokens)) == MOST_FAULTS + 1 and alone.words()[0] == 1
    assert pf.begin(residency, 3, True) is None, "the guest knows already"
    for page in range(MOST_FAULTS):
        pf.page_arrived(residency, page)
    pf.serve()
    pf.write_ack(1)   # without looking
    pf.serve()
    assert alone.words()[1] == tokens[0] and pf.under_way == MOST_FAULTS - 1
    assert [alone.seen() for _ in tokens] == tokens[:MOST_FAULTS] + [0] * 5
    assert pf.under_way == 0


def test_what_is_under_way_is_forgotten_when_switched_off() -> None:
    alone = Alone()
    pf, residency = alone.pf, alone.residency
    pf.write_enable(TAKES)
    pf.serve()
    assert pf.begin(residency, 0, True) is not None
    pf.write_enable(0)
    pf.page_arrived(residency, 0)
    pf.serve()
    assert pf.under_way == 0 and alone.words()[1] == WAKE_ALL
    alone.memory.data[RECORD + 4] = 0
    assert pf.begin(residency, 0, True) is None


def test_ready_waits_for_the_apic() -> None:
    alone = Alone()
    alone.vm.vcpu.lapic.mmio_write(d.APIC_SPIV, 4, 0xFF)
    alone.pf.write_enable(TAKES)
    alone.pf.serve()
    assert alone.words()[1] == 0
    alone.vm.vcpu.lapic.mmio_write(d.APIC_SPIV, 4, 0x1FF)
    alone.pf.write_ack(1)
    assert alone.words()[1] == WAKE_ALL


def test_enabling_the_apic_brings_what_was_kept_back(guest: PagedGuest) -> None:
    (vcpu,) = guest.vcpus
    vcpu.lapic.mmio_write(d.APIC_SPIV, 4, 0xFF)
    guest.enable()
    guest.assemble(CODE, "mov dword [0xFEE000F0], 0x1FF\n sti\nagain: jmp again")
    assert vcpu.run() == out(0x92, WAKE_ALL)


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("kicked", [False, True])
def test_a_halted_processor_flushes_its_tlb_when_asked_in_its_record(
    guest: PagedGuest, asked: bool, kicked: bool
) -> None:
    """A page at 4 MiB gets another place meanwhile; who is not asked for a flush sees the old one."""
    (vcpu,) = guest.vcpus
    table, linear, record = 0xB000, 4 << 20, 0x4100
    guest.put(DIRECTORY + 4, (table | 3).to_bytes(4, "little").hex())
    guest.put(table, (DATA | 3).to_bytes(4, "little").hex())
    guest.put(DATA, "01000000")
    guest.put(DATA + 0x1000, "02000000")
    vcpu.set_msrs({MSR_KVM_STEAL_TIME: record | 1})
    read = f"mov eax, [{linear}]\n out 0x99, eax\n"
    guest.assemble(CODE, f"sti\n{read}hlt\n{read}")
    assert vcpu.run() == out(0x99, 1)

    def preempted() -> int:
        return (guest.vm.read_guest(record + 16, 1) or b"")[0]

    def change() -> None:
        wait_for(lambda: preempted() == KVM_VCPU_PREEMPTED)
        guest.put(table, (DATA + 0x1000 | 3).to_bytes(4, "little").hex())
        if asked:
            assert guest.vm.exchange_guest(record + 16, KVM_VCPU_PREEMPTED | KVM_VCPU_FLUSH_TLB) == KVM_VCPU_PREEMPTED

    thread, exits = running(vcpu)
    if kicked:
        wait_for(preempted)
        vcpu.kick()
        thread.join(10)
        assert exits == [IntrExit()] and preempted(), "it is not in the guest"
    change()
    vcpu.lapic.deliver(d.DM_FIXED, 0x60)
    if kicked:
        exits = [vcpu.run()]
    thread.join(10)
    assert exits == [out(0x93, 1)] and preempted() == 0
    assert vcpu.run() == out(0x99, 2 if asked else 1)


def test_the_registers_of_a_vcpu_and_its_reset(guest: PagedGuest) -> None:
    (vcpu,) = guest.vcpus
    guest.enable()
    assert vcpu.get_msrs((MSR_KVM_ASYNC_PF_EN, MSR_KVM_ASYNC_PF_INT, MSR_KVM_ASYNC_PF_ACK)) == {
        MSR_KVM_ASYNC_PF_EN: TAKES, MSR_KVM_ASYNC_PF_INT: 0xF3, MSR_KVM_ASYNC_PF_ACK: 0}
    vcpu.lapic.deliver(d.DM_INIT, 0)
    vcpu._serve_requests()
    assert vcpu.get_msrs((MSR_KVM_ASYNC_PF_EN,)) == {MSR_KVM_ASYNC_PF_EN: 0}
    announced = KvmFeature(kvm_leaves()[1].eax)
    assert KvmFeature.ASYNC_PF | KvmFeature.ASYNC_PF_INT in announced and KvmFeature.ASYNC_PF_VMEXIT not in announced


@pytest.mark.parametrize("seed", range(2))
def test_fuzz_registers(seed: int) -> None:
    """Whatever a guest writes, wherever its record is: an answer, or #GP, and a bounded memory of it."""
    rng, guest = random.Random(seed), PagedGuest()
    try:
        (vcpu,) = guest.vcpus
        pf = vcpu.async_pf
        for _ in range(3000):
            value = rng.choice((rng.getrandbits(64), rng.randrange(RAM) & ~0x3F | rng.getrandbits(4), TAKES,
                                1 << rng.randrange(64)))
            try:
                vcpu.msrs.write(rng.choice((MSR_KVM_ASYNC_PF_EN, MSR_KVM_ASYNC_PF_INT, MSR_KVM_ASYNC_PF_ACK)), value)
            except MsrAccessError:
                continue
            page = rng.randrange(RAM >> 12)
            if pf.begin(guest.residency, page, rng.random() < 0.9) is not None and rng.random() < 0.8:
                pf.page_arrived(guest.residency, page)
            pf.serve()
            assert pf.under_way <= MOST_FAULTS + 1
    finally:
        guest.close()
