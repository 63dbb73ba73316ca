"""The DMA remapping table (VT-d, chapter 8): one unit for all, with QEMU's list of what is behind it."""

import struct
from collections.abc import Iterator

from pellucid.machine.pci import PciBus
from pellucid.machine.vtd.registers import Features

UNIT_BASE = 0xFED9_0000
INTERRUPT_REMAPPING = 1
HARDWARE_UNIT, ROOT_PORT_ATS = 0, 2
ALL_PORTS = 1
ENDPOINT, BRIDGE, IOAPIC = 1, 2, 3
IOAPIC_PLACE = (0xFF, 0, 0)
"""Bus, device and function by which tables call the IOAPIC."""


def dmar_body(features: Features, bus: PciBus) -> bytes:
    """The table behind its header. The functions of the root bus are listed one by one, by device and function."""
    scopes = b"".join(_scopes(bus))
    body = struct.pack("<BB10x", features.aw_bits - 1, INTERRUPT_REMAPPING if features.remapping else 0)
    body += struct.pack("<HHBxHQ", HARDWARE_UNIT, 16 + len(scopes), 0, 0, UNIT_BASE) + scopes
    if features.device_iotlb:
        body += struct.pack("<HHBxH", ROOT_PORT_ATS, 8, ALL_PORTS, 0)
    return body


def _scopes(bus: PciBus) -> Iterator[bytes]:
    yield _scope(IOAPIC, *IOAPIC_PLACE)
    for devfn, function in sorted(bus.functions.items()):
        yield _scope(ENDPOINT if function.secondary() is None else BRIDGE, 0, devfn >> 3, devfn & 7)


def _scope(kind: int, bus: int, device: int, function: int) -> bytes:
    return struct.pack("<BBxxBBBB", kind, 8, 0, bus, device, function)
