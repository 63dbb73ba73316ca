"""What a PC's firmware finds in fw_cfg and in CMOS RAM, in the formats that SeaBIOS and QEMU have agreed on.

Numbered items are little-endian integers; `etc/e820` is an array of packed (address, length, type). CMOS bytes are the
PC's own, as AT BIOSes left them (Ralf Brown's CMOS.LST), and those of QEMU for what AT BIOSes did not know.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence

from pellucid.machine.config import BootConfig
from pellucid.machine.devices.fw_cfg import FwCfg
from pellucid.machine.devices.rtc import Rtc
from pellucid.machine.firmware.pc_acpi import HPET_BASE, HPET_ID
from pellucid.machine.ide.geometry import Geometry
from pellucid.records import dataclass, field

MiB = 1 << 20
FW_CFG_RAM_SIZE, FW_CFG_NOGRAPHIC, FW_CFG_NB_CPUS = 0x03, 0x04, 0x05
FW_CFG_NUMA, FW_CFG_BOOT_MENU, FW_CFG_MAX_CPUS = 0x0D, 0x0E, 0x0F
FW_CFG_IRQ0_OVERRIDE, FW_CFG_HPET = 0x8002, 0x8004
E820_RAM, E820_RESERVED = 1, 2
S3_SUPPORTED, S4_SUPPORTED = 0x80 | 1, 0x80 | 2
"""`etc/system-states`: bit 7 says that the state can be entered, the rest is its SLP_TYP."""
BOOT_CODES = {"a": 1, "b": 1, "c": 2, "d": 3, "n": 4}
SERIAL_CONSOLE_PORT = 0x3F8


@dataclass(frozen=True)
class PcFirmwareConfig:
    """The machine as its firmware is told of it."""

    below_4g: int
    above_4g: int
    cpu_count: int
    apic_id_limit: int
    has_hpet: bool = True
    serial_console: bool = False
    has_acpi: bool = True
    boot: BootConfig = field(default_factory=BootConfig)


def fill_fw_cfg(fw_cfg: FwCfg, config: PcFirmwareConfig) -> None:
    """Add the items and files; `pc_handover.py` adds ACPI tables and SMBIOS."""
    add = fw_cfg.add_item
    add(FW_CFG_RAM_SIZE, struct.pack("<Q", config.below_4g + config.above_4g))
    add(FW_CFG_NOGRAPHIC, struct.pack("<H", config.serial_console))
    add(FW_CFG_NB_CPUS, struct.pack("<H", config.cpu_count))
    add(FW_CFG_MAX_CPUS, struct.pack("<H", config.apic_id_limit))
    add(FW_CFG_BOOT_MENU, struct.pack("<H", config.boot.menu))
    add(FW_CFG_NUMA, struct.pack(f"<{1 + config.apic_id_limit}Q", *[0] * (1 + config.apic_id_limit)))
    add(FW_CFG_IRQ0_OVERRIDE, struct.pack("<I", 1))
    add(FW_CFG_HPET, struct.pack("<BIQHB", 1, HPET_ID, HPET_BASE, 0, 0) if config.has_hpet else b"\xff")
    fw_cfg.add_file("etc/e820", b"".join(struct.pack("<QQI", *entry) for entry in e820(config)))
    if config.has_acpi:
        fw_cfg.add_file("etc/tpm/log", b"")  # what no TPM has measured
        fw_cfg.add_file("etc/system-states", bytes((0x80, 0, 0, S3_SUPPORTED, S4_SUPPORTED, 0x80)))
    fw_cfg.add_file("bootorder", boot_order_file((), strict=config.boot.strict))
    fw_cfg.add_file("bios-geometry", b"")
    timeout = -1 if config.boot.reboot_timeout is None else config.boot.reboot_timeout
    fw_cfg.add_file("etc/boot-fail-wait", struct.pack("<i", timeout))
    if config.boot.splash_time is not None:
        fw_cfg.add_file("etc/boot-menu-wait", struct.pack("<H", config.boot.splash_time))
    if config.serial_console:
        fw_cfg.add_file("etc/sercon-port", struct.pack("<H", SERIAL_CONSOLE_PORT))


def boot_order_file(devices: Sequence[str], *, strict: bool) -> bytes:
    """Firmware's path of each device, a line each, ended by a zero byte; HALT keeps it from trying anything else."""
    lines = [*devices, *(["HALT"] if strict else [])]
    return "\n".join(lines).encode() + b"\0" if lines else b""


def e820(config: PcFirmwareConfig) -> list[tuple[int, int, int]]:
    """RAM as the board has it; what lies in it that must be left alone, firmware adds itself."""
    entries = [(0, config.below_4g, E820_RAM)]
    if config.above_4g:
        entries.append((1 << 32, config.above_4g, E820_RAM))
    return entries


def fill_cmos(rtc: Rtc, config: PcFirmwareConfig) -> None:
    """Memory sizes, equipment, boot order and the number of processors."""
    for index, value in cmos_bytes(config):
        rtc.set_cmos(index, value)


def cmos_bytes(config: PcFirmwareConfig) -> Iterator[tuple[int, int]]:
    """(index, byte)."""
    extended_kib = min(max(config.below_4g - MiB, 0) >> 10, 0xFFFF)
    units_64_kib = min(max(config.below_4g - 16 * MiB, 0) >> 16, 0xFFFF)
    words = (
        (0x15, 640, 2),
        (0x17, extended_kib, 2),
        (0x30, extended_kib, 2),
        (0x34, units_64_kib, 2),
        (0x5B, config.above_4g >> 16, 3),
    )
    for index, value, size in words:
        for offset, byte in enumerate(value.to_bytes(size, "little")):
            yield index + offset, byte
    fpu, ps2_mouse = 0x02, 0x04
    yield 0x14, fpu | ps2_mouse
    yield 0x5F, min(config.cpu_count - 1, 0xFF)
    yield from boot_bytes(config.boot, config.boot.once or config.boot.order)


def boot_bytes(boot: BootConfig, order: str) -> Iterator[tuple[int, int]]:
    """(index, byte) of the boot order by letters, and whether diskettes need a signature."""
    codes = [BOOT_CODES.get(letter, 0) for letter in order[:3].ljust(3)]
    yield 0x3D, codes[0] | codes[1] << 4
    yield 0x38, codes[2] << 4 | (0 if boot.check_floppy else 1)


def disk_bytes(disks: Mapping[int, Geometry]) -> Iterator[tuple[int, int]]:
    """(index, byte) of the AT's disk types and of the tables behind the type that says "see there", 47.

    Disks by number: 0 and 1 on the first IDE channel, 2 and 3 on the second.
    """
    yield 0x12, (0xF0 if 0 in disks else 0) | (0x0F if 1 in disks else 0)
    for number, type_at, table in ((0, 0x19, 0x1B), (1, 0x1A, 0x24)):
        if number in disks:
            disk = disks[number]
            yield type_at, 47
            cylinders = disk.cylinders.to_bytes(2, "little")
            control = 0xC0 | (disk.heads > 8) << 3
            entry = (*cylinders, disk.heads, 0xFF, 0xFF, control, *cylinders, disk.sectors)
            yield from ((table + offset, byte & 0xFF) for offset, byte in enumerate(entry))
    yield 0x39, sum(disk.translation << 2 * number for number, disk in disks.items())
