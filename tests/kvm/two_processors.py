"""Two processors in real mode that interrupt each other: placing their code, and the code that sends."""

from __future__ import annotations

import threading
from collections import Counter

from pellucid.kvm.api import Exit, IoExit, MpState
from pellucid.kvm.backends.soft.vcpu import SoftVcpu
from pellucid.records import replace
from tests.kvm.test_soft_smp import Guest

CODE, OTHER_CODE = 0x1000, 0x4000
APIC, X2APIC_BASE = 0xFEE0_0000, 0xFEE0_0C00


def place(guest: Guest, number: int, code: str, at: int = CODE) -> SoftVcpu:
    """Have a vCPU execute `code` next; ES:0 is the local APIC's page."""
    vcpu = guest.vcpus[number]
    guest.put(at, code)
    vcpu.set_mp_state(MpState.RUNNABLE)
    sregs = vcpu.get_sregs()
    vcpu.set_sregs(replace(sregs, cs=replace(sregs.cs, base=0, selector=0), es=replace(sregs.es, base=APIC)))
    vcpu.set_regs(replace(vcpu.get_regs(), rip=at, rsp=0x8000 + 0x800 * number, rflags=2))
    return vcpu


def use_x2apic(vcpu: SoftVcpu) -> None:
    vcpu.set_apic_base(X2APIC_BASE | (0x100 if vcpu.apic_id == 0 else 0), host_initiated=True)


def exits_of(vcpu: SoftVcpu) -> Counter[int]:
    """Counts the exits to Python from here on."""
    counts: Counter[int] = Counter()
    for reason, handler in list(vcpu._handlers.items()):
        def counted(reason: int = reason, handler=handler) -> Exit | None:  # type: ignore[no-untyped-def]
            counts[reason] += 1
            return handler()  # type: ignore[no-any-return]

        vcpu._handlers[reason] = counted
    return counts


def word(guest: Guest, at: int) -> int:
    content = guest.vm.read_guest(at, 2)
    assert content is not None
    return int.from_bytes(content, "little")


def write_icr(low: int, destination: int, *, x2apic: bool) -> str:
    """mov ecx, 0x830; mov edx, destination; mov eax, low; wrmsr … or two stores to ES:0x310 and ES:0x300."""
    value = low.to_bytes(4, "little").hex()
    if x2apic:
        return f"66b930080000 66ba{destination.to_bytes(4, 'little').hex()} 66b8{value} 0f30"
    return f"26 66c7061003{(destination << 24).to_bytes(4, 'little').hex()} 26 66c7060003{value}"


WAIT_FOR_ONE = "833e002000 74f9 e699"      # until [0x2000] is not 0; out 0x99, al
OUT = "e699"


def run_both(guest: Guest) -> None:
    exits: list[Exit] = []
    threads = [threading.Thread(target=lambda v=v: exits.append(v.run())) for v in guest.vcpus]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(exits) == 2 and all(isinstance(exit, IoExit) and exit.port == 0x99 for exit in exits)
