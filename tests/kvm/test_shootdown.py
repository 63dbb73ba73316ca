"""A TLB shootdown between two vCPUs that run at the same time, interpreted and as compiled regions.

The first maps a page to its other frame, asks the second by an IPI to forget the old translation, waits for the
answer, and then fills the old frame with poison. A processor that used a translation from before its answer reads it
(SDM vol. 3, 4.10.5: until INVLPG it may use the old one; behind it, it may not).
"""

from __future__ import annotations

import threading
import time

import pytest

from pellucid.cli.bench.asm import assemble
from pellucid.engine.arrays import Array
from pellucid.kvm.api import Exit, IntrExit, IoExit, MpState
from pellucid.kvm.backends.soft.system import SoftHypervisor, SoftVm
from pellucid.records import replace
from pellucid.runtime import VirtualClock
from tests.engine.code import compile_block

RAM = 0x20000
FIRST, SECOND, HANDLER, GDT, IDT, STACKS = 0x1000, 0x2000, 0x3000, 0x500, 0x800, 0x7000
ACK, STOP, READY = 0x6000, 0x6040, 0x6080
DIRECTORY, TABLE, WINDOW_TABLE, FRAMES = 0x8000, 0x9000, 0xA000, (0x10000, 0x11000)
WINDOW = 0x40_5000
"""The linear address of the page that moves; no page that is used besides shares its place in a TLB."""
ENTRY = WINDOW_TABLE + 4 * 5
APIC = 0xFEE0_0000
VECTOR, PORT, POISON, ROUNDS = 0x31, 0x98, 0xBAD, 150
PRESENT_WRITABLE = 3

# EBX is the round. The frame in use is that of its lowest bit.
REMAP = f"""
ready:
    cmp dword [{READY}], 0
    je ready
next:
    inc ebx
    mov esi, ebx
    and esi, 1
    shl esi, 12
    add esi, {FRAMES[0]}
    mov [esi], ebx
    mov eax, esi
    or eax, {PRESENT_WRITABLE}
    mov [{ENTRY}], eax
    invlpg [{WINDOW}]
    mov edi, {APIC}
    mov dword [edi+0x310], 0x01000000
    mov dword [edi+0x300], {0x4000 | VECTOR}
wait:
    cmp [{ACK}], ebx
    jne wait
    xor esi, 0x1000
    mov dword [esi], {POISON}
    mov ecx, 200
work:
    cmp dword [{WINDOW}], ebx
    jne bad
    dec ecx
    jne work
    cmp ebx, {ROUNDS}
    jne next
    mov dword [{STOP}], 1
bad:
    mov eax, ebx
    out {PORT}, eax
    hlt
"""
# It reads all the time: never poison, and never an older round than before.
READ = f"""
    mov dword [{APIC + 0xF0}], 0x1ff
    sti
    mov dword [{READY}], 1
again:
    mov eax, [{WINDOW}]
    cmp eax, ebx
    jb bad
    cmp eax, {POISON}
    je bad
    mov ebx, eax
    inc edx
    cmp dword [{STOP}], 0
    je again
    mov eax, {ROUNDS}
bad:
    out {PORT}, eax
    hlt
"""
# What the IPI asks for: forget, and say so. EBP counts.
FORGET = f"""
    push eax
    push edi
    invlpg [{WINDOW}]
    inc ebp
    mov [{ACK}], ebp
    mov edi, {APIC}
    mov dword [edi+0xb0], 0
    pop edi
    pop eax
    iretd
"""


def descriptor(access: int) -> bytes:
    return (0x00CF_0000_0000_FFFF | access << 40).to_bytes(8, "little")


def entries(vm: SoftVm, at: int, values: dict[int, int]) -> None:
    for index, value in values.items():
        vm.write_guest(at + 4 * index, value.to_bytes(4, "little"))


def make(vm: SoftVm) -> None:
    """Code, tables, and two vCPUs in protected mode with 32-bit paging: RAM as it is, one page of the window."""
    for at, text in ((FIRST, REMAP), (SECOND, READ), (HANDLER, FORGET)):
        vm.write_guest(at, assemble(text, at, bits=32).code)
    vm.write_guest(GDT, bytes(8) + descriptor(0x9B) + descriptor(0x93))
    vm.write_guest(IDT + 8 * VECTOR, (HANDLER | 8 << 16 | 0x8E00 << 32).to_bytes(8, "little"))
    big = 0x80 | PRESENT_WRITABLE
    entries(vm, DIRECTORY, {0: TABLE | 3, WINDOW >> 22: WINDOW_TABLE | 3, APIC >> 22: APIC & ~0x3F_FFFF | big})
    entries(vm, TABLE, {page: page << 12 | 3 for page in range(RAM >> 12)})
    entries(vm, WINDOW_TABLE, {5: FRAMES[0] | 3})
    for n, at in enumerate((FIRST, SECOND)):
        vcpu = vm.create_vcpu(n)
        sregs = vcpu.get_sregs()
        code = replace(sregs.cs, base=0, selector=8, limit=0xFFFF_FFFF, type=11, db=1, g=1)
        data = replace(sregs.ds, base=0, selector=16, limit=0xFFFF_FFFF, type=3, db=1, g=1)
        gdt, idt = replace(sregs.gdt, base=GDT, limit=23), replace(sregs.idt, base=IDT, limit=0x7FF)
        vcpu.set_sregs(replace(sregs, cs=code, ds=data, es=data, ss=data, gdt=gdt, idt=idt, cr3=DIRECTORY, cr4=0x10,
                               cr0=0x8000_0011))
        vcpu.set_regs(replace(vcpu.get_regs(), rip=at, rsp=STACKS + 0x800 * n))
        vcpu.set_mp_state(MpState.RUNNABLE)
        vcpu.processor.hot.close()


def run_both(vm: SoftVm) -> list[tuple[int, Exit]]:
    """What each leaves with before it halts."""
    ends: list[tuple[int, Exit]] = []
    over = threading.Event()

    def body(n: int) -> None:
        while not over.is_set() and len(ends) < 3:  # a broken guest may come back again and again
            exit = vm.vcpus[n].run()
            if exit != IntrExit():
                ends.append((n, exit))

    threads = [threading.Thread(target=body, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    limit = time.monotonic() + 60
    while any(v.get_mp_state() is not MpState.HALTED for v in vm.vcpus) and len(ends) < 3 and time.monotonic() < limit:
        time.sleep(0.005)
    over.set()
    for vcpu, thread in zip(vm.vcpus, threads, strict=True):
        vcpu.kick()
        thread.join()
    return sorted(ends, key=lambda end: end[0])


def begin(vm: SoftVm) -> None:
    """Everything as before the first round."""
    entries(vm, WINDOW_TABLE, {5: FRAMES[0] | 3})
    for at in (ACK, STOP, READY, *FRAMES):
        vm.write_guest(at, bytes(4))
    for n, at in enumerate((FIRST, SECOND)):
        regs = vm.vcpus[n].get_regs()
        vm.vcpus[n].set_regs(replace(regs, rip=at, rbx=0, rbp=0, rdx=0, rsp=STACKS + 0x800 * n, rflags=2))
        vm.vcpus[n].set_mp_state(MpState.RUNNABLE)
        vm.vcpus[n].processor.flush_tlb()


@pytest.mark.parametrize("compiled", [False, True], ids=["interpreted", "compiled"])
def test_nobody_uses_an_old_translation_behind_the_answer(compiled: bool) -> None:
    clock = VirtualClock()
    vm, ram = SoftHypervisor(clock).create_vm(), Array(RAM)
    try:
        vm.create_irqchip()
        vm.set_user_memory_region(0, 0, RAM, ram.address)
        make(vm)
        for turn in range(2 if compiled else 1):
            begin(vm)
            assert run_both(vm) == [(0, IoExit(PORT, 4, True, ROUNDS)), (1, IoExit(PORT, 4, True, ROUNDS))]
            assert vm.vcpus[1].get_regs().rbp == ROUNDS and vm.vcpus[1].get_regs().rdx > 0
            if compiled and not turn:
                compile_loops(vm)
    finally:
        vm.close()
        clock.close()


def compile_loops(vm: SoftVm) -> None:
    for n, (text, at, label) in enumerate(((REMAP, FIRST, "work"), (READ, SECOND, "again"))):
        vcpu = vm.vcpus[n]
        vcpu.set_regs(replace(vcpu.get_regs(), rip=assemble(text, at, bits=32).labels[label]))
        ops = vcpu.processor.current_block()
        assert ops
        compile_block(vcpu.processor, ops)
