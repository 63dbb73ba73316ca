"""What the other floors lean on: KVM's numbers and layouts, and the in-kernel bus."""

import ctypes

import pytest

from pellucid.errors import PellucidError
from pellucid.kvm import api, vcpu_requests
from pellucid.kvm.coalesced import MOST_WRITES, CoalescedRing
from pellucid.kvm.errors import InvalidRequestError, MsrAccessError, StateError
from pellucid.kvm.eventfd import IoeventfdRegistry
from pellucid.kvm.io_bus import BusRange, IoBus
from pellucid.kvm.irqchip.state import IoapicState, PicState, PitChannelState, PitState
from pellucid.records import FrozenInstanceError


class KvmPitChannelState(ctypes.Structure):
    """struct kvm_pit_channel_state with the C compiler's own alignment rules."""

    _fields_ = (
        ("count", ctypes.c_uint32), ("latched_count", ctypes.c_uint16),
        *((name, ctypes.c_uint8) for name in (
            "count_latched", "status_latched", "status", "read_state", "write_state", "write_latch", "rw_mode", "mode",
            "bcd", "gate")),
        ("count_load_time", ctypes.c_int64),
    )  # fmt: skip


class KvmIoapicState(ctypes.Structure):
    """struct kvm_ioapic_state."""

    _fields_ = (
        ("base_address", ctypes.c_uint64), ("ioregsel", ctypes.c_uint32), ("id", ctypes.c_uint32),
        ("irr", ctypes.c_uint32), ("pad", ctypes.c_uint32), ("redirtbl", ctypes.c_uint64 * 24),
    )  # fmt: skip


def test_layouts_are_those_of_c() -> None:
    channel = PitChannelState(count=0x10000, latched_count=0x1234, gate=1, mode=3, count_load_time=-5)
    c_channel = KvmPitChannelState.from_buffer_copy(channel.pack())
    for name, *_ in KvmPitChannelState._fields_:
        assert getattr(c_channel, name) == getattr(channel, name)
    ioapic = IoapicState(base_address=0xFEC0_0000, id=3, irr=5, redirtbl=tuple(range(24)))
    c_ioapic = KvmIoapicState.from_buffer_copy(ioapic.pack())
    assert (c_ioapic.base_address, c_ioapic.id, c_ioapic.irr, list(c_ioapic.redirtbl)) == (
        0xFEC0_0000, 3, 5, list(range(24)),
    )  # fmt: skip
    pit = PitState(channels=(channel, PitChannelState(), channel), flags=2)
    assert pit.size() == 3 * ctypes.sizeof(KvmPitChannelState) + 40
    assert pit.pack()[48:72] == channel.pack() and pit.pack()[72] == 2
    assert PicState(last_irr=1, elcr_mask=0xF8).pack() == bytes([1, *[0] * 14, 0xF8])


def test_request_numbers() -> None:
    assert (vcpu_requests.KVM_REQ_TLB_FLUSH, api.KVM_REQ_EVENT, api.KVM_REQ_CLOCK_UPDATE, api.KVM_REQ_NMI) == (
        0, 14, 12, 17,
    )  # fmt: skip
    numbers = list(vcpu_requests.KVM_REQUEST_NAMES)
    assert len(set(numbers)) == len(numbers) and vcpu_requests.KVM_REQUEST_NAMES[14] == "KVM_REQ_EVENT"


def test_exits_are_values() -> None:
    assert api.IoExit(0x3F8, 1, True, 65) == api.IoExit(0x3F8, 1, True, 65) != api.IoExit(0x3F8, 1, False, None)
    with pytest.raises(FrozenInstanceError):
        api.ShutdownExit("three faults").reason = ""  # type: ignore[misc]


def test_errors_are_one_tree() -> None:
    for error in (MsrAccessError(0x10, 5), MsrAccessError(0x10), StateError("x"), InvalidRequestError("x")):
        assert isinstance(error, PellucidError)
    assert str(MsrAccessError(0x10, 5)) == "WRMSR of 0x5 to 0x10 raises #GP(0)"


def test_coalesced_writes_are_collected_in_order_and_within_bounds() -> None:
    ring = CoalescedRing()
    ports, memory = (IoBus(IoeventfdRegistry(), ring, pio=pio) for pio in (True, False))
    ring.register(0x70, 2, pio=True)
    ring.register(0xB8000, 0x1000, pio=False)
    assert not ring and not ports.write(0x72, 1, 1) and not ports.write(0x71, 2, 1) and not memory.write(0x70, 1, 1)
    assert ports.write(0x71, 1, 5) and memory.write(0xB8FFE, 2, 6) and ports.write(0x70, 2, 7)
    assert ring and ports.read(0x70, 1) is None
    assert ring.take() == [(True, 0x71, 1, 5), (False, 0xB8FFE, 2, 6), (True, 0x70, 2, 7)] and not ring
    assert [ports.write(0x70, 1, n) for n in range(MOST_WRITES + 1)] == [True] * MOST_WRITES + [False]
    assert len(ring.take()) == MOST_WRITES and ports.write(0x70, 1, 0)
    ring.unregister(0x70, 2, pio=True)
    assert not ports.write(0x70, 1, 0)
    for wrong in (lambda: ring.unregister(0x70, 2, pio=True), lambda: ring.register(0, 0, pio=True)):
        with pytest.raises(InvalidRequestError, match="coalesced zone"):
            wrong()


def test_bus_finds_the_device_and_gives_offsets() -> None:
    bus = IoBus(IoeventfdRegistry())
    writes: list[tuple[int, int, int]] = []

    def device(base: int) -> BusRange:
        return BusRange(base, 0x10, lambda offset, size: base + offset, lambda *access: writes.append(access))

    for base in (0x300, 0x100, 0x200):
        bus.register(device(base))
    assert [bus.read(address, 1) for address in (0x100, 0x20F, 0x305, 0x110, 0xFF)] == [0x100, 0x20F, 0x305, None, None]
    assert bus.read(0x10E, 4) is None, "it does not lie in the device whole"
    assert bus.write(0x304, 2, 7) and writes == [(4, 2, 7)]
    for base, length in ((0x10F, 1), (0xF8, 9), (0x80, 0x400)):
        with pytest.raises(InvalidRequestError):
            bus.register(BusRange(base, length, lambda offset, size: 0, lambda *a: None))
