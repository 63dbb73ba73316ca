"""Asynchronous page faults: a guest is told that a page is out, and goes on with something else until it has come.

'Not present' is a #PF whose CR2 is a token, with `flags` of a record in the guest's memory set to 1 so that it is not
taken for a real one; only where the guest said it can take one. 'Ready' is an interrupt, with the token in the
record's second word; the guest clears the word, writes MSR_KVM_ASYNC_PF_ACK, and gets the next one. After the feature
was switched on (so after a migration, too) a 'ready' with the token ~0 wakes everybody who may be waiting.

The record is 64 bytes: u32 flags, u32 token (Documentation/virt/kvm/x86/msr.rst).
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable

from pellucid.kvm.errors import MsrAccessError
from pellucid.kvm.irqchip import apicdef as d
from pellucid.kvm.irqchip.lapic import Lapic
from pellucid.kvm.pvclock import ReadGuest, WriteGuest
from pellucid.kvm.residency import Residency

MSR_KVM_ASYNC_PF_EN, MSR_KVM_ASYNC_PF_INT, MSR_KVM_ASYNC_PF_ACK = 0x4B56_4D02, 0x4B56_4D06, 0x4B56_4D07
ENABLED, SEND_ALWAYS, DELIVERY_AS_VMEXIT, DELIVERY_AS_INT = 1, 2, 4, 8
RESERVED = 0x30
PAGE_NOT_PRESENT = 1
MOST_FAULTS = 64
"""Faults that one vCPU may have under way; beyond these it waits (ASYNC_PF_PER_VCPU)."""
WAKE_ALL = 0xFFFF_FFFF

_WORD = struct.Struct("<I")
_TOKEN_AT = 4

Key = tuple[Residency, int]


class AsyncPf:
    """The asynchronous page faults of one vCPU. All but `page_arrived` runs on its thread or while it does not run."""

    def __init__(self, vcpu_id: int, lapic: Lapic, write_guest: WriteGuest, read_guest: ReadGuest,
                 wake: Callable[[], None]) -> None:
        self._vcpu_id, self._lapic = vcpu_id, lapic
        self._write_guest, self._read_guest = write_guest, read_guest
        self._wake = wake
        self._count = 0
        self.sent = self.waited = 0
        """How many faults the guest was told of, and for how many pages it waited, since the vCPU was made."""
        self._arrived: deque[Key] = deque()
        self._faults: dict[Key, int] = {}
        self._ready: deque[int] = deque()
        self.reset()

    def reset(self) -> None:
        """As after RESET and INIT: off, and what is under way is forgotten."""
        self.value = self.interrupt = 0
        """MSR_KVM_ASYNC_PF_EN and _INT."""
        self._forget()

    def _forget(self) -> None:
        self._faults.clear()
        self._ready.clear()

    @property
    def enabled(self) -> bool:
        """Whether the guest takes faults: 'ready' is only ever told by interrupt."""
        return self.value & (ENABLED | DELIVERY_AS_INT) == ENABLED | DELIVERY_AS_INT

    def write_enable(self, value: int) -> None:
        """WRMSR of _EN; MsrAccessError for reserved bits, for VM exits of a nested guest, and a record not in RAM."""
        if value & (RESERVED | DELIVERY_AS_VMEXIT):
            raise MsrAccessError(MSR_KVM_ASYNC_PF_EN, value)
        wanted = value & (ENABLED | DELIVERY_AS_INT) == ENABLED | DELIVERY_AS_INT
        if wanted and self._read_guest(value & ~0x3F, 64) is None:
            raise MsrAccessError(MSR_KVM_ASYNC_PF_EN, value)
        self.value = value
        if not wanted:
            self._forget()
        elif not self._ready:
            self._ready.append(WAKE_ALL)
            self._wake()

    def write_interrupt(self, value: int) -> None:
        """WRMSR of _INT: the vector of 'ready'."""
        if value >> 8:
            raise MsrAccessError(MSR_KVM_ASYNC_PF_INT, value)
        self.interrupt = value

    def write_ack(self, value: int) -> None:
        """WRMSR of _ACK: bit 0 says that the last 'ready' has been seen."""
        if value & 1:
            self._send_ready()

    def begin(self, residency: Residency, page: int, takes_faults: bool) -> int | None:
        """The page is out and has been asked for: the token of the fault that the guest is to get, or None: it waits.

        `takes_faults`: its processor could take a #PF now. A page that the guest knows to be out is waited for.
        """
        key = residency, page
        token = self._tell(key) if takes_faults else None
        self.waited += token is None
        return token

    def _tell(self, key: Key) -> int | None:
        if not self.enabled or key in self._faults or self.under_way >= MOST_FAULTS:
            return None
        if not self._write_guest(self.value & ~0x3F, _WORD.pack(PAGE_NOT_PRESENT)):
            return None
        token = self._next_token()
        self._faults[key] = token
        self.sent += 1
        return token

    @property
    def under_way(self) -> int:
        """Faults that were told and whose 'ready' was not."""
        return len(self._faults) + len(self._ready)

    def takes_at(self, cpl: int) -> bool:
        """Whether the guest wants faults of code at this privilege level."""
        return self.enabled and (cpl != 0 or bool(self.value & SEND_ALWAYS))

    def _next_token(self) -> int:
        """Twelve bits of vCPU and twenty of a count that is never 0, so that no token is 0; KVM's form."""
        self._count = self._count + 1 & 0xF_FFFF or 1
        return self._count << 12 | self._vcpu_id & 0xFFF

    def page_arrived(self, residency: Residency, page: int) -> None:
        """Part of `PageWaiter`."""
        self._arrived.append((residency, page))
        self._wake()

    def serve(self) -> None:
        """KVM_REQ_APF_READY: tell the guest of what has come."""
        while self._arrived:
            token = self._faults.pop(self._arrived.popleft(), None)
            if token is not None:
                self._ready.append(token)
        self._send_ready()

    def _send_ready(self) -> None:
        """The next 'ready', where the guest has seen the last one and its APIC would take the interrupt."""
        while self._ready and self._lapic.software_enabled:
            at = (self.value & ~0x3F) + _TOKEN_AT
            word = self._read_guest(at, _WORD.size)
            if word is None or _WORD.unpack(word) != (0,):
                return
            if self._write_guest(at, _WORD.pack(self._ready.popleft())):
                self._lapic.deliver(d.DM_FIXED, self.interrupt)
