"""The board `pc`: i440FX and PIIX3, as QEMU's board of that name, started by SeaBIOS from the reset vector.

The memory tree has QEMU's names, so that whoever knows `info mtree` of a PC finds everything where it was. RAM is one
block; all but the first part of it lies from 4 GiB on. The firmware is seen at the end of the 32-bit space, its last
128 KiB also below 1 MiB, where the PAM registers decide between it and RAM.

Not on this board yet: floppy, SMBus, the hot-plug ports, VMware's port and display.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from pellucid.errors import UserError
from pellucid.kvm.irqchip.state import KVM_IRQCHIP_IOAPIC
from pellucid.kvm.irqchip.state import KVM_PIT_FLAGS_HPET_LEGACY as PIT_HPET_LEGACY
from pellucid.kvm.routing import IrqchipRoute, default_irq_routing
from pellucid.machine.boards.floppy import add_floppy
from pellucid.machine.boards.pc_options import PcOptions, parse_pc_options
from pellucid.machine.boards.pc_sleep import wire_sleep
from pellucid.machine.boards.storage import add_piix3_ide
from pellucid.machine.boot import read_kernel
from pellucid.machine.chardev import Chardev
from pellucid.machine.devices.dma8237 import Dma8237, Dma8237Wide
from pellucid.machine.devices.fw_cfg import FwCfg
from pellucid.machine.devices.hpet import Hpet
from pellucid.machine.devices.i440fx import I440fx
from pellucid.machine.devices.keyboard_controller import KeyboardController
from pellucid.machine.devices.legacy_ports import CoprocessorPort, PostPort
from pellucid.machine.devices.piix3 import Piix3, ResetControl
from pellucid.machine.devices.piix4_pm import ACPI_DISABLE, ACPI_ENABLE, Piix4Pm
from pellucid.machine.devices.port92 import Port92
from pellucid.machine.devices.ps2 import Ps2Keyboard, Ps2Mouse
from pellucid.machine.devices.rtc import Rtc
from pellucid.machine.devices.serial import Serial
from pellucid.machine.firmware.fw_cfg_files import offer_user_files
from pellucid.machine.firmware.i440fx_dsdt import ISA_BRIDGE, dsdt
from pellucid.machine.firmware.image import find_firmware, read_firmware
from pellucid.machine.firmware.kernel_loader import offer_kernel
from pellucid.machine.firmware.pc_acpi import BOCHS, PcTables, PowerPorts
from pellucid.machine.firmware.pc_config import PcFirmwareConfig, boot_bytes, fill_cmos, fill_fw_cfg
from pellucid.machine.firmware.pc_dsdt import PcDsdt
from pellucid.machine.firmware.pc_handover import (
    bus_slots,
    bus_windows,
    isa_aml,
    offer_acpi,
    offer_smbios,
    offer_user_tables,
    port_of,
)
from pellucid.machine.ide.boot import boot_devices, disk_geometries
from pellucid.machine.ide.drive import AtaDrive
from pellucid.machine.irq import IrqLine
from pellucid.machine.machine import Machine
from pellucid.machine.part import Part
from pellucid.machine.pci import ConfigMechanism1, PciBus, PciFunction, PciSpaces
from pellucid.machine.smm import has_smm
from pellucid.memory import AccessSizes, MemoryRegion, MemoryTransaction

MiB, FOUR_GIB = 1 << 20, 1 << 32
SERIAL_PORTS = ((0x3F8, 4), (0x2F8, 3), (0x3E8, 4), (0x2E8, 3))
RTC_PORT, RTC_GSI, SCI_GSI = 0x70, 8, 9
KEYBOARD_GSI, FLOPPY_GSI, MOUSE_GSI, COPROCESSOR_GSI = 1, 6, 12, 13
HPET_BASE, HPET_GSI = 0xFED0_0000, 2
DMA_PORTS, DMA_WIDE_PORTS = (0x00, 0x08, 0x81, 0x87), (0xC0, 0xD0, 0x89, 0x8F)
FW_CFG_PORT, FW_CFG_DMA_PORT = 0x510, 0x514
CONFIG_ADDRESS, RESET_CONTROL, CONFIG_DATA = 0xCF8, 0xCF9, 0xCFC
GPE_BASE, GPE_SIZE, APM_BASE = 0xAFE0, 4, 0xB2
HOLE_64 = 2 << 30
"""At least so many bytes for BARs above RAM."""
PRODUCT, VERSION = "Standard PC (i440FX + PIIX, 1996)", "pc-i440fx-7.2"
"""What SMBIOS calls the machine."""
ISA_BIOS_MOST = 0x2_0000
OPTION_ROMS, OPTION_ROMS_SIZE = 0xC_0000, 0x2_0000

IN_HYPERVISOR = (
    ("pic", True, 0x20, 2, 0),
    ("pic", True, 0xA0, 2, 0),
    ("elcr", True, 0x4D0, 1, 0),
    ("elcr", True, 0x4D1, 1, 0),
    ("pit", True, 0x40, 4, 0),
    ("pcspk", True, 0x61, 1, 0),
    ("ioapic", False, 0xFEC0_0000, 0x1000, 0),
    ("apic-msi", False, 0xFEE0_0000, 0x10_0000, 4096),
)
"""(name, in port space, address, size, priority) of what the hypervisor answers before this process hears of it."""


@dataclass(frozen=True)
class PcMemory:
    """The regions that a PC's chips are wired to."""

    ram: MemoryRegion
    pci: MemoryRegion
    below_4g: int
    above_4g: int


def build_pc(machine: Machine, serials: list[Chardev | None]) -> None:
    """Fill `machine`. Raises UserError for options, firmware and sizes that do not fit the board."""
    options = parse_pc_options(machine.config.board_options)
    firmware = read_firmware(find_firmware(options.firmware))
    with MemoryTransaction():
        memory = add_memory(machine, options)
        add_firmware(machine, memory, firmware)
        _add_hypervisor_parts(machine)
        bus, smi = _add_pci(machine, memory, options)
        drives = add_piix3_ide(machine, bus, 1, 1)
        fw_cfg = _add_isa(machine, memory, serials, options, drives)
        power = _add_power_management(machine, bus, smi) if options.acpi else None
    _offer_tables(machine, memory, bus, fw_cfg, options, power)


def split_ram(size: int, max_below_4g: int | None) -> tuple[int, int]:
    """(bytes below 4 GiB, bytes from 4 GiB on): a hole of 512 MiB, of 1 GiB as soon as RAM would reach it."""
    most = 0xE000_0000 if max_below_4g is None else max_below_4g
    if size >= most:
        most = min(most, 0xC000_0000)
    return min(size, most), max(size - most, 0)


def add_memory(machine: Machine, options: PcOptions) -> PcMemory:
    """RAM in one block, seen below and above 4 GiB, and the PCI bus's space beneath everything."""
    size = machine.config.memory_size
    if size < MiB:
        raise UserError(f"-m: the PC needs at least 1 MiB of RAM, not {size} bytes")
    below, above = split_ram(size, options.max_ram_below_4g)
    ram = MemoryRegion.new_ram("pc.ram", machine.ram.new("pc.ram", size))
    machine.system_memory.add_subregion(0, MemoryRegion.new_alias("ram-below-4g", ram, 0, below))
    if above:
        machine.system_memory.add_subregion(FOUR_GIB, MemoryRegion.new_alias("ram-above-4g", ram, below, above))
    pci = MemoryRegion.new_container("pci")
    machine.system_memory.add_subregion_overlap(0, pci, -1)
    return PcMemory(ram, pci, below, above)


def add_firmware(machine: Machine, memory: PcMemory, firmware: bytes) -> None:
    """The BIOS at the end of the 32-bit space and its tail below 1 MiB, and the space for option ROMs."""
    block = machine.ram.new("pc.bios", len(firmware))
    block.view[: len(firmware)] = firmware
    bios = MemoryRegion.new_rom("pc.bios", block)
    tail = min(len(firmware), ISA_BIOS_MOST)
    isa_bios = MemoryRegion.new_alias("isa-bios", bios, len(firmware) - tail, tail)
    isa_bios.set_readonly(True)
    memory.pci.add_subregion_overlap(MiB - tail, isa_bios, 1)
    memory.pci.add_subregion(FOUR_GIB - len(firmware), bios)
    roms = MemoryRegion.new_rom("pc.rom", machine.ram.new("pc.rom", OPTION_ROMS_SIZE))
    memory.pci.add_subregion_overlap(OPTION_ROMS, roms, 1)


def _add_hypervisor_parts(machine: Machine) -> None:
    machine.vm.create_irqchip()
    machine.vm.create_pit()
    for name, in_ports, address, size, priority in IN_HYPERVISOR:
        container = machine.system_io if in_ports else machine.system_memory
        container.add_subregion_overlap(address, MemoryRegion.new_reservation(name, size), priority)


def _add_pci(machine: Machine, memory: PcMemory, options: PcOptions) -> tuple[PciBus, Callable[[], None] | None]:
    """The bus, its host bridge and the bridge to ISA, and the way to configuration space; and SMI#, if there is one."""
    spaces = PciSpaces(memory.pci, machine.system_io, machine.system_memory, machine.vm.signal_msi)
    piix3 = Piix3([machine.gsi(irq) for irq in range(16)])
    bus = PciBus("pci.0", spaces, piix3.route)
    host = I440fx(machine.system_memory, memory.ram, memory.pci)
    smi = machine.add_smm(host.smram).raise_first if has_smm(machine.hypervisor, options.smm) else None
    functions: list[PciFunction] = [host, piix3]
    for slot, function in enumerate(functions):
        bus.add(slot, 0, function)
        machine.parts.append(Part(function))
    machine.add(Part(ConfigMechanism1(bus), ports=(CONFIG_ADDRESS, CONFIG_DATA)))
    machine.add(Part(ResetControl(machine.request_reset), ports=(RESET_CONTROL,), priority=1))
    return bus, smi


def _add_isa(
    machine: Machine,
    memory: PcMemory,
    serials: list[Chardev | None],
    options: PcOptions,
    drives: Sequence[AtaDrive],
) -> FwCfg:
    for index, chardev in enumerate(serials):
        _add_serial(machine, index, chardev)
    config = PcFirmwareConfig(
        memory.below_4g,
        memory.above_4g,
        machine.config.cpu_count,
        has_hpet=options.hpet,
        has_acpi=options.acpi,
        serial_console=any(chardev is not None for chardev in serials[:1]),
        boot=machine.config.boot,
        boot_devices=boot_devices(drives, "ide@1,1"),
        disks=disk_geometries(drives),
    )
    _add_timers(machine, config)
    machine.add(Part(Dma8237(machine.memory), ports=DMA_PORTS))
    machine.add(Part(Dma8237Wide(machine.memory), ports=DMA_WIDE_PORTS))
    add_floppy(machine, machine.gsi(FLOPPY_GSI))
    keyboard, mouse = Ps2Keyboard(), Ps2Mouse()
    keyboard_irq, mouse_irq = machine.gsi(KEYBOARD_GSI), machine.gsi(MOUSE_GSI)
    controller = KeyboardController(keyboard, mouse, keyboard_irq, mouse_irq, machine.request_reset)
    machine.parts += [Part(keyboard), Part(mouse)]
    machine.add(Part(controller, ports=(0x60, 0x64)))
    machine.add(Part(Port92(machine.request_reset), ports=(0x92,)))
    machine.add(Part(PostPort(), ports=(0x80,)))
    _add_coprocessor(machine)
    fw_cfg = FwCfg(machine.memory)
    fill_fw_cfg(fw_cfg, config)
    _offer_kernel(machine, fw_cfg)
    machine.add(Part(fw_cfg, ports=(FW_CFG_PORT, FW_CFG_DMA_PORT)))
    return fw_cfg


def _offer_tables(
    machine: Machine, memory: PcMemory, bus: PciBus, fw_cfg: FwCfg, options: PcOptions, power: Piix4Pm | None
) -> None:
    """ACPI and SMBIOS, which describe all the rest; then the user's own files, which may not replace any."""
    extra = offer_user_tables(fw_cfg, machine.config)
    oem = replace(BOCHS, id=options.oem_id, table_id=options.oem_table_id)

    def describe(power: Piix4Pm) -> PcTables:
        apic_ids = machine.config.topology.apic_ids
        windows = bus_windows(bus, memory.below_4g, memory.above_4g, HOLE_64)
        isa, slots = isa_aml(machine.parts), bus_slots(bus, ISA_BRIDGE)
        pci, cpu = (port_of(machine.parts, f"acpi-{what}-hotplug") for what in ("pci", "cpu"))
        aml = dsdt(PcDsdt(apic_ids, windows, isa, slots, GPE_BASE, GPE_SIZE, pci, cpu, has_hpet=options.hpet))
        ports = PowerPorts(power.pm_base & 0xFFC0, GPE_BASE, GPE_SIZE, ACPI_ENABLE, ACPI_DISABLE)
        return PcTables(aml, apic_ids, ports, has_hpet=options.hpet, extra=extra, oem=oem)

    if power is not None:
        offer_acpi(machine, fw_cfg, lambda: describe(power))
    ranges = [(0, memory.below_4g), (FOUR_GIB, memory.above_4g)]
    ram = [(address, size) for address, size in ranges if size]
    offer_smbios(machine, fw_cfg, ram, PRODUCT, VERSION, options.smbios_64)
    offer_user_files(fw_cfg, machine.config.fw_cfg_files)


def _add_coprocessor(machine: Machine) -> None:
    """FERR# raises IRQ 13; a write to port 0xF0 lowers it and asserts IGNNE#."""
    line = machine.gsi(COPROCESSOR_GSI)
    machine.coprocessor_error = lambda: line.set(True)

    def clear() -> None:
        line.set(False)
        for thread in machine.vcpus.threads:
            thread.vcpu.ignore_numeric_error()

    machine.add(Part(CoprocessorPort(clear), ports=(0xF0,)))


def _offer_kernel(machine: Machine, fw_cfg: FwCfg) -> None:
    """-kernel: firmware starts it in place of a disk."""
    config = machine.config
    if config.kernel is None:
        return
    offer_kernel(fw_cfg, read_kernel(config.kernel), config.append, config.initrd)


def _add_power_management(machine: Machine, bus: PciBus, smi: Callable[[], None] | None) -> Piix4Pm:
    """Behind everything else in port space, so that the guest finds its block first where it puts it over others."""
    power = Piix4Pm(
        machine.gsi(SCI_GSI),
        machine.device_clock,
        machine.system_io,
        machine.request_shutdown,
        machine.system.request_suspend,
        smi,
        gpe_base=GPE_BASE,
        apm_base=APM_BASE,
    )
    wire_sleep(machine.system, power, machine.device(Rtc), machine.device(KeyboardController))
    bus.add(1, 3, power)
    machine.parts.append(Part(power))
    return power


def _add_timers(machine: Machine, config: PcFirmwareConfig) -> None:
    """The HPET, if any, and behind it the RTC, whose interrupt the HPET can take over as it can the PIT's."""

    def set_legacy(on: bool) -> None:
        pit = machine.vm.get_pit()
        machine.vm.set_pit(replace(pit, flags=pit.flags & ~PIT_HPET_LEGACY | (PIT_HPET_LEGACY if on else 0)))

    # The timer's interrupt is on I/O APIC pin 2 and no other chip's: global interrupt 2 leads there too.
    machine.vm.set_gsi_routing([*default_irq_routing(), IrqchipRoute(HPET_GSI, KVM_IRQCHIP_IOAPIC, HPET_GSI)])
    rtc_line: IrqLine = machine.gsi(RTC_GSI)
    if config.has_hpet:
        lines = {number: machine.gsi(number) for number in (0, HPET_GSI, RTC_GSI)}
        hpet = Hpet(machine.device_clock, lines, set_legacy)
        machine.add(Part(hpet, mmio=(HPET_BASE,)))
        rtc_line = hpet.rtc_line()
    rtc = Rtc(rtc_line, machine.device_clock, machine.wall_ns)
    fill_cmos(rtc, config)
    if config.boot.once:
        machine.system.on_reset.append(lambda cause: _set_cmos(rtc, boot_bytes(config.boot.order)))
    with MemoryTransaction():
        machine.parts.append(Part(rtc, ports=(RTC_PORT,), gsi=RTC_GSI))
        ports = rtc.regions[0].memory_region(rtc.ops())
        # The index port once more, as a region of its own, as in QEMU's tree: what is written there matters only with
        # the access of the data port that follows.
        index = MemoryRegion.new_io("rtc-index", 1, rtc.ops(), impl=AccessSizes(1, 1))
        index.set_coalescing()
        ports.add_subregion(0, index)
        machine.system_io.add_subregion(RTC_PORT, ports)


def _set_cmos(rtc: Rtc, content: Iterable[tuple[int, int]]) -> None:
    for index, value in content:
        rtc.set_cmos(index, value)


def _add_serial(machine: Machine, index: int, chardev: Chardev | None) -> None:
    if index >= len(SERIAL_PORTS):
        raise UserError(f"-serial: the PC has {len(SERIAL_PORTS)} serial ports, {index + 1} are asked for")
    if chardev is not None:
        port, gsi = SERIAL_PORTS[index]
        serial = Serial(machine.gsi(gsi), chardev, machine.device_clock, index=index)
        machine.add(Part(serial, ports=(port,), gsi=gsi))
