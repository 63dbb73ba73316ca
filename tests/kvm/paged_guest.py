"""A guest whose RAM has a pager, and what its tests share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from pellucid.kvm.api import Exit, IoExit, MpState
from pellucid.kvm.async_pf import (
    DELIVERY_AS_INT,
    ENABLED,
    MSR_KVM_ASYNC_PF_ACK,
    MSR_KVM_ASYNC_PF_EN,
    MSR_KVM_ASYNC_PF_INT,
)
from pellucid.kvm.backends.soft.vcpu import SoftVcpu
from pellucid.kvm.irqchip import apicdef as d
from pellucid.kvm.regs import DTable, Segment
from pellucid.records import replace
from tests.cpu.guests import tables
from tests.cpu.guests.asm import assemble

from .test_soft_smp import RAM, Guest

DIRECTORY, GDT, IDT, RECORD, FLAG = 0x1000, 0x2000, 0x3000, 0x4040, 0x4000
CODE, FAULT, READY, TICK, DATA = 0x7000, 0x8000, 0x9000, 0xA000, 0x5_0000
STACKS = (0x2_0000, 0x3_0000)
DEVICE = 0x20_0000
TAKES = RECORD | ENABLED | DELIVERY_AS_INT


def ready_handler(record: int | str, told: str = "") -> str:
    """The handler of 'ready': the token in EAX, `told`, and the record is free again."""
    return f"""
        push eax
        push ecx
        push edx
        mov eax, [{record}+4]
        {told}
        mov dword [{record}+4], 0
        mov ecx, {MSR_KVM_ASYNC_PF_ACK}
        mov eax, 1
        xor edx, edx
        wrmsr
        mov dword [0xFEE000B0], 0
        pop edx
        pop ecx
        pop eax
        iretd"""


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
    READY: ready_handler(RECORD, f"out 0x92, eax\n mov byte [{FLAG}], 1"),
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
