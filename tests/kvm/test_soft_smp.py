"""The soft backend with several vCPUs: started by INIT and SIPI, stopped together, awake only when asked."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import pytest

from pellucid.engine.arrays import Array
from pellucid.kvm.api import KVM_REQ_EVENT, IntrExit, IoExit
from pellucid.kvm.backends.soft.system import SoftHypervisor, SoftVm
from pellucid.kvm.backends.soft.vcpu import SoftVcpu
from pellucid.kvm.errors import InvalidRequestError
from pellucid.kvm.irqchip.apicdef import DM_INIT, DM_STARTUP
from pellucid.kvm.regs import MpState
from pellucid.records import replace
from pellucid.runtime import VirtualClock

RAM = 0x10_0000


class Guest:
    """A VM of `count` vCPUs, in real mode, and its RAM."""

    def __init__(self, count: int) -> None:
        self.clock = VirtualClock()
        self.vm: SoftVm = SoftHypervisor(self.clock).create_vm()
        self.vm.create_irqchip()
        self.ram = Array(RAM)
        self.vm.set_user_memory_region(0, 0, RAM, self.ram.address)
        self.vcpus: list[SoftVcpu] = [self.vm.create_vcpu(n) for n in range(count)]

    def put(self, at: int, code: str) -> None:
        assert self.vm.write_guest(at, bytes.fromhex(code))

    def close(self) -> None:
        self.vm.close()
        self.clock.close()


@contextlib.contextmanager
def running_guest(count: int) -> Iterator[Guest]:
    """A guest whose clock runs."""
    guest = Guest(count)
    guest.clock.start()
    yield guest
    guest.close()


def start(vcpu: SoftVcpu, page: int) -> None:
    vcpu.lapic.deliver(DM_INIT, 0)
    vcpu.request(KVM_REQ_EVENT)
    while vcpu.get_mp_state() is not MpState.INIT_RECEIVED:
        vcpu._serve_requests()
    vcpu.lapic.deliver(DM_STARTUP, page)


def test_an_application_processor_starts_at_the_page_of_the_sipi() -> None:
    guest = Guest(2)
    try:
        guest.put(0x7000, "b007 e699")   # mov al, 7; out 0x99, al
        second = guest.vcpus[1]
        assert second.get_mp_state() is MpState.UNINITIALIZED
        start(second, 7)
        assert second.run() == IoExit(0x99, 1, True, 7)
        assert second.get_mp_state() is MpState.RUNNABLE
        assert second.get_sregs().cs.base == 0x7000
    finally:
        guest.close()


def test_a_processor_that_waits_for_its_sipi_executes_nothing_and_can_be_kicked() -> None:
    guest = Guest(2)
    try:
        guest.vcpus[1].kick()
        assert guest.vcpus[1].run() == IntrExit()
        assert guest.vcpus[1].get_mp_state() is MpState.UNINITIALIZED
    finally:
        guest.close()


def test_slots_change_under_running_processors() -> None:
    guest = Guest(2)
    more = Array(RAM)
    try:
        guest.put(0x7000, "ebfe")        # jmp to itself
        exits: list[object] = []
        for vcpu in guest.vcpus:
            if vcpu.apic_id:
                start(vcpu, 7)
        first = guest.vcpus[0]
        sregs = first.get_sregs()
        sregs.cs = replace(sregs.cs, base=0x7000, selector=0x700)
        first.set_sregs(sregs)
        regs = first.get_regs()
        regs.rip = 0
        first.set_regs(regs)
        threads = [threading.Thread(target=lambda v=v: exits.append(v.run())) for v in guest.vcpus]
        for thread in threads:
            thread.start()
        for _ in range(20):
            guest.vm.set_user_memory_region(1, 0x1000_0000, RAM, more.address)
            guest.vm.set_user_memory_region(1, 0x1000_0000, 0, 0)
        # From outside: the loop becomes `mov al, 7; out 0x99, al`, and both see it.
        guest.put(0x7000, "b007 e699")
        for thread in threads:
            thread.join()
        assert exits == [IoExit(0x99, 1, True, 7)] * 2
    finally:
        guest.close()


def run_both(guest: Guest) -> list[object]:
    """Both vCPUs from 0x700:0 on, each in a thread of its own, to their first exits."""
    exits: list[object] = []
    start(guest.vcpus[1], 7)
    first = guest.vcpus[0]
    sregs = first.get_sregs()
    sregs.cs = replace(sregs.cs, base=0x7000, selector=0x700)
    first.set_sregs(sregs)
    first.set_regs(replace(first.get_regs(), rip=0))
    threads = [threading.Thread(target=lambda v=v: exits.append(v.run())) for v in guest.vcpus]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return exits


@pytest.mark.parametrize("instruction", ["66f0ff06fe1f", "bb0100 66b801000000 66f00fc106fe1f"], ids=["inc", "xadd"])
def test_lock_across_two_pages_is_atomic(instruction: str) -> None:
    """Both add to a number of which each page has a half, and no addition is lost."""
    guest = Guest(2)
    count = 400
    try:
        loop = bytes.fromhex(instruction)
        code = b"\xb9" + count.to_bytes(2, "little") + loop + b"\x49\x75" + bytes([-3 - len(loop) & 0xFF])
        guest.put(0x1FFE, "f0ff0000")
        guest.put(0x7000, (code + bytes.fromhex("b007e699")).hex())
        assert run_both(guest) == [IoExit(0x99, 1, True, 7)] * 2
        assert guest.vm.read_guest(0x1FFE, 4) == (0xFFF0 + 2 * count).to_bytes(4, "little")
    finally:
        guest.close()


def test_halted_processors_use_no_time_of_the_host() -> None:
    """Four vCPUs in HLT, a thread each: their threads' CPU time, which other work on the host does not add to."""
    guest = Guest(4)
    guest.put(0x7000, "f4 ebfd")         # hlt; jmp to it
    for vcpu in guest.vcpus[1:]:
        start(vcpu, 7)
    first = guest.vcpus[0]
    first.set_sregs(replace(first.get_sregs(), cs=replace(first.get_sregs().cs, base=0x7000, selector=0x700)))
    first.set_regs(replace(first.get_regs(), rip=0))
    threads = [threading.Thread(target=v.run) for v in guest.vcpus]
    try:
        for thread in threads:
            thread.start()
        limit = time.monotonic() + 60
        while any(v.get_mp_state() is not MpState.HALTED for v in guest.vcpus) and time.monotonic() < limit:
            time.sleep(0.01)
        assert [v.get_mp_state() for v in guest.vcpus] == [MpState.HALTED] * 4
        time.sleep(0.05)
        clocks = [time.pthread_getcpuclockid(thread.ident or 0) for thread in threads]
        before, begun = [time.clock_gettime(clock) for clock in clocks], time.monotonic()
        time.sleep(0.5)
        used = [time.clock_gettime(clock) - was for clock, was in zip(clocks, before, strict=True)]
        assert all(thread.is_alive() for thread in threads)
        assert max(used) < 0.03 * (time.monotonic() - begun)
    finally:
        for vcpu in guest.vcpus:
            vcpu.kick()
        for thread in threads:
            thread.join()
        guest.close()


def test_an_apic_id_is_given_once() -> None:
    guest = Guest(1)
    try:
        with pytest.raises(InvalidRequestError, match="APIC id 0"):
            guest.vm.create_vcpu(0)
    finally:
        guest.close()
