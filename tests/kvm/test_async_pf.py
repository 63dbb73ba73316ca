"""Guest RAM that may be out: who waits, who is told, and that everybody gets the right bytes in the end."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from functools import partial

import pytest

from pellucid.engine.arrays import Array
from pellucid.kvm.api import IntrExit, IoExit, MmioExit
from pellucid.kvm.async_pf import (
    ENABLED,
    MSR_KVM_ASYNC_PF_EN,
    MSR_KVM_ASYNC_PF_INT,
    SEND_ALWAYS,
    WAKE_ALL,
)
from pellucid.kvm.errors import InvalidRequestError
from pellucid.kvm.irqchip import apicdef as d
from pellucid.kvm.regs import DTable, Segment
from pellucid.kvm.residency import PAGE_PRESENT
from pellucid.records import replace
from tests.cpu.guests import tables

from .paged_guest import (
    CODE,
    DATA,
    DEVICE,
    DIRECTORY,
    FAULT,
    FLAG,
    GDT,
    IDT,
    READY,
    RECORD,
    STACKS,
    TAKES,
    TICK,
    PagedGuest,
    out,
    ready_handler,
    running,
    wait_for,
)
from .test_soft_smp import RAM


@pytest.fixture
def guest() -> Iterator[PagedGuest]:
    made = PagedGuest()
    yield made
    made.close()


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


def test_no_interrupt_comes_between_mov_ss_and_a_page_that_is_out(guest: PagedGuest) -> None:
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


@pytest.mark.parametrize("where", [0x6_0000, 0x6_1000])
def test_a_task_switch_waits_in_one_piece(guest: PagedGuest, where: int) -> None:
    """Before the switch a page is waited for; behind it, in the new task's LDT, it is brought in there and then."""
    (vcpu,) = guest.vcpus
    old_task, new_task, ldt = 0x6_2000, 0x6_0000, 0x6_1000
    for number, descriptor in ((3, tables.system_segment(tables.TSS_BUSY, old_task, 0x67)),
                               (4, tables.system_segment(tables.TSS, new_task, 0x67)),
                               (5, tables.system_segment(tables.LDT, ldt, 7))):
        guest.put(GDT + 8 * number, (descriptor & (1 << 64) - 1).to_bytes(8, "little").hex())
    guest.put(ldt, tables.segment(tables.DATA).to_bytes(8, "little").hex())
    for offset, value in ((0x1C, DIRECTORY), (0x20, FAULT), (0x24, 2), (0x38, STACKS[1]), (0x48, 0x10), (0x4C, 8),
                          (0x50, 0x10), (0x54, 4), (0x60, 0x28)):
        guest.put(new_task + offset, value.to_bytes(4, "little").hex())
    guest.assemble(FAULT, "out 0x99, eax")
    guest.assemble(CODE, "jmp 0x20:0")
    vcpu.set_sregs(replace(vcpu.get_sregs(), gdt=DTable(GDT, 47),
                           tr=Segment(base=old_task, limit=0x67, selector=0x18, type=11, s=False)))
    guest.put_out(where)
    thread, exits = running(vcpu)
    if where == new_task:
        wait_for(lambda: guest.pager.asked)
        guest.let_in(where)
    thread.join(10)
    assert exits == [out(0x99, 0)] and vcpu.get_sregs().ds.selector == 4
    assert guest.residency.is_present(where >> 12) == (where == new_task)


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
        guest.assemble(READY, ready_handler(f"esi+{RECORD - 64}"))
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
