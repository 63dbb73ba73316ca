"""The board `pc`: i440FX and PIIX3, as QEMU's board of that name, started by SeaBIOS from the reset vector.

Not on this board yet: memory hot-plug.
"""

from collections.abc import Callable

from pellucid.machine.boards import pc_parts
from pellucid.machine.boards.pc_options import parse_pc_options
from pellucid.machine.boards.pc_parts import IsaBus, PcMemory, ProductNames
from pellucid.machine.boards.pc_sleep import wire_sleep
from pellucid.machine.boards.storage import add_piix3_ide
from pellucid.machine.chardev import Chardev
from pellucid.machine.devices.acpi_cpu_hotplug import AcpiCpuHotplug
from pellucid.machine.devices.acpi_pci_hotplug import AcpiPciHotplug
from pellucid.machine.devices.i440fx import I440fx
from pellucid.machine.devices.keyboard_controller import KeyboardController
from pellucid.machine.devices.piix3 import Piix3
from pellucid.machine.devices.piix4_pm import Piix4Pm
from pellucid.machine.devices.pm_smbus import PmSmbus
from pellucid.machine.devices.reset_control import ResetControl
from pellucid.machine.devices.rtc import Rtc
from pellucid.machine.firmware.i440fx_dsdt import ISA_BRIDGE, dsdt
from pellucid.machine.firmware.image import find_firmware, read_firmware
from pellucid.machine.firmware.pc_acpi import PcTables, PowerPorts
from pellucid.machine.firmware.pc_dsdt import PcDsdt
from pellucid.machine.firmware.pc_handover import bus_slots, bus_windows, isa_aml, port_of
from pellucid.machine.irq import SharedLine
from pellucid.machine.machine import Machine
from pellucid.machine.part import Part
from pellucid.machine.pci import PciBus, PciFunction, PciSpaces
from pellucid.machine.qdev import fixed
from pellucid.machine.smm import has_smm
from pellucid.memory import MemoryTransaction

SCI_GSI = 9
GPE_BASE, GPE_SIZE, APM_BASE = 0xAFE0, 4, 0xB2
PCI_HOTPLUG_BASE, CPU_HOTPLUG_BASE = 0xAE00, 0xAF00
HOLE_64 = 2 << 30
"""At least so many bytes for BARs above RAM."""
NAMES = ProductNames("Standard PC (i440FX + PIIX, 1996)", "pc-i440fx-7.2")
HPET_ROUTES = 0x04
"""The only free input of the I/O APIC: 2."""
HOST_PROPERTIES = fixed(
    ("pci-hole64-size", "2147483648 (2 GiB)"),
    ("short_root_bus", "0 (0x0)"),
    ("x-pci-hole64-fix", "true"),
    ("x-config-reg-migration-enabled", "true"),
    ("bypass-iommu", "false"),
)
FIXED_SLOTS = 0b11
"""The host bridge's and the PIIX's slots, of which nothing can be taken out."""


def build_pc(machine: Machine, serials: list[Chardev | None]) -> None:
    """Fill `machine`. Raises UserError for options, firmware and sizes that do not fit the board."""
    options = parse_pc_options("pc", machine.config.board_options)
    image = find_firmware(options.firmware, machine.config.data_folders)
    firmware = read_firmware(image)
    with MemoryTransaction():
        memory = pc_parts.add_memory(machine, *split_ram(machine.config.memory_size, options.max_ram_below_4g))
        pc_parts.add_firmware(machine, memory, firmware, image.name)
        gsi = pc_parts.add_hypervisor_parts(machine, has_pit=options.pit)
        host = I440fx(machine.system_memory, memory.ram, memory.pci)
        bus, isa = _add_pci(machine, memory, gsi, host)
        smi = machine.add_smm(host.smram).raise_first if has_smm(machine.hypervisor, options.smm) else None
        fw_cfg = pc_parts.add_isa(machine, memory, isa, serials, options, HPET_ROUTES, floppy=True)
        add_piix3_ide(machine, bus, 1, 1, gsi)
        pc_parts.offer_drives(machine, fw_cfg)
        power = _add_power_management(machine, bus, gsi, smi) if options.acpi else None
        if power is not None:
            pc_parts.tell_serial_ports(power, serials)
    describe = None if power is None else lambda: _describe(machine, memory, bus, power, has_hpet=options.hpet)
    pc_parts.offer_tables(machine, memory, fw_cfg, options, NAMES, describe)


def split_ram(size: int, max_below_4g: int | None) -> tuple[int, int]:
    """(bytes below 4 GiB, bytes from 4 GiB on): a hole of 512 MiB, of 1 GiB as soon as RAM would reach it."""
    most = 0xE000_0000 if max_below_4g is None else max_below_4g
    if size >= most:
        most = min(most, 0xC000_0000)
    return min(size, most), max(size - most, 0)


def _add_pci(machine: Machine, memory: PcMemory, gsi: list[SharedLine], host: I440fx) -> tuple[PciBus, IsaBus]:
    """The bus, its host bridge and the bridge to ISA, and the way to configuration space."""
    spaces = PciSpaces(memory.pci, machine.system_io, machine.system_memory, machine.vm.signal_msi)
    piix3 = Piix3([line.input() for line in gsi[:16]])
    bus = PciBus("pci.0", spaces, piix3.route)
    pc_parts.plug_system_devices(machine, "i440FX-pcihost", HOST_PROPERTIES, bus)
    functions: list[PciFunction] = [host, piix3]
    for slot, function in enumerate(functions):
        bus.add(slot, 0, function)
        machine.parts.append(Part(function))
    pc_parts.add_config_ports(machine, bus, ResetControl(machine.request_reset, "piix3-reset-control"))
    machine.pci = bus
    return bus, IsaBus(bus.node(piix3).add_bus("isa.0", "ISA"), gsi)


def _describe(machine: Machine, memory: PcMemory, bus: PciBus, power: Piix4Pm, *, has_hpet: bool) -> PcTables:
    """What the ACPI tables say."""
    topology = machine.config.topology
    apic_ids = topology.possible_apic_ids
    windows = bus_windows(bus, memory.below_4g, memory.above_4g, HOLE_64)
    isa, slots = isa_aml(machine.parts), bus_slots(bus, ISA_BRIDGE)
    pci, cpu = (port_of(machine.parts, f"acpi-{what}-hotplug") for what in ("pci", "cpu"))
    aml = dsdt(PcDsdt(apic_ids, windows, isa, slots, GPE_BASE, GPE_SIZE, pci, cpu, has_hpet=has_hpet))
    ports = PowerPorts(power.pm_base & 0xFFC0, GPE_BASE, GPE_SIZE, *power.switches)
    return PcTables(aml, apic_ids, ports, plugged=topology.plugged)


def _add_power_management(
    machine: Machine, bus: PciBus, gsi: list[SharedLine], smi: Callable[[], None] | None
) -> Piix4Pm:
    """Behind everything else in port space, so that the guest finds its block first where it puts it over others."""
    slaves = pc_parts.spd_eeproms()
    smbus = PmSmbus(slaves, blocks=True)
    machine.parts.append(Part(smbus))
    power = Piix4Pm(
        gsi[SCI_GSI].input(),
        machine.device_clock,
        machine.system_io,
        machine.request_shutdown,
        machine.system.request_suspend,
        smi,
        gpe_base=GPE_BASE,
        apm_base=APM_BASE,
        smbus=PmSmbus.regions[0].memory_region(smbus.ops()),
    )
    wire_sleep(machine.system, power, machine.device(Rtc), machine.device(KeyboardController))
    bus.add(1, 3, power)
    machine.parts.append(Part(power))
    pc_parts.plug_eeproms(bus.node(power).add_bus("i2c", "i2c-bus"), slaves)
    machine.add(Part(AcpiPciHotplug(bus, power.raise_gpe, FIXED_SLOTS), ports=(PCI_HOTPLUG_BASE,)))
    machine.add(Part(AcpiCpuHotplug(machine.config.topology, power.raise_gpe), ports=(CPU_HOTPLUG_BASE,)))
    return power
