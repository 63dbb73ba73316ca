"""`-device ide-hd`, `ide-cd` and `ich9-ahci`: who gets which drive and place, in QEMU's words."""

from pathlib import Path

import pytest

from pellucid.cli.draft import Draft
from pellucid.cli.drives import parse_drive
from pellucid.cli.option_values import device
from pellucid.errors import PellucidError
from pellucid.machine.devices.fw_cfg import FwCfg
from pellucid.machine.devices.rtc import Rtc
from pellucid.machine.ide.drive import AtaDrive
from pellucid.machine.machine import Machine
from pellucid.machine.plug import DevicePlugger
from pellucid.machine.qdev import qtree_text
from tests.machine.kernels import bzimage
from tests.machine.pc_machine import device as find
from tests.machine.pc_machine import pc_machine

DISK = "if=none,id={name},file={folder}/{name}.img,format=raw"


def image(folder: Path, name: str, size: int = 8 << 20) -> str:
    with (folder / f"{name}.img").open("wb") as file:
        file.truncate(size)
    return DISK.format(name=name, folder=folder)


def plug(machine: Machine, *texts: str) -> list[AtaDrive]:
    draft = Draft()
    for text in texts:
        device(draft, text)
    plugger = DevicePlugger(machine, (), lambda name: None)
    plugged = [plugger.plug(option) for option in draft.devices]
    return [found for found in plugged if isinstance(found, AtaDrive)]


def test_a_drive_s_place_and_what_it_says(tmp_path: Path) -> None:
    drives = (parse_drive(image(tmp_path, "x")), parse_drive("if=none,id=y"))
    texts = ("ide-hd,drive=x,serial=abc,model=foo,wwn=0x5000,id=hd", "ide-cd,drive=y", "ide-cd,bus=ide.0")
    with pc_machine(tmp_path, drives=drives, default_drives=False) as machine:
        disk, cd, empty = plug(machine, *texts)
        # A drive without a bus goes to the newest one, and a second to its second place.
        assert (disk.unit, cd.unit, empty.unit) == (0, 1, 0)
        assert [drive.names.serial for drive in (disk, cd, empty)] == ["abc", "QM00004", "QM00001"]
        text = qtree_text(machine.qdev)
    lines = [line.strip() for line in text[text.index("dev: ide-hd") :].splitlines()]
    assert lines[1:5] == [
        'drive = "x"',
        'backend_defaults = "auto"',
        "logical_block_size = 512 (512 B)",
        "physical_block_size = 512 (512 B)",
    ]
    assert lines[13:20] == [
        'werror = "auto"',
        'ver = "2.5+"',
        "wwn = 20480 (0x5000)",
        'serial = "abc"',
        'model = "foo"',
        "cyls = 16 (0x10)",
        "heads = 16 (0x10)",
    ]
    assert lines[24:27] == ['bios-chs-trans = "none"', "rotation_rate = 0 (0x0)", "unit = 0 (0x0)"]


@pytest.mark.parametrize(
    ("board", "texts", "said"),
    [
        ("q35", ["ide-cd", "ide-cd"], "Can't create IDE unit 1, bus supports only 1 units"),
        ("pc", ["ide-cd", "ide-cd", "ide-cd"], "IDE unit 1 is in use"),
        ("pc", ["ide-cd,unit=2"], "Can't create IDE unit 2, bus supports only 2 units"),
        ("pc", ["ide-hd"], "-device ide-hd: No drive specified"),
        ("pc", ["ide-hd,drive=nope"], "Property 'ide-hd.drive' can't find value 'nope'"),
        ("pc", ["ide-hd,drive=empty"], "Device needs media, but drive is empty"),
        ("pc", ["ide-hd,drive=x", "ide-cd,drive=x"], "Drive 'x' is already in use by another device"),
        ("pc", ["ide-cd,drive=taken"], r"has been automatically connected to another device \(did you need 'if=none'"),
        ("pc", ["ide-hd,drive=ro"], "Block node is read-only"),
        ("pc", ["ide-cd,bus=pci.0"], "Device 'ide-cd' can't go on PCI bus"),
        ("pc", ["ide-hd,drive=x,cyls=5"], "heads must be between 1 and 16"),
        ("pc", ["ide-hd,drive=x,cyls=5,heads=16,secs=256"], "secs must be between 1 and 255"),
        ("pc", ["ide-hd,drive=x,bios-chs-trans=foo"], "'bios-chs-trans' does not accept value 'foo'"),
        ("pc", ["ide-hd,drive=x,logical_block_size=4096"], "logical_block_size must be 512 for IDE"),
        ("pc", ["ide-hd,drive=x,write-cache=off"], "write-cache=off is not built yet"),
        ("pc", ["ide-cd,bootindex=1,unit=0", "ide-cd,bootindex=1,unit=1"], "The bootindex 1 has already been used"),
    ],
)
def test_what_cannot_be(tmp_path: Path, board: str, texts: list[str], said: str) -> None:
    wanted = [image(tmp_path, "x"), "if=none,id=empty", image(tmp_path, "ro") + ",readonly=on"]
    if board == "pc":
        wanted.append(image(tmp_path, "taken").replace("if=none", "if=ide"))
    drives = tuple(parse_drive(text) for text in wanted)
    with (
        pc_machine(tmp_path, board=board, drives=drives, default_drives=False) as machine,
        pytest.raises(PellucidError, match=said),
    ):
        plug(machine, *texts)


def test_firmware_is_told(tmp_path: Path) -> None:
    drives = (parse_drive(image(tmp_path, "x")), parse_drive(image(tmp_path, "y")))
    texts = (
        "pci-bridge,id=b,chassis_nr=1,addr=6",
        "ahci,id=sata,bus=b,addr=1",
        "ide-hd,drive=x,bus=ide.0,unit=1,bootindex=7,cyls=1200,heads=15,secs=17,lcyls=5,lheads=6,lsecs=7",
        "ide-hd,drive=y,bus=sata.2,bootindex=3",
        "ide-cd,bus=ide.1,bootindex=5",
    )
    with pc_machine(tmp_path, drives=drives, default_drives=False) as machine:
        plug(machine, *texts)
        files, cmos = find(machine, FwCfg).files, find(machine, Rtc).cmos
        assert bytes(files["bootorder"]).decode() == (
            "/pci@i0cf8/pci-bridge@6/pci8086,2922@1/drive@2/disk@0\n"
            "/pci@i0cf8/ide@1,1/drive@1/disk@0\n"
            "/pci@i0cf8/ide@1,1/drive@0/disk@1\0"
        )
        assert bytes(files["bios-geometry"]) == b"/pci@i0cf8/ide@1,1/drive@0/disk@1 5 6 7\0"
        assert (cmos[0x12], cmos[0x1A], cmos[0x39]) == (0x0F, 47, 1 << 2)
        assert bytes(cmos[0x24:0x2D]).hex() == "b0040fffffc8b00411"


@pytest.mark.parametrize("board", ["pc", "q35"])
def test_the_kernel_comes_before_every_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, board: str) -> None:
    monkeypatch.setattr("pellucid.machine.firmware.kernel_loader.read_option_rom", lambda path: b"\x55\xaa")
    (tmp_path / "vmlinuz").write_bytes(bzimage())
    drives = (parse_drive(image(tmp_path, "x")),)
    kernel = tmp_path / "vmlinuz"
    with pc_machine(tmp_path, kernel=kernel, drives=drives, default_drives=False, board=board) as machine:
        plug(machine, "ide-hd,drive=x,bootindex=1")
        lines = find(machine, FwCfg).files["bootorder"].rstrip(b"\0").decode().splitlines()
        assert lines[0] == "/rom@genroms/linuxboot_dma.bin" and len(lines) == 2 and lines[1].endswith("/disk@0")


def test_ahci_beside_ide(tmp_path: Path) -> None:
    with pc_machine(tmp_path, drives=(parse_drive(image(tmp_path, "x")),), default_drives=False) as machine:
        (disk,) = plug(machine, "ahci", "ide-hd,drive=x")
        # The newest bus: the controller's last port, counted on from the board's two channels.
        assert disk.names.serial == "QM00015" and "bus: ide.7" in qtree_text(machine.qdev)
        assert disk in machine.devices


def test_floppy_drives(tmp_path: Path) -> None:
    drives = (parse_drive(image(tmp_path, "x", 1440 << 10)),)
    with pc_machine(tmp_path, drives=drives, default_drives=False) as machine:
        plug(machine, "floppy,unit=1,drive=x", "floppy,id=a,drive-type=auto")
        cmos, text = find(machine, Rtc).cmos, qtree_text(machine.qdev)
        assert (cmos[0x10], cmos[0x14] & 0xC1) == (0x54, 0x41)
        lines = [line.strip() for line in text[text.index('dev: floppy, id "a"') :].splitlines()]
        assert lines[1:4] == ["unit = 0 (0x0)", 'drive = ""', 'backend_defaults = "auto"']
        assert lines[13] == 'drive-type = "288"' and lines[14] == 'dev: floppy, id ""'
        with pytest.raises(PellucidError, match="Can't create floppy unit 2, bus supports only 2 units"):
            plug(machine, "floppy")
        with pytest.raises(PellucidError, match="Floppy unit 1 is in use"):
            plug(machine, "floppy,unit=1")


def test_no_default_drive_beside_one_that_was_asked_for(tmp_path: Path) -> None:
    for driver, left in (("ide-hd", {"floppy0"}), ("ide-cd", {"floppy0"}), ("floppy", {"ide1-cd0"})):
        draft = Draft()
        device(draft, driver)
        with pc_machine(tmp_path, devices=tuple(draft.devices)) as machine:
            assert set(machine.drives.by_name) == left
