"""Guest RAM that may be out: who waits, who is told, and that everybody gets the right bytes in the end."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest

from pellucid.engine.arrays import Array
from pellucid.kvm.api import Exit, IntrExit, IoExit, MmioExit, MpState
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
from pellucid.kvm.backends.soft.vcpu import SoftVcpu
from pellucid.kvm.cpuid import KvmFeature, kvm_leaves
from pellucid.kvm.errors import InvalidRequestError, MsrAccessError
from pellucid.kvm.irqchip import apicdef as d
from pellucid.kvm.regs import DTable, Segment
from pellucid.kvm.residency import PAGE_PRESENT, Residency
from pellucid.kvm.steal_time import KVM_VCPU_FLUSH_TLB, KVM_VCPU_PREEMPTED, MSR_KVM_STEAL_TIME
from tests.cpu.guests import tables
from tests.cpu.guests.asm import assemble

from .fakes import FakeVm, GuestMemory
from .test_soft_smp import RAM, Guest

DIRECTORY, GDT, IDT, RECORD, FLAG = 0x1000, 0x2000, 0x3000, 0x4040, 0x4000
CODE, FAULT, READY, TICK, DATA = 0x7000, 0x8000, 0x9000, 0xA000, 0x5_0000
STACKS = (0x2_0000, 0x3_0000)
DEVICE = 0x20_0000
TAKES = RECORD | ENABLED | DELIVERY_AS_INT
HANDLERS = {
    FAULT: f"""
        push eax
        mov eax, cr2
        out 0x90, eax
        mov eax, [{RECORD}]
        out 0x91, eax
        mov dword [{RECORD}], 0
    again: sti
        hlt
        cmp byte [{FLAG}], 0
        je again
        mov byte [{FLAG}], 0
        pop eax
        add esp, 4
        iretd""",
    READY: f"""
        push eax
        push ecx
        push edx
        mov eax, [{RECORD + 4}]
        out 0x92, eax
        mov byte [{FLAG}], 1
        mov dword [{RECORD + 4}], 0
        mov ecx, {MSR_KVM_ASYNC_PF_ACK}
        mov eax, 1
        xor edx, edx
        wrmsr
        mov dword [0xFEE000B0], 0
        pop edx
        pop ecx
        pop eax
        iretd""",
    TICK: """
        mov dword [0xFEE000B0], 0
        out 0x93, eax
        iretd""",
}


class Held:
    """A pager that notes what it is asked for; the test lets pages in."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.at_once = False

    def missing(self, page: int) -> bool:
        self.asked.append(page)
        return self.at_once


class PagedGuest(Guest):
    """vCPUs in 32-bit mode with paging, memory mapped one to one, whose RAM has a pager."""

    def __init__(self, count: int = 1) -> None:
        super().__init__(count)
        self.pager = Held()
        self.residency = self.vm.page_memory(self.ram.address, RAM, self.pager)
        for page in (0, DEVICE >> 22, 0x3FB):
            self.put(DIRECTORY + 4 * page, (page << 22 | 0x83).to_bytes(4, "little").hex())
        for number, descriptor in enumerate((0, tables.segment(tables.CODE), tables.segment(tables.DATA))):
            self.put(GDT + 8 * number, descriptor.to_bytes(8, "little").hex())
        for vector, handler in ((14, FAULT), (0xF3, READY), (0x60, TICK)):
            self.put(IDT + 8 * vector, tables.gate(tables.INT, 8, handler).to_bytes(8, "little").hex())
            self.assemble(handler, HANDLERS[handler])
        for vcpu, stack in zip(self.vcpus, STACKS, strict=False):
            self.prepare(vcpu, stack)

    def prepare(self, vcpu: SoftVcpu, stack: int) -> None:
        flat = Segment(limit=0xFFFF_FFFF, selector=0x10, type=3, db=True, g=True)
        sregs = replace(vcpu.get_sregs(), cs=replace(flat, selector=8, type=0xB), ds=flat, es=flat, ss=flat,
                        gdt=DTable(GDT, 23), idt=DTable(IDT, 0x7FF), cr0=0x8000_0031, cr3=DIRECTORY, cr4=0x10)
        vcpu.set_sregs(sregs)
        vcpu.set_mp_state(MpState.RUNNABLE)
        vcpu.set_regs(replace(vcpu.get_regs(), rip=CODE, rsp=stack, rflags=2))
        vcpu.lapic.mmio_write(d.APIC_SPIV, 4, 0x1FF)

    def assemble(self, at: int, source: str) -> None:
        assert self.vm.write_guest(at, assemble(source, at, 32).code)

    def put_out(self, *addresses: int) -> None:
        with self.residency.exclusive() as table:
            for address in addresses:
                table[address >> 12] = 0

    def let_in(self, address: int) -> None:
        self.residency.arrived(address >> 12)

    def enable(self, value: int = TAKES) -> None:
        for vcpu in self.vcpus:
            vcpu.set_msrs({MSR_KVM_ASYNC_PF_INT: 0xF3, MSR_KVM_ASYNC_PF_EN: value})


@pytest.fixture
def guest() -> Iterator[PagedGuest]:
    made = PagedGuest()
    yield made
    made.close()


def running(vcpu: SoftVcpu) -> tuple[threading.Thread, list[Exit]]:
    exits: list[Exit] = []
    thread = threading.Thread(target=lambda: exits.append(vcpu.run()), daemon=True)
    thread.start()
    return thread, exits


def wait_for(holds: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.001)


def out(port: int, value: int) -> IoExit:
    return IoExit(port, 4, True, value)


READ_DATA = f"mov eax, [{DATA}]\n out 0x99, eax"


def test_a_guest_is_told_that_a_page_is_out_and_when_it_is_ready(guest: PagedGuest) -> None:
    (vcpu,) = guest.vcpus
    guest.assemble(CODE, f"sti\n nop\n mov byte [{FLAG}], 0\n" + READ_DATA)
    guest.put(DATA, "78563412")
    guest.put_out(DATA)
    guest.enable(TAKES | SEND_ALWAYS)
    assert vcpu.run() == out(0x92, WAKE_ALL), "who waited before it was switched on is woken"
    first = vcpu.run()
    assert isinstance(first, IoExit) and first.port == 0x90 and first.data, "a token in CR2"
    assert vcpu.run() == out(0x91, 1) and guest.pager.asked == [DATA >> 12]
    assert first.data & 0xFFF == vcpu.apic_id and first.data >> 12
    guest.let_in(DATA)
    assert vcpu.run() == out(0x92, first.data)
    assert vcpu.run() == out(0x99, 0x1234_5678), "the instruction was executed again"
    assert guest.vm.read_guest(RECORD, 8) == bytes(8)
    assert vcpu.statistics()["pages told to be out"] == 1


def test_a_transaction_that_meets_a_page_that_is_out(guest: PagedGuest) -> None:
    """It aborts, the page comes, and trying again is enough."""
    (vcpu,) = guest.vcpus
    guest.assemble(CODE, f"mov ecx, -1\nagain: inc ecx\nxbegin again\nmov dword [{FLAG}], 5\nmov eax, [{DATA}]\nxend\n"
                   "out 0x99, eax\nmov eax, ecx\nout 0x98, eax")
    guest.put(DATA, "78563412")
    guest.put_out(DATA)
    thread, exits = running(vcpu)
    wait_for(lambda: guest.pager.asked)
    assert guest.vm.read_guest(FLAG, 4) == bytes(4)
    guest.let_in(DATA)
    thread.join(10)
    assert exits == [out(0x99, 0x1234_5678)] and vcpu.run() == out(0x98, 1)


@pytest.mark.parametrize("value", [0, TAKES, RECORD | ENABLED | SEND_ALWAYS])
def test_a_guest_that_takes_none_there_waits_but_for_interrupts(guest: PagedGuest, value: int) -> None:
    """Not switched on; not for code at CPL 0; not by interrupt, which is the only way."""
    (vcpu,) = guest.vcpus
    guest.assemble(CODE, "sti\n nop\n nop\n" + READ_DATA)
    guest.put(DATA, "07000000")
    guest.put_out(DATA)
    guest.enable(value)
    if value == TAKES:
        assert vcpu.run() == out(0x92, WAKE_ALL)
    thread, exits = running(vcpu)
    wait_for(lambda: guest.pager.asked)
    vcpu.lapic.deliver(d.DM_FIXED, 0x60)
    thread.join(10)
    assert exits == [out(0x93, 0)], "an interrupt is served while the page is out"
    thread, exits = running(vcpu)
    time.sleep(0.02)
    assert not exits and guest.pager.asked == [DATA >> 12]
    guest.let_in(DATA)
    thread.join(10)
    assert exits == [out(0x99, 7)] and vcpu.statistics()["pages told to be out"] == 0


def test_with_interrupts_off_nothing_happens_until_the_page_is_in(guest: PagedGuest) -> None:
    (vcpu,) = guest.vcpus
    guest.assemble(CODE, READ_DATA)
    guest.put_out(DATA)
    guest.enable(TAKES | SEND_ALWAYS)
    thread, exits = running(vcpu)
    wait_for(lambda: guest.pager.asked)
    vcpu.lapic.deliver(d.DM_FIXED, 0x60)
    time.sleep(0.02)
    assert not exits
    vcpu.kick()
    thread.join(10)
    assert exits == [IntrExit()], "its thread can be had"
    thread, exits = running(vcpu)
    time.sleep(0.02)
    guest.let_in(DATA)
    thread.join(10)
    assert exits == [out(0x99, 0)]


def test_a_page_that_takes_no_waiting_is_used_at_once(guest: PagedGuest) -> None:
    guest.assemble(CODE, "sti\n nop\n" + READ_DATA)
    guest.put_out(DATA)
    guest.pager.at_once = True
    assert guest.vcpus[0].run() == out(0x99, 0)
    assert guest.residency.is_present(DATA >> 12)


def test_two_processors_ask_for_a_page_once() -> None:
    guest = PagedGuest(2)
    try:
        guest.assemble(CODE, READ_DATA)
        guest.put(DATA, "09000000")
        guest.put_out(DATA, CODE)
        runs = [running(vcpu) for vcpu in guest.vcpus]
        for address in (CODE, DATA):
            wait_for(partial(guest.pager.asked.__contains__, address >> 12))
            time.sleep(0.02)
            guest.let_in(address)
        for thread, _ in runs:
            thread.join(10)
        assert [exits for _, exits in runs] == [[out(0x99, 9)]] * 2
        assert guest.pager.asked == [CODE >> 12, DATA >> 12]
    finally:
        guest.close()


@pytest.mark.parametrize("page", [IDT, GDT, STACKS[0] - 4, TICK])
def test_the_delivery_of_an_interrupt_meets_a_page_that_is_out(guest: PagedGuest, page: int) -> None:
    (vcpu,) = guest.vcpus
    guest.assemble(CODE, "sti\nagain: jmp again")
    guest.enable(TAKES | SEND_ALWAYS)
    assert vcpu.run() == out(0x92, WAKE_ALL)
    guest.put_out(page)
    vcpu.lapic.deliver(d.DM_FIXED, 0x60)
    thread, exits = running(vcpu)
    wait_for(lambda: guest.pager.asked)
    if page == TICK:  # its first instruction is not fetched, with interrupts off
        assert guest.vm.read_guest(STACKS[0] - 8, 4) == bytes((8, 0, 0, 0))
    guest.let_in(page)
    thread.join(10)
    assert exits == [out(0x93, 0)] and guest.pager.asked == [page >> 12]


def test_an_answer_of_a_device_is_kept_while_the_page_comes(guest: PagedGuest) -> None:
    (vcpu,) = guest.vcpus
    guest.assemble(CODE, f"sti\n nop\n mov esi, {DEVICE}\n mov edi, {DATA}\n movsd\n" + READ_DATA)
    guest.put_out(DATA)
    guest.enable(TAKES | SEND_ALWAYS)
    assert vcpu.run() == out(0x92, WAKE_ALL)
    first = vcpu.run()
    if isinstance(first, IoExit):  # the page came first: the store is probed before the device is asked
        assert first.port == 0x90
        vcpu.run()
        guest.let_in(DATA)
        vcpu.run()
        first = vcpu.run()
    assert first == MmioExit(DEVICE, 4, False, None)
    vcpu.complete_read(0xABCD)
    thread, exits = running(vcpu)
    time.sleep(0.01)
    guest.let_in(DATA)
    thread.join(10)
    assert exits == [out(0x99, 0xABCD)], "the device was read once"


def test_a_switch_of_tasks_or_stacks_waits_in_one_piece(guest: PagedGuest) -> None:
    """MOV SS and the page behind it: no interrupt comes between the two."""
    (vcpu,) = guest.vcpus
    guest.assemble(CODE, f"sti\n nop\n mov ax, 0x10\n mov ss, ax\n mov esp, [{DATA}]\n out 0x99, eax")
    guest.put(DATA, STACKS[1].to_bytes(4, "little").hex())
    guest.put_out(DATA)
    thread, exits = running(vcpu)
    wait_for(lambda: guest.pager.asked)
    vcpu.lapic.deliver(d.DM_FIXED, 0x60)
    time.sleep(0.02)
    assert not exits
    guest.let_in(DATA)
    thread.join(10)
    assert exits == [out(0x93, 0x10)] and vcpu.get_regs().rsp == STACKS[1] - 12


def test_writes_of_the_host_to_a_page_that_is_out_stay(guest: PagedGuest) -> None:
    guest.assemble(CODE, READ_DATA)
    guest.put_out(DATA)
    guest.put(DATA, "2a000000")
    assert guest.vm.read_guest(DATA, 4) == b"\x2a\0\0\0"
    guest.pager.at_once = True
    assert guest.vcpus[0].run() == out(0x99, 0x2A)


def test_paged_memory_and_slots_match(guest: PagedGuest) -> None:
    more = Array(RAM)
    for hva, size in ((guest.ram.address, 4096), (more.address, 100), (more.address + 1, 4096)):
        with pytest.raises(InvalidRequestError):
            guest.vm.page_memory(hva, size, guest.pager)
    guest.vm.page_memory(more.address + 0x2000, 0x2000, guest.pager)
    with pytest.raises(InvalidRequestError, match="in part"):
        guest.vm.set_user_memory_region(7, 0x1000_0000, 0x3000, more.address)
    guest.vm.set_user_memory_region(7, 0x1000_0000, 0x1000, more.address + 0x3000)
    assert guest.vm.residency_at(more.address) is None
    residency, page = guest.vm.residency_at(more.address + 0x3FFF) or (None, None)
    assert residency is not None and page == 1


# --- the registers, and what a guest may do with them


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


@pytest.mark.parametrize("seed", range(2))
def test_fuzz_pages_go_out_under_running_processors(seed: int) -> None:
    """Two processors count in sixteen pages, with and without LOCK; pages of data, code and tables come and go."""
    rng, guest = random.Random(seed), PagedGuest(2)
    try:
        guest.assemble(CODE, f"""
            sti
            xor ecx, ecx
        again: mov ebx, ecx
            and ebx, 15
            shl ebx, 12
            lock inc dword [ebx+{DATA}]
            inc dword [ebx+esi+{DATA}]
            inc ecx
            cmp byte [{FLAG}], 0
            je again
            cli
            mov eax, ecx
            out 0x99, eax""")
        guest.assemble(FAULT, f"""
            push eax
            mov dword [esi+{RECORD - 64}], 0
            pop eax
            add esp, 4
            iretd""")
        guest.assemble(READY, f"""
            push eax
            push ecx
            push edx
            mov dword [esi+{RECORD - 60}], 0
            mov ecx, {MSR_KVM_ASYNC_PF_ACK}
            mov eax, 1
            xor edx, edx
            wrmsr
            mov dword [0xFEE000B0], 0
            pop edx
            pop ecx
            pop eax
            iretd""")
        for vcpu in guest.vcpus:
            place = 64 * (vcpu.apic_id + 1)
            vcpu.set_regs(replace(vcpu.get_regs(), rsi=place))
            vcpu.set_msrs({MSR_KVM_ASYNC_PF_INT: 0xF3, MSR_KVM_ASYNC_PF_EN: (RECORD - 64 + place) | 0xB})
        movable = [CODE, FAULT, READY, *(DATA + (n << 12) for n in range(16)), STACKS[0] - 4, STACKS[1] - 4, IDT, FLAG]
        runs = [running(vcpu) for vcpu in guest.vcpus]
        for _ in range(150):
            guest.put_out(*rng.sample(movable, rng.randrange(1, 6)))
            guest.pager.at_once = rng.random() < 0.3
            time.sleep(rng.random() * 0.002)
            for page in rng.sample(movable, len(movable)):
                guest.let_in(page)
        guest.put(FLAG, "01")
        for thread, _ in runs:
            thread.join(10)
        turns = [exit.data for _, (exit,) in runs if isinstance(exit, IoExit) and exit.data is not None]
        words = [guest.vm.read_guest(DATA + (n << 12), 256) or b"" for n in range(16)]
        counted = [sum(int.from_bytes(word[at:at + 4], "little") for word in words) for at in (0, 64, 128)]
        assert counted == [sum(turns), *turns] and len(turns) == 2
        assert all(state & PAGE_PRESENT for state in guest.residency.table)
        counts = [vcpu.statistics() for vcpu in guest.vcpus]
        assert all(count["pages told to be out"] and count["pages waited for"] for count in counts), counts
    finally:
        guest.close()
