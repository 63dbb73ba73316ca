"""ACPI tables of a hardware-reduced machine (ACPI 6.3, chapter 5), laid out in memory as firmware would leave them.

Table headers carry our own OEM and creator ids. Every table's bytes sum to 0 modulo 256, and so do both parts of the
RSDP.
"""

import struct

from pellucid.machine.firmware import aml
from pellucid.machine.firmware.madt import InterruptOverride, madt_body
from pellucid.records import dataclass, field

HEADER = struct.Struct("<4sIBB6s8sI4sI")
HEADER_SIZE = 36
ALIGNMENT = 64

WBINVD, POWER_BUTTON_IS_METHOD, SLEEP_BUTTON_IS_METHOD = 1 << 0, 1 << 4, 1 << 5
RESET_REGISTER_SUPPORTED, HARDWARE_REDUCED = 1 << 10, 1 << 20
BOOT_ARCH_NO_VGA, BOOT_ARCH_NO_CMOS_RTC = 1 << 2, 1 << 5
FADT_REVISION, FADT_MINOR, FADT_SIZE = 6, 3, 276


@dataclass(frozen=True)
class Oem:
    """Who made a table: OEM id (6 bytes), OEM table id (8) and creator id (4)."""

    id: bytes
    table_id: bytes
    creator: bytes


PELLUCID = Oem(b"PELUCD", b"PELLUCID", b"PLCD")


@dataclass(frozen=True)
class AcpiPlatform:
    """What the tables say about a hardware-reduced machine."""

    apic_ids: tuple[int, ...]
    sleep_control: int
    """Guest-physical addresses of the three registers of the event device."""
    sleep_status: int
    reset_register: int
    reset_value: int
    devices: bytes
    """AML of the devices, which goes into \\_SB."""
    overrides: tuple[InterruptOverride, ...] = ()
    has_pics: bool = True
    has_rtc: bool = True
    century_register: int = 0x32
    sleep_type_s5: int = 5
    plugged: int | None = None
    """How many of the processors are there from the start; None: all."""


@dataclass
class AcpiTables:
    """Tables by signature, and what to load where: [(guest-physical address, bytes)]."""

    rsdp_address: int
    segments: list[tuple[int, bytes]] = field(default_factory=list)
    tables: dict[bytes, bytes] = field(default_factory=dict)


def build_tables(platform: AcpiPlatform, address: int, rsdp_address: int) -> AcpiTables:
    """All tables from `address` upwards, and the RSDP at `rsdp_address` (16-byte aligned, in 0xE0000-0xFFFFF)."""
    built = AcpiTables(rsdp_address)

    def place(content: bytes) -> int:
        nonlocal address
        here = address
        built.segments.append((here, content))
        built.tables[content[:4]] = content
        address = -(-(here + len(content)) // ALIGNMENT) * ALIGNMENT
        return here

    fadt_address = place(fadt(platform, place(dsdt(platform))))
    madt = table(b"APIC", 5, madt_body(platform.apic_ids, platform.overrides, plugged=platform.plugged,
                                             has_pics=platform.has_pics))
    xsdt = table(b"XSDT", 1, struct.pack("<QQ", fadt_address, place(madt)))
    built.segments.append((rsdp_address, rsdp(place(xsdt))))
    return built


def checksum(content: bytes | bytearray) -> int:
    """The byte that makes the sum of all bytes 0 modulo 256."""
    return -sum(content) & 0xFF


def table(signature: bytes, revision: int, body: bytes, oem: Oem = PELLUCID) -> bytes:
    """A table: the common header with its checksum, and the body (5.2.6)."""
    size = HEADER_SIZE + len(body)
    header = HEADER.pack(signature, size, revision, 0, oem.id, oem.table_id, 1, oem.creator, 1)
    whole = bytearray(header + body)
    whole[9] = checksum(whole)
    return bytes(whole)


def rsdp(xsdt_address: int) -> bytes:
    """Root system description pointer, revision 2 (5.2.5.3): no RSDT, an XSDT."""
    first = bytearray(struct.pack("<8sB6sBI", b"RSD PTR ", 0, PELLUCID.id, 2, 0))
    first[8] = checksum(first)
    whole = bytearray(first + struct.pack("<IQB3x", 36, xsdt_address, 0))
    whole[32] = checksum(whole)
    return bytes(whole)


def generic_address(address: int) -> bytes:
    """A byte-wide register in memory space, or none at address 0 (5.2.3.2)."""
    in_memory, byte_access = 0, 1
    return struct.pack("<BBBBQ", in_memory, 8 if address else 0, 0, byte_access if address else 0, address)


def fadt(platform: AcpiPlatform, dsdt_address: int) -> bytes:
    """Fixed ACPI description table of a hardware-reduced machine (5.2.9): no PM1, GPE or timer blocks."""
    content = bytearray(FADT_SIZE)

    def put(offset: int, format: str, *values: int | bytes) -> None:
        struct.pack_into("<" + format, content, offset, *values)

    put(40, "I", dsdt_address)
    put(108, "B", platform.century_register if platform.has_rtc else 0)
    put(109, "H", BOOT_ARCH_NO_VGA | (0 if platform.has_rtc else BOOT_ARCH_NO_CMOS_RTC))
    buttons = POWER_BUTTON_IS_METHOD | SLEEP_BUTTON_IS_METHOD
    put(112, "I", WBINVD | buttons | RESET_REGISTER_SUPPORTED | HARDWARE_REDUCED)
    put(116, "12s", generic_address(platform.reset_register))
    put(128, "B", platform.reset_value)
    put(131, "B", FADT_MINOR)
    put(140, "Q", dsdt_address)
    put(244, "12s", generic_address(platform.sleep_control))
    put(256, "12s", generic_address(platform.sleep_status))
    put(268, "8s", PELLUCID.table_id)  # Hypervisor vendor identity.
    return table(b"FACP", FADT_REVISION, bytes(content[HEADER_SIZE:]))


def dsdt(platform: AcpiPlatform) -> bytes:
    """Differentiated system description table: the devices under \\_SB, and the sleep type of S5 (7.4.2)."""
    s5 = aml.package((aml.integer(platform.sleep_type_s5), *(aml.integer(0) for _ in range(3))))
    return table(b"DSDT", 2, aml.scope("_SB", platform.devices) + aml.name("\\_S5", s5))
