"""The ACPI tables of `pc` and `q35`, as files that firmware loads (ACPI 6.3, chapter 5; `table_loader.py`).

Tables, order and contents are QEMU 7.2's, with its OEM ids: guests and their licences know machines by them. Both
boards have an RSDT and no XSDT, and an RSDP of revision 0. The tables are made when firmware asks for them, since they
say where it has put the ports of power management.
"""

import struct
from collections.abc import Sequence

from pellucid.machine.firmware.acpi import HEADER_SIZE, Oem, table
from pellucid.machine.firmware.madt import LEVEL_HIGH, InterruptOverride, madt_body
from pellucid.machine.firmware.table_loader import ZONE_FSEG, ZONE_HIGH, TableLoader
from pellucid.records import dataclass

TABLES_FILE, RSDP_FILE, LOADER_FILE = "etc/acpi/tables", "etc/acpi/rsdp", "etc/table-loader"
TABLES_UNIT = 0x2_0000
"""The file of tables is padded to this, so that its size does not depend on what firmware does before it asks."""
FACS_SIZE, FACS_ALIGNMENT, RSDP_ALIGNMENT = 64, 64, 16
CHECKSUM = 9
BOCHS = Oem(b"BOCHS ", b"BXPC    ", b"BXPC")

SMI_PORT, SCI = 0xB2, 9
WBINVD, C1_SUPPORTED, SLEEP_BUTTON_IS_METHOD, S4_RTC_WAKE = 1 << 0, 1 << 2, 1 << 5, 1 << 7
RESET_REGISTER_SUPPORTED, USE_PLATFORM_CLOCK, FORCE_APIC_CLUSTER = 1 << 10, 1 << 15, 1 << 18
FADT_FLAGS = WBINVD | C1_SUPPORTED | SLEEP_BUTTON_IS_METHOD | S4_RTC_WAKE | USE_PLATFORM_CLOCK
MOST_FLAT_CPUS = 8
"""Logical APIC destinations of the flat model; more processors need the cluster model."""
BOOT_HAS_8042 = 1 << 1
NOT_SUPPORTED_C2, NOT_SUPPORTED_C3 = 0x0FFF, 0x0FFF
RTC_CENTURY = 0x32
FADT_1_SIZE, FADT_3_SIZE = 116, 244
FADT_FACS, FADT_DSDT, FADT_X_DSDT = 36, 40, 140
HPET_ID, HPET_BASE = 0x8086_A201, 0xFED0_0000
PM_TIMER_GOOD = 1 << 1

PC_OVERRIDES = (InterruptOverride(0, 2), *(InterruptOverride(irq, irq, LEVEL_HIGH) for irq in (5, 9, 10, 11)))
"""The PIT is on I/O APIC pin 2, and PCI's and ACPI's interrupts are level-triggered and active high."""


@dataclass(frozen=True)
class PowerPorts:
    """Where power management's registers are. `acpi_enable` is 0 where the hardware needs no switching.

    `reset` is (port, value), which only FADT revision 3 can tell.
    """

    pm_base: int
    gpe_base: int
    gpe_size: int
    acpi_enable: int
    acpi_disable: int
    reset: tuple[int, int] | None = None


@dataclass(frozen=True)
class PcTables:
    """What goes into the tables. `apic_ids` are all places for processors; the first `plugged` have one (None: all).

    `ecam` is (address, bytes) of mapped configuration space.

    `dmar` is the body of that table, `extra` are whole tables.
    """

    dsdt: bytes
    apic_ids: Sequence[int]
    power: PowerPorts
    has_hpet: bool = True
    ecam: tuple[int, int] | None = None
    dmar: bytes | None = None
    overrides: Sequence[InterruptOverride] = PC_OVERRIDES
    extra: Sequence[bytes] = ()
    oem: Oem = BOCHS
    plugged: int | None = None


@dataclass(frozen=True)
class AcpiFiles:
    """The files of fw_cfg, under TABLES_FILE, RSDP_FILE and LOADER_FILE."""

    tables: bytes
    rsdp: bytes
    loader: bytes


def build_files(pc: PcTables) -> AcpiFiles:
    """The tables and the script that puts them into memory."""
    return _Linker(pc).build()


class _Linker:
    """Puts tables one behind the other, and writes the script that makes their pointers and checksums right."""

    def __init__(self, pc: PcTables) -> None:
        self._pc = pc
        self._blob = bytearray()
        self._loader = TableLoader()

    def build(self) -> AcpiFiles:
        pc = self._pc
        self._loader.allocate(RSDP_FILE, RSDP_ALIGNMENT, ZONE_FSEG)
        self._loader.allocate(TABLES_FILE, FACS_ALIGNMENT, ZONE_HIGH)
        facs = self._append(struct.pack("<4sI", b"FACS", FACS_SIZE).ljust(FACS_SIZE, b"\0"))
        dsdt = self._add(b"DSDT", 1, pc.dsdt)
        madt = madt_body(pc.apic_ids, pc.overrides, plugged=pc.plugged)
        roots = [self._add_fadt(facs, dsdt), self._add(b"APIC", 1, madt)]
        if pc.has_hpet:
            roots.append(self._add(b"HPET", 1, struct.pack("<I4xQ4x", HPET_ID, HPET_BASE)))
        if pc.ecam is not None:
            buses = pc.ecam[1] >> 20
            roots.append(self._add(b"MCFG", 1, struct.pack("<8xQHBB4x", pc.ecam[0], 0, 0, buses - 1)))
        if pc.dmar is not None:
            roots.append(self._add(b"DMAR", 1, pc.dmar))
        roots.append(self._add(b"WAET", 1, struct.pack("<I", PM_TIMER_GOOD)))
        roots += [self._append(content) for content in pc.extra]
        rsdt = self._add_pointers(b"RSDT", 1, struct.pack(f"<{len(roots)}I", *roots), range(0, 4 * len(roots), 4))
        rsdp = self._rsdp(rsdt)
        padded = -(-len(self._blob) // TABLES_UNIT) * TABLES_UNIT
        return AcpiFiles(bytes(self._blob.ljust(padded, b"\0")), rsdp, self._loader.content())

    def _append(self, content: bytes) -> int:
        at = len(self._blob)
        self._blob += content
        return at

    def _add(self, signature: bytes, revision: int, body: bytes) -> int:
        return self._add_pointers(signature, revision, body, ())

    def _add_pointers(self, signature: bytes, revision: int, body: bytes, pointers: Sequence[int]) -> int:
        """A table whose body has 32-bit offsets into the file at `pointers`; firmware makes the checksum."""
        content = bytearray(table(signature, revision, body, self._pc.oem))
        content[CHECKSUM] = 0
        at = self._append(bytes(content))
        for offset in pointers:
            self._loader.add_pointer(TABLES_FILE, TABLES_FILE, at + HEADER_SIZE + offset, 4)
        self._loader.add_checksum(TABLES_FILE, at + CHECKSUM, at, len(content))
        return at

    def _add_fadt(self, facs: int, dsdt: int) -> int:
        revision, body = fadt_body(self._pc, facs, dsdt)
        content = bytearray(table(b"FACP", revision, body, self._pc.oem))
        content[CHECKSUM] = 0
        at = self._append(bytes(content))
        self._loader.add_pointer(TABLES_FILE, TABLES_FILE, at + FADT_FACS, 4)
        self._loader.add_pointer(TABLES_FILE, TABLES_FILE, at + FADT_DSDT, 4)
        if revision >= 3:
            self._loader.add_pointer(TABLES_FILE, TABLES_FILE, at + FADT_X_DSDT, 8)
        self._loader.add_checksum(TABLES_FILE, at + CHECKSUM, at, len(content))
        return at

    def _rsdp(self, rsdt: int) -> bytes:
        """Revision 0, the one of ACPI 1.0 (5.2.5.3): 20 bytes."""
        self._loader.add_pointer(RSDP_FILE, TABLES_FILE, 16, 4)
        self._loader.add_checksum(RSDP_FILE, 8, 0, 20)
        return struct.pack("<8sB6sBI", b"RSD PTR ", 0, self._pc.oem.id, 0, rsdt)


def fadt_body(pc: PcTables, facs: int, dsdt: int) -> tuple[int, bytes]:
    """(revision, body) of the fixed ACPI description table (5.2.9), with offsets for addresses."""
    power = pc.power
    flags = FADT_FLAGS | (FORCE_APIC_CLUSTER if len(pc.apic_ids) > MOST_FLAT_CPUS else 0)
    if power.reset is not None:
        flags |= RESET_REGISTER_SUPPORTED
    pm, timer, control = power.pm_base, power.pm_base + 8, power.pm_base + 4
    common = struct.pack(
        "<IIBBHIBBBBIIIIIIIIBBBBBBBBHHHHBBBBBHxI",
        *(facs, dsdt, 1, 0, SCI, SMI_PORT if power.acpi_enable else 0, power.acpi_enable, power.acpi_disable, 0, 0),
        *(pm, 0, control, 0, 0, timer, power.gpe_base, 0),
        *(4, 2, 0, 4, power.gpe_size, 0, 0, 0),
        *(NOT_SUPPORTED_C2, NOT_SUPPORTED_C3, 0, 0, 0, 0, 0, 0, RTC_CENTURY),
        *(BOOT_HAS_8042 if power.reset is not None else 0, flags),
    )
    assert len(common) + HEADER_SIZE == FADT_1_SIZE
    if power.reset is None:
        return 1, common
    port, value = power.reset
    none = _io_register(0, 0)
    blocks = [_io_register(pm, 32), none, _io_register(control, 16), none, none, _io_register(timer, 32)]
    blocks += [_io_register(power.gpe_base, 8 * power.gpe_size), none]
    body = common + _io_register(port, 8) + struct.pack("<B3xQQ", value, 0, dsdt) + b"".join(blocks)
    assert len(body) + HEADER_SIZE == FADT_3_SIZE
    return 3, body


def _io_register(port: int, bits: int) -> bytes:
    """A generic address in port space, or none at all (5.2.3.2)."""
    return struct.pack("<BBBBQ", 1, bits, 0, 0, port) if bits else bytes(12)
