"""System-management mode with several vCPUs: each is in it or not by itself, and translated code follows either way."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator

import pytest

from pellucid.engine.arrays import Array
from pellucid.kvm.api import IntrExit, IoExit, MpState
from pellucid.kvm.backends.soft.system import SoftHypervisor, SoftVm
from pellucid.kvm.backends.soft.vcpu import SoftVcpu
from pellucid.kvm.errors import InvalidRequestError
from pellucid.kvm.irqchip.apicdef import DM_SMI
from pellucid.records import replace
from pellucid.runtime import VirtualClock
from tests.cpu.guests.asm import assemble

RAM, SMRAM, SMRAM_SIZE, SPACE_1 = 0x10_0000, 0xA_0000, 0x1_0000, 1 << 16
CODE = (0x7000, 0x7800)
FUNCTION = 0x9000
DONE = 0x99
IA32_SMBASE = 0x9E
EIP = 0xFFF0
"""Its place in the 32-bit save map: these vCPUs have no CPUID, so no long mode."""


class Guest:
    """Two vCPUs in real mode; SMRAM is seen inside the mode only, and is both's SMBASE."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.vm: SoftVm = SoftHypervisor(self.clock).create_vm()
        self.vm.create_irqchip()
        self.ram, self.smram = Array(RAM), Array(SMRAM_SIZE)
        self.vm.set_user_memory_region(0, 0, RAM, self.ram.address)
        self.vm.set_user_memory_region(SPACE_1, 0, SMRAM, self.ram.address)
        self.vm.set_user_memory_region(SPACE_1 | 1, SMRAM, SMRAM_SIZE, self.smram.address)
        self.vcpus: list[SoftVcpu] = [self.vm.create_vcpu(n) for n in range(2)]
        for vcpu, at in zip(self.vcpus, CODE, strict=True):
            vcpu.set_mp_state(MpState.RUNNABLE)
            vcpu.set_msrs({IA32_SMBASE: SMRAM})
            sregs = vcpu.get_sregs()
            sregs.cs = replace(sregs.cs, base=0, selector=0)
            vcpu.set_sregs(sregs)
            self.start(vcpu, at)

    def start(self, vcpu: SoftVcpu, at: int) -> None:
        regs = vcpu.get_regs()
        regs.rip, regs.rsp = at, 0x6000
        vcpu.set_regs(regs)

    def put(self, at: int, source: str) -> None:
        assert self.vm.write_guest(at, assemble(source, at, 16).code)

    def put_smram(self, offset: int, source: str) -> None:
        code = assemble(source, offset, 16).code
        ctypes.memmove(self.smram.address + offset, code, len(code))
        self.vm.memory_written([(self.smram.address + offset, len(code))])

    def run(self, number: int, at: int, *, smi: bool = False) -> int:
        """Run one vCPU from `at` to its OUT to DONE; what it said."""
        vcpu = self.vcpus[number]
        self.start(vcpu, at)
        if smi:
            vcpu.smi()
        exit = vcpu.run()
        assert isinstance(exit, IoExit) and exit.port == DONE, exit
        return exit.data or 0

    def close(self) -> None:
        self.vm.close()
        self.clock.close()


@pytest.fixture
def guest() -> Iterator[Guest]:
    made = Guest()
    yield made
    made.close()


def test_a_handler_changed_by_one_vcpu_is_changed_for_the_other(guest: Guest) -> None:
    """The first has translated the handler; the second changes it while the first is outside, where it is hidden."""
    guest.put_smram(0x8000, "mov bl, 1\nrsm")
    for at in CODE:
        guest.put(at, f"mov al, bl\nout {DONE}, al")
    assert guest.run(0, CODE[0], smi=True) == 0, "RSM puts BL back"
    marker = guest.smram.address + 0x100
    guest.put_smram(0x8000, "mov byte [cs:0x100], 1\nrsm")
    guest.run(0, CODE[0], smi=True)
    assert ctypes.string_at(marker, 1) == b"\1"
    # The second's handler begins like the first's, then changes the byte that the first stores.
    change = "cmp byte [cs:0x200], 1\njne skip\nmov byte [cs:0x8005], 7\nskip: rsm"
    guest.put_smram(0x8000, "mov byte [cs:0x100], 2\n" + change)
    guest.run(0, CODE[0], smi=True)
    assert ctypes.string_at(marker, 1) == b"\2"
    ctypes.memset(guest.smram.address + 0x200, 1, 1)
    guest.run(1, CODE[1], smi=True)
    ctypes.memset(guest.smram.address + 0x200, 0, 1)
    assert ctypes.string_at(marker, 1) == b"\2"
    guest.run(0, CODE[0], smi=True)
    assert ctypes.string_at(marker, 1) == b"\7"


def test_ram_changed_from_inside_is_changed_for_the_other_outside(guest: Guest) -> None:
    guest.put(FUNCTION, f"mov al, 1\nout {DONE}, al")
    guest.put_smram(0x8000, f"mov byte [{FUNCTION + 1}], 6\nrsm")
    guest.put(CODE[1], f"out {DONE}, al")
    assert guest.run(0, FUNCTION) == 1
    guest.run(1, CODE[1], smi=True)
    assert guest.run(0, FUNCTION) == 6


def test_the_same_address_in_both_spaces_on_two_vcpus(guest: Guest) -> None:
    """A store outside to where another one has code inside is to other memory: that code stays."""
    guest.put_smram(0x8000, "mov byte [cs:0x100], 3\nrsm")
    guest.put(CODE[0], f"out {DONE}, al")
    guest.run(0, CODE[0], smi=True)
    translated = guest.vcpus[0].state.count_translated
    guest.put(CODE[1], f"mov ax, 0xA000\nmov ds, ax\nmov byte [0x8005], 9\nout {DONE}, al")
    guest.run(1, CODE[1])
    guest.run(0, CODE[0], smi=True)
    assert guest.smram.map[0x100] == 3 and guest.vcpus[0].state.count_translated == translated
    assert guest.ram.map[SMRAM + 0x8005] == 9


def test_an_smi_ipi_to_a_vcpu_that_runs(guest: Guest) -> None:
    """The other one loops; its handler ends the loop through the save map. Nobody else is in SMM."""
    guest.put_smram(0x8000, f"mov byte [0x5000], 1\nmov word [cs:{EIP}], {CODE[1] + 0x100}\nrsm")
    guest.put(CODE[1], "again: jmp again")
    guest.put(CODE[1] + 0x100, f"mov al, 8\nout {DONE}, al")
    guest.put(CODE[0], f"again: cmp byte [0x5000], 1\njne again\nmov al, 4\nout {DONE}, al")
    ended: list[int] = []
    threads = [threading.Thread(target=lambda n=n: ended.append(guest.run(n, CODE[n]))) for n in range(2)]
    for thread in threads:
        thread.start()
    guest.vcpus[0].lapic.mmio_write(0x310, 4, 1 << 24)
    guest.vcpus[0].lapic.mmio_write(0x300, 4, DM_SMI << 8)
    for thread in threads:
        thread.join()
    assert sorted(ended) == [4, 8]
    assert [vcpu.state.smi_count for vcpu in guest.vcpus] == [0, 1]


def test_an_smi_waits_for_the_sipi(guest: Guest) -> None:
    """A vCPU that waits for its SIPI takes no SMI before it."""
    guest.put_smram(0x8000, f"mov al, 5\nout {DONE}, al\nrsm")
    second = guest.vcpus[1]
    second.set_mp_state(MpState.INIT_RECEIVED)
    second.smi()
    second.kick()
    assert second.run() == IntrExit()
    second.kick()
    second._serve_requests()
    assert not second.state.smm and second.get_vcpu_events().smi_pending == 1
    second.lapic.deliver(6, 7)
    while not second.state.smm:
        second._serve_requests()
    assert second.state.seg_base[1] == SMRAM and second.processor.memory.read(SMRAM + EIP, 4, smm=True) == bytes(4)


@pytest.mark.parametrize("slot", [2 << 16, -1])
def test_there_are_two_address_spaces(guest: Guest, slot: int) -> None:
    with pytest.raises(InvalidRequestError, match="address space"):
        guest.vm.set_user_memory_region(slot, 0, 0x1000, guest.ram.address)
    with pytest.raises(InvalidRequestError, match="overlaps"):
        guest.vm.set_user_memory_region(SPACE_1 | 5, 0x1000, 0x1000, guest.ram.address)


def test_slots_go_and_come_in_either_space(guest: Guest) -> None:
    """What shows the same host memory shares its code bits whatever its extent; taking a slot away leaves the other."""
    guest.put(FUNCTION, f"mov al, 1\nout {DONE}, al")
    assert guest.run(0, FUNCTION) == 1
    guest.vm.set_user_memory_region(SPACE_1, 0, 0, 0)
    guest.vm.set_user_memory_region(SPACE_1, 0x8000, 0x2000, guest.ram.address + 0x8000)
    guest.put_smram(0x8000, f"mov byte [{FUNCTION + 1}], 6\nrsm")
    guest.put(CODE[1], f"out {DONE}, al")
    guest.run(1, CODE[1], smi=True)
    assert guest.run(0, FUNCTION) == 6
    guest.vm.set_user_memory_region(SPACE_1, 0x8000, 0, 0)
    assert guest.run(0, FUNCTION) == 6
