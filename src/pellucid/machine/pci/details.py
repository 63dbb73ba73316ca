"""What `info pci` and `info qtree` say of a function."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pellucid.machine.pci import config as cfg
from pellucid.machine.pci.bar import Bar

if TYPE_CHECKING:
    from pellucid.machine.pci.bridge import PciBridge
    from pellucid.machine.pci.bus import PciBus
    from pellucid.machine.pci.function import PciFunction

CLASS_NAMES = {
    0x0001: "VGA controller",
    0x0100: "SCSI controller",
    0x0101: "IDE controller",
    0x0102: "Floppy controller",
    0x0103: "IPI controller",
    0x0104: "RAID controller",
    0x0106: "SATA controller",
    0x0107: "SAS controller",
    0x0180: "Storage controller",
    0x0200: "Ethernet controller",
    0x0201: "Token Ring controller",
    0x0202: "FDDI controller",
    0x0203: "ATM controller",
    0x0280: "Network controller",
    0x0300: "VGA controller",
    0x0301: "XGA controller",
    0x0302: "3D controller",
    0x0380: "Display controller",
    0x0400: "Video controller",
    0x0401: "Audio controller",
    0x0402: "Phone",
    0x0403: "Audio controller",
    0x0480: "Multimedia controller",
    0x0500: "RAM controller",
    0x0501: "Flash controller",
    0x0580: "Memory controller",
    0x0600: "Host bridge",
    0x0601: "ISA bridge",
    0x0602: "EISA bridge",
    0x0603: "MC bridge",
    0x0604: "PCI bridge",
    0x0605: "PCMCIA bridge",
    0x0606: "NUBUS bridge",
    0x0607: "CARDBUS bridge",
    0x0608: "RACEWAY bridge",
    0x0680: "Bridge",
    0x0700: "Serial port",
    0x0701: "Parallel port",
    0x0800: "Interrupt controller",
    0x0801: "DMA controller",
    0x0802: "Timer",
    0x0803: "RTC",
    0x0900: "Keyboard",
    0x0901: "Pen",
    0x0902: "Mouse",
    0x0A00: "Dock station",
    0x0B00: "i386 cpu",
    0x0C00: "Firewire controller",
    0x0C01: "Access bus controller",
    0x0C02: "SSA controller",
    0x0C03: "USB controller",
    0x0C04: "Fibre channel controller",
    0x0C05: "SMBus",
}
"""Names of base class and subclass, as QEMU says them."""
UNMAPPED = (1 << 64) - 1


def class_name(function: "PciFunction", unknown: str) -> str:
    """The function's class in words; `unknown` is a format for those that have none."""
    number = function.class_code >> 8
    return CLASS_NAMES.get(number, unknown.format(number))


def _bars(function: "PciFunction") -> Iterator[tuple[Bar, int, int]]:
    """(BAR, address or all ones, last byte), the latter wrapping as QEMU's arithmetic does."""
    for bar in sorted(function.bars, key=lambda bar: bar.index):
        address = UNMAPPED if bar.address is None else bar.address
        yield bar, address, (address + bar.region.size - 1) & UNMAPPED


def qtree_lines(function: "PciFunction") -> Iterator[str]:
    """What the bus adds to a function's node in `info qtree`."""
    assert function.bus is not None
    place = f"{function.bus.shown_number:02x}:{function.devfn >> 3:02x}.{function.devfn & 7:x}"
    ids = f"{function.vendor_id:04x}:{function.device_id:04x}"
    sub_vendor = int.from_bytes(function.config[cfg.SUBSYSTEM_VENDOR_ID : cfg.SUBSYSTEM_VENDOR_ID + 2], "little")
    sub_id = int.from_bytes(function.config[cfg.SUBSYSTEM_ID : cfg.SUBSYSTEM_ID + 2], "little")
    name = class_name(function, "Class {:04x}")
    yield f"class {name}, addr {place}, pci id {ids} (sub {sub_vendor:04x}:{sub_id:04x})"
    for bar, address, last in _bars(function):
        yield f"bar {bar.index}: {'i/o' if bar.is_io else 'mem'} at {address:#x} [{last:#x}]"


def info_pci(root: "PciBus") -> str:
    """What `info pci` prints."""
    return "".join(line + "\n" for line in _bus_lines(root))


def _bus_lines(bus: "PciBus") -> Iterator[str]:
    for devfn in sorted(bus.functions):
        function = bus.functions[devfn]
        yield f"  Bus {bus.shown_number:2}, device {devfn >> 3:3}, function {devfn & 7}:"
        yield from function.info_lines()
        behind = function.secondary()
        if behind is not None and behind.shown_number:
            yield from _bus_lines(behind)


def function_lines(function: "PciFunction", ident: str) -> Iterator[str]:
    """The lines of `info pci` below a function's head."""
    # In decimal: that is how QEMU prints it here.
    name = class_name(function, "Class {:04}")
    yield f"    {name}: PCI device {function.vendor_id:04x}:{function.device_id:04x}"
    sub_vendor = int.from_bytes(function.config[cfg.SUBSYSTEM_VENDOR_ID : cfg.SUBSYSTEM_VENDOR_ID + 2], "little")
    if function.header_type == 0 and sub_vendor:
        sub_id = int.from_bytes(function.config[cfg.SUBSYSTEM_ID : cfg.SUBSYSTEM_ID + 2], "little")
        yield f"      PCI subsystem {sub_vendor:04x}:{sub_id:04x}"
    if function.interrupt_pin:
        yield f"      IRQ {function.interrupt_line}, pin {chr(ord('A') + function.interrupt_pin - 1)}"
    if function.header_type == cfg.HEADER_BRIDGE:
        yield from _bridge_lines(function)  # type: ignore[arg-type]
    for bar, address, last in _bars(function):
        if bar.is_io:
            yield f"      BAR{bar.index}: I/O at {address:#06x} [{last:#06x}]."
        else:
            bits = 64 if bar.bytes == 8 else 32
            prefetchable = " prefetchable" if bar.prefetchable else ""
            yield f"      BAR{bar.index}: {bits} bit{prefetchable} memory at {address:#010x} [{last:#010x}]."
    yield f'      id "{ident}"'


def _bridge_lines(bridge: "PciBridge") -> Iterator[str]:
    yield f"      BUS {bridge.primary}."
    yield f"      secondary bus {bridge.secondary_number}."
    yield f"      subordinate bus {bridge.subordinate}."
    base, limit = bridge.window("pci_bridge_io")
    yield f"      IO range [{base:#06x}, {limit:#06x}]"
    base, limit = bridge.window("pci_bridge_mem")
    yield f"      memory range [{base:#010x}, {limit:#010x}]"
    base, limit = bridge.window("pci_bridge_pref_mem")
    yield f"      prefetchable memory range [{base:#010x}, {limit:#010x}]"
