"""The tables of `pc` and `q35` against QEMU 7.2's, byte for byte, and the script that loads them, carried out.

`golden/qemu-tables.json` has the SHA-256 of what QEMU's fw_cfg held at reset (`-nodefaults`, no serial port), and,
under "-guest", of the DSDT without its header as a Linux guest had it (with COM1). QEMU's boards have a floppy
controller and hot-plug ports: here they are described to the builder, whatever our boards have.
"""

import hashlib
import json
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.machine.devices.fw_cfg import FwCfg
from pellucid.machine.firmware import aml, i440fx_dsdt, pc_acpi, q35_dsdt
from pellucid.machine.firmware.acpi import HEADER, Oem, table
from pellucid.machine.firmware.pc_acpi import AcpiFiles, PcTables, PowerPorts, build_files
from pellucid.machine.firmware.pc_dsdt import PcDsdt, Slot
from pellucid.machine.firmware.q35_dsdt import Ecam
from pellucid.machine.firmware.table_loader import ADD_CHECKSUM, ADD_POINTER, ALLOCATE, COMMAND_SIZE, TableLoader
from pellucid.records import replace
from tests.machine.pc_machine import device, outl_config, pc_machine

GOLDEN = json.loads((Path(__file__).parent / "golden" / "qemu-tables.json").read_text())
GiB, FOUR_GIB = 1 << 30, 1 << 32


def isa(path: str, hid: str, *terms: bytes, resources: tuple[bytes, ...], after: bytes = b"") -> bytes:
    crs = aml.name("_CRS", aml.resource_template(*resources))
    return aml.device(path, aml.name("_HID", aml.eisa_id(hid)) + b"".join(terms) + crs + after)


ON = aml.name("_STA", 0x0F)
KEYBOARD = isa(
    "KBD", "PNP0303", ON,
    resources=(aml.io_ports(0x60, 1, alignment=1), aml.io_ports(0x64, 1, alignment=1), aml.irq(1)),
) + isa("MOU", "PNP0F13", ON, resources=(aml.irq(12),))  # fmt: skip
FLOPPY = isa(
    "FDC0", "PNP0700",
    resources=(aml.io_ports(0x3F2, 4), aml.io_ports(0x3F7, 1), aml.irq(6), aml.dma(2)),
    after=aml.name("_FDE", aml.buffer(bytes(16) + b"\2\0\0\0")),
)  # fmt: skip
COM1 = isa("COM1", "PNP0501", aml.name("_UID", 1), ON, resources=(aml.io_ports(0x3F8, 8), aml.irq(4)))
RTC = isa("RTC", "PNP0B00", resources=(aml.io_ports(0x70, 8, alignment=1), aml.irq(8)))


def pc_dsdt(cpus: int = 1, below: int = 128 << 20, high: int = FOUR_GIB, com: bytes = b"", **changes: object) -> bytes:
    windows = [(below, 0xFEBF_FFFF), (high, high + 2 * GiB - 1)]
    slots = [Slot(0, hotpluggable=False)]
    described = PcDsdt(range(cpus), windows, KEYBOARD + FLOPPY + com + RTC, slots, 0xAFE0, 4, 0xAE00, 0xAF00)
    return i440fx_dsdt.dsdt(replace(described, **changes))  # type: ignore[arg-type]


def q35_terms(ecam: Ecam | None = None, gpe: int = 0x20, com: bytes = b"") -> bytes:
    low = [(128 << 20, 0xAFFF_FFFF), (0xC000_0000, 0xFEBF_FFFF)] if ecam else [(128 << 20, 0xFEBF_FFFF)]
    windows = [*low, (FOUR_GIB, FOUR_GIB + 32 * GiB - 1)]
    slots = [Slot(0), Slot(0xFB)]
    described = PcDsdt(range(1), windows, KEYBOARD + com + RTC, slots, gpe, 16, 0xCC0, 0xCD8)
    return q35_dsdt.dsdt(described, ecam)


PC_PORTS = PowerPorts(0, 0xAFE0, 4, 0xF1, 0xF0)
Q35_PORTS = PowerPorts(0, 0x20, 16, 2, 3, reset=(0xCF9, 0x0F))
MACHINES = {
    "pc-128M": PcTables(pc_dsdt(), range(1), PC_PORTS),
    "pc-8G-2-sockets": PcTables(pc_dsdt(2, 3 * GiB, 9 * GiB), range(2), PC_PORTS),
    "q35-128M": PcTables(q35_terms(), range(1), Q35_PORTS),
}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("name", MACHINES)
def test_the_files_are_qemu_s(name: str) -> None:
    files, golden = build_files(MACHINES[name]), GOLDEN[name]
    assert sha256(files.tables) == golden["etc/acpi/tables"]
    assert sha256(files.rsdp) == golden["etc/acpi/rsdp"]
    assert sha256(files.loader) == golden["etc/table-loader"]


@pytest.mark.parametrize(
    ("name", "terms"),
    [
        ("pc-128M-guest", pc_dsdt(com=COM1)),
        ("pc-128M-3-cpus-guest", pc_dsdt(3, com=COM1)),
        ("q35-128M-guest", q35_terms(Ecam(0xB000_0000, 256 << 20), 0x620, COM1)),
    ],
)
def test_the_dsdt_of_a_guest_is_qemu_s(name: str, terms: bytes) -> None:
    assert sha256(terms) == GOLDEN[name]["DSDT"]


# The script, carried out as firmware does.


class Firmware:
    """Memory by file, and what the script makes of it."""

    def __init__(self, files: AcpiFiles) -> None:
        given = {"etc/acpi/tables": files.tables, "etc/acpi/rsdp": files.rsdp}
        self.address: dict[str, int] = {}
        self.content: dict[str, bytearray] = {}
        for at in range(0, len(files.loader), COMMAND_SIZE):
            self._carry_out(files.loader[at : at + COMMAND_SIZE], given)

    def _carry_out(self, command: bytes, given: dict[str, bytes]) -> None:
        kind = int.from_bytes(command[:4], "little")
        name = command[4:60].rstrip(b"\0").decode()
        if kind == ALLOCATE:
            alignment, zone = struct.unpack_from("<IB", command, 60)
            self.address[name] = 0xF_59D0 if zone == 2 else 0x7FE_0000
            assert self.address[name] % alignment == 0
            self.content[name] = bytearray(given[name])
        elif kind == ADD_POINTER:
            target = command[60:116].rstrip(b"\0").decode()
            offset, size = struct.unpack_from("<IB", command, 116)
            piece = self.content[name][offset : offset + size]
            assert int.from_bytes(piece, "little") < len(given[target])
            value = int.from_bytes(piece, "little") + self.address[target]
            self.content[name][offset : offset + size] = value.to_bytes(size, "little")
        elif kind == ADD_CHECKSUM:
            offset, start, length = struct.unpack_from("<III", command, 60)
            content = self.content[name]
            content[offset] = (content[offset] - sum(content[start : start + length])) & 0xFF
        else:
            assert kind == 0 and not any(command)

    def at(self, address: int, size: int) -> bytes:
        base = self.address["etc/acpi/tables"]
        return bytes(self.content["etc/acpi/tables"][address - base : address - base + size])

    def table(self, address: int) -> bytes:
        return self.at(address, int.from_bytes(self.at(address + 4, 4), "little"))


def number(content: bytes, offset: int, size: int = 4) -> int:
    return int.from_bytes(content[offset : offset + size], "little")


def loaded(pc: PcTables) -> dict[bytes, bytes]:
    """Every table by signature, found from the RSDP on, with its checksum looked at."""
    firmware = Firmware(build_files(pc))
    rsdp = bytes(firmware.content["etc/acpi/rsdp"])
    assert rsdp[:8] == b"RSD PTR " and sum(rsdp) % 256 == 0 and rsdp[15] == 0
    rsdt = firmware.table(number(rsdp, 16))
    tables = {b"RSDT": rsdt}
    for (address,) in struct.iter_unpack("<I", rsdt[36:]):
        found = firmware.table(address)
        tables[found[:4]] = found
    tables[b"DSDT"] = firmware.table(number(tables[b"FACP"], 40))
    if tables[b"FACP"][8] >= 3:
        assert number(tables[b"FACP"], 140, 8) == number(tables[b"FACP"], 40)
    assert firmware.at(number(tables[b"FACP"], 36), 4) == b"FACS" and number(tables[b"FACP"], 36) % 64 == 0
    assert all(sum(content) % 256 == 0 for content in tables.values())
    return tables


def test_firmware_finds_every_table() -> None:
    own = table(b"SSDT", 2, b"", Oem(b"MINE  ", b"MINE    ", b"ME  "))
    pc = replace(MACHINES["q35-128M"], ecam=(0xB000_0000, 256 << 20), extra=[own])
    tables = loaded(pc)
    assert set(tables) == {b"RSDT", b"FACP", b"DSDT", b"APIC", b"HPET", b"MCFG", b"WAET", b"SSDT"}
    assert tables[b"SSDT"] == own
    assert number(tables[b"MCFG"], 44, 8) == 0xB000_0000 and tables[b"MCFG"][55] == 255
    assert b"HPET" not in loaded(replace(pc, has_hpet=False))
    oem = Oem(b"ABC\0\0\0", b"DEF\0\0\0\0\0", b"BXPC")
    assert loaded(replace(pc, oem=oem))[b"FACP"][10:24] == oem.id + oem.table_id


def test_many_processors() -> None:
    tables = loaded(replace(MACHINES["pc-128M"], apic_ids=(0, 1, 254, 255, 300)))
    madt, entries, at = tables[b"APIC"], [], 44
    while at < len(madt):
        entries.append((madt[at], madt[at + 1]))
        at += madt[at + 1]
    assert entries.count((0, 8)) == 3 and entries.count((9, 16)) == 2 and entries[-1] == (10, 12)
    cluster = 1 << 18
    assert not number(tables[b"FACP"], 112) & cluster
    assert number(loaded(replace(MACHINES["pc-128M"], apic_ids=range(9)))[b"FACP"], 112) & cluster


def test_write_pointer_and_bad_names() -> None:
    loader = TableLoader()
    loader.write_pointer("etc/vmgenid_addr", "etc/vmgenid_guid", 0, 40, 8)
    (command,) = loader.commands
    assert command[:20] == b"\4\0\0\0etc/vmgenid_addr" and command[116:125] == struct.pack("<IIB", 0, 40, 8)
    assert len(loader.content()) == 4096
    with pytest.raises(ValueError, match="1 to 55"):
        loader.allocate("x" * 56, 1, 1)


# AML.


@given(st.binary(max_size=70) | st.integers(4000, 4200).map(bytes) | st.just(bytes(1 << 20)))
def test_package_length_counts_itself(terms: bytes) -> None:
    encoded = aml.scope("\\", terms)
    assert encoded[0] == 0x10
    extra = encoded[1] >> 6
    length = encoded[1] & 0x3F if not extra else encoded[1] & 15 | number(encoded, 2, extra) << 4
    assert length == len(encoded) - 1 and encoded.endswith(terms)
    if extra:
        assert length - 1 >= 1 << (6 if extra == 1 else 4 + 8 * (extra - 1)), "the shortest form"


@given(st.integers(1, 1 << 27))
def test_field_widths(bits: int) -> None:
    encoded = aml.field("R", aml.BYTE_ACCESS, [("A", bits)])[3:]
    at = encoded.index(b"A___") + 4
    extra = encoded[at] >> 6
    assert (encoded[at] & 0x3F if not extra else encoded[at] & 15 | number(encoded, at + 1, extra) << 4) == bits


def test_what_does_not_fit_is_refused() -> None:
    for wrong in (lambda: aml.name("TOOLONG", 0), lambda: aml.integer(1 << 64), lambda: aml.name("1BAD", 0)):
        with pytest.raises(ValueError, match="AML"):
            wrong()


@pytest.mark.parametrize("terms", [pc_dsdt(3), pc_dsdt(2, pci_hotplug=None, cpu_hotplug=None), q35_terms()])
def test_iasl_understands_it(tmp_path: Path, terms: bytes) -> None:
    """Taken apart and put together again by ACPICA, the terms are the same, and it has nothing to complain of."""
    if shutil.which("iasl") is None:
        pytest.skip("needs iasl, of Debian's package acpica-tools")
    (tmp_path / "dsdt.aml").write_bytes(table(b"DSDT", 1, terms, pc_acpi.BOCHS))
    subprocess.run(["iasl", "-d", "dsdt.aml"], cwd=tmp_path, check=True, capture_output=True)
    source = (tmp_path / "dsdt.dsl").read_text()
    assert "PNP0A0" in source and not re.search("(?i)illegal|unknown opcode|corrupt", source)
    done = subprocess.run(["iasl", "-oa", "-p", "again", "dsdt.dsl"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and " 0 Errors" in done.stdout, done.stdout


# On the board.


def test_tables_are_made_when_firmware_asks(tmp_path: Path) -> None:
    with pc_machine(tmp_path) as machine:
        fw_cfg = device(machine, FwCfg)
        before = fw_cfg.files["etc/acpi/tables"]
        outl_config(machine, 0x0B, 0x40, 0x601)
        key = 0x20 + sorted(fw_cfg.files).index("etc/table-loader")
        machine.ports.write(0x510, 2, key)
        after = fw_cfg.files["etc/acpi/tables"]
        at = after.index(b"FACP")
        assert number(before, at + 56) == 0 and number(after, at + 56) == 0x600
        outl_config(machine, 0x0B, 0x40, 0x701)
        machine.ports.write(0x510, 2, key)
        assert fw_cfg.files["etc/acpi/tables"] == after, "once, until the next reset"


def test_switches_leave_parts_out(tmp_path: Path) -> None:
    with pc_machine(tmp_path, board_options={"hpet": "off"}) as machine:
        assert b"HPET" not in device(machine, FwCfg).files["etc/acpi/tables"]
        assert not any(found.kind == "hpet" for found in machine.devices)
    with pc_machine(tmp_path, board_options={"acpi": "off"}) as machine:
        files = device(machine, FwCfg).files
        assert not {"etc/acpi/tables", "etc/table-loader", "etc/system-states"} & set(files)
        assert not any(found.kind == "PIIX4_PM" for found in machine.devices)


def test_oem_ids(tmp_path: Path) -> None:
    with pc_machine(tmp_path, board_options={"x-oem-id": "ABC", "x-oem-table-id": "DEF"}) as machine:
        content = device(machine, FwCfg).files["etc/acpi/tables"]
        header = HEADER.unpack_from(content, content.index(b"FACP"))
        assert header[4:6] == (b"ABC\0\0\0", b"DEF\0\0\0\0\0")
