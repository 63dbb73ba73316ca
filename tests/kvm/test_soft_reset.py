"""RESET and INIT on the soft backend: SDM vol. 3, table 10-1, line by line."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pellucid.cpu.state import PENDING_REQUEST
from pellucid.kvm.api import DebugRegs, Fpu, Regs
from pellucid.kvm.backends.soft import registers
from pellucid.kvm.backends.soft.registers import XSAVE_BYTES
from pellucid.kvm.backends.soft.vcpu import SoftVcpu
from pellucid.kvm.errors import InvalidRequestError
from pellucid.kvm.regs import CpuidEntry, DTable

from .test_soft_smp import Guest

SIGNATURE = 0x306C1
_PKRU, _YMM_HIGH = 2688, 576


@pytest.fixture
def vcpu() -> Iterator[SoftVcpu]:
    """One with everything changed that a guest can change."""
    guest = Guest(1)
    made = guest.vcpus[0]
    made.set_cpuid([CpuidEntry(1, eax=SIGNATURE), CpuidEntry(0xD, 0, eax=7)])
    image = bytearray(b"\x5a" * XSAVE_BYTES)
    image[:32] = made.get_xsave()[:32]
    image[512:520] = (0x207).to_bytes(8, "little")
    made.set_xsave(bytes(image))
    made.set_xcr0(7)
    sregs = made.get_sregs()
    sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4, sregs.efer = 0x8000_0011, 5, 0x1000, 0x20, 0xD01
    sregs.gdt = sregs.idt = DTable(7, 7)
    made.set_sregs(sregs)
    made.set_regs(Regs(rax=1, rdx=2, r15=3, rip=4, rflags=0x8D7))
    made.set_debugregs(DebugRegs((1, 2, 3, 4), 0xFFFF_0FF1, 0x4FF))
    s = made.state
    s.replay_count = s.step_once = s.nmi_blocked = s.shadow = s.db_pending = 1
    s.pat, s.pending = 0, PENDING_REQUEST
    yield made
    guest.close()


@pytest.mark.parametrize("init", [False, True])
def test_registers_that_both_reset(vcpu: SoftVcpu, init: bool) -> None:
    registers.reset(vcpu.processor, init=init)
    assert vcpu.get_regs() == Regs(rip=0xFFF0, rdx=SIGNATURE, rflags=2)
    assert vcpu.get_debugregs() == DebugRegs((0, 0, 0, 0), 0xFFFF_0FF0, 0x400)
    sregs, s = vcpu.get_sregs(), vcpu.state
    assert (sregs.cs.selector, sregs.cs.base, sregs.cs.limit) == (0xF000, 0xFFFF_0000, 0xFFFF)
    assert all((x.selector, x.base, x.limit, x.present) == (0, 0, 0xFFFF, True)
               for x in (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss, sregs.ldt, sregs.tr))
    assert (sregs.gdt.base, sregs.gdt.limit, sregs.idt.base, sregs.idt.limit) == (0, 0xFFFF, 0, 0xFFFF)
    assert (sregs.cr2, sregs.cr3, sregs.cr4, sregs.efer, s.cpl) == (0, 0, 0, 0, 0)
    assert sregs.cr0 == (0x10 if init else 0x6000_0010), "INIT leaves CD and NW"
    assert (s.replay_count, s.step_once, s.nmi_blocked, s.shadow, s.db_pending, s.watch_code) == (0,) * 6


def test_reset_clears_floating_point_and_vectors(vcpu: SoftVcpu) -> None:
    registers.reset(vcpu.processor)
    assert vcpu.get_fpu() == Fpu(fcw=0x37F, ftw=0xFFFF), "as QEMU shows it before the first instruction"
    image = vcpu.get_xsave()
    assert image[160:512] == bytes(352) and image[_YMM_HIGH:_YMM_HIGH + 256] == bytes(256)
    assert image[_PKRU:_PKRU + 4] == bytes(4) and vcpu.get_xcr0() == 1
    assert vcpu.state.pat == 0x0007_0406_0007_0406


def test_init_keeps_them(vcpu: SoftVcpu) -> None:
    before = vcpu.get_xsave()
    registers.reset(vcpu.processor, init=True)
    assert vcpu.get_xsave() == before and before[_YMM_HIGH:_YMM_HIGH + 256] == b"\x5a" * 256
    assert before[160:416] == b"\x5a" * 256 and before[_PKRU:_PKRU + 4] == b"\x5a" * 4
    assert (vcpu.get_xcr0(), vcpu.state.pat) == (7, 0)


def test_an_xsave_image_without_a_component_sets_its_initial_value(vcpu: SoftVcpu) -> None:
    image = bytearray(vcpu.get_xsave())
    image[512:520] = bytes(8)
    vcpu.set_xsave(bytes(image))
    assert vcpu.get_fpu() == Fpu()
    assert vcpu.get_xsave()[_YMM_HIGH:_YMM_HIGH + 256] == bytes(256) and vcpu.state.pkru == 0


def test_what_cannot_be_set_is_refused(vcpu: SoftVcpu) -> None:
    for value in (0, 2, 5, 8 | 7):
        with pytest.raises(InvalidRequestError):
            vcpu.set_xcr0(value)
    with pytest.raises(InvalidRequestError):
        vcpu.set_xsave(bytes(832))
