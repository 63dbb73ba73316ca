"""What set_cpuid hides from a soft vCPU does not execute, and what it shows does, also after a change."""

from __future__ import annotations

import pytest

from pellucid.cpu.models import resolve
from pellucid.cpu.models.leaves import cpuid_leaves
from pellucid.cpu.models.topology import CpuTopology
from pellucid.cpu.state import CR4_OSFXSR, UD
from pellucid.kvm.api import IoExit
from pellucid.kvm.regs import CpuidEntry
from pellucid.records import replace

from .test_soft_smp import Guest

CODE, HANDLER = 0x7000, 0x7800
OUT = "b007 e699"   # mov al, 7; out 0x99, al
OUT_UD = "b006 e699"


def leaves(model: str, changes: dict[str, bool]) -> list[CpuidEntry]:
    found = cpuid_leaves(resolve(model, changes).model, 0, CpuTopology())
    return [CpuidEntry(e.function, e.index, eax=e.eax, ebx=e.ebx, ecx=e.ecx, edx=e.edx) for e in found]


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
