"""What the DSDTs of `pc` and `q35` have alike: the debug port, hot-plug methods, processors, resources, slots.

Names, order and methods are QEMU 7.2's, so that a guest (or its saved driver settings) sees the machine it knows; the
tests compare byte by byte. `i440fx_dsdt.py` and `q35_dsdt.py` put these parts together. A part whose ports a board does
not have is left out: its methods would read registers that float.
"""

from collections.abc import Sequence

from pellucid.machine.firmware import aml
from pellucid.machine.firmware.cpu_hotplug_aml import hotplug_processors
from pellucid.machine.firmware.madt import processor_entry
from pellucid.records import dataclass

DEBUG_PORT = 0x402
FW_CFG_PORT, FW_CFG_SIZE = 0x510, 12
CONFIG_PORTS, CONFIG_PORTS_SIZE = 0xCF8, 8
VGA_LOW, VGA_HIGH = 0xA_0000, 0xB_FFFF
HPET_BASE, HPET_SIZE = 0xFED0_0000, 0x400
LONGEST_HPET_PERIOD = 100_000_000
"""In femtoseconds (IA-PC HPET specification, 2.3.4): a longer one means that there is no timer."""
PRESENT, PRESENT_HIDDEN = 0x0F, 0x0B
SLOTS = 32
PCI_HOTPLUG_SIZE = 0x18


@dataclass(frozen=True)
class Slot:
    """A PCI function that the DSDT names: function 0 of each slot in use, others only with AML of their own."""

    devfn: int
    content: bytes = b""
    """AML inside its Device."""
    hotpluggable: bool = True
    is_vga: bool = False


@dataclass(frozen=True)
class PcDsdt:
    """What differs between two PCs.

    windows: (first, last) address of each range below and above 4 GiB that the PCI bus gives to BARs, in order.
    isa: AML of the devices behind the ISA bridge. slots: the bus's functions, in order.
    pci_hotplug, cpu_hotplug: the first port of each controller, None on a board that does not have it.
    """

    apic_ids: Sequence[int]
    windows: Sequence[tuple[int, int]]
    isa: bytes = b""
    slots: Sequence[Slot] = ()
    gpe_base: int = 0
    gpe_size: int = 4
    pci_hotplug: int | None = None
    cpu_hotplug: int | None = None
    has_hpet: bool = True
    has_s3: bool = True
    has_s4: bool = True


def debug_port() -> bytes:
    """DBUG(text): writes to the port that debugcon listens on."""
    text, last, at = aml.local(0), aml.local(1), aml.local(2)
    write = aml.store(aml.deref_of(aml.index(text, at)), "DBGB") + aml.increment(at)
    method = aml.method(
        "DBUG",
        1,
        aml.to_hex_string(aml.arg(0), text)
        + aml.to_buffer(text, text)
        + aml.subtract(aml.size_of(text), 1, last)
        + aml.store(0, at)
        + aml.while_(aml.less(at, last), write)
        + aml.store(ord("\n"), "DBGB"),
    )
    region = aml.operation_region("DBG", aml.SYSTEM_IO, DEBUG_PORT, 1)
    return aml.scope("\\", region + aml.field("DBG", aml.BYTE_ACCESS, [("DBGB", 8)], aml.PRESERVE) + method)


def hpet() -> bytes:
    """The timer block, which says itself whether it is there."""
    vendor, period = aml.local(0), aml.local(1)
    status = (
        aml.store("VEND", vendor)
        + aml.store("PRD", period)
        + aml.shift_right(vendor, 16, vendor)
        + aml.if_(aml.either(aml.equal(vendor, 0), aml.equal(vendor, 0xFFFF)), aml.return_(0))
        + aml.if_(aml.either(aml.equal(period, 0), aml.greater(period, LONGEST_HPET_PERIOD)), aml.return_(0))
        + aml.return_(PRESENT)
    )
    device = (
        aml.name("_HID", aml.eisa_id("PNP0103"))
        + aml.name("_UID", 0)
        + aml.operation_region("HPTM", aml.SYSTEM_MEMORY, HPET_BASE, HPET_SIZE)
        + aml.field("HPTM", aml.DWORD_ACCESS, [("VEND", 32), ("PRD", 32)], aml.LOCK | aml.PRESERVE)
        + aml.method("_STA", 0, status)
        + aml.name("_CRS", aml.resource_template(aml.memory32_fixed(HPET_BASE, HPET_SIZE, writable=False)))
    )
    return aml.scope("_SB", aml.device("HPET", device))


def gpe_block() -> bytes:
    """The block of general-purpose events as a device."""
    return aml.scope("_GPE", aml.name("_HID", aml.string("ACPI0006")))


def processors(pc: PcDsdt) -> bytes:
    """The processors, with hot-plug's methods where the board has its controller."""
    if pc.cpu_hotplug is not None:
        return hotplug_processors(pc.apic_ids, pc.cpu_hotplug)
    objects = b"".join(
        aml.processor(f"C{uid:03X}", min(uid, 0xFF), aml.name("_MAT", aml.buffer(processor_entry(uid, apic_id))))
        for uid, apic_id in enumerate(pc.apic_ids)
    )
    return aml.scope("_SB", objects)


def bus_resources(pc: PcDsdt) -> bytes:
    """_CRS of the root bridge, and the ports that are taken on its bus without being anybody's BAR."""
    resources = aml.resource_template(
        aml.bus_numbers(0, 0xFF),
        aml.io_ports(CONFIG_PORTS, CONFIG_PORTS_SIZE, alignment=1),
        aml.io_window(0, CONFIG_PORTS - 1),
        aml.io_window(CONFIG_PORTS + CONFIG_PORTS_SIZE, 0xFFFF),
        aml.memory_window(VGA_LOW, VGA_HIGH, cacheable=True),
        *(aml.memory_window(low, high, cacheable=low >= 1 << 32) for low, high in pc.windows),
    )
    terms = aml.name("_CRS", resources) + _reserved_ports("GPE0", "GPE0 resources", pc.gpe_base, pc.gpe_size)
    if pc.pci_hotplug is not None:
        terms += _reserved_ports("PHPR", "PCI Hotplug resources", pc.pci_hotplug, PCI_HOTPLUG_SIZE)
    return aml.scope("\\_SB.PCI0", terms)


def _reserved_ports(path: str, what: str, base: int, size: int) -> bytes:
    return aml.device(
        path,
        aml.name("_HID", aml.string("PNP0A06"))
        + aml.name("_UID", aml.string(what))
        + aml.name("_STA", PRESENT_HIDDEN)
        + aml.name("_CRS", aml.resource_template(aml.io_ports(base, size, alignment=1))),
    )


def sleep_states(pc: PcDsdt) -> bytes:
    """The SLP_TYP values of both chips (7.4.2): 1 suspends to RAM, 2 to disk, 0 is power off."""
    kinds = [("_S3", 1, pc.has_s3), ("_S4", 2, pc.has_s4), ("_S5", 0, True)]
    return aml.scope("\\", b"".join(aml.name(name, aml.package([n, n, 0, 0])) for name, n, there in kinds if there))


def fw_cfg() -> bytes:
    """The configuration device, by the name that Linux's qemu_fw_cfg driver knows."""
    ports = aml.resource_template(aml.io_ports(FW_CFG_PORT, FW_CFG_SIZE, alignment=1))
    terms = aml.name("_HID", aml.string("QEMU0002")) + aml.name("_STA", PRESENT_HIDDEN) + aml.name("_CRS", ports)
    return aml.scope("\\_SB.PCI0", aml.device("FWCF", terms))


def slot_name(devfn: int) -> str:
    """The name of a function on the root bus."""
    return f"S{devfn:02X}"


def functions(slots: Sequence[Slot]) -> bytes:
    """The functions of a bus that nothing is plugged into while the machine runs."""
    return b"".join(
        aml.device(slot_name(slot.devfn), aml.name("_ADR", slot.devfn >> 3 << 16 | slot.devfn & 7) + slot.content)
        for slot in slots
    )


def links(pins: str, first_uid: int = 0) -> bytes:
    """PIRQ links LNKx, each a byte PRQx of the ISA bridge: bit 7 switches it off, else it holds the interrupt."""
    uids = enumerate(pins, first_uid)
    return b"".join(_link(f"LNK{chr(ord('A') + uid)}", uid, f"PRQ{pin}") for uid, pin in uids)


def link_status() -> bytes:
    """IQST(register): present, and whether enabled."""
    return aml.method("IQST", 1, aml.if_(aml.and_(0x80, aml.arg(0)), aml.return_(0x09)) + aml.return_(PRESENT_HIDDEN))


def link_resources(number: bytes) -> bytes:
    """IQCR(register): the resource template of the interrupt that `number`, terms that set PRRI, takes out of it."""
    template = aml.resource_template(aml.interrupt(0, edge=False, shared=True))
    terms = aml.name("PRR0", template) + aml.dword_field("PRR0", 5, "PRRI") + number + aml.return_("PRR0")
    return aml.method("IQCR", 1, terms, serialized=True)


def _link(path: str, uid: int, register: str) -> bytes:
    possible = aml.resource_template(aml.interrupt(5, 10, 11, edge=False, shared=True))
    return aml.device(
        path,
        aml.name("_HID", aml.eisa_id("PNP0C0F"))
        + aml.name("_UID", uid)
        + aml.name("_PRS", possible)
        + aml.method("_STA", 0, aml.return_(aml.call("IQST", register)))
        + aml.method("_DIS", 0, aml.or_(register, 0x80, register))
        + aml.method("_CRS", 0, aml.return_(aml.call("IQCR", register)))
        + aml.method("_SRS", 1, aml.dword_field(aml.arg(0), 5, "PRRI") + aml.store("PRRI", register)),
    )
