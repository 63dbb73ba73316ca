"""What set_cpuid hides from a soft vCPU does not execute, and what it shows does, also after a change."""

from __future__ import annotations

import pytest

from pellucid.cpu.models import resolve
from pellucid.cpu.models.leaves import cpuid_leaves
from pellucid.cpu.models.topology import CpuTopology
from pellucid.cpu.state import CR4_OSFXSR, UD
from pellucid.kvm.api import IoExit
from pellucid.kvm.cpuid import kvm_leaves
from pellucid.kvm.regs import CpuidEntry
from pellucid.records import replace

from .test_soft_smp import Guest

CODE, HANDLER = 0x7000, 0x7800
OUT = "b007 e699"   # mov al, 7; out 0x99, al
OUT_UD = "b006 e699"


def leaves(model: str, changes: dict[str, bool]) -> list[CpuidEntry]:
    found = cpuid_leaves(resolve(model, changes).model, 0, CpuTopology())
    return [CpuidEntry(e.function, e.index, eax=e.eax, ebx=e.ebx, ecx=e.ecx, edx=e.edx) for e in found]


def ask(model: str, *questions: tuple[int, int], **changes: int) -> list[tuple[int, ...]]:
    """What CPUID answers on a processor of this model: EAX, EBX, ECX and EDX for each leaf and subleaf."""
    guest = Guest(1)
    try:
        (vcpu,) = guest.vcpus
        found = cpuid_leaves(replace(resolve(model).model, **changes), 5, CpuTopology(cores=8))  # type: ignore[arg-type]
        entries = [CpuidEntry(e.function, e.index, eax=e.eax, ebx=e.ebx, ecx=e.ecx, edx=e.edx) for e in found]
        vcpu.set_cpuid([*entries, *kvm_leaves()])
        guest.put(CODE, "0fa2 e699")   # cpuid; out 0x99, al
        sregs = vcpu.get_sregs()
        vcpu.set_sregs(replace(sregs, cs=replace(sregs.cs, base=0, selector=0)))
        answers = []
        for leaf, subleaf in questions:
            vcpu.set_regs(replace(vcpu.get_regs(), rip=CODE, rax=leaf, rcx=subleaf))
            vcpu.run()
            regs = vcpu.get_regs()
            answers.append((regs.rax, regs.rbx, regs.rcx, regs.rdx))
        return answers
    finally:
        guest.close()


@pytest.mark.parametrize(("feature", "code"), [
    ("popcnt", "f30fb8c1"), ("ssse3", "0f3800c1"), ("adx", "660f38f6c1"), ("movbe", "0f38f004"), ("rdpid", "f30fc7f8"),
    ("sse4.2", "f20f38f0c1"), ("clflushopt", "660fae3e0040"), ("rdtscp", "0f01f9"), ("cmov", "0f44c1"),
    ("tsc", "0f31"), ("cx8", "0fc70c"),
    ("rtm", "c6f801"), ("rtm", "0f01d6"), ("hle", "0f01d6")])
def test_a_feature_decides(feature: str, code: str) -> None:
    """In real mode, three times on one vCPU: off, on, off."""
    guest = Guest(1)
    try:
        (vcpu,) = guest.vcpus
        guest.put(CODE, code + OUT)
        guest.put(HANDLER, OUT_UD)
        guest.put(4 * UD, HANDLER.to_bytes(4, "little").hex())
        for shown in (False, True, False):
            vcpu.set_cpuid(leaves("qemu64", {feature: shown}))
            sregs = vcpu.get_sregs()
            vcpu.set_sregs(replace(sregs, cs=replace(sregs.cs, base=0, selector=0), cr4=sregs.cr4 | CR4_OSFXSR))
            vcpu.set_regs(replace(vcpu.get_regs(), rip=CODE, rsp=0x6000, rsi=0x5000))
            assert vcpu.run() == IoExit(0x99, 1, True, 7 if shown else UD), (feature, shown)
    finally:
        guest.close()


BEYOND = [(0x20, 0), (0x20, 1), (0x2000_0000, 0), (0x7FFF_FFFF, 0), (0x8000_0022, 0), (0x8FFF_FFFF, 0),
          (0xC000_0000, 0), (0xFFFF_FFFF, 0), (0x4000_0002, 0), (0x4000_0100, 1)]


def test_beyond_the_highest_leaf_intel_s_processors_answer_with_it() -> None:
    """By subleaf too, in each range of leaves (SDM vol. 2, CPUID); within a range what is not there is zeros."""
    first, second, *answers = ask("Nehalem", (0xB, 0), (0xB, 1), *BEYOND, (0xA, 0))
    assert first[2] == 0x100 and second[2] == 0x201
    assert answers == [second if subleaf else first for _, subleaf in BEYOND] + [(0, 0, 0, 0)]


def test_beyond_the_highest_leaf_amd_s_processors_answer_with_zeros() -> None:
    assert ask("EPYC", *BEYOND) == [(0, 0, 0, 0)] * len(BEYOND)


def test_levels_beyond_the_last_tell_the_subleaf_and_the_apic_id() -> None:
    """Leaves 0xB and 0x1F (SDM vol. 2, CPUID): ECX[7:0] is what was asked for, EDX is always valid."""
    answers = ask("Nehalem", *((0xB, n) for n in (2, 3, 0xFF, 0x1234)))
    assert answers == [(0, 0, n, 5) for n in (2, 3, 0xFF, 0x34)]


def test_centaur_s_leaves() -> None:
    """Where the model has the range; without it the question lies beyond every leaf."""
    answers = ask("Nehalem", (0xC000_0000, 0), (0xC000_0001, 0), (0xC000_0002, 0), (0xC000_0003, 0),
                  xlevel2=0xC000_0002)
    assert answers[0] == (0xC000_0002, 0, 0, 0) and answers[1] == (0x106A3, 0, 0, 0) and answers[2] == (0, 0, 0, 0)
    assert answers[3][2] == 0x100
