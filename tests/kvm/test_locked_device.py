"""LOCK on a device: nothing of another vCPU's comes between the load and the store of one instruction."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from pellucid.engine.arrays import Array
from pellucid.kvm.api import ExclusiveExit, Exit, IoExit, MmioExit, MpState
from pellucid.records import replace
from pellucid.runtime import BigLock, Outcome, VcpuGroup, VcpuThread

from .test_soft_smp import RAM, Guest

CODE, DEVICE, ROUNDS = 0x7000, RAM, 100
LOOP = "b8ffff 8ed8 b9{count:02x}00 {step} e2{back:02x} e699 ebfe"
"""Real mode: mov ax, 0xFFFF; mov ds, ax; mov cx, count; again: step; loop again; out 0x99, al; jmp to itself."""


class Counter:
    """A device with a register of up to 16 bytes, which gives others time between its accesses."""

    def __init__(self) -> None:
        self.content = bytearray(16)
        self.on_write: Callable[[], None] = lambda: None

    def read(self, addr: int, size: int) -> int:
        at = addr - DEVICE
        value = int.from_bytes(self.content[at:at + size], "little")
        time.sleep(0.0002)
        return value

    def read_string(self, addr: int, size: int, count: int) -> bytes:
        raise AssertionError("no string port")

    def write(self, addr: int, size: int, value: int) -> None:
        at = addr - DEVICE
        self.content[at:at + size] = value.to_bytes(size, "little")
        self.on_write()


class Ports:
    """Port 0x99 is written by who is done."""

    def __init__(self) -> None:
        self.done = 0

    def read(self, addr: int, size: int) -> int:
        return 0

    def read_string(self, addr: int, size: int, count: int) -> bytes:
        return bytes(size)

    def write(self, addr: int, size: int, value: int) -> None:
        self.done += 1


class Rig:
    """Two vCPUs on threads of their own, with a device behind RAM."""

    def __init__(self) -> None:
        self.guest = Guest(2)
        self.bql, self.device, self.ports = BigLock(), Counter(), Ports()
        self.group = VcpuGroup(self.bql)
        self.events: list[Exit] = []
        for index, vcpu in enumerate(self.guest.vcpus):
            thread = VcpuThread(vcpu, self.ports, self.device, self.bql, self._on_event, index=index,
                                alone=self.group.exclusive)
            self.group.add(thread)

    def _on_event(self, thread: VcpuThread, outcome: Outcome, exit: Exit) -> None:
        self.events.append(exit)

    def put(self, step: str, count: int = ROUNDS) -> None:
        size = len(bytes.fromhex(step))
        self.guest.put(CODE, LOOP.format(count=count, step=step, back=0x100 - size - 2))
        for vcpu in self.guest.vcpus:
            sregs = vcpu.get_sregs()
            vcpu.set_sregs(replace(sregs, cs=replace(sregs.cs, base=0, selector=0)))
            vcpu.set_regs(replace(vcpu.get_regs(), rip=CODE, rbx=1, rdx=0))
            vcpu.set_mp_state(MpState.RUNNABLE)

    def run(self) -> None:
        """Until both are done."""
        for thread in self.group.threads:
            thread.start()
            thread.resume()
        until = time.monotonic() + 60
        while self.ports.done < 2 and not self.events:
            assert time.monotonic() < until, "it hangs"
            time.sleep(0.01)
        with self.bql:
            self.group.pause_all()

    def close(self) -> None:
        with self.bql:
            self.group.end()
        self.guest.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


@pytest.mark.parametrize("step", [
    "f0 ff06 1000",               # lock inc word [0x10]
    "f0 66ff06 1000",             # the same for a doubleword
    "f0 011e 1000",               # lock add [0x10], bx
    "b80100 f0 0fc106 1000",      # mov ax, 1; lock xadd [0x10], ax
    "f0 66ff06 1300",             # lock inc dword [0x13], in two parts for the device's bus
])
def test_no_increment_is_lost(rig: Rig, step: str) -> None:
    rig.put(step)
    rig.run()
    assert not rig.events
    at = int(step.split()[-1][:2], 16) - 0x10
    assert int.from_bytes(rig.device.content[at:at + 4], "little") == 2 * ROUNDS


def test_memory_slots_may_change_within(rig: Rig) -> None:
    """A register that moves RAM: the change holds every vCPU out, too."""
    other = Array(RAM)

    def move() -> None:
        with rig.group.exclusive():
            rig.guest.vm.set_user_memory_region(1, 4 * RAM, RAM, other.address)
            rig.guest.vm.set_user_memory_region(1, 4 * RAM, 0, 0)

    rig.device.on_write = move
    rig.put("f0 ff06 1000", 20)
    rig.run()
    assert not rig.events and rig.device.content[0] == 40


def test_one_vcpu_needs_nobody_held_out() -> None:
    guest = Guest(1)
    try:
        (vcpu,) = guest.vcpus
        guest.put(CODE, "b8ffff 8ed8 f0ff061000 e699")
        sregs = vcpu.get_sregs()
        vcpu.set_sregs(replace(sregs, cs=replace(sregs.cs, base=0, selector=0)))
        vcpu.set_regs(replace(vcpu.get_regs(), rip=CODE))
        assert vcpu.run() == MmioExit(DEVICE, 2, False, None)
        vcpu.complete_read(7)
        assert vcpu.run() == MmioExit(DEVICE, 2, True, 8)
        assert vcpu.run() == IoExit(0x99, 1, True, 0xFF)
    finally:
        guest.close()


def test_nothing_is_done_before_others_are_held_out() -> None:
    """The exit comes first; then each access of the instruction, and what it ends in."""
    guest = Guest(2)
    try:
        vcpu = guest.vcpus[0]
        guest.put(CODE, "b8ffff 8ed8 f0ff061000 e699")
        sregs = vcpu.get_sregs()
        vcpu.set_sregs(replace(sregs, cs=replace(sregs.cs, base=0, selector=0)))
        vcpu.set_regs(replace(vcpu.get_regs(), rip=CODE))
        assert vcpu.run() == ExclusiveExit()
        seen: list[MmioExit] = []

        def access(exit: MmioExit) -> None:
            seen.append(exit)
            if not exit.is_write:
                vcpu.complete_read(7)

        assert vcpu.run_exclusive(access) is None
        assert seen == [MmioExit(DEVICE, 2, False, None), MmioExit(DEVICE, 2, True, 8)]
        assert vcpu.run() == IoExit(0x99, 1, True, 0xFF)
    finally:
        guest.close()
