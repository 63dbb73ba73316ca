"""kvmclock: the paravirtual clock that a guest reads from its own memory (KVM's MSR_KVM_SYSTEM_TIME and _WALL_CLOCK).

A guest writes an address to its system-time MSR; the hypervisor keeps there, for each vCPU, a TSC reading, the
nanoseconds since boot at that reading, and the scale from TSC to nanoseconds. The guest then tells the time with RDTSC
alone. `version` is odd while the page is being written and grows by 2 with each update, so a reader that sees it change
reads again.

All vCPUs share one pair (TSC, nanoseconds), taken once for the VM (KVM's master clock), because pairs taken at two
moments would make their clocks differ by the rounding; that, with TSCs in step, is what PVCLOCK_TSC_STABLE_BIT
promises.
"""

import struct
import threading
from collections.abc import Callable
from enum import IntFlag

from pellucid.kvm.clock import Clock
from pellucid.kvm.errors import MsrAccessError

MSR_KVM_WALL_CLOCK = 0x11
MSR_KVM_SYSTEM_TIME = 0x12
MSR_KVM_WALL_CLOCK_NEW = 0x4B56_4D00
MSR_KVM_SYSTEM_TIME_NEW = 0x4B56_4D01

SYSTEM_TIME_MSRS = (MSR_KVM_SYSTEM_TIME, MSR_KVM_SYSTEM_TIME_NEW)
WALL_CLOCK_MSRS = (MSR_KVM_WALL_CLOCK, MSR_KVM_WALL_CLOCK_NEW)
PVCLOCK_MSRS = SYSTEM_TIME_MSRS + WALL_CLOCK_MSRS

KVM_MSR_ENABLED = 1

PVCLOCK_VCPU_TIME_INFO = struct.Struct("<IIQQIbB2x")
"""version, pad, tsc_timestamp, system_time, tsc_to_system_mul, tsc_shift, flags."""
PVCLOCK_WALL_CLOCK = struct.Struct("<III")
"""version, sec, nsec."""

_VERSION = struct.Struct("<I")
_NS = 10**9

WriteGuest = Callable[[int, bytes], bool]
"""Writes bytes at a guest-physical address; False when that is not RAM."""
ReadGuest = Callable[[int, int], bytes | None]
"""Reads (address, length); None when that is not RAM."""


class PvclockFlags(IntFlag):
    """Flags of pvclock_vcpu_time_info."""

    TSC_STABLE = 1
    GUEST_STOPPED = 2


def time_scale(tsc_hz: int) -> tuple[int, int]:
    """(tsc_to_system_mul, tsc_shift) for a TSC of this frequency.

    nanoseconds = ((ticks << shift, or >> -shift) * mul) >> 32, with mul in [2**31, 2**32) for the best precision.
    """
    shift = 0
    while _NS << 32 >= tsc_hz << 32 + shift:
        shift += 1
    while _NS << 32 + max(0, -shift) < (tsc_hz << max(0, shift)) << 31:
        shift -= 1
    return (_NS << 32 + max(0, -shift)) // (tsc_hz << max(0, shift)), shift


def scale_ticks(ticks: int, mul: int, shift: int) -> int:
    """Nanoseconds of `ticks` as the guest computes them."""
    shifted = ticks << shift if shift >= 0 else ticks >> -shift
    return shifted * mul >> 32


def _busy_version(version: int) -> int:
    """The next odd version: also when a kernel before this one left the page odd, which would never settle."""
    return version + 1 & 0xFFFF_FFFF | 1


class Kvmclock:
    """The clock of one VM: nanoseconds since its boot.

    `clock` is the VM's clock, `realtime_ns` the host's time since the Unix epoch, for the wall clock.
    """

    def __init__(self, clock: Clock, realtime_ns: Callable[[], int]) -> None:
        self._clock = clock
        self._realtime_ns = realtime_ns
        self._lock = threading.Lock()
        self._offset = -clock.now_ns()

    def now_ns(self) -> int:
        """kvmclock's reading now (KVM_GET_CLOCK)."""
        return self._clock.now_ns() + self._offset

    def set_ns(self, value: int) -> None:
        """Make the clock read `value` now (KVM_SET_CLOCK); afterwards update every vCPU's page."""
        with self._lock:
            self._offset = value - self._clock.now_ns()

    def wall_clock_base_ns(self) -> int:
        """The host's real time at kvmclock 0: what a guest adds its system time to."""
        return self._realtime_ns() - self.now_ns()


class MasterClock:
    """The pair of readings that all vCPUs of a VM start from, and the TSC's scale.

    `read_tsc` is the guest TSC common to the vCPUs; `tsc_hz` its frequency.
    """

    def __init__(self, kvmclock: Kvmclock, read_tsc: Callable[[], int], tsc_hz: int) -> None:
        self._kvmclock = kvmclock
        self._read_tsc = read_tsc
        self._lock = threading.Lock()
        self.mul, self.shift = time_scale(tsc_hz)
        self.readings = (0, 0)
        """(TSC, kvmclock nanoseconds) at one moment."""
        self.stable = True
        """The vCPUs' TSCs are in step; clear it when a guest has written them apart, and update every page."""
        self.update()

    def at(self, tsc: int) -> int:
        """kvmclock's nanoseconds at a reading of the common TSC, as a guest computes them from the pair."""
        start, ns = self.readings
        return ns + scale_ticks(tsc - start & (1 << 64) - 1, self.mul, self.shift)

    def update(self) -> None:
        """Take a new pair (KVM_REQ_MASTERCLOCK_UPDATE): after set_clock, a stop, or a change of the TSC."""
        with self._lock:
            before = self._read_tsc()
            now = self._kvmclock.now_ns()
            # Halfway between two readings of the TSC: neither order of reading favours one clock.
            self.readings = ((before + self._read_tsc()) // 2, max(0, now))


class PvclockVcpu:
    """The kvmclock of one vCPU: its MSRs and its page.

    `write_guest(gpa, data)` and `read_guest(gpa, length)` reach guest memory; `request_update()` makes
    KVM_REQ_CLOCK_UPDATE, upon which the vCPU loop calls `update` before it enters the guest. `tsc_offset()` is what
    this vCPU's TSC has been moved by against the common one (0 unless the guest wrote it).
    """

    def __init__(
        self,
        kvmclock: Kvmclock,
        master: MasterClock,
        write_guest: WriteGuest,
        read_guest: ReadGuest,
        request_update: Callable[[], None],
        tsc_offset: Callable[[], int] = lambda: 0,
    ) -> None:
        self._kvmclock = kvmclock
        self._master = master
        self._write_guest = write_guest
        self._read_guest = read_guest
        self._request_update = request_update
        self._tsc_offset = tsc_offset
        self._system_time = 0
        self._wall_clock = 0
        self._guest_stopped = False

    def reset(self) -> None:
        """As after reset: no page, MSRs zero."""
        self._system_time = self._wall_clock = 0
        self._guest_stopped = False

    def msr_read(self, index: int) -> int:
        """RDMSR of one of PVCLOCK_MSRS."""
        if index in SYSTEM_TIME_MSRS:
            return self._system_time
        if index in WALL_CLOCK_MSRS:
            return self._wall_clock
        raise MsrAccessError(index)

    def msr_write(self, index: int, value: int, host_initiated: bool = False) -> None:
        """WRMSR of one of PVCLOCK_MSRS. The system-time address is a multiple of 4 with bit 0 as the enable bit."""
        if index in SYSTEM_TIME_MSRS:
            self._system_time = value
            self._request_update()
        elif index in WALL_CLOCK_MSRS:
            self._wall_clock = value
            # The page holds the time of the guest's own request; restoring state must not write guest memory.
            if not host_initiated:
                self._write_wall_clock(value)
        else:
            raise MsrAccessError(index, value)

    def mark_guest_stopped(self) -> None:
        """The guest was paused: tell it at the next update, once, so that its watchdogs forgive (KVM_KVMCLOCK_CTRL)."""
        self._guest_stopped = True
        self._request_update()

    def update(self) -> bool:
        """Rewrite the vCPU's time page (KVM_REQ_CLOCK_UPDATE); False when there is none, or it is not in RAM."""
        if not self._system_time & KVM_MSR_ENABLED:
            return False
        address = self._system_time & ~KVM_MSR_ENABLED
        old = self._read_guest(address, PVCLOCK_VCPU_TIME_INFO.size)
        if old is None:
            return False
        old_version, _, _, _, _, _, old_flags = PVCLOCK_VCPU_TIME_INFO.unpack(old)
        version = _busy_version(old_version)
        flags = old_flags & PvclockFlags.GUEST_STOPPED
        if self._master.stable:
            flags |= PvclockFlags.TSC_STABLE
        if self._guest_stopped:
            flags |= PvclockFlags.GUEST_STOPPED
            self._guest_stopped = False
        tsc, system_time = self._master.readings
        tsc = (tsc + self._tsc_offset()) & (1 << 64) - 1
        body = PVCLOCK_VCPU_TIME_INFO.pack(version, 0, tsc, system_time, self._master.mul, self._master.shift, flags)
        self._write_guest(address, _VERSION.pack(version))
        self._write_guest(address + _VERSION.size, body[_VERSION.size :])
        return self._write_guest(address, _VERSION.pack(version + 1 & 0xFFFF_FFFF))

    def _write_wall_clock(self, address: int) -> None:
        """Write the wall clock once, as asked. The version guards readers on other processors."""
        if not address:
            return
        old = self._read_guest(address, _VERSION.size)
        if old is None:
            return
        version = _busy_version(_VERSION.unpack(old)[0])
        sec, nsec = divmod(self._kvmclock.wall_clock_base_ns(), _NS)
        self._write_guest(address, _VERSION.pack(version))
        self._write_guest(address + _VERSION.size, PVCLOCK_WALL_CLOCK.pack(version, sec & 0xFFFF_FFFF, nsec)[4:])
        self._write_guest(address, _VERSION.pack(version + 1 & 0xFFFF_FFFF))
