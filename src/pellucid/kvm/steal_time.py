"""Steal time: how long a vCPU would have run and did not, in the guest's own memory (MSR_KVM_STEAL_TIME).

Stolen is what is left of a vCPU thread's time when the processor time that it got and the time that its guest was idle
are taken away: the host ran something else, or other work of this process was first. A stop of the machine does not
count. Beside the time stands whether the vCPU is off its processor right now, which keeps guests from spinning for it,
and from waking it to have its TLB flushed: they set a bit there, and the flush comes before the vCPU goes on.

The record is 64 bytes: u64 steal (ns), u32 version, u32 flags, u8 preempted. `version` is odd while it is written
(Documentation/virt/kvm/x86/msr.rst).
"""

import struct
import threading
import time
from collections.abc import Callable

from pellucid.kvm.errors import MsrAccessError
from pellucid.kvm.pvclock import KVM_MSR_ENABLED, ReadGuest, WriteGuest

MSR_KVM_STEAL_TIME = 0x4B56_4D03
KVM_VCPU_PREEMPTED, KVM_VCPU_FLUSH_TLB = 1, 2
RESERVED = 0x3E
UPDATE_NS = 10_000_000
"""A running guest's record is at most so much older than its last interrupt. Bringing it up to date costs 50 us."""

_RECORD = struct.Struct("<QII")
_VERSION = struct.Struct("<I")
_VERSION_AT, _PREEMPTED_AT = 8, 16


class StealTime:
    """The steal time of one vCPU. `update` and `idle` run on its thread, the rest while it is outside native code.

    `exchange_guest` stores a byte and gives the old one in one step, since guests set bits there meanwhile; None where
    there is no RAM. `flush_tlb` forgets the guest's address translations. `now_ns` is the host's time, `cpu_ns` the
    processor time of the calling thread; `slept_ns` how long the guest was idle by itself since that was asked last.
    """

    def __init__(
        self,
        write_guest: WriteGuest,
        read_guest: ReadGuest,
        exchange_guest: Callable[[int, int], int | None],
        flush_tlb: Callable[[], None],
        now_ns: Callable[[], int] = time.monotonic_ns,
        cpu_ns: Callable[[], int] = time.thread_time_ns,
        slept_ns: Callable[[], int] = lambda: 0,
    ) -> None:
        self._write_guest, self._read_guest, self._exchange_guest = write_guest, read_guest, exchange_guest
        self._flush_tlb = flush_tlb
        self._now_ns, self._cpu_ns, self._slept_ns = now_ns, cpu_ns, slept_ns
        self.reset()

    def reset(self) -> None:
        """As after RESET: off."""
        self.value = 0
        """The MSR: the record's guest-physical address, a multiple of 64, and in bit 0 whether there is one."""
        self.enabled = False
        self._start: tuple[int, int, int] | None = None
        self._idle_ns = 0
        self._was_idle = False

    def msr_write(self, value: int) -> None:
        """WRMSR; MsrAccessError for an address that is no multiple of 64. The caller then makes it `update`."""
        if value & RESERVED:
            raise MsrAccessError(MSR_KVM_STEAL_TIME, value)
        self.value, self.enabled = value, bool(value & KVM_MSR_ENABLED)
        self.forget()

    def forget(self) -> None:
        """What has passed since the last update was no time of the guest's: the machine stood still."""
        self._start = None

    def is_due(self) -> bool:
        """Whether the record is wrong, or older than it should be."""
        return self._was_idle or self._start is None or self._now_ns() - self._start[1] >= UPDATE_NS

    def update(self) -> None:
        """The vCPU runs, or is about to: bring the record up to date (KVM_REQ_STEAL_UPDATE)."""
        stolen, self._was_idle = self._stolen_ns(), False
        address = self.value & ~0x3F
        old = self._read_guest(address, _RECORD.size) if self.enabled else None
        if old is None:
            return
        if (self._exchange_guest(address + _PREEMPTED_AT, 0) or 0) & KVM_VCPU_FLUSH_TLB:
            self._flush_tlb()
        steal, version, flags = _RECORD.unpack(old)
        version = version + 1 & 0xFFFF_FFFF | 1
        steal = steal + stolen & (1 << 64) - 1
        self._write_guest(address + _VERSION_AT, _VERSION.pack(version))
        self._write_guest(address, _RECORD.pack(steal, version, flags))
        self._write_guest(address + _VERSION_AT, _VERSION.pack(version + 1 & 0xFFFF_FFFF))

    def _stolen_ns(self) -> int:
        """Nanoseconds since the last call, without those that the thread ran and those that the guest was idle."""
        thread, now, cpu = threading.get_ident(), self._now_ns(), self._cpu_ns()
        self._idle_ns += self._slept_ns()
        stolen = 0
        if self._start is not None and self._start[0] == thread:
            stolen = now - self._start[1] - (cpu - self._start[2]) - self._idle_ns
        self._start, self._idle_ns = (thread, now, cpu), 0
        return max(stolen, 0)

    def idle(self, wait: Callable[[], object]) -> None:
        """Call `wait`, which returns when the guest may go on; meanwhile the record says that it does not run.

        `update` comes before the guest is entered again, or it would be believed to stand still.
        """
        if not self.enabled:
            wait()
            return
        self._was_idle = True
        self._write_guest((self.value & ~0x3F) + _PREEMPTED_AT, bytes((KVM_VCPU_PREEMPTED,)))
        begun = self._now_ns()
        wait()
        self._idle_ns += self._now_ns() - begun
