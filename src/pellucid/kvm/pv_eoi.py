"""PV EOI: interrupts that a guest ends in its own memory, without an exit (MSR_KVM_EOI_EN).

Before the guest is entered the hypervisor sets bit 0 of a word in its memory, if the interrupt in service is one whose
end nobody else waits for and no other is requested. A guest that finds it set clears it with one instruction, which is
its EOI; one that finds it clear writes the APIC's EOI register. Whenever the guest has left, the hypervisor looks: a
bit that has gone is an EOI to carry out, one that is still there is taken back
(Documentation/virt/kvm/x86/msr.rst).
"""

from pellucid.kvm.errors import MsrAccessError
from pellucid.kvm.irqchip.lapic import Lapic
from pellucid.kvm.pvclock import KVM_MSR_ENABLED, ReadGuest, WriteGuest

MSR_KVM_PV_EOI_EN = 0x4B56_4D04

_SET, _CLEAR = b"\x01", b"\0"


class PvEoi:
    """The PV EOI of one vCPU. Used on its thread, while it is outside native code."""

    __slots__ = ("_lapic", "_read_guest", "_write_guest", "enabled", "offered", "value")

    def __init__(self, lapic: Lapic, write_guest: WriteGuest, read_guest: ReadGuest) -> None:
        self._lapic = lapic
        self._write_guest = write_guest
        self._read_guest = read_guest
        self.reset()

    def reset(self) -> None:
        """As after RESET and INIT: off."""
        self.value = 0
        """The MSR: the word's guest-physical address, a multiple of 4, and in bit 0 whether it is used."""
        self.enabled = self.offered = False

    def msr_write(self, value: int) -> None:
        """WRMSR; MsrAccessError for an odd place and for one that is not RAM."""
        address = value & ~KVM_MSR_ENABLED
        enabled = bool(value & KVM_MSR_ENABLED)
        if address & 3 or enabled and self._read_guest(address, 4) is None:
            raise MsrAccessError(MSR_KVM_PV_EOI_EN, value)
        self.value, self.enabled, self.offered = value, enabled, False

    def offer(self) -> bool:
        """The guest is about to be entered: let it end the interrupt in service by itself, where that is all; whether
        it may.
        """
        lapic = self._lapic
        if lapic.isr and not lapic.irr and not lapic.eoi_is_awaited():
            self.offered = self._write_guest(self.value & ~KVM_MSR_ENABLED, _SET)
        return self.offered

    def collect(self) -> None:
        """The guest has left after an offer: carry out the EOI that it made, or take the offer back."""
        self.offered = False
        address = self.value & ~KVM_MSR_ENABLED
        word = self._read_guest(address, 1)
        if word is None:
            return
        if word[0] & 1:
            self._write_guest(address, _CLEAR)
        else:
            self._lapic.eoi()
