"""The DSDT of the board `pc`: i440FX root bridge, PIIX3's PIRQ links, the SCI as a link of its own."""

from pellucid.machine.firmware import aml, pc_dsdt, pci_hotplug_aml
from pellucid.machine.firmware.pc_dsdt import PcDsdt, Slot, slot_name

ISA_BRIDGE = 1 << 3
PIRQ_REGISTERS, PINS = 0x60, 4
SCI = 9
INTERRUPT_PINS = 128
"""Four pins of each of 32 slots."""


def dsdt(pc: PcDsdt) -> bytes:
    """All terms, without the table's header."""
    bridge = Slot(ISA_BRIDGE, _pirq_registers() + pc.isa, hotpluggable=False)
    slots = sorted([*pc.slots, bridge], key=lambda slot: slot.devfn)
    root = aml.name("_HID", aml.eisa_id("PNP0A03")) + aml.name("_ADR", 0) + aml.name("_UID", 0)
    hotplug = pc.pci_hotplug is not None
    return (
        pc_dsdt.debug_port()
        + aml.scope("_SB", aml.device("PCI0", root))
        + (pci_hotplug_aml.controller(pc.pci_hotplug) if pc.pci_hotplug is not None else b"")
        + _interrupt_routing()
        + (pc_dsdt.hpet() if pc.has_hpet else b"")
        + pc_dsdt.gpe_block()
        + pc_dsdt.processors(pc)
        + pc_dsdt.bus_resources(pc)
        + pc_dsdt.sleep_states(pc)
        + pc_dsdt.fw_cfg()
        + aml.scope("\\_SB", aml.scope("PCI0", pci_hotplug_aml.slots(slots) if hotplug else pc_dsdt.functions(slots)))
        + (pci_hotplug_aml.event() if hotplug else b"")
    )


def _pirq_registers() -> bytes:
    region = aml.operation_region("P40C", aml.PCI_CONFIG, PIRQ_REGISTERS, PINS)
    fields = [(f"PRQ{pin}", 8) for pin in range(PINS)]
    path = f"PCI0.{slot_name(ISA_BRIDGE)}.P40C"
    return region + aml.scope("\\_SB", aml.field(path, aml.BYTE_ACCESS, fields, aml.PRESERVE))


def _interrupt_routing() -> bytes:
    """_PRT: pin p of slot s leads to link (p + s - 1) mod 4, except that the power management function has the SCI."""
    routes, pin, slot, link, entry = (aml.local(number) for number in range(5))

    def to(name: str) -> bytes:
        return aml.store(aml.package([0, 0, name, 0]), entry)

    power_management = ISA_BRIDGE >> 3 << 2
    first = aml.if_(aml.equal(pin, power_management), to("LNKS")) + aml.else_(to("LNKA"))
    fill = (
        aml.store(aml.shift_right(pin, 2), slot)
        + aml.store(aml.and_(aml.add(pin, slot), 3), link)
        + aml.if_(aml.equal(link, 0), to("LNKD"))
        + aml.if_(aml.equal(link, 1), first)
        + aml.if_(aml.equal(link, 2), to("LNKB"))
        + aml.if_(aml.equal(link, 3), to("LNKC"))
        + aml.store(aml.or_(aml.shift_left(slot, 16), 0xFFFF), aml.index(entry, 0))
        + aml.store(aml.and_(pin, 3), aml.index(entry, 1))
        + aml.store(entry, aml.index(routes, pin))
        + aml.increment(pin)
    )
    table = (
        aml.store(aml.package([], INTERRUPT_PINS), routes)
        + aml.store(0, pin)
        + aml.while_(aml.less(pin, INTERRUPT_PINS), fill)
        + aml.return_(routes)
    )
    current = aml.if_(aml.less(aml.arg(0), 0x80), aml.store(aml.arg(0), "PRRI"))
    return aml.scope(
        "_SB",
        aml.scope("PCI0", aml.method("_PRT", 0, table))
        + pc_dsdt.link_status()
        + pc_dsdt.link_resources(current)
        + pc_dsdt.links("0123")
        + _sci_link(),
    )


def _sci_link() -> bytes:
    """The interrupt of ACPI itself, wired to 9 and not to be moved."""
    return aml.device(
        "LNKS",
        aml.name("_HID", aml.eisa_id("PNP0C0F"))
        + aml.name("_UID", PINS)
        + aml.name("_PRS", aml.resource_template(aml.interrupt(SCI, edge=False, shared=True)))
        + aml.method("_STA", 0, aml.return_(pc_dsdt.PRESENT_HIDDEN))
        + aml.method("_DIS", 0, b"")
        + aml.method("_CRS", 0, aml.return_("_PRS"))
        + aml.method("_SRS", 1, b""),
    )
