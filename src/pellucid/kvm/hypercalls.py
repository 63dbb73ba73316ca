"""KVM's hypercalls: what VMCALL and VMMCALL ask of the hypervisor (Documentation/virt/kvm/x86/hypercalls.rst).

RAX holds the number, RBX, RCX, RDX and RSI the arguments; the result goes to RAX, an error as a negative number.
Outside 64-bit mode all of them have 32 bits. KVM answers whatever CPUID announces of them, and so does this.
"""

from typing import NamedTuple, Protocol

from pellucid.kvm.irqchip.apicdef import ICR_ASSERT, ICR_LEVEL

KVM_HC_VAPIC_POLL_IRQ = 1
KVM_HC_KICK_CPU = 5
KVM_HC_SEND_IPI = 10
KVM_HC_SCHED_YIELD = 11

KVM_EPERM = 1
KVM_EINVAL = 22
KVM_ENOSYS = 1000

_ICR_DESTINATION = 1 << 11 | 3 << 18
"""Destination mode and shorthand: the bitmap says where an IPI goes."""


class Hypercall(NamedTuple):
    """One call. `wide`: made in 64-bit mode."""

    number: int
    a0: int
    a1: int
    a2: int
    a3: int
    wide: bool = True


class HypercallTarget(Protocol):
    """The VM, as far as hypercalls reach into it."""

    def kick_cpu(self, apic_id: int) -> None:
        """End the HLT of the processor with that APIC id, or its next one."""
        ...

    def send_ipis(self, apic_ids: list[int], mode: int, vector: int, *, level: bool, asserted: bool) -> int:
        """An interrupt to each of these; how many took it."""
        ...

    def yield_cpu(self) -> None:
        """Let another of the host's threads run."""
        ...


def hypercall(call: Hypercall, cpl: int, vm: HypercallTarget) -> int:
    """Carry out `call` for a guest of privilege `cpl`; the result, or a negative error."""
    if cpl:
        return -KVM_EPERM
    if call.number == KVM_HC_VAPIC_POLL_IRQ:
        return 0  # that it left the guest is all that it is for
    if call.number == KVM_HC_KICK_CPU:
        vm.kick_cpu(call.a1 & 0xFFFF_FFFF)
        return 0
    if call.number == KVM_HC_SEND_IPI:
        return _send_ipi(call, vm)
    if call.number == KVM_HC_SCHED_YIELD:
        vm.yield_cpu()
        return 0
    return -KVM_ENOSYS


def _send_ipi(call: Hypercall, vm: HypercallTarget) -> int:
    """KVM_HC_SEND_IPI: two words of APIC ids from the one in a2 on, and the ICR's lower half in a3."""
    icr = call.a3
    if icr & _ICR_DESTINATION:
        return -KVM_EINVAL
    bits = 64 if call.wide else 32
    bitmap, first = call.a0 | call.a1 << bits, call.a2 & 0xFFFF_FFFF
    apic_ids = [first + bit for bit in range(bitmap.bit_length()) if bitmap >> bit & 1]
    level, asserted = bool(icr & ICR_LEVEL), bool(icr & ICR_ASSERT)
    return vm.send_ipis(apic_ids, icr >> 8 & 7, icr & 0xFF, level=level, asserted=asserted)
