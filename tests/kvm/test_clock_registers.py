"""Registers that read as a function of the clock: native code answers as their devices would, or leaves them to those.

The guest is in real mode; DX has the port, DS:SI and ES:DI lie where there is no memory.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.cpu.clock_registers import ticks
from pellucid.kvm.api import Exit, IoExit, MmioExit
from pellucid.kvm.backends.soft.system import SoftHypervisor
from pellucid.kvm.backends.soft.vcpu import SoftVcpu
from pellucid.kvm.clock import MAX_HZ, ClockValue
from pellucid.kvm.errors import InvalidRequestError
from pellucid.native import u64
from pellucid.records import replace
from pellucid.runtime import VirtualClock
from pellucid.runtime.clock import SteppedClock
from tests.kvm.test_soft_smp import Guest, running_guest
from tests.onlooker import OnLooker

PORT = 0x608
PM_TIMER = ClockValue(3_579_545, 0xFF_FFFF)
FINE = ClockValue(10**9, (1 << 64) - 1)
CODE = 0x1000
DEVICES = 0x20_0000
READ_THEN_OUT = "66ed 66 a30020 e699"   # in eax, dx; mov [0x2000], eax; out 0x99, al
MOVSD = "66a5 e699"


@pytest.fixture
def guest() -> Iterator[Guest]:
    with running_guest(2) as made:
        yield made


def place(guest: Guest, code: str, number: int = 0) -> SoftVcpu:
    """Have a vCPU execute `code` next, with 16-bit segments over the devices in DS (no: 0) and ES."""
    vcpu = guest.vcpus[number]
    guest.put(CODE, code)
    vcpu._mp_state = guest.vcpus[0].get_mp_state()
    sregs = vcpu.get_sregs()
    vcpu.set_sregs(replace(sregs, cs=replace(sregs.cs, base=0, selector=0)))
    vcpu.set_regs(replace(vcpu.get_regs(), rip=CODE, rdx=PORT, rsi=0, rdi=0x100, rflags=2))
    return vcpu


def see_devices(vcpu: SoftVcpu, base: int = DEVICES) -> None:
    sregs = vcpu.get_sregs()
    vcpu.set_sregs(replace(sregs, ds=replace(sregs.ds, base=base), es=replace(sregs.es, base=base)))


def read_in_guest(guest: Guest, vcpu: SoftVcpu) -> int:
    assert vcpu.run() == IoExit(0x99, 1, True, vcpu.get_regs().rax & 0xFF)
    content = guest.vm.read_guest(0x2000, 4)
    assert content is not None
    return int.from_bytes(content, "little")


@given(st.integers(0, 1 << 62), st.integers(1, MAX_HZ - 1))
def test_ticks_are_exact(now: int, hz: int) -> None:
    assert int(ticks(u64(now), u64(hz))) == now * hz // 10**9 % (1 << 64)


def test_native_answers_are_those_of_the_device_and_never_go_back(guest: Guest) -> None:
    guest.vm.clock_register(PORT, 4, PM_TIMER, pio=True)
    last = PM_TIMER.at(guest.clock.now_ns())
    for turn in range(300):
        value = read_in_guest(guest, place(guest, READ_THEN_OUT, turn % 2))
        after = PM_TIMER.at(guest.clock.now_ns())
        assert last <= value <= after
        last = after


def test_two_processors_never_see_time_go_back(guest: Guest) -> None:
    """Each takes turns at a lock in RAM, under which it reads the counter and compares with what was read before."""
    guest.vm.clock_register(PORT, 4, ClockValue(10**9, 0x7FFF_FFFF), pio=True)
    # again: mov al, 1; xchg [2100], al; test al, al; jnz again; in eax, dx; cmp eax, [2000]; jb bad
    # mov [2000], eax; mov byte [2100], 0; loop again (ecx); out 0x99, al   bad: out 0x98, al
    code = ("b001 8606 0021 84c0 75f6 66ed 66 3b06 0020 7210 66 a3 0020 c606 0021 00 66 49 75e0 e699 f4 e698 f4")
    exits: dict[int, Exit] = {}

    def run(number: int) -> None:
        exits[number] = guest.vcpus[number].run()

    for number in range(2):
        vcpu = place(guest, code, number)
        vcpu.set_regs(replace(vcpu.get_regs(), rcx=20_000))
    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {exit.port for exit in exits.values() if isinstance(exit, IoExit)} == {0x99}


def test_a_stopped_clock_is_left_to_the_device_and_goes_on_from_where_it_stood(guest: Guest) -> None:
    guest.vm.clock_register(PORT, 4, FINE, pio=True)
    first = read_in_guest(guest, place(guest, READ_THEN_OUT))
    guest.clock.stop()
    stood = guest.clock.now_ns()
    assert place(guest, READ_THEN_OUT).run() == IoExit(PORT, 4, False, None)
    guest.vcpus[0].complete_read(stood)
    assert read_in_guest(guest, guest.vcpus[0]) == stood & 0xFFFF_FFFF
    guest.clock.start()
    again = read_in_guest(guest, place(guest, READ_THEN_OUT))
    assert first <= stood <= again <= guest.clock.now_ns()


def test_what_is_not_such_a_read_leaves(guest: Guest) -> None:
    guest.vm.clock_register(PORT, 4, FINE, pio=True)
    assert place(guest, "ed").run() == IoExit(PORT, 2, False, None)
    guest.vcpus[0].complete_read(0)
    assert place(guest, "66ef").run() == IoExit(PORT, 4, True, guest.vcpus[0].get_regs().rax & 0xFFFF_FFFF)
    guest.vm.clock_register(PORT, 4, FINE, pio=True, assign=False)
    assert place(guest, READ_THEN_OUT).run() == IoExit(PORT, 4, False, None)
    with pytest.raises(InvalidRequestError):
        guest.vm.clock_register(PORT, 4, FINE, pio=True, assign=False)


def test_an_instruction_that_leaves_later_keeps_what_it_read(guest: Guest) -> None:
    """MOVSD from a clock register to a device: the store leaves, and the load is not made again."""
    guest.vm.clock_register(DEVICES, 4, FINE)
    vcpu = place(guest, MOVSD)
    see_devices(vcpu)
    before = guest.clock.now_ns()
    exit = vcpu.run()
    after = guest.clock.now_ns()
    assert isinstance(exit, MmioExit) and exit.is_write and (exit.gpa, exit.size) == (DEVICES + 0x100, 4)
    assert exit.data is not None and before & 0xFFFF_FFFF <= exit.data <= after & 0xFFFF_FFFF
    assert vcpu.run() == IoExit(0x99, 1, True, vcpu.get_regs().rax & 0xFF)
    assert (vcpu.get_regs().rsi, vcpu.get_regs().rdi) == (4, 0x104)


def test_an_instruction_that_left_before_gets_its_answers_in_order(guest: Guest) -> None:
    """A load across two pages is made byte by byte: three bytes of a device, one of the clock's."""
    guest.vm.clock_register(DEVICES + 0x1000, 1, ClockValue(1, 0, 0))   # always 0
    vcpu = place(guest, "66 8b04 e699")    # mov eax, [si]
    see_devices(vcpu)
    vcpu.set_regs(replace(vcpu.get_regs(), rsi=0xFFD))
    for offset, byte in ((0xFFD, 0x11), (0xFFE, 0x22), (0xFFF, 0x33)):
        assert vcpu.run() == MmioExit(DEVICES + offset, 1, False, None)
        vcpu.complete_read(byte)
    assert isinstance(vcpu.run(), IoExit)
    assert vcpu.get_regs().rax & 0xFFFF_FFFF == 0x00_33_22_11


def test_interrupt_chips_answer_first(guest: Guest) -> None:
    guest.vm.clock_register(0x20, 1, ClockValue(1, 0xFF, 0x5A), pio=True)
    guest.vm.clock_register(0xFEE0_0080, 4, ClockValue(1, 0xFF, 0x5A))
    guest.vm.clock_register(0xFEC0_0000, 4, ClockValue(1, 0xFF, 0x5A))
    vcpu = place(guest, "e420 a20020 e699")   # in al, 0x20; mov [0x2000], al
    assert isinstance(vcpu.run(), IoExit) and guest.vm.read_guest(0x2000, 1) == b"\0"
    for base, code in ((0xFEE0_0080, "66a10000 e699"), (0xFEC0_0000, "66a10000 e699")):
        vcpu = place(guest, code)
        see_devices(vcpu, base)
        assert isinstance(vcpu.run(), IoExit) and vcpu.get_regs().rax & 0xFFFF_FFFF == 0


def test_nothing_is_hidden_from_who_looks_on(guest: Guest) -> None:
    guest.vm.clock_register(PORT, 4, FINE, pio=True)
    vcpu = place(guest, READ_THEN_OUT)
    vcpu.set_log(OnLooker())
    assert vcpu.run() == IoExit(PORT, 4, False, None)


def test_a_clock_that_is_stepped_is_not_the_hosts() -> None:
    clock = SteppedClock()
    vm = SoftHypervisor(clock).create_vm()
    vm.create_irqchip()
    vm.clock_register(PORT, 4, FINE, pio=True)
    clock.start()
    clock.step_to(1000)
    assert not vm.clock_registers._table.running
    vm.close()


def test_more_registers_than_there_is_room_for_are_left_to_their_devices() -> None:
    vm = SoftHypervisor(VirtualClock()).create_vm()
    for port in range(40):
        vm.clock_register(port * 4, 4, FINE, pio=True)
    assert vm.clock_registers._table.count == 16
    for port in range(40):
        vm.clock_register(port * 4, 4, FINE, pio=True, assign=False)
    assert vm.clock_registers._table.count == 0
