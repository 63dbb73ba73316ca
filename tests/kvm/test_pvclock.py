"""kvmclock as a guest reads it."""

import random
import struct

import pytest

from pellucid.kvm.cpuid import KVM_CPUID_FEATURES, KvmFeature, kvm_leaves
from pellucid.kvm.errors import MsrAccessError
from pellucid.kvm.pvclock import (
    MSR_KVM_SYSTEM_TIME,
    MSR_KVM_SYSTEM_TIME_NEW,
    MSR_KVM_WALL_CLOCK,
    MSR_KVM_WALL_CLOCK_NEW,
    Kvmclock,
    MasterClock,
    PvclockVcpu,
    scale_ticks,
    time_scale,
)
from tests.kvm.fakes import GuestMemory, ManualClock

TSC_HZ = 2_600_000_000
PAGE = 0x2000
EPOCH_NS = 1_700_000_000_123_456_789


class Guest:
    """A VM with one vCPU whose TSC runs at TSC_HZ from the clock's zero."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.memory = GuestMemory()
        self.kvmclock = Kvmclock(self.clock, lambda: EPOCH_NS + self.clock.now)
        self.master = MasterClock(self.kvmclock, self.tsc, TSC_HZ)
        self.requests = 0
        self.tsc_offset = 0
        self.pvclock = PvclockVcpu(
            self.kvmclock, self.master, self.memory.write, self.memory.read, self.request, lambda: self.tsc_offset
        )

    def request(self) -> None:
        self.requests += 1

    def tsc(self) -> int:
        return self.clock.now * TSC_HZ // 10**9

    def page(self) -> tuple[int, ...]:
        return struct.unpack("<IIQQIbB2x", self.memory.data[PAGE : PAGE + 32])

    def read_clock(self) -> int:
        """As a guest does: no exit, only RDTSC and the page."""
        _, _, timestamp, system_time, mul, shift, _ = self.page()
        return system_time + scale_ticks(self.tsc() + self.tsc_offset - timestamp, mul, shift)

    def enable(self) -> None:
        self.pvclock.msr_write(MSR_KVM_SYSTEM_TIME_NEW, PAGE | 1)
        assert self.pvclock.update()


@pytest.mark.parametrize("hz", [1_000_000, 999_999_999, 10**9, 10**9 + 1, 2 * 10**9, TSC_HZ, 5_100_000_000, 10**12])
def test_scale_is_exact_to_parts_in_a_thousand_million(hz: int) -> None:
    mul, shift = time_scale(hz)
    assert 1 << 31 <= mul < 1 << 32
    for seconds in (1, 3600):
        assert abs(scale_ticks(hz * seconds, mul, shift) - seconds * 10**9) <= seconds * 2


def test_layout_and_reading() -> None:
    guest = Guest()
    guest.clock.advance(5 * 10**9)
    guest.enable()
    version, pad, _, _, _, _, flags = guest.page()
    assert (version, pad, flags) == (2, 0, 1) and guest.memory.data[PAGE + 30 : PAGE + 32] == b"\0\0"
    for _ in range(5):
        guest.clock.advance(1_234_567_891)
        assert abs(guest.read_clock() - guest.kvmclock.now_ns()) < 100


def test_version_is_odd_while_the_page_changes() -> None:
    guest = Guest()
    guest.enable()
    guest.memory.writes.clear()
    guest.pvclock.update()
    versions = [struct.unpack("<I", data)[0] for gpa, data in guest.memory.writes if gpa == PAGE]
    assert versions == [3, 4] and guest.memory.writes[1][0] == PAGE + 4


def test_an_odd_version_left_behind_is_put_right() -> None:
    guest = Guest()
    guest.memory.data[PAGE : PAGE + 4] = struct.pack("<I", 7)
    guest.enable()
    assert guest.page()[0] == 10
    guest.memory.data[PAGE : PAGE + 4] = b"\xff" * 4
    guest.pvclock.update()
    assert guest.page()[0] % 2 == 0


def test_msrs() -> None:
    guest = Guest()
    guest.pvclock.msr_write(MSR_KVM_SYSTEM_TIME, PAGE)
    assert guest.requests == 1 and not guest.pvclock.update(), "not enabled"
    guest.enable()
    assert guest.pvclock.msr_read(MSR_KVM_SYSTEM_TIME_NEW) == guest.pvclock.msr_read(MSR_KVM_SYSTEM_TIME) == PAGE | 1
    guest.pvclock.reset()
    assert guest.pvclock.msr_read(MSR_KVM_SYSTEM_TIME_NEW) == 0 and not guest.pvclock.update()
    for access in (lambda: guest.pvclock.msr_read(0x4B56_4D02), lambda: guest.pvclock.msr_write(0x13, 0)):
        with pytest.raises(MsrAccessError):
            access()


@pytest.mark.parametrize("msr", [MSR_KVM_WALL_CLOCK, MSR_KVM_WALL_CLOCK_NEW])
def test_wall_clock(msr: int) -> None:
    guest = Guest()
    guest.clock.advance(3 * 10**9)
    guest.enable()
    guest.clock.advance(2 * 10**9)
    guest.pvclock.msr_write(msr, 0x3000)
    version, sec, nsec = struct.unpack("<III", guest.memory.data[0x3000:0x300C])
    assert version == 2
    now = sec * 10**9 + nsec + guest.read_clock()
    assert abs(now - (EPOCH_NS + guest.clock.now)) < 100
    guest.memory.writes.clear()
    guest.pvclock.msr_write(msr, 0x3000, host_initiated=True)
    guest.pvclock.msr_write(msr, 0)
    assert guest.memory.writes == []


def test_setting_the_clock() -> None:
    guest = Guest()
    guest.enable()
    guest.kvmclock.set_ns(10**15)
    guest.master.update()
    guest.pvclock.update()
    assert abs(guest.read_clock() - 10**15) < 100


def test_a_written_tsc_keeps_the_time() -> None:
    guest = Guest()
    guest.tsc_offset = -123_456_789
    guest.master.stable = False
    guest.enable()
    guest.clock.advance(10**9)
    assert abs(guest.read_clock() - guest.kvmclock.now_ns()) < 100
    assert guest.page()[6] == 0, "TSCs out of step: no stable bit"


def test_guest_stopped_is_told_once_and_cleared_by_the_guest() -> None:
    guest = Guest()
    guest.enable()
    guest.pvclock.mark_guest_stopped()
    assert guest.requests == 2
    guest.pvclock.update()
    assert guest.page()[6] == 3
    guest.pvclock.update()
    assert guest.page()[6] == 3, "it stays until the guest has seen it"
    guest.memory.data[PAGE + 29] &= ~2
    guest.pvclock.update()
    assert guest.page()[6] == 1


def test_addresses_outside_of_ram_do_nothing() -> None:
    guest = Guest()
    rng = random.Random(1)
    for _ in range(500):
        address = rng.choice((rng.getrandbits(64), 0xFFF0 + rng.randrange(32), (1 << 64) - rng.randrange(1, 64)))
        if address & ~1 > 0x10000 - 32:
            guest.pvclock.msr_write(MSR_KVM_SYSTEM_TIME_NEW, address | 1)
            assert not guest.pvclock.update()
        guest.pvclock.msr_write(MSR_KVM_WALL_CLOCK_NEW, address)
    assert len(guest.memory.data) == 0x10000


def test_cpuid_leaves() -> None:
    signature, features = kvm_leaves()
    registers = (signature.ebx, signature.ecx, signature.edx)
    assert b"".join(value.to_bytes(4, "little") for value in registers) == b"KVMKVMKVM\0\0\0"
    assert signature.eax == features.function == KVM_CPUID_FEATURES
    assert features.eax >> 3 & 1 and features.eax >> 24 & 1
    assert kvm_leaves(KvmFeature.CLOCKSOURCE)[1].eax == 1
    with pytest.raises(ValueError, match="not built"):
        kvm_leaves(KvmFeature.POLL_CONTROL)
