"""The board `q35`: Intel's Q35 and ICH9, with PCI Express, as QEMU's board of that name, started by SeaBIOS.

What firmware and ACPI tables need to know of it: MMCONFIG lies at 0xB0000000 (256 buses) once firmware has opened it,
the ACPI registers where firmware puts them (SeaBIOS: 0x600), the SCI is global interrupt 9 until ACPI_CNTL says
otherwise, and PIRQ A to H are global interrupts 16 to 23.

Not on this board yet: memory hot-plug.
"""

from collections.abc import Iterator

from pellucid.machine.boards import pc_parts
from pellucid.machine.boards.pc_options import parse_pc_options
from pellucid.machine.boards.pc_parts import IsaBus, PcMemory, ProductNames
from pellucid.machine.boards.pc_sleep import wire_sleep
from pellucid.machine.boards.storage import add_ahci
from pellucid.machine.chardev import Chardev
from pellucid.machine.devices.acpi_cpu_hotplug import AcpiCpuHotplug
from pellucid.machine.devices.acpi_pci_hotplug import AcpiPciHotplug
from pellucid.machine.devices.ich9_lpc import GPE_OFFSET, Ich9Lpc
from pellucid.machine.devices.ich9_smbus import Ich9Smbus
from pellucid.machine.devices.ich9_tco import Ich9Tco
from pellucid.machine.devices.keyboard_controller import KeyboardController
from pellucid.machine.devices.mch import Mch
from pellucid.machine.devices.reset_control import ResetControl
from pellucid.machine.devices.rtc import Rtc
from pellucid.machine.firmware import q35_dsdt
from pellucid.machine.firmware.dmar import dmar_body
from pellucid.machine.firmware.image import find_firmware, read_firmware
from pellucid.machine.firmware.pc_acpi import PcTables, PowerPorts
from pellucid.machine.firmware.pc_dsdt import PcDsdt
from pellucid.machine.firmware.pc_handover import bus_slots, bus_windows, isa_aml, port_of
from pellucid.machine.irq import SharedLine
from pellucid.machine.machine import Machine
from pellucid.machine.part import Part
from pellucid.machine.pci import Ecam, PciBus, PciSpaces
from pellucid.machine.properties import SIZE
from pellucid.machine.smm import has_smm
from pellucid.memory import MemoryTransaction

NAMES = ProductNames("Standard PC (Q35 + ICH9, 2009)", "pc-q35-7.2")
HOLE_64 = 32 << 30
"""At least so many bytes for BARs above RAM."""
GPE_SIZE = 16
HPET_ROUTES = 0xFF_0104
"""I/O APIC inputs that the HPET's timers may choose: 2, 8 and 16 to 23."""
PCI_HOTPLUG_BASE, CPU_HOTPLUG_BASE = 0xCC0, 0xCD8
LPC_SLOT, LPC_FUNCTION, SATA_FUNCTION, SMBUS_FUNCTION = 0x1F, 0, 2, 3
LOW_RAM_MOST, LOW_RAM_SPLIT = 0xB000_0000, 0x8000_0000


def build_q35(machine: Machine, serials: list[Chardev | None]) -> None:
    """Fill `machine`. Raises UserError for options, firmware and sizes that do not fit the board."""
    options = parse_pc_options("q35", machine.config.board_options)
    image = find_firmware(options.firmware, machine.config.data_folders)
    firmware = read_firmware(image)
    with MemoryTransaction():
        memory = pc_parts.add_memory(machine, *split_ram(machine.config.memory_size, options.max_ram_below_4g))
        pc_parts.add_firmware(machine, memory, firmware, image.name)
        gsi = pc_parts.add_hypervisor_parts(machine, has_pit=options.pit)
        smm = has_smm(machine.hypervisor, options.smm)
        bus, host, lpc = _add_pci(machine, memory, gsi, smm=smm)
        isa = IsaBus(bus.node(lpc).add_bus("isa.0", "ISA"), gsi)
        fw_cfg = pc_parts.add_isa(machine, memory, isa, serials, options, HPET_ROUTES)
        pc_parts.tell_serial_ports(lpc, serials)
        wire_sleep(machine.system, lpc, machine.device(Rtc), machine.device(KeyboardController))
        add_ahci(machine, bus, LPC_SLOT, SATA_FUNCTION)
        pc_parts.offer_drives(machine, fw_cfg)
        _add_smbus(machine, bus)
        _add_hotplug(machine, bus, lpc)
        lpc.show_block()

    def describe() -> PcTables:
        return _describe(machine, memory, bus, lpc, host.mmconfig_window(), has_hpet=options.hpet)

    pc_parts.offer_tables(machine, memory, fw_cfg, options, NAMES, describe if options.acpi else None)


def split_ram(size: int, max_below_4g: int | None) -> tuple[int, int]:
    """(bytes below 4 GiB, bytes from 4 GiB on): up to 2.75 GiB, below MMCONFIG; 2 GiB as soon as RAM would reach it."""
    most = LOW_RAM_SPLIT if size >= LOW_RAM_MOST else LOW_RAM_MOST
    if max_below_4g is not None:
        most = min(most, max_below_4g)
    return min(size, most), max(size - most, 0)


def _add_pci(machine: Machine, memory: PcMemory, gsi: list[SharedLine], *, smm: bool) -> tuple[PciBus, Mch, Ich9Lpc]:
    """The root complex: its bus, the host bridge and the LPC bridge, and both ways to configuration space."""
    spaces = PciSpaces(memory.pci, machine.system_io, machine.system_memory, machine.vm.signal_msi)
    tco = Ich9Tco(machine.device_clock, lambda: lpc.tco_smi(), lambda: lpc.may_reboot, machine.request_reset)
    lpc = Ich9Lpc(
        gsi,
        machine.device_clock,
        machine.system_memory,
        machine.system_io,
        Ich9Tco.regions[0].memory_region(tco.ops()),
        machine.request_shutdown,
        machine.system.request_suspend,
        (lambda: machine.smm.raise_current()) if smm else None,  # type: ignore[union-attr]
    )
    bus = PciBus("pcie.0", spaces, lpc.route, express=True)
    pc_parts.plug_system_devices(machine, "q35-pcihost", lambda: _host_properties(host, memory), bus)
    ecam = Ecam(bus)
    mmconfig = Ecam.regions[0].memory_region(ecam.ops())
    host = Mch(machine.system_memory, memory.ram, memory.pci, memory.below_4g, mmconfig)
    if smm:
        machine.add_smm(host.smram)
    bus.add(0, 0, host)
    bus.add(LPC_SLOT, LPC_FUNCTION, lpc)
    machine.parts += [Part(host), Part(ecam), Part(lpc), Part(tco)]
    pc_parts.add_config_ports(machine, bus, ResetControl(machine.request_reset, "lpc-reset-control"))
    machine.pci = bus
    return bus, host, lpc


def _describe(
    machine: Machine, memory: PcMemory, bus: PciBus, lpc: Ich9Lpc, window: tuple[int, int], *, has_hpet: bool
) -> PcTables:
    """What the ACPI tables say."""
    topology = machine.config.topology
    apic_ids = topology.possible_apic_ids
    ecam = (window[0], window[1] << 20) if window[1] else None
    windows = bus_windows(bus, memory.below_4g, memory.above_4g, HOLE_64, ecam)
    isa, slots = isa_aml(machine.parts), bus_slots(bus, q35_dsdt.ISA_BRIDGE)
    pci, cpu = (port_of(machine.parts, f"acpi-{what}-hotplug") for what in ("pci", "cpu"))
    pm_base = lpc.pm_base & 0xFF80
    gpe = pm_base + GPE_OFFSET
    pc = PcDsdt(apic_ids, windows, isa, slots, gpe, GPE_SIZE, pci, cpu, has_hpet=has_hpet)
    aml = q35_dsdt.dsdt(pc, q35_dsdt.Ecam(*ecam) if ecam else None)
    ports = PowerPorts(pm_base, gpe, GPE_SIZE, *lpc.switches, reset=(0xCF9, 0x0F))
    dmar = dmar_body(machine.iommu.features, bus) if machine.iommu is not None else None
    return PcTables(aml, apic_ids, ports, ecam=ecam, dmar=dmar, plugged=topology.plugged)


def _host_properties(host: Mch, memory: PcMemory) -> Iterator[str]:
    base, mib = host.mmconfig_window()
    yield f"MCFG = {base} ({base:#x})" if mib else "MCFG = -1 (0xffffffffffffffff)"
    yield "pci-hole64-size = 34359738368 (32 GiB)"
    yield "short_root_bus = 0 (0x0)"
    for name, size in (("below", memory.below_4g), ("above", memory.above_4g)):
        yield f"{name}-4g-mem-size = {SIZE.show(size)}"
    yield "x-pci-hole64-fix = true"
    yield "x-config-reg-migration-enabled = true"
    yield "bypass-iommu = false"


def _add_smbus(machine: Machine, bus: PciBus) -> None:
    slaves = pc_parts.spd_eeproms()
    smbus = Ich9Smbus(slaves)
    bus.add(LPC_SLOT, SMBUS_FUNCTION, smbus)
    pc_parts.plug_eeproms(bus.node(smbus).add_bus("i2c", "i2c-bus"), slaves)
    machine.parts += [Part(smbus), Part(smbus.controller)]


def _add_hotplug(machine: Machine, bus: PciBus, lpc: Ich9Lpc) -> None:
    """The registers through which ACPI hears of cards behind conventional bridges, and of processors."""
    machine.add(Part(AcpiPciHotplug(None, lpc.raise_gpe), ports=(PCI_HOTPLUG_BASE,)))
    machine.add(Part(AcpiCpuHotplug(machine.config.topology, lpc.raise_gpe), ports=(CPU_HOTPLUG_BASE,)))
