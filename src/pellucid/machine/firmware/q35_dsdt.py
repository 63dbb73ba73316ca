"""The DSDT of the board `q35`: PCI Express root, ICH9's eight PIRQ links and their fixed global interrupts."""


from pellucid.machine.firmware import aml, pc_dsdt, pci_hotplug_aml
from pellucid.machine.firmware.pc_dsdt import PcDsdt, Slot, slot_name
from pellucid.records import dataclass

ISA_BRIDGE = 0x1F << 3
PIRQ_REGISTERS, PIRQ_SIZE = 0x60, 0x0C
PINS = "ABCDEFGH"
FIRST_GSI = 16
LINKS_E_TO_H, LINKS_A_TO_D = 4, 0
PCIE_HOST_BRIDGE = "33db4d5b-1ff7-401c-9657-7441c03dd766"
GRANTED_CONTROL = 0x1E
"""SHPC hot-plug, PME, AER and the capability structure; native PCIe hot-plug only where ACPI's is off."""
UNKNOWN_UUID, UNKNOWN_REVISION, CAPABILITIES_MASKED = 0x04, 0x08, 0x10


@dataclass(frozen=True)
class Ecam:
    """Where configuration space lies in memory."""

    base: int
    size: int


def dsdt(pc: PcDsdt, ecam: Ecam | None) -> bytes:
    """All terms, without the table's header."""
    bridge = Slot(ISA_BRIDGE, _pirq_registers() + pc.isa, hotpluggable=False)
    slots = sorted([*pc.slots, bridge], key=lambda slot: slot.devfn)
    hotplug = pc.pci_hotplug is not None
    return (
        pc_dsdt.debug_port()
        + aml.scope("_SB", _root_bridge(hotplug=hotplug) + (_mapped_configuration(ecam) if ecam else b""))
        + (pci_hotplug_aml.controller(pc.pci_hotplug) if pc.pci_hotplug is not None else b"")
        + aml.name("PICF", 0)
        + aml.method("_PIC", 1, aml.store(aml.arg(0), "PICF"))
        + _interrupt_routing()
        + (pc_dsdt.hpet() if pc.has_hpet else b"")
        + pc_dsdt.gpe_block()
        + pc_dsdt.processors(pc)
        + pc_dsdt.bus_resources(pc)
        + pc_dsdt.sleep_states(pc)
        + pc_dsdt.fw_cfg()
        + aml.scope("\\_SB", aml.scope("PCI0", pc_dsdt.functions(slots) + (aml.method("PCNT", 0, b"") * hotplug)))
        + (pci_hotplug_aml.event() if hotplug else b"")
    )


def _root_bridge(*, hotplug: bool) -> bytes:
    ids = aml.name("_HID", aml.eisa_id("PNP0A08")) + aml.name("_CID", aml.eisa_id("PNP0A03"))
    return aml.device("PCI0", ids + aml.name("_ADR", 0) + aml.name("_UID", 0) + _osc(native_hotplug=not hotplug))


def _osc(*, native_hotplug: bool) -> bytes:
    """_OSC (PCI firmware specification 3.2, 4.5.1): what the operating system may control."""
    wanted, revision, capabilities = aml.local(0), aml.arg(1), aml.arg(3)
    granted = GRANTED_CONTROL | native_hotplug
    negotiate = (
        aml.dword_field(capabilities, 4, "CDW2")
        + aml.dword_field(capabilities, 8, "CDW3")
        + aml.store("CDW3", wanted)
        + aml.and_(wanted, granted, wanted)
        + aml.if_(aml.not_(aml.equal(revision, 1)), aml.or_("CDW1", UNKNOWN_REVISION, "CDW1"))
        + aml.if_(aml.not_(aml.equal("CDW3", wanted)), aml.or_("CDW1", CAPABILITIES_MASKED, "CDW1"))
        + aml.store(wanted, "CDW3")
    )
    body = (
        aml.dword_field(capabilities, 0, "CDW1")
        + aml.if_(aml.equal(aml.arg(0), aml.uuid(PCIE_HOST_BRIDGE)), negotiate)
        + aml.else_(aml.or_("CDW1", UNKNOWN_UUID, "CDW1"))
        + aml.return_(capabilities)
    )
    return aml.method("_OSC", 4, body)


def _mapped_configuration(ecam: Ecam) -> bytes:
    window = aml.memory_window(ecam.base, ecam.base + ecam.size - 1)
    terms = aml.name("_HID", aml.string("PNP0C01")) + aml.name("_CRS", aml.resource_template(window))
    return aml.device("DRAC", terms)


def _pirq_registers() -> bytes:
    fields = [(f"PRQ{pin}", 8) for pin in PINS]
    fields.insert(4, ("", 32))
    region = aml.operation_region("PIRQ", aml.PCI_CONFIG, PIRQ_REGISTERS, PIRQ_SIZE)
    path = f"PCI0.{slot_name(ISA_BRIDGE)}.PIRQ"
    return region + aml.scope("\\_SB", aml.field(path, aml.BYTE_ACCESS, fields, aml.PRESERVE))


def link_of(slot: int, pin: int) -> int:
    """The link (0 for A) of a slot's pin: E to H in rotation up to slot 24, A to D or E to H, straight, above."""
    if slot < 25:
        return LINKS_E_TO_H + (slot + pin) % 4
    return (LINKS_E_TO_H if slot == 30 else LINKS_A_TO_D) + pin


def _routes(prefix: str) -> bytes:
    entries = [
        aml.package([slot << 16 | 0xFFFF, pin, prefix + PINS[link_of(slot, pin)], 0])
        for slot in range(pc_dsdt.SLOTS)
        for pin in range(4)
    ]
    return aml.package(entries)


def _interrupt_routing() -> bytes:
    """_PRT: with the PICs through the links, with the I/O APIC straight to interrupts 16 to 23."""
    choose = aml.if_(aml.equal("PICF", 0), aml.return_("PRTP")) + aml.else_(aml.return_("PRTA"))
    tables = aml.name("PRTP", _routes("LNK")) + aml.name("PRTA", _routes("GSI"))
    return aml.scope(
        "_SB",
        aml.scope("PCI0", tables + aml.method("_PRT", 0, choose))
        + pc_dsdt.link_status()
        + pc_dsdt.link_resources(aml.store(aml.and_(aml.arg(0), 0x0F), "PRRI"))
        + pc_dsdt.links(PINS)
        + b"".join(_fixed_link(pin, FIRST_GSI + number) for number, pin in enumerate(PINS)),
    )


def _fixed_link(pin: str, gsi: int) -> bytes:
    resources = aml.resource_template(aml.interrupt(gsi, edge=False, shared=True))
    return aml.device(
        f"GSI{pin}",
        aml.name("_HID", aml.eisa_id("PNP0C0F"))
        + aml.name("_UID", gsi)
        + aml.name("_PRS", resources)
        + aml.name("_CRS", resources)
        + aml.method("_DIS", 0, b"")
        + aml.method("_SRS", 1, b""),
    )
