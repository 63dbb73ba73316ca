"""What the boards `pc` and `q35` have in common: RAM, firmware, the AT's devices, and the hypervisor's chips.

The memory tree has QEMU's names, so that whoever knows `info mtree` of a PC finds everything where it was. RAM is one
block; all but the first part of it lies from 4 GiB on. The firmware is seen at the end of the 32-bit space, its last
128 KiB also below 1 MiB, where the PAM registers decide between it and RAM.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, Protocol

from pellucid.errors import UserError
from pellucid.kvm.api import Vcpu
from pellucid.kvm.irqchip.state import KVM_IRQCHIP_IOAPIC
from pellucid.kvm.irqchip.state import KVM_PIT_FLAGS_HPET_LEGACY as PIT_HPET_LEGACY
from pellucid.kvm.routing import IrqchipRoute, default_irq_routing
from pellucid.machine.boards.floppy import FLOPPY_GSI, add_floppy
from pellucid.machine.boards.pc_options import PcOptions
from pellucid.machine.boot import read_kernel
from pellucid.machine.chardev import Chardev
from pellucid.machine.devices.dma8237 import Dma8237, Dma8237Wide
from pellucid.machine.devices.fw_cfg import FwCfg
from pellucid.machine.devices.hpet import Hpet
from pellucid.machine.devices.keyboard_controller import KeyboardController
from pellucid.machine.devices.kvmvapic import KvmVapic
from pellucid.machine.devices.legacy_ports import CoprocessorPort, PostPort
from pellucid.machine.devices.pm_smbus import SmbusEeprom, SmbusSlave
from pellucid.machine.devices.port92 import Port92
from pellucid.machine.devices.ps2 import Ps2Keyboard, Ps2Mouse
from pellucid.machine.devices.reset_control import ResetControl
from pellucid.machine.devices.rtc import Rtc
from pellucid.machine.devices.serial import Serial
from pellucid.machine.devices.vmport import VmPort
from pellucid.machine.firmware.fw_cfg_files import offer_user_files
from pellucid.machine.firmware.image import option_rom
from pellucid.machine.firmware.kernel_loader import kernel_rom, offer_kernel
from pellucid.machine.firmware.pc_acpi import BOCHS, PcTables
from pellucid.machine.firmware.pc_config import (
    PcFirmwareConfig,
    boot_bytes,
    boot_order_file,
    disk_bytes,
    fill_cmos,
    fill_fw_cfg,
)
from pellucid.machine.firmware.pc_handover import offer_acpi, offer_smbios, offer_user_tables
from pellucid.machine.ide.boot import bios_geometries, boot_devices, disk_geometries
from pellucid.machine.irq import IrqLine, SharedLine
from pellucid.machine.machine import Machine
from pellucid.machine.part import Part
from pellucid.machine.pci import ConfigMechanism1, PciBus
from pellucid.machine.qdev import Lines, QdevBus, QdevNode, fixed
from pellucid.memory import AccessSizes, MemoryRegion, MemoryTransaction
from pellucid.records import dataclass, replace

MiB, FOUR_GIB = 1 << 20, 1 << 32
GSIS = 24
SERIAL_PORTS = ((0x3F8, 4), (0x2F8, 3), (0x3E8, 4), (0x2E8, 3))
RTC_PORT, RTC_GSI = 0x70, 8
KEYBOARD_GSI, MOUSE_GSI, COPROCESSOR_GSI = 1, 12, 13
HPET_BASE, HPET_GSI = 0xFED0_0000, 2
DMA_PORTS, DMA_WIDE_PORTS = (0x00, 0x08, 0x81, 0x87), (0xC0, 0xD0, 0x89, 0x8F)
FW_CFG_PORT, FW_CFG_DMA_PORT = 0x510, 0x514
VMPORT = 0x5658
CONFIG_ADDRESS, RESET_CONTROL, CONFIG_DATA = 0xCF8, 0xCF9, 0xCFC
FIRST_EEPROM, EEPROMS = 0x50, 8
ISA_BIOS_MOST = 0x2_0000
VAPIC_PORT, VAPIC_ROM = 0x7E, "kvmvapic.bin"
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

OF_THE_PIT = ("pit", "pcspk")


class SerialDecoder(Protocol):
    """A PCI function that says which serial ports it decodes."""

    DECODES_SERIAL: ClassVar[tuple[int, tuple[int, int]]]

    def put_template(self, offset: int, size: int, value: int) -> None: ...


@dataclass(frozen=True)
class PcMemory:
    """The regions that a PC's chips are wired to."""

    ram: MemoryRegion
    pci: MemoryRegion
    below_4g: int
    above_4g: int


def add_memory(machine: Machine, below: int, above: int) -> PcMemory:
    """RAM in one block, seen below and above 4 GiB, and the PCI bus's space beneath everything."""
    size = machine.config.memory_size
    if size < MiB:
        raise UserError(f"-m: the PC needs at least 1 MiB of RAM, not {size} bytes")
    ram = MemoryRegion.new_ram("pc.ram", machine.add_ram("pc.ram", size))
    machine.system_memory.add_subregion(0, MemoryRegion.new_alias("ram-below-4g", ram, 0, below))
    if above:
        machine.system_memory.add_subregion(FOUR_GIB, MemoryRegion.new_alias("ram-above-4g", ram, below, above))
    pci = MemoryRegion.new_container("pci")
    machine.system_memory.add_subregion_overlap(0, pci, -1)
    return PcMemory(ram, pci, below, above)


def add_firmware(machine: Machine, memory: PcMemory, firmware: bytes, name: str) -> None:
    """The BIOS at the end of the 32-bit space and its tail below 1 MiB, and the space for option ROMs."""
    block = machine.ram.new("pc.bios", len(firmware))
    block.view[: len(firmware)] = firmware
    bios = MemoryRegion.new_rom("pc.bios", block)
    tail = min(len(firmware), ISA_BIOS_MOST)
    isa_bios = MemoryRegion.new_alias("isa-bios", bios, len(firmware) - tail, tail)
    isa_bios.set_readonly(True)
    memory.pci.add_subregion_overlap(MiB - tail, isa_bios, 1)
    memory.pci.add_subregion(FOUR_GIB - len(firmware), bios)
    machine.firmware = (name, FOUR_GIB - len(firmware), len(firmware))
    roms = MemoryRegion.new_rom("pc.rom", machine.ram.new("pc.rom", OPTION_ROMS_SIZE))
    memory.pci.add_subregion_overlap(OPTION_ROMS, roms, 1)


def tell_serial_ports(bridge: SerialDecoder, serials: Sequence[Chardev | None]) -> None:
    """The chip set's registers say which of the two first ports are there."""
    offset, bits = bridge.DECODES_SERIAL
    present = (bit for bit, chardev in zip(bits, serials) if chardev is not None)
    bridge.put_template(offset, 1, sum(present))


def add_hypervisor_parts(machine: Machine, *, has_pit: bool) -> list[SharedLine]:
    """The interrupt chips and the PIT, if any; the 24 global interrupts, each for whoever shares it."""
    machine.create_irqchip()
    if has_pit:
        machine.create_pit()
    for name, in_ports, address, size, priority in IN_HYPERVISOR:
        if name in OF_THE_PIT and not has_pit:
            continue
        container = machine.system_io if in_ports else machine.system_memory
        container.add_subregion_overlap(address, MemoryRegion.new_reservation(name, size), priority)
    # The HPET's own interrupt is on I/O APIC pin 2 and no other chip's: global interrupt 2 leads there too.
    machine.vm.set_gsi_routing([*default_irq_routing(), IrqchipRoute(HPET_GSI, KVM_IRQCHIP_IOAPIC, HPET_GSI)])
    return [SharedLine(machine.gsi(number), number) for number in range(GSIS)]


def add_config_ports(machine: Machine, bus: PciBus, reset_control: ResetControl) -> None:
    """Configuration mechanism 1, with the reset control register over the middle of its address port."""
    machine.add(Part(ConfigMechanism1(bus), ports=(CONFIG_ADDRESS, CONFIG_DATA)))
    machine.add(Part(reset_control, ports=(RESET_CONTROL,), priority=1))


def spd_eeproms() -> dict[int, SmbusSlave]:
    """The memory modules' EEPROMs by address, blank as QEMU's PC has them."""
    return {address: SmbusEeprom() for address in range(FIRST_EEPROM, FIRST_EEPROM + EEPROMS)}


def plug_eeproms(bus: QdevBus, addresses: Iterable[int]) -> None:
    """Their nodes in the tree."""
    for address in addresses:
        bus.plug(QdevNode("smbus-eeprom", properties=fixed(("address", f"{address} ({address:#x})"))))


Describe = Callable[[], PcTables]
"""What a board's ACPI tables say now: the registers that they speak of are firmware's to place."""


@dataclass(frozen=True)
class ProductNames:
    """What SMBIOS calls the machine."""

    product: str
    version: str


@dataclass(frozen=True)
class IsaBus:
    """What the AT's devices are put on: its place in the tree, and the interrupts."""

    qdev: QdevBus
    gsi: Sequence[SharedLine]


def add_isa(
    machine: Machine,
    memory: PcMemory,
    isa: IsaBus,
    serials: list[Chardev | None],
    options: PcOptions,
    hpet_routes: int,
    *,
    floppy: bool = False,
) -> FwCfg:
    """Everything of the AT, in the order in which QEMU has it; a floppy controller too, or only where one is needed."""
    config = PcFirmwareConfig(
        memory.below_4g,
        memory.above_4g,
        machine.config.cpu_count,
        machine.config.topology.apic_id_limit,
        has_hpet=options.hpet,
        has_acpi=options.acpi,
        serial_console=machine.config.serial_console and any(chardev is not None for chardev in serials[:1]),
        boot=machine.config.boot,
    )
    _add_dma(machine, isa)
    _add_timers(machine, isa, config, hpet_routes)
    for index, chardev in enumerate(serials):
        _add_serial(machine, isa, index, chardev)
    add_floppy(machine, isa.qdev, isa.gsi[FLOPPY_GSI].input(), always=floppy)
    _add_keyboard(machine, isa)
    if options.vmport:
        _add_vmport(machine, isa)
    machine.add(Part(Port92(machine.request_reset, machine.set_a20), ports=(0x92,)))
    isa.qdev.plug(QdevNode("port92", gpios=(("out", "a20", 1),)))
    machine.add(Part(PostPort(), ports=(0x80,)))
    _add_coprocessor(machine, isa)
    fw_cfg = FwCfg(machine.memory)
    fill_fw_cfg(fw_cfg, config)
    _offer_kernel(machine, fw_cfg)
    machine.add(Part(fw_cfg, ports=(FW_CFG_PORT, FW_CFG_DMA_PORT)))
    _add_vapic(machine, memory, fw_cfg)
    return fw_cfg


def _add_vapic(machine: Machine, memory: PcMemory, fw_cfg: FwCfg) -> None:
    """The option ROM's port, and for firmware the ROM, where QEMU's files are installed."""
    vapic = KvmVapic(lambda: _asking(machine), machine.memory, machine.system_memory, memory.ram)
    machine.add(Part(vapic, ports=(VAPIC_PORT,)))
    rom = option_rom(VAPIC_ROM)
    if rom is not None:
        fw_cfg.add_file(f"genroms/{VAPIC_ROM}", rom)


def _asking(machine: Machine) -> Vcpu | None:
    """The processor whose access is being served; None when a monitor's is."""
    thread = machine.vcpus.current()
    return thread.vcpu if thread is not None else None


def offer_drives(machine: Machine, fw_cfg: FwCfg) -> None:
    """What firmware is told of the drives: which to boot from, and the geometry of disks; again when one is added."""

    def tell() -> None:
        controllers = machine.drives.controllers
        paths = [*kernel_rom(fw_cfg), *boot_devices(controllers)]
        fw_cfg.add_file("bootorder", boot_order_file(paths, strict=machine.config.boot.strict))
        if shapes := bios_geometries(controllers):
            fw_cfg.add_file("bios-geometry", boot_order_file(shapes, strict=False))
        _set_cmos(machine.device(Rtc), disk_bytes(disk_geometries(controllers[0].places)))

    machine.drives.on_plugged.append(tell)
    tell()


def _set_cmos(rtc: Rtc, content: Iterable[tuple[int, int]]) -> None:
    for index, value in content:
        rtc.set_cmos(index, value)


def _add_vmport(machine: Machine, isa: IsaBus) -> None:
    config = machine.config
    port = VmPort(lambda: _asking(machine), config.memory_size, config.uuid, machine.wall_ns)
    machine.add(Part(port, ports=(VMPORT,)))
    isa.qdev.plug(QdevNode("vmport", properties=fixed(
        ("x-read-set-eax", "true"), ("x-signal-unsupported-cmd", "true"), ("x-report-vmx-type", "true"),
        ("x-cmds-v2", "true"), ("vmware-vmx-version", "6 (0x6)"), ("vmware-vmx-type", "2 (0x2)"),
    )))  # fmt: skip


def _add_coprocessor(machine: Machine, isa: IsaBus) -> None:
    """FERR# raises IRQ 13; a write to port 0xF0 lowers it and asserts IGNNE#."""
    line = isa.gsi[COPROCESSOR_GSI].input()
    machine.coprocessor_error = lambda: line.set(True)

    def clear() -> None:
        line.set(False)
        for thread in machine.vcpus.threads:
            thread.vcpu.ignore_numeric_error()

    machine.add(Part(CoprocessorPort(clear), ports=(0xF0,)))


def offer_tables(
    machine: Machine,
    memory: PcMemory,
    fw_cfg: FwCfg,
    options: PcOptions,
    names: ProductNames,
    describe: Describe | None,
) -> None:
    """ACPI (none for a board without it) and SMBIOS; then the user's own files, which may not replace any."""
    extra = offer_user_tables(fw_cfg, machine.config)
    oem = replace(BOCHS, id=options.oem_id, table_id=options.oem_table_id)
    if describe is not None:
        offer_acpi(machine, fw_cfg, lambda: replace(describe(), has_hpet=options.hpet, extra=extra, oem=oem))
    ranges = [(0, memory.below_4g), (FOUR_GIB, memory.above_4g)]
    ram = [(address, size) for address, size in ranges if size]
    offer_smbios(machine, fw_cfg, ram, names.product, names.version, options.smbios_64)
    offer_user_files(fw_cfg, machine.config.fw_cfg_files)


def _add_dma(machine: Machine, isa: IsaBus) -> None:
    machine.add(Part(Dma8237(machine.memory), ports=DMA_PORTS))
    machine.add(Part(Dma8237Wide(machine.memory), ports=DMA_WIDE_PORTS))
    for base, page_base, shift in ((0, 128, 0), (192, 136, 1)):
        isa.qdev.plug(QdevNode("i8257", properties=fixed(
            ("base", f"{base} ({base:#x})"), ("page-base", f"{page_base} ({page_base:#x})"),
            ("pageh-base", "-1 (0xffffffffffffffff)"), ("dshift", f"{shift} ({shift:#x})"),
        )))  # fmt: skip
    for base, elcr, mask, master in ((32, 1232, 248, "true"), (160, 1233, 222, "false")):
        isa.qdev.plug(QdevNode("isa-i8259", gpios=(("in", "", 8), ("out", "", 1)), properties=fixed(
            ("iobase", f"{base} ({base:#x})"), ("elcr_addr", f"{elcr} ({elcr:#x})"),
            ("elcr_mask", f"{mask} ({mask:#x})"), ("master", master),
        )))  # fmt: skip


def _offer_kernel(machine: Machine, fw_cfg: FwCfg) -> None:
    """-kernel: firmware starts it in place of a disk."""
    config = machine.config
    if config.kernel is None:
        return
    offer_kernel(fw_cfg, read_kernel(config.kernel), config.append, config.initrd)


def _add_timers(machine: Machine, isa: IsaBus, config: PcFirmwareConfig, hpet_routes: int) -> None:
    """The HPET, if any, and behind it the RTC, whose interrupt the HPET can take over as it can the PIT's."""

    def set_legacy(on: bool) -> None:
        pit = machine.vm.get_pit()
        machine.vm.set_pit(replace(pit, flags=pit.flags & ~PIT_HPET_LEGACY | (PIT_HPET_LEGACY if on else 0)))

    rtc_line: IrqLine = isa.gsi[RTC_GSI].input()
    if config.has_hpet:
        numbers = {0, RTC_GSI, *(number for number in range(GSIS) if hpet_routes >> number & 1)}
        lines = {number: isa.gsi[number].input() for number in sorted(numbers)}
        hpet = Hpet(machine.device_clock, lines, set_legacy if machine.has_pit else None, hpet_routes)
        machine.add(Part(hpet, mmio=(HPET_BASE,)))
        rtc_line = hpet.rtc_line()
        _plug_hpet(machine, hpet_routes)
    rtc = Rtc(rtc_line, machine.device_clock, machine.wall_ns)
    fill_cmos(rtc, config)
    if config.boot.once:
        machine.system.on_reset.append(lambda cause: _set_cmos(rtc, boot_bytes(config.boot, config.boot.order)))
    with MemoryTransaction():
        machine.parts.append(Part(rtc, ports=(RTC_PORT,), gsi=RTC_GSI))
        ports = rtc.regions[0].memory_region(rtc.ops())
        # The index port once more, as a region of its own, as in QEMU's tree: what is written there matters only with
        # the access of the data port that follows.
        index = MemoryRegion.new_io("rtc-index", 1, rtc.ops(), impl=AccessSizes(1, 1))
        index.set_coalescing()
        ports.add_subregion(0, index)
        machine.system_io.add_subregion(RTC_PORT, ports)
    isa.qdev.plug(QdevNode("mc146818rtc", gpios=(("out", "", 1),), properties=fixed(
        ("base_year", "0 (0x0)"), ("iobase", "112 (0x70)"), ("irq", "8 (0x8)"), ("lost_tick_policy", '"discard"'),
    )))  # fmt: skip
    if machine.has_pit:
        _plug_pit(isa)


def _plug_pit(isa: IsaBus) -> None:
    isa.qdev.plug(
        QdevNode("isa-pit", gpios=(("in", "", 1), ("out", "", 1)), properties=fixed(("iobase", "64 (0x40)")))
    )
    isa.qdev.plug(QdevNode("isa-pcspk", properties=fixed(
        ("audiodev", '""'), ("iobase", "97 (0x61)"), ("migrate", "true"),
    )))  # fmt: skip


def _plug_hpet(machine: Machine, hpet_routes: int) -> None:
    machine.qdev.plug(QdevNode(
        "hpet",
        gpios=(("in", "", 2), ("out", "", 1), ("out", "sysbus-irq", 32)),
        properties=fixed(("timers", "3 (0x3)"), ("msi", "false"),
                         ("hpet-intcap", f"{hpet_routes} ({hpet_routes:#x})"), ("hpet-offset-saved", "true")),
        details=lambda: iter(("mmio 00000000fed00000/0000000000000400",)),
    ))  # fmt: skip


def _add_keyboard(machine: Machine, isa: IsaBus) -> None:
    keyboard, mouse = Ps2Keyboard(), Ps2Mouse()
    machine.qdev.plug(QdevNode("ps2-kbd", gpios=(("out", "", 1),)))
    machine.qdev.plug(QdevNode("ps2-mouse", gpios=(("out", "", 1),)))
    keyboard_irq, mouse_irq = isa.gsi[KEYBOARD_GSI].input(), isa.gsi[MOUSE_GSI].input()
    controller = KeyboardController(keyboard, mouse, keyboard_irq, mouse_irq, machine.request_reset, machine.set_a20)
    machine.parts += [Part(keyboard), Part(mouse)]
    machine.add(Part(controller, ports=(0x60, 0x64)))
    gpios = (("in", "ps2-mouse-input-irq", 1), ("in", "ps2-kbd-input-irq", 1), ("out", "", 2), ("out", "a20", 1))
    isa.qdev.plug(QdevNode("i8042", gpios=gpios, properties=fixed(
        ("extended-state", "true"), ("kbd-throttle", "false"), ("kbd-irq", "1 (0x1)"), ("mouse-irq", "12 (0xc)"),
    )))  # fmt: skip


def _add_serial(machine: Machine, isa: IsaBus, index: int, chardev: Chardev | None) -> None:
    if index >= len(SERIAL_PORTS):
        raise UserError(f"-serial: the PC has {len(SERIAL_PORTS)} serial ports, {index + 1} are asked for")
    if chardev is None:
        return
    port, gsi = SERIAL_PORTS[index]
    serial = Serial(isa.gsi[gsi].input(), chardev, machine.device_clock, index=index)
    machine.add(Part(serial, ports=(port,), gsi=gsi))
    isa.qdev.plug(QdevNode("isa-serial", properties=fixed(
        ("index", f"{index} ({index:#x})"), ("iobase", f"{port} ({port:#x})"), ("irq", f"{gsi} ({gsi:#x})"),
    )))  # fmt: skip


def plug_system_devices(
    machine: Machine, host_type: str, host_properties: Lines, bus: PciBus
) -> None:
    """The nodes of what is on no bus but the system's; the root `bus` hangs on the host bridge's."""
    system = machine.qdev
    system.plug(QdevNode("kvmvapic"))
    system.plug(QdevNode("fw_cfg_io", properties=fixed(
        ("dma_enabled", "true"), ("x-file-slots", "32 (0x20)"), ("acpi-mr-restore", "true"),
    )))  # fmt: skip
    system.plug(QdevNode(host_type, buses=[bus.qdev], properties=host_properties))
    system.plug(QdevNode("ioapic", gpios=(("in", "", 24),), properties=fixed(("version", "32 (0x20)")),
                         details=lambda: iter(("mmio 00000000fec00000/0000000000001000",))))  # fmt: skip
