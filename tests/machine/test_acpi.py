"""ACPI tables and AML: every checksum, every length and pointer, and the AML read back by a parser of its own."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.machine.firmware import acpi, aml
from pellucid.machine.firmware.acpi import AcpiPlatform, AcpiTables, build_tables
from pellucid.machine.firmware.madt import EDGE_HIGH, InterruptOverride


def platform(count: int = 1, **changes: object) -> AcpiPlatform:
    settings: dict[str, object] = {
        "apic_ids": tuple(range(count)),
        "sleep_control": 0xFEA0_0200,
        "sleep_status": 0xFEA0_0201,
        "reset_register": 0xFEA0_0202,
        "reset_value": 0x42,
        "devices": aml.device("DEV", aml.name("_HID", aml.eisa_id("PNP0501"))),
        **changes,
    }
    return AcpiPlatform(**settings)  # type: ignore[arg-type]


def tables(count: int = 1, **changes: object) -> AcpiTables:
    return build_tables(platform(count, **changes), 0xE0000, 0xF0000)


def field(content: bytes, offset: int, format: str) -> int:
    value: int = struct.unpack_from("<" + format, content, offset)[0]
    return value


@pytest.mark.parametrize("count", [1, 2, 255, 300])
def test_every_table_has_its_length_and_checksum(count: int) -> None:
    built = tables(count)
    assert set(built.tables) == {b"DSDT", b"FACP", b"APIC", b"XSDT"}
    spans = []
    for address, content in built.segments:
        if content[:4] in built.tables:
            assert field(content, 4, "I") == len(content)
            assert sum(content) % 256 == 0 and address % 64 == 0
        spans.append((address, address + len(content)))
    for (_, end), (start, _) in zip(sorted(spans), sorted(spans)[1:], strict=False):
        assert end <= start


def test_pointers_lead_from_the_rsdp_to_the_dsdt() -> None:
    built = tables()
    memory = dict(built.segments)
    rsdp = memory[0xF0000]
    assert rsdp[:8] == b"RSD PTR " and rsdp[15] == 2 and field(rsdp, 20, "I") == 36 == len(rsdp)
    assert sum(rsdp[:20]) % 256 == 0 and sum(rsdp) % 256 == 0
    xsdt = memory[field(rsdp, 24, "Q")]
    found = {memory[pointer][:4] for (pointer,) in struct.iter_unpack("<Q", xsdt[36:])}
    assert found == {b"FACP", b"APIC"}
    fadt = built.tables[b"FACP"]
    assert memory[field(fadt, 140, "Q")] == built.tables[b"DSDT"] and field(fadt, 40, "I") == field(fadt, 140, "Q")


def test_fadt_is_hardware_reduced() -> None:
    fadt = tables().tables[b"FACP"]
    assert len(fadt) == 276 and fadt[8] == 6
    flags = field(fadt, 112, "I")
    assert flags & (1 << 20) and flags & (1 << 10)
    for offset, address in ((116, 0xFEA0_0202), (244, 0xFEA0_0200), (256, 0xFEA0_0201)):
        assert struct.unpack_from("<BBBBQ", fadt, offset) == (0, 8, 0, 1, address)
    assert fadt[128] == 0x42 and fadt[108] == 0x32
    assert not field(fadt, 109, "H") & 0x02, "no keyboard controller is announced"
    without = tables(has_rtc=False).tables[b"FACP"]
    assert without[108] == 0 and field(without, 109, "H") & 0x20


def entries(madt: bytes) -> list[bytes]:
    found, offset = [], 44
    while offset < len(madt):
        found.append(madt[offset : offset + madt[offset + 1]])
        offset += madt[offset + 1]
    assert offset == len(madt)
    return found


def test_madt() -> None:
    madt = tables(2, overrides=(InterruptOverride(0, 2, EDGE_HIGH),)).tables[b"APIC"]
    assert field(madt, 36, "I") == 0xFEE0_0000 and field(madt, 40, "I") == 1
    assert entries(madt) == [
        struct.pack("<BBBBI", 0, 8, 0, 0, 1),
        struct.pack("<BBBBI", 0, 8, 1, 1, 1),
        struct.pack("<BBBBII", 1, 12, 0, 0, 0xFEC0_0000, 0),
        struct.pack("<BBBBIH", 2, 10, 0, 0, 2, 5),
        struct.pack("<BBBHB", 4, 6, 0xFF, 0, 1),
    ]


def test_madt_with_x2apic_ids() -> None:
    found = entries(tables(300).tables[b"APIC"])
    assert sum(entry[0] == 0 for entry in found) == 255
    assert struct.pack("<BBHIII", 9, 16, 0, 299, 1, 299) in found
    assert found[-1][0] == 10 and len(found[-1]) == 12


def package(content: bytes) -> tuple[bytes, bytes]:
    """The content of the package that begins here, and what follows it (ACPI 6.3, 20.2.4)."""
    lead = content[0]
    extra = lead >> 6
    length = lead & (0x3F if not extra else 0x0F)
    for index in range(extra):
        length |= content[1 + index] << 4 + 8 * index
    return content[1 + extra : length], content[length:]


@given(st.one_of(st.integers(0, 80), st.integers(4000, 4200), st.integers((1 << 20) - 20, (1 << 20) + 20)))
def test_package_lengths_count_themselves(size: int) -> None:
    body = bytes(size)
    content, rest = package(aml.scope("_SB", body)[1:] + b"rest")
    assert content == b"_SB_" + body and rest == b"rest"


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (aml.integer(0), "00"),
        (aml.integer(1), "01"),
        (aml.integer(0xFF), "0a ff"),
        (aml.integer(0x100), "0b 00 01"),
        (aml.integer(0x1_0000), "0c 00 00 01 00"),
        (aml.integer(1 << 32), "0e 00 00 00 00 01 00 00 00"),
        (aml.eisa_id("PNP0501"), "0c 41 d0 05 01"),
        (aml.eisa_id("PNP0C0C"), "0c 41 d0 0c 0c"),
        (aml.string("ab"), "0d 61 62 00"),
        (aml.name_string("\\"), "5c 00"),
        (aml.name_string("\\_S5"), "5c 5f 53 35 5f"),
        (aml.name_string("\\_SB.PWRB"), "5c 2e 5f 53 42 5f 50 57 52 42"),
        (aml.name_string("A.B.C"), "2f 03 41 5f 5f 5f 42 5f 5f 5f 43 5f 5f 5f"),
        (aml.package((aml.integer(5), aml.integer(0))), "12 05 02 0a 05 00"),
        (aml.resource_template(aml.irq(4)), "11 08 0a 05 22 10 00 79 00"),
        (aml.io_ports(0x3F8, 8), "47 01 f8 03 f8 03 00 08"),
        (aml.interrupt(9, edge=True), "89 06 00 03 01 09 00 00 00"),
        (aml.field("R", aml.DWORD_ACCESS, (("F", 32),)), "5b 81 0b 52 5f 5f 5f 43 46 5f 5f 5f 20"),
        (aml.field("R", aml.BYTE_ACCESS, (("F", 100),)), "5b 81 0c 52 5f 5f 5f 41 46 5f 5f 5f 44 06"),
    ],
)
def test_terms(made: bytes, expected: str) -> None:
    assert made.hex(" ") == expected


@pytest.mark.parametrize("bad", ["", "TOOLONG", "1AB", "ab", "A-B"])
def test_names_that_are_none(bad: str) -> None:
    with pytest.raises(ValueError, match="not an AML name segment"):
        aml.name_string(f"\\{bad}.X" if bad else ".X")


def test_dsdt_has_the_devices_and_s5() -> None:
    dsdt = acpi.dsdt(platform())
    assert dsdt[36:37] == b"\x10"
    scope, rest = package(dsdt[37:])
    assert scope[:4] == b"_SB_" and scope[4:6] == b"\x5b\x82"
    assert rest == bytes.fromhex("08 5c 5f 53 35 5f 12 07 04 0a 05 00 00 00")
