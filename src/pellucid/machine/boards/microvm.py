"""The board `microvm`: what QEMU's board of that name has, booted without firmware.

RAM up to 3 GiB lies below the hole for devices, the rest from 4 GiB. The first megabyte above 640 KiB is RAM, with the
ACPI tables where a PC's firmware would put them. The i8042 and port 0x92 are there for their reset lines, with no
keyboard announced. ACPI is hardware-reduced: power off and reset go through the event device's registers.
"""

import os
import struct
from collections.abc import Mapping

from pellucid.errors import NotBuiltError, UserError
from pellucid.machine.boot import BootPlan, GuestRam, KernelImage, MemoryMapEntry, MemoryType, read_kernel
from pellucid.machine.boot.image import read_file
from pellucid.machine.boot.plan import FOUR_GIB, LOW_MEMORY_END, MiB
from pellucid.machine.chardev import Chardev
from pellucid.machine.devices.acpi_ged import RESET_VALUE, AcpiGed
from pellucid.machine.devices.fw_cfg import FwCfg
from pellucid.machine.devices.i8042 import I8042
from pellucid.machine.devices.port92 import Port92
from pellucid.machine.devices.rtc import Rtc
from pellucid.machine.devices.serial import Serial
from pellucid.machine.firmware.acpi import AcpiPlatform, AcpiTables, build_tables
from pellucid.machine.firmware.fw_cfg_files import offer_user_files
from pellucid.machine.firmware.madt import EDGE_HIGH, InterruptOverride
from pellucid.machine.machine import Machine
from pellucid.machine.part import Part
from pellucid.machine.smm import SMRAM_SIZE, has_smm
from pellucid.memory import MemoryRegion, MemoryTransaction

RAM_BELOW_4G_MOST = 0xC000_0000
SERIAL_PORTS = ((0x3F8, 4), (0x2F8, 3), (0x3E8, 4), (0x2E8, 3))
RTC_PORT, RTC_GSI = 0x70, 8
FW_CFG_PORT, FW_CFG_DMA_PORT = 0x510, 0x514
GED_SELECTOR, GED_REGISTERS, GED_GSI = 0xFEA0_0000, 0xFEA0_0200, 9
ACPI_TABLES, ACPI_TABLES_SIZE, RSDP = 0xE_0000, 0x1_0000, 0xF_0000
BIOS_DATA_AREA, EXTENDED_BIOS_DATA = 0x400, LOW_MEMORY_END
RESET_VECTOR = 0xF_FFF0
RESET_CODE = bytes.fromhex("b0fe e664 f4 ebfd")
"""mov al, 0xfe; out 0x64, al; hlt; jmp to the hlt: what a PC's firmware does when it is entered a second time.

Linux comes here to reboot: on hardware-reduced ACPI it tries EFI first, and without that the firmware's entry in real
mode (arch/x86/kernel/reboot.c), never the reset register.
"""
RNG_SEED_SIZE = 32

TIMER_ON_PIN_2 = InterruptOverride(isa_irq=0, gsi=2, flags=EDGE_HIGH)
"""How the hypervisor wires the PIT to the I/O APIC."""

IN_HYPERVISOR = (
    ("kvm-pic", True, 0x20, 2),
    ("kvm-pic", True, 0xA0, 2),
    ("kvm-elcr", True, 0x4D0, 1),
    ("kvm-elcr", True, 0x4D1, 1),
    ("kvm-pit", True, 0x40, 4),
    ("kvm-pcspk", True, 0x61, 1),
    ("kvm-ioapic", False, 0xFEC0_0000, 0x1000),
    ("kvm-apic-msi", False, 0xFEE0_0000, 0x10_0000),
)
"""(name, in port space, address, size) of what the hypervisor answers before an access gets to this process."""

SWITCHES = {"on": True, "auto": True, "off": False}
OPTIONS = ("acpi", "auto-kernel-cmdline", "isa-serial", "pic", "pit", "rtc")
ALWAYS_THERE = ("acpi", "pic", "pit")


def build_microvm(machine: Machine, serials: list[Chardev | None]) -> None:
    """Fill `machine`. Raises UserError for options, kernels and sizes that do not fit the board."""
    options = parse_options(machine.config.board_options)
    machine.drives.open(machine.config.drives, buses=0, units=2)
    machine.drives.open_floppies(machine.config.drives, 0)
    ram = add_ram(machine)
    _add_hypervisor_parts(machine)
    if has_smm(machine.hypervisor, None):
        machine.add_smm(MemoryRegion.new_container("smram", SMRAM_SIZE))  # nothing is hidden from anybody
    if options["isa-serial"]:
        for index, chardev in enumerate(serials):
            _add_serial(machine, index, chardev)
    if options["rtc"]:
        _add_rtc(machine, ram)
    machine.add(Part(I8042(machine.request_reset, machine.set_a20), ports=(0x60, 0x64)))
    machine.add(Part(Port92(machine.request_reset, machine.set_a20), ports=(0x92,)))
    fw_cfg = FwCfg(machine.memory)
    machine.add(Part(fw_cfg, ports=(FW_CFG_PORT, FW_CFG_DMA_PORT)))
    offer_user_files(fw_cfg, machine.config.fw_cfg_files)
    ged = AcpiGed(machine.gsi(GED_GSI), machine.request_shutdown, machine.request_reset)
    machine.add(Part(ged, mmio=(GED_SELECTOR, GED_REGISTERS), gsi=GED_GSI))
    machine.system.on_powerdown.append(ged.press_power_button)
    _set_boot(machine, ram, has_rtc=options["rtc"])


def parse_options(given: Mapping[str, str]) -> dict[str, bool]:
    """The board's switches. Raises UserError for one that is unknown, NotBuiltError for a part that must stay."""
    chosen = dict.fromkeys(OPTIONS, True)
    for name, text in given.items():
        if name not in chosen:
            raise UserError(f"-machine microvm: unknown option '{name}'; known are: {', '.join(OPTIONS)}")
        if text not in SWITCHES:
            raise UserError(f"-machine microvm: option {name} takes on, off or auto, not '{text}'")
        chosen[name] = SWITCHES[text]
        if name in ALWAYS_THERE and not chosen[name]:
            raise NotBuiltError(f"-machine microvm,{name}=off is not built yet: leave the option out")
    return chosen


def add_ram(machine: Machine) -> GuestRam:
    """RAM in one block, seen below and above 4 GiB, and its memory map."""
    size = machine.config.memory_size
    if size < MiB:
        raise UserError(f"-m: microvm needs at least 1 MiB of RAM, not {size} bytes")
    below = min(size, RAM_BELOW_4G_MOST)
    block = machine.add_ram("microvm.ram", size)
    whole = MemoryRegion.new_ram("microvm.ram", block)
    with MemoryTransaction():
        machine.system_memory.add_subregion(0, MemoryRegion.new_alias("ram-below-4g", whole, 0, below))
        if size > below:
            alias = MemoryRegion.new_alias("ram-above-4g", whole, below, size - below)
            machine.system_memory.add_subregion(FOUR_GIB, alias)
    return GuestRam(below, size - below, memory_map(below, size - below))


def memory_map(below_4g: int, above_4g: int) -> tuple[MemoryMapEntry, ...]:
    """The E820 map of a PC with this much RAM."""
    entries = [
        MemoryMapEntry(0, LOW_MEMORY_END, MemoryType.RAM),
        MemoryMapEntry(LOW_MEMORY_END, 0xA_0000 - LOW_MEMORY_END, MemoryType.RESERVED),
        MemoryMapEntry(ACPI_TABLES, ACPI_TABLES_SIZE, MemoryType.ACPI),
        MemoryMapEntry(0xF_0000, 0x1_0000, MemoryType.RESERVED),
        MemoryMapEntry(MiB, below_4g - MiB, MemoryType.RAM),
        MemoryMapEntry(FOUR_GIB, above_4g, MemoryType.RAM),
    ]
    return tuple(entry for entry in entries if entry.size)


def _add_hypervisor_parts(machine: Machine) -> None:
    machine.create_irqchip()
    machine.create_pit()
    with MemoryTransaction():
        for name, in_ports, address, size in IN_HYPERVISOR:
            container = machine.system_io if in_ports else machine.system_memory
            container.add_subregion(address, MemoryRegion.new_reservation(name, size))


def _add_serial(machine: Machine, index: int, chardev: Chardev | None) -> None:
    if index >= len(SERIAL_PORTS):
        raise UserError(f"-serial: microvm has {len(SERIAL_PORTS)} serial ports, {index + 1} are asked for")
    if chardev is not None:
        port, gsi = SERIAL_PORTS[index]
        serial = Serial(machine.gsi(gsi), chardev, machine.device_clock, index=index)
        machine.add(Part(serial, ports=(port,), gsi=gsi))


def _add_rtc(machine: Machine, ram: GuestRam) -> None:
    rtc = Rtc(machine.gsi(RTC_GSI), machine.device_clock, machine.wall_ns)
    extended_kib = min((ram.below_4g - MiB) >> 10, 0xFFFF)
    units_64_kib = min(max(ram.below_4g - 16 * MiB, 0) >> 16, 0xFFFF)
    for index, value, size in (
        (0x15, LOW_MEMORY_END + 0x400 >> 10, 2),
        (0x17, extended_kib, 2),
        (0x30, extended_kib, 2),
        (0x34, units_64_kib, 2),
        (0x5B, ram.above_4g >> 16, 3),
    ):
        for offset, byte in enumerate(value.to_bytes(size, "little")):
            rtc.set_cmos(index + offset, byte)
    machine.add(Part(rtc, ports=(RTC_PORT,), gsi=RTC_GSI))


def _set_boot(machine: Machine, ram: GuestRam, *, has_rtc: bool) -> None:
    config = machine.config
    if config.kernel is None and config.accelerator == "qtest":
        return  # Nobody executes anything.
    if config.kernel is None:
        raise UserError("microvm boots a kernel directly: give one with -kernel")
    kernel: KernelImage = read_kernel(config.kernel)
    initrd = read_file(config.initrd, "initrd") if config.initrd is not None else b""
    tables = _acpi_tables(machine, has_rtc=has_rtc)
    firmware = [(BIOS_DATA_AREA, bios_data_area(machine)), *tables.segments, (RESET_VECTOR, RESET_CODE)]

    def plan() -> BootPlan:
        started = kernel.plan(
            ram,
            os.fsencode(config.append),
            initrd,
            rsdp_address=tables.rsdp_address,
            rng_seed=os.urandom(RNG_SEED_SIZE),
        )
        started.segments.extend(firmware)
        return started

    machine.boot = plan


def _acpi_tables(machine: Machine, *, has_rtc: bool) -> AcpiTables:
    platform = AcpiPlatform(
        apic_ids=machine.config.topology.possible_apic_ids,
        plugged=machine.config.topology.plugged,
        sleep_control=GED_REGISTERS,
        sleep_status=GED_REGISTERS + 1,
        reset_register=GED_REGISTERS + 2,
        reset_value=RESET_VALUE,
        devices=b"".join(part.device.acpi(part.resources) for part in machine.parts),
        overrides=(TIMER_ON_PIN_2,),
        has_rtc=has_rtc,
    )
    tables = build_tables(platform, ACPI_TABLES, RSDP)
    if any(ACPI_TABLES + ACPI_TABLES_SIZE < address + len(c) for address, c in tables.segments if address < RSDP):
        places = machine.config.topology.places
        raise UserError(f"-smp {places}: the ACPI tables of so many CPUs do not fit; ask for fewer")
    return tables


def bios_data_area(machine: Machine) -> bytes:
    """What early code looks up at 0x400: the serial ports, the extended data area, the size of base memory."""
    area = bytearray(0x100)
    ports = [part.ports[0] for part in machine.parts if isinstance(part.device, Serial)]
    struct.pack_into(f"<{len(ports)}H", area, 0, *ports)
    struct.pack_into("<H", area, 0x0E, EXTENDED_BIOS_DATA >> 4)
    struct.pack_into("<H", area, 0x13, LOW_MEMORY_END >> 10)
    return bytes(area)
