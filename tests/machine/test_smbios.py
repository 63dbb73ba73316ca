"""SMBIOS against QEMU 7.2's, byte for byte; the options -smbios, -uuid, -acpitable and -fw_cfg."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.errors import NotBuiltError, UserError
from pellucid.machine.config import FwCfgFile
from pellucid.machine.devices.fw_cfg import FwCfg
from pellucid.machine.firmware.acpi_option import user_tables
from pellucid.machine.firmware.smbios import SmbiosMachine, SmbiosOptions, build_smbios
from pellucid.machine.firmware.smbios_options import FIELDS, parse_smbios, parse_uuid
from tests.machine.pc_machine import device, pc_machine

GOLDEN = json.loads((Path(__file__).parent / "golden" / "qemu-tables.json").read_text())
GiB = 1 << 30
I440FX, Q35 = "Standard PC (i440FX + PIIX, 1996)", "Standard PC (Q35 + ICH9, 2009)"
QEMU64 = (0x0006_0FB1, 0x078B_FBFD)
SMALL = [(0, 128 << 20)]


def pairs(text: str) -> tuple[tuple[str, str], ...]:
    return tuple((item.split("=")[0], item.split("=")[1]) for item in text.split(","))


def pc(sockets: int = 1, cores: int = 1, ram: list[tuple[int, int]] = SMALL, entry_64: bool = False) -> SmbiosMachine:
    return SmbiosMachine(I440FX, "pc-i440fx-7.2", sockets, cores, 1, ram, QEMU64, entry_point_64=entry_64)


UUID = "11223344-5566-7788-99aa-bbccddeeff00"
MANY_FIELDS = ["type=1,manufacturer=M,serial=S,sku=K,family=F", "type=17,loc_pfx=D", "type=3,asset=A", "type=4,part=P"]
MORE_TYPES = ["type=0", "type=2,manufacturer=x", "type=11,value=abc"]
MACHINES = {
    "pc-128M": (pc(), SmbiosOptions()),
    "q35-128M": (SmbiosMachine(Q35, "pc-q35-7.2", 1, 1, 1, SMALL, QEMU64), SmbiosOptions()),
    "pc-8G-2-sockets": (pc(2, ram=[(0, 3 * GiB), (4 * GiB, 5 * GiB)]), SmbiosOptions()),
    "pc-20G-entry-64": (pc(2, 2, [(0, 3 * GiB), (4 * GiB, 17 * GiB)], True), SmbiosOptions()),
    "pc-smbios-fields": (pc(), parse_smbios([pairs(text) for text in MANY_FIELDS])),
    "pc-smbios-types": (pc(), parse_smbios([pairs(text) for text in MORE_TYPES], parse_uuid("uuid", UUID))),
}


@pytest.mark.parametrize("name", MACHINES)
def test_the_files_are_qemu_s(name: str) -> None:
    files = build_smbios(*MACHINES[name])
    assert hashlib.sha256(files.tables).hexdigest() == GOLDEN[name]["etc/smbios/smbios-tables"]
    assert hashlib.sha256(files.anchor).hexdigest() == GOLDEN[name]["etc/smbios/smbios-anchor"]


def structures(tables: bytes) -> list[bytes]:
    """Taken apart as a guest does."""
    found = []
    while tables:
        end = tables.index(b"\0\0", tables[1]) + 2
        found.append(tables[:end])
        tables = tables[end:]
    return found


@given(st.integers(1 << 20, 1 << 46), st.integers(1, 300), st.integers(1, 300), st.integers(1, 2), st.booleans())
def test_any_size_can_be_taken_apart(ram: int, sockets: int, cores: int, threads: int, entry_64: bool) -> None:
    size = min(ram, 1 << 40)  # A device of each 16 GiB.
    machine = SmbiosMachine("P", "V", min(sockets, 40), cores, threads, [(0, size)], entry_point_64=entry_64)
    files = build_smbios(machine, SmbiosOptions())
    found = structures(files.tables)
    assert found[-1][0] == 127 and [one[0] for one in found].count(4) == min(sockets, 40)
    assert sum(1 for one in found if one[0] == 17) == -(-size // (16 * GiB))
    assert len({one[2:4] for one in found}) == len(found), "handles are unique"


def test_a_file_takes_a_type_s_place(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(b"\x01\x1b\0\1" + bytes(23) + b"mine\0\0")
    options = parse_smbios([(("file", str(tmp_path / "s")),)])
    found = structures(build_smbios(pc(), options).tables)
    assert [one[0] for one in found].count(1) == 1 and found[0].endswith(b"mine\0\0")
    with pytest.raises(UserError, match="both as a file and by its fields"):
        parse_smbios([(("file", str(tmp_path / "s")),), pairs("type=1,serial=x")])


def test_strings_of_type_11(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"from a file")
    given_pairs = (("type", "11"), ("value", "one"), ("path", str(tmp_path / "text")), ("value", "two"))
    assert parse_smbios([given_pairs]).oem_strings == [b"one", b"from a file", b"two"]


BAD = [
    ("type=1,colour=red", UserError, "no such field"),
    ("type=99,a=b", UserError, "no fields of this type"),
    ("type=x", UserError, "type=N"),
    ("serial=1", UserError, "type=N"),
    ("type=0,release=1", UserError, "MAJOR.MINOR"),
    ("type=0,release=1.999", UserError, "up to 255"),
    ("type=0,uefi=maybe", UserError, "on or off"),
    ("type=4,max-speed=70000", UserError, "0 to 65535"),
    ("type=1,uuid=1234", UserError, "not a UUID"),
    ("type=41,designation=x", NotBuiltError, "type=41"),
    ("type=11,value=", UserError, "must have a character"),
    ("file=/none/here", UserError, "not a regular file"),
    ("file=/none,x=y", UserError, "no further fields"),
]


@pytest.mark.parametrize(("text", "error", "said"), BAD)
def test_bad_options(text: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        parse_smbios([pairs(text)])


@given(
    st.lists(
        st.tuples(
            st.sampled_from([*map(str, FIELDS), "3", "x", ""]),
            st.sampled_from(sorted({name for names in FIELDS.values() for name in names} - {"path"})),
            st.text(max_size=12),
        ),
        max_size=6,
    )
)
def test_any_fields_make_structures_or_one_error(options: list[tuple[str, str, str]]) -> None:
    try:
        parsed = parse_smbios([(("type", type_), (name, value)) for type_, name, value in options])
    except (UserError, NotBuiltError):
        return
    assert structures(build_smbios(pc(), parsed).tables)[-1][0] == 127


@given(st.binary(max_size=60))
def test_any_file_is_a_structure_or_one_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("smbios") / "file"
    path.write_bytes(content)
    try:
        parsed = parse_smbios([(("file", str(path)),)])
    except UserError as error:
        assert "not a whole SMBIOS structure" in str(error)
        return
    build_smbios(pc(), parsed)


def test_acpitable(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"ab")
    (tmp_path / "b").write_bytes(b"cd")
    (made,) = user_tables([(("sig", "TEST"), ("data", f"{tmp_path}/a:{tmp_path}/b"))])
    assert made[:8] == b"TEST\x28\0\0\0" and made[10:36] == b"QEMUQEQEMUQEMU\1\0\0\0QEMU\1\0\0\0"
    assert made[36:] == b"abcd"
    assert sum(made) % 256 == 0
    (tmp_path / "whole").write_bytes(made)
    (again,) = user_tables([(("file", str(tmp_path / "whole")), ("oem_rev", "7"))])
    assert again[24] == 7 and again[36:] == b"abcd" and sum(again) % 256 == 0
    for wrong in ("sig=TEST", f"file={tmp_path}/a", f"sig=TOOLONG,data={tmp_path}/a", "data=/none/here", "x=y"):
        with pytest.raises(UserError, match="-acpitable"):
            user_tables([pairs(wrong)])


def test_the_user_s_files_and_uuid_on_the_board(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"from a file")
    (tmp_path / "table").write_bytes(b"table")
    files = (FwCfgFile("opt/a", "text"), FwCfgFile("opt/b", path=tmp_path / "file"))
    tables = ((("sig", "OEM1"), ("data", str(tmp_path / "table"))),)
    with pc_machine(tmp_path, uuid=UUID, fw_cfg_files=files, acpi_tables=tables) as machine:
        fw_cfg = device(machine, FwCfg)
        assert fw_cfg.files["opt/a"] == b"text" and fw_cfg.files["opt/b"] == b"from a file"
        assert sorted(fw_cfg.files)[-1] == "opt/b"
        machine.ports.write(0x510, 2, 2)
        assert bytes(machine.ports.read(0x511, 1) for _ in range(16)) == bytes.fromhex(UUID.replace("-", ""))
        assert b"OEM1" in fw_cfg.files["etc/acpi/tables"]
    taken = (FwCfgFile("etc/e820", "mine"),)
    with pytest.raises(UserError, match="already"), pc_machine(tmp_path, fw_cfg_files=taken):
        pass
