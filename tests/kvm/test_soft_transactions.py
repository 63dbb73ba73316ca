"""Transactions on vCPUs: isolated from each other, and switched off by IA32_TSX_CTRL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pellucid.kvm.api import IoExit
from pellucid.kvm.backends.soft.vcpu import SoftVcpu
from pellucid.kvm.errors import MsrAccessError
from pellucid.records import replace
from tests.cpu.guests.asm import assemble

from .test_soft_msrs import be
from .test_soft_smp import Guest, run_both

IA32_ARCH_CAPABILITIES, IA32_TSX_CTRL, TSX_CTRL = 0x10A, 0x122, 1 << 7
RTM_DISABLE, CPUID_CLEAR = 1, 2
CODE, FIRST, SECOND, THIRD, TURN = 0x7000, 0x4000, 0x5040, 0x6080, 0x3000
DONE = IoExit(0x99, 1, True, 7)
COUNT = 60
FINISH = "mov al, 7\nout 0x99, al\n"
TOGETHER = f"lock inc word [{TURN}]\nwait: pause\ncmp word [{TURN}], 2\njb wait\n"
LONG = "mov cx, 600\n{0}: loop {0}\n"
"""What a transaction spends most of its time with, so that nobody could miss that it is under way."""
WRITER = f"""
    mov dx, {COUNT}
    again: xbegin again
    mov ax, [{FIRST}]
    {LONG.format("one")}
    inc ax
    mov [{FIRST}], ax
    {LONG.format("three")}
    inc dword [{SECOND}]
    xend
    xbegin undone
    inc word [{FIRST}]
    inc word [{THIRD}]
    {LONG.format("two")}
    xabort 1
    undone: dec dx
    jnz again
"""


def numbers(guest: Guest) -> list[int]:
    found = [guest.vm.read_guest(at, 2) for at in (FIRST, SECOND, THIRD)]
    return [int.from_bytes(raw or b"", "little") for raw in found]


def code(guest: Guest, source: str) -> None:
    """16-bit code for both vCPUs, who start at 0x700:0."""
    guest.put(CODE, assemble(source, 0, 16).code.hex())


@pytest.fixture
def guest() -> Iterator[Guest]:
    made = Guest(2)
    yield made
    made.close()


def test_two_that_count_in_transactions(guest: Guest) -> None:
    """No addition is lost, and what is undone is the own."""
    code(guest, TOGETHER + WRITER + FINISH)
    assert run_both(guest) == [DONE] * 2
    assert numbers(guest) == [2 * COUNT, 2 * COUNT, 0]


def test_nobody_sees_half_of_one_or_one_that_aborts(guest: Guest) -> None:
    """One vCPU's transactions; the other, outside of any, reads their numbers, the first one first, and adds to the
    third, to which only transactions that abort add besides.
    """
    reader = f"""
        look: mov ax, [{FIRST}]
        cmp word [{SECOND}], ax
        jb wrong
        cmp ax, {COUNT}
        ja wrong
        cmp word [{THIRD}], bx
        jne wrong
        lock inc word [{THIRD}]
        inc bx
        cmp word [{SECOND}], {COUNT}
        jne look
    """
    begin = f"mov bx, 1\nlock xadd [{TURN}], bx\nwait: pause\ncmp word [{TURN}], 2\njb wait\ntest bx, bx\njz writer\n"
    wrong = "wrong: mov al, 8\nout 0x99, al\n"
    code(guest, f"{begin}xor bx, bx\n{reader}{FINISH}{wrong}writer: {WRITER}{FINISH}")
    assert run_both(guest) == [DONE] * 2
    first, second, _ = numbers(guest)
    assert first == second == COUNT


def test_a_transaction_that_does_not_end_holds_nobody_for_long(guest: Guest) -> None:
    """With interrupts off, on one vCPU, again and again, until the other has stored."""
    code(guest, f"""
        mov ax, 1
        lock xadd [{TURN}], ax
        test ax, ax
        jnz other
        mov cx, 3
        again: xbegin missed
        forever: jmp forever
        missed: cmp word [{FIRST}], 0
        je again
        {FINISH}
        other: mov word [{FIRST}], 1
        {FINISH}""")
    assert run_both(guest) == [DONE] * 2


def test_tsx_ctrl(guest: Guest) -> None:
    """RTM_DISABLE makes each XBEGIN abort; CPUID_CLEAR hides the features, and nothing else."""
    vcpu = be(guest.vcpus[0], "max")
    assert vcpu.msrs.read(IA32_ARCH_CAPABILITIES) & TSX_CTRL
    with pytest.raises(MsrAccessError):
        vcpu.msrs.write(IA32_TSX_CTRL, 4)
    code(guest, "mov bx, 9\nxbegin after\nmov bl, 1\nxend\nafter: mov cl, bl\nmov eax, 7\nxor ecx, ecx\nmov si, bx\n"
         "cpuid\nmov eax, ebx\nand eax, 0x810\nout 0x99, eax\nmov ax, si\nout 0x99, al")
    for value, features, committed in ((0, 0x810, 1), (CPUID_CLEAR, 0, 1), (RTM_DISABLE, 0x810, 9), (3, 0, 9)):
        vcpu.msrs.write(IA32_TSX_CTRL, value)
        assert vcpu.msrs.read(IA32_TSX_CTRL) == value
        enter(vcpu)
        assert vcpu.run() == IoExit(0x99, 4, True, features)
        assert vcpu.run() == IoExit(0x99, 1, True, committed)
    vcpu.msrs.reset()
    assert vcpu.msrs.read(IA32_TSX_CTRL) == 0 == vcpu.state.tsx_ctrl


def enter(vcpu: SoftVcpu) -> None:
    sregs = vcpu.get_sregs()
    vcpu.set_sregs(replace(sregs, cs=replace(sregs.cs, base=CODE, selector=CODE >> 4)))
    vcpu.set_regs(replace(vcpu.get_regs(), rip=0))


@pytest.mark.parametrize("changes", [{"rtm": False}, {"arch-capabilities": False}])
def test_no_such_register(guest: Guest, changes: dict[str, bool]) -> None:
    vcpu = be(guest.vcpus[0], "max", **changes)
    for access in (lambda: vcpu.msrs.read(IA32_TSX_CTRL), lambda: vcpu.msrs.write(IA32_TSX_CTRL, 0)):
        with pytest.raises(MsrAccessError):
            access()
    if "rtm" in changes:
        assert not vcpu.msrs.read(IA32_ARCH_CAPABILITIES) & TSX_CTRL
