"""KVM's hypercalls, PV EOI and steal time, as guests of the soft backend see them."""

from __future__ import annotations

import random
import struct
import threading

import pytest

from pellucid.cpu.state import UD
from pellucid.kvm.api import CpuidEntry, IoExit
from pellucid.kvm.cpuid import KvmFeature, kvm_leaves
from pellucid.kvm.errors import MsrAccessError
from pellucid.kvm.hypercalls import KVM_EINVAL, KVM_ENOSYS, KVM_EPERM, Hypercall, hypercall
from pellucid.kvm.irqchip import apicdef as d
from pellucid.kvm.pv_eoi import MSR_KVM_PV_EOI_EN, PvEoi
from pellucid.kvm.steal_time import KVM_VCPU_FLUSH_TLB, KVM_VCPU_PREEMPTED, MSR_KVM_STEAL_TIME, UPDATE_NS, StealTime
from pellucid.records import replace

from .fakes import FakeVm, GuestMemory, ManualClock
from .test_soft_cpuid import leaves
from .test_soft_smp import Guest, start

CODE, HANDLER, WORD, RECORD = 0x7000, 0x7800, 0x3000, 0x3040
VMCALL, VMMCALL = "0f01c1", "0f01d9"
OUT = "66e799"   # out 0x99, eax


class Asked:
    """A VM that notes what hypercalls ask of it."""

    def __init__(self) -> None:
        self.notes: list[object] = []

    def kick_cpu(self, apic_id: int) -> None:
        self.notes.append(("kick", apic_id))

    def send_ipis(self, apic_ids: list[int], mode: int, vector: int, *, level: bool, asserted: bool) -> int:
        self.notes.append((apic_ids, mode, vector, level, asserted))
        return len(apic_ids)

    def yield_cpu(self) -> None:
        self.notes.append("yield")


def ask(number: int, *args: int, cpl: int = 0, wide: bool = True) -> tuple[int, list[object]]:
    vm = Asked()
    a0, a1, a2, a3 = (*args, 0, 0, 0, 0)[:4]
    return hypercall(Hypercall(number, a0, a1, a2, a3, wide), cpl, vm), vm.notes


def test_results_of_hypercalls() -> None:
    assert ask(1) == (0, [])
    assert ask(5, 0, 3) == (0, [("kick", 3)])
    assert ask(11, 1) == (0, ["yield"])
    assert ask(5, 0, 3, cpl=3) == (-KVM_EPERM, []), "only the kernel may"
    assert ask(12345) == ask((1 << 64) - 1) == (-KVM_ENOSYS, [])


def test_a_paravirtual_ipi_names_its_targets_by_bits() -> None:
    assert ask(10, 0b101, 1, 8, 0x40FE) == (3, [([8, 10, 72], 0, 0xFE, False, True)])
    assert ask(10, 0b101, 1, 8, 0x400, wide=False) == (3, [([8, 10, 40], 4, 0, False, False)])
    assert ask(10, 1, 0, 0, 1 << 18) == (-KVM_EINVAL, []), "a shorthand beside a list"
    assert ask(10, 1, 0, 0, 1 << 11) == (-KVM_EINVAL, [])


def test_apics_take_paravirtual_ipis() -> None:
    vm = FakeVm(3)
    assert vm.chips.bus.deliver_to([0, 2, 77], d.DM_FIXED, 0x61, level=False, asserted=True) == 2
    assert [vcpu.requested() for vcpu in vm.vcpus] == [{0x61}, set(), {0x61}]


def prepare(guest: Guest, code: str, cpuid: list[CpuidEntry] | None = None) -> None:
    """Real mode at CODE; #UD and vector 0x60 lead to HANDLER."""
    (vcpu, *_) = guest.vcpus
    guest.put(CODE, code)
    for vector in (UD, 0x60):
        guest.put(4 * vector, HANDLER.to_bytes(4, "little").hex())
    if cpuid is not None:
        vcpu.set_cpuid(cpuid)
    sregs = vcpu.get_sregs()
    vcpu.set_sregs(replace(sregs, cs=replace(sregs.cs, base=0, selector=0)))
    vcpu.set_regs(replace(vcpu.get_regs(), rip=CODE, rsp=0x6000))


@pytest.mark.parametrize("code", [VMCALL, VMMCALL])
def test_both_vendors_instructions_are_hypercalls_where_kvm_shows_itself(code: str) -> None:
    guest = Guest(1)
    try:
        (vcpu,) = guest.vcpus
        guest.put(HANDLER, "66b806000000" + OUT)
        for shown in (True, False, True):
            prepare(guest, "66b8ffffffff" + code + OUT, leaves("qemu64", {}) + (kvm_leaves() if shown else []))
            expected = -KVM_ENOSYS & 0xFFFF_FFFF if shown else UD
            assert vcpu.run() == IoExit(0x99, 4, True, expected), shown
            assert vcpu.get_regs().rax >> 32 == 0
    finally:
        guest.close()


def test_a_hypercall_ends_an_instruction_that_is_single_stepped() -> None:
    guest = Guest(1)
    try:
        (vcpu,) = guest.vcpus
        prepare(guest, "6631c0" + VMCALL + OUT)
        guest.put(4 * 1, HANDLER.to_bytes(4, "little").hex())
        guest.put(HANDLER, "58 50" + "e799")   # pop ax; push ax; out 0x99, ax: where the trap found the guest
        vcpu.set_regs(replace(vcpu.get_regs(), rflags=0x102))
        assert vcpu.run() == IoExit(0x99, 2, True, CODE + 3)
        vcpu.set_regs(replace(vcpu.get_regs(), rip=CODE + 3, rflags=0x102))
        assert vcpu.run() == IoExit(0x99, 2, True, CODE + 6)
    finally:
        guest.close()


def test_kick_cpu_ends_a_hlt_now_or_the_next_one() -> None:
    guest = Guest(2)
    try:
        prepare(guest, "66b805000000 66b901000000" + VMCALL + OUT)   # KVM_HC_KICK_CPU of APIC id 1
        guest.put(0x5000, "f4 b007 e699")                            # hlt; mov al, 7; out 0x99, al
        second = guest.vcpus[1]
        start(second, 5)
        assert guest.vcpus[0].run() == IoExit(0x99, 4, True, 0)
        assert second.run() == IoExit(0x99, 1, True, 7), "the kick came before the HLT"
        second.set_regs(replace(second.get_regs(), rip=0))
        exits: list[object] = []
        thread = threading.Thread(target=lambda: exits.append(second.run()))
        thread.start()
        guest.vm.kick_cpu(1)
        thread.join(10)
        assert exits == [IoExit(0x99, 1, True, 7)]
    finally:
        guest.close()


def test_a_guest_that_spins_with_pause_leaves_now_and_then() -> None:
    guest = Guest(2)
    try:
        yields = []

        def yield_cpu() -> None:
            yields.append(1)
            guest.put(WORD, "01")

        (vcpu, _) = guest.vcpus
        assert vcpu.spin is not None
        vcpu.spin.yield_cpu = yield_cpu  # type: ignore[method-assign]
        prepare(guest, "f390 803e003000 74f7 b007 e699")   # pause; cmp byte [0x3000], 0; je -9; out
        assert vcpu.run() == IoExit(0x99, 1, True, 7) and len(yields) == 1
    finally:
        guest.close()


# --- PV EOI


class Eoi:
    def __init__(self) -> None:
        self.vm, self.memory = FakeVm(), GuestMemory()
        self.lapic = self.vm.vcpu.lapic
        self.pv_eoi = PvEoi(self.lapic, self.memory.write, self.memory.read)
        self.pv_eoi.msr_write(WORD | 1)

    def take(self, vector: int, level: bool = False) -> None:
        self.lapic.deliver(d.DM_FIXED, vector, level=level)
        assert self.vm.vcpu.take() == vector

    def enter(self) -> bool:
        self.pv_eoi.offer()
        return bool(self.memory.data[WORD] & 1)


def test_pv_eoi_is_offered_and_carried_out() -> None:
    eoi = Eoi()
    assert not eoi.enter(), "nothing in service"
    eoi.take(0x61)
    assert eoi.enter() and eoi.pv_eoi.offered
    eoi.memory.data[WORD] = 0
    eoi.pv_eoi.collect()
    assert eoi.lapic.isr == 0 and not eoi.pv_eoi.offered


def test_an_offer_not_taken_is_taken_back() -> None:
    eoi = Eoi()
    eoi.take(0x61)
    assert eoi.enter()
    eoi.pv_eoi.collect()
    assert eoi.memory.data[WORD] == 0 and eoi.lapic.isr == 1 << 0x61


def test_pv_eoi_is_not_for_interrupts_whose_end_matters() -> None:
    eoi = Eoi()
    eoi.take(0x61)
    eoi.lapic.deliver(d.DM_FIXED, 0x41)
    assert not eoi.enter(), "another interrupt waits for the EOI"
    eoi = Eoi()
    eoi.take(0x61, level=True)
    assert not eoi.enter(), "the I/O APIC waits for it"
    eoi = Eoi()
    eoi.vm.chips.bus.eoi_vectors = 1 << 0x61
    eoi.take(0x61)
    assert not eoi.enter(), "an ack notifier waits for it"


def test_pv_eoi_msr() -> None:
    eoi = Eoi()
    for bad in (WORD | 2, WORD | 3, 1 << 40 | 1):
        with pytest.raises(MsrAccessError):
            eoi.pv_eoi.msr_write(bad)
    assert eoi.pv_eoi.value == WORD | 1
    eoi.pv_eoi.reset()
    assert (eoi.pv_eoi.value, eoi.pv_eoi.enabled) == (0, False)


@pytest.mark.parametrize("ends", [True, False])
def test_a_guest_ends_its_interrupt_in_memory(ends: bool) -> None:
    """The handler clears the bit, or not; what it found there goes to port 0x99. Before, it reads a chip's port: the
    offer is made where the hypervisor lets the guest go on (native code delivers and ends interrupts by itself).
    """
    guest = Guest(1)
    try:
        (vcpu,) = guest.vcpus
        vcpu.lapic.mmio_write(d.APIC_SPIV, 4, 0x1FF)
        vcpu.set_msrs({MSR_KVM_PV_EOI_EN: WORD | 1})
        prepare(guest, "fbf4")
        found = "0fba36003000" if ends else "0fba26003000"   # btr or bt word [0x3000], 0
        guest.put(HANDLER, "e420" + found + "0f92c0 e699")
        vcpu.lapic.deliver(d.DM_FIXED, 0x60)
        assert vcpu.run() == IoExit(0x99, 1, True, 1)
        assert vcpu.lapic.isr == (0 if ends else 1 << 0x60)
        assert guest.vm.read_guest(WORD, 1) == b"\0"
        vcpu.lapic.deliver(d.DM_INIT, 0)
    finally:
        guest.close()


# --- steal time


class Steal:
    def __init__(self) -> None:
        self.clock, self.memory, self.cpu = ManualClock(), GuestMemory(), 0
        self.flushes = 0
        self.steal = StealTime(self.memory.write, self.memory.read, self.memory.exchange, self._flushed,
                               self.clock.now_ns, lambda: self.cpu)
        self.steal.msr_write(RECORD | 1)
        self.steal.update()

    def _flushed(self) -> None:
        self.flushes += 1

    def record(self) -> tuple[int, ...]:
        """(steal, version, flags, preempted)"""
        return struct.unpack_from("<QIIB", self.memory.data, RECORD)

    def passes(self, ns: int, ran: int = 0) -> None:
        self.clock.advance(ns)
        self.cpu += ran


def test_what_a_vcpu_did_not_get_is_stolen() -> None:
    guest = Steal()
    assert guest.record() == (0, 2, 0, 0)
    guest.passes(10_000, ran=7_000)
    guest.steal.update()
    assert guest.record() == (3_000, 4, 0, 0)
    guest.steal.idle(lambda: guest.passes(50_000))
    guest.passes(1_000, ran=400)
    guest.steal.update()
    assert guest.record() == (3_600, 6, 0, 0), "idle time is the guest's own"
    guest.passes(10**9)
    guest.steal.forget()
    guest.steal.update()
    assert guest.record()[0] == 3_600, "a stop of the machine is not stolen"


def test_the_record_is_odd_while_it_is_written_and_says_who_sleeps() -> None:
    guest = Steal()
    versions = [struct.unpack("<I", data)[0] for at, data in guest.memory.writes if len(data) == 4]
    assert versions == [1, 2]
    seen: list[int] = []
    guest.steal.idle(lambda: seen.append(guest.record()[3]))
    assert seen == [KVM_VCPU_PREEMPTED] and guest.steal.is_due()
    guest.steal.update()
    assert guest.record()[3] == 0 and not guest.steal.is_due()
    guest.passes(UPDATE_NS)
    assert guest.steal.is_due()


def test_who_sleeps_can_be_asked_for_a_flush() -> None:
    guest = Steal()
    at = RECORD + 16
    guest.steal.idle(lambda: guest.memory.data.__setitem__(at, guest.memory.data[at] | KVM_VCPU_FLUSH_TLB))
    assert guest.memory.data[at] == KVM_VCPU_PREEMPTED | KVM_VCPU_FLUSH_TLB and guest.flushes == 0
    guest.steal.update()
    assert guest.memory.data[at] == 0 and guest.flushes == 1
    guest.steal.update()
    assert guest.flushes == 1


def test_another_thread_begins_anew() -> None:
    guest = Steal()
    guest.passes(10_000)
    thread = threading.Thread(target=guest.steal.update)
    thread.start()
    thread.join()
    assert guest.record()[0] == 0


def test_steal_time_msr() -> None:
    guest = Steal()
    for bit in range(1, 6):
        with pytest.raises(MsrAccessError):
            guest.steal.msr_write(RECORD | 1 << bit | 1)
    guest.steal.msr_write(1 << 40 | 1)
    guest.steal.update()   # not RAM: nothing to write to
    guest.steal.idle(lambda: None)
    guest.steal.reset()
    assert guest.steal.value == 0 and not guest.steal.enabled


def test_a_running_guest_has_its_record() -> None:
    guest = Guest(1)
    try:
        (vcpu,) = guest.vcpus
        prepare(guest, OUT)
        vcpu.set_msrs({MSR_KVM_STEAL_TIME: RECORD | 1})
        vcpu.run()
        assert vcpu.get_msrs((MSR_KVM_STEAL_TIME,)) == {MSR_KVM_STEAL_TIME: RECORD | 1}
        content = guest.vm.read_guest(RECORD, 17)
        assert content is not None and struct.unpack("<QIIB", content)[1:] == (2, 0, 0)
    finally:
        guest.close()


def test_what_is_announced() -> None:
    eax = kvm_leaves()[1].eax
    assert eax & KvmFeature.STEAL_TIME and eax & KvmFeature.PV_EOI and eax & KvmFeature.PV_SEND_IPI
    assert not eax & KvmFeature.ASYNC_PF_VMEXIT


@pytest.mark.parametrize("seed", range(2))
def test_fuzz_hypercalls_and_msrs(seed: int) -> None:
    """Whatever a guest asks for: an answer, or #GP."""
    rng, guest = random.Random(seed), Guest(3)
    try:
        vcpu = guest.vcpus[0]
        for _ in range(2000):
            words = [rng.choice((rng.getrandbits(64), rng.getrandbits(8), 1 << rng.randrange(64))) for _ in range(5)]
            if rng.random() < 0.5:
                number = rng.choice((1, 5, 10, 11, words[0]))
                result = hypercall(Hypercall(number, *words[1:], rng.random() < 0.5), rng.choice((0, 0, 3)), guest.vm)
                assert -KVM_ENOSYS <= result <= 128
                continue
            try:
                vcpu.msrs.write(rng.choice((MSR_KVM_PV_EOI_EN, MSR_KVM_STEAL_TIME)), words[0])
            except MsrAccessError:
                continue
            vcpu.steal_time.update()
            vcpu.pv_eoi.offer()
            vcpu.pv_eoi.collect()
    finally:
        guest.close()
