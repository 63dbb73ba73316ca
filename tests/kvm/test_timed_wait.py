"""TPAUSE, UMWAIT and MWAIT of a soft vCPU: its thread sleeps; deadline, store, interrupt or kick end it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from pellucid.engine.arrays import Array
from pellucid.kvm.api import IntrExit, IoExit
from pellucid.kvm.backends.soft.system import SoftHypervisor, SoftVm
from pellucid.records import replace
from pellucid.runtime import VirtualClock

LINE = 0x8000
FAR = 1 << 62
TPAUSE, UMONITOR_BX, UMWAIT = "660faef1", "f30faef3", "f20faef1"  # tpause ecx; umonitor bx; umwait ecx
MONITOR_BX, MWAIT = "89d831d20f01c8", "0f01c9"  # mov ax, bx; xor dx, dx; monitor; mwait
OUT = "e680"  # out 0x80, al: an exit that shows that the wait is over


@pytest.fixture
def vm() -> Iterator[SoftVm]:
    clock = VirtualClock()
    clock.start()
    made = SoftHypervisor(clock).create_vm()
    made.create_irqchip()
    ram = Array(0x10000)
    made.set_user_memory_region(0, 0, 0x10000, ram.address)
    made.ram = ram  # type: ignore[attr-defined]
    made.create_vcpu(0)
    yield made
    made.close()
    clock.close()


def start(vm: SoftVm, code: str, deadline: int) -> None:
    """Real mode: the code at 0x1000, EDX:EAX the deadline, ECX 0."""
    vm.write_guest(0x1000, bytes.fromhex(code))
    vcpu = vm.vcpus[0]
    sregs, regs = vcpu.get_sregs(), vcpu.get_regs()
    vcpu.set_sregs(replace(sregs, cs=replace(sregs.cs, base=0, selector=0)))
    vcpu.set_regs(replace(regs, rip=0x1000, rax=deadline & 0xFFFF_FFFF, rdx=deadline >> 32, rcx=0, rbx=LINE,
                          rsp=0x7000))


def timed(vm: SoftVm, during: Callable[[], None] | None = None) -> tuple[object, float, float]:
    """Run to an exit, with something happening after 50 ms: the exit, seconds, and host CPU seconds of the thread."""
    timer = threading.Timer(0.05, during or (lambda: None))
    timer.start()
    began, used = time.monotonic(), time.thread_time()
    exit = vm.vcpus[0].run()
    took, burnt = time.monotonic() - began, time.thread_time() - used
    timer.join()
    return exit, took, burnt


def test_tpause_sleeps_to_its_deadline(vm: SoftVm) -> None:
    start(vm, TPAUSE + OUT, vm.vcpus[0].guest_tsc() + vm.tsc_hz // 5)
    _, took, burnt = timed(vm)
    assert 0.1 < took < 2 and burnt < 0.1
    assert vm.vcpus[0].get_regs().rflags & 0x8D5 == 0


def test_the_systems_limit_ends_it_with_carry(vm: SoftVm) -> None:
    vm.vcpus[0].msrs.write(0xE1, vm.tsc_hz // 10 & 0xFFFF_FFFC)
    start(vm, TPAUSE + OUT, FAR)
    _, took, _ = timed(vm)
    assert 0.05 < took < 2
    assert vm.vcpus[0].get_regs().rflags & 0x8D5 == 1


def test_a_store_to_the_line_ends_umwait(vm: SoftVm) -> None:
    start(vm, UMONITOR_BX + UMWAIT + OUT, FAR)
    _, took, burnt = timed(vm, lambda: vm.write_guest(LINE + 63, b"\1"))
    assert 0.04 < took < 2 and burnt < 0.5


@pytest.mark.parametrize("code", [TPAUSE, UMONITOR_BX + UMWAIT])
def test_a_kick_ends_the_run_and_the_wait(vm: SoftVm, code: str) -> None:
    start(vm, code + OUT, FAR)
    exit, took, _ = timed(vm, vm.vcpus[0].kick)
    assert isinstance(exit, IntrExit) and 0.04 < took < 2


@pytest.mark.parametrize("code", [TPAUSE, UMONITOR_BX + UMWAIT])
def test_an_interrupt_comes_behind_the_instruction(vm: SoftVm, code: str) -> None:
    start(vm, code + OUT, FAR)
    vm.write_guest(2 * 4, (0x2000).to_bytes(4, "little"))
    vm.write_guest(0x2000, bytes.fromhex("e681"))
    _, took, _ = timed(vm, vm.vcpus[0].nmi)
    regs = vm.vcpus[0].get_regs()
    saved = vm.read_guest(regs.rsp & 0xFFFF, 2)
    assert took < 2 and saved == (0x1000 + len(bytes.fromhex(code))).to_bytes(2, "little")


def test_a_store_to_the_line_ends_mwait(vm: SoftVm) -> None:
    start(vm, MONITOR_BX + MWAIT + OUT, 0)
    exit, took, burnt = timed(vm, lambda: vm.write_guest(LINE + 63, b"\1"))
    assert isinstance(exit, IoExit) and 0.04 < took < 2 and burnt < 0.5


def test_mwait_burns_no_host_time(vm: SoftVm) -> None:
    start(vm, MONITOR_BX + MWAIT + OUT, 0)

    def later() -> None:
        time.sleep(0.5)
        vm.write_guest(LINE, b"\1")

    _, took, burnt = timed(vm, later)
    assert took > 0.5 and burnt < took / 4


def test_a_kick_leaves_mwait_to_be_executed_again(vm: SoftVm) -> None:
    start(vm, MONITOR_BX + MWAIT + OUT, 0)
    exit, took, _ = timed(vm, vm.vcpus[0].kick)
    assert isinstance(exit, IntrExit) and 0.04 < took < 2
    assert vm.vcpus[0].get_regs().rip == 0x1000 + len(bytes.fromhex(MONITOR_BX))
    exit, _, _ = timed(vm, lambda: vm.write_guest(LINE, b"\1"))
    assert isinstance(exit, IoExit)


def test_an_nmi_comes_behind_mwait(vm: SoftVm) -> None:
    test_an_interrupt_comes_behind_the_instruction(vm, MONITOR_BX + MWAIT)


@pytest.mark.parametrize(("code", "ends"), [
    (MONITOR_BX + MWAIT, False),                          # RFLAGS.IF is clear
    (MONITOR_BX + "b90100" + MWAIT, True)])               # mov cx, 1
def test_masked_interrupts_end_mwait_where_it_asks(vm: SoftVm, code: str, ends: bool) -> None:
    start(vm, code + OUT, 0)
    vcpu = vm.vcpus[0]
    vcpu.lapic.mmio_write(0xF0, 4, 0x1FF)

    def later() -> None:
        vcpu.lapic.mmio_write(0x300, 4, 0x4_0000 | 0x40)   # to itself
        time.sleep(0.2)
        vm.write_guest(LINE, b"\1")

    exit, took, _ = timed(vm, later)
    assert isinstance(exit, IoExit) and vcpu.lapic.irr
    assert took < 0.2 if ends else took > 0.2


def test_interrupts_end_mwait_behind_sti(vm: SoftVm) -> None:
    start(vm, MONITOR_BX + "fb" + MWAIT + OUT, 0)
    vm.write_guest(0x40 * 4, (0x2000).to_bytes(4, "little"))
    vm.write_guest(0x2000, bytes.fromhex("e681"))
    vcpu = vm.vcpus[0]
    vcpu.lapic.mmio_write(0xF0, 4, 0x1FF)
    exit, _, _ = timed(vm, lambda: vcpu.lapic.mmio_write(0x300, 4, 0x4_0040))
    assert isinstance(exit, IoExit) and exit.port == 0x81
    regs = vcpu.get_regs()
    back = 0x1000 + len(bytes.fromhex(MONITOR_BX + "fb" + MWAIT))
    assert vm.read_guest(regs.rsp & 0xFFFF, 2) == back.to_bytes(2, "little")
