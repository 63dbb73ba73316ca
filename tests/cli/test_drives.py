"""-drive, its short forms and -boot: what becomes of the words, and what is said of wrong ones."""

import pytest

from pellucid.block import CacheMode, DriveOptions, ErrorAction, Policy
from pellucid.cli.drives import parse_drive
from pellucid.cli.options import read_options
from pellucid.errors import NotBuiltError, PellucidError, UserError
from pellucid.machine.config import BootConfig


def test_all_of_a_drive() -> None:
    text = (
        "file=a,,b.img,if=none,id=d0,format=raw,media=disk,snapshot=on,readonly=off,cache=writethrough,aio=threads,"
        "discard=unmap,werror=stop,rerror=ignore,detect-zeroes=off"
    )
    policy = Policy(CacheMode.WRITETHROUGH, ErrorAction.IGNORE, ErrorAction.STOP, True)
    expected = DriveOptions(
        f"-drive {text}", "a,b.img", "none", format="raw", snapshot=True, id="d0", policy=policy
    )  # fmt: skip
    assert parse_drive(text) == expected


def test_places() -> None:
    drive = parse_drive("file=x,bus=1,unit=0")
    assert (drive.bus, drive.unit, drive.index, drive.interface) == (1, 0, None, "ide")
    assert parse_drive("file=x,index=3,media=cdrom").index == 3


def test_short_forms() -> None:
    words = "-hda a,b -hdb b -hdc c -hdd d -cdrom e f -snapshot -M pc -nodefaults".split()
    config = read_options(words).finish()
    assert [(drive.file, drive.index, drive.media) for drive in config.drives] == [
        ("a,b", 0, "disk"),
        ("b", 1, "disk"),
        ("c", 2, "disk"),
        ("d", 3, "disk"),
        ("e", 2, "cdrom"),
        ("f", 0, "disk"),
    ]
    assert all(drive.snapshot for drive in config.drives) and not config.default_drives


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("d", BootConfig(order="d")),
        ("order=dc,once=n,menu=on,splash-time=500,reboot-timeout=10,strict=on",
         BootConfig("dc", "n", True, 500, 10, True)),
        ("menu=off", BootConfig()),
    ],
)  # fmt: skip
def test_boot(text: str, expected: BootConfig) -> None:
    assert read_options(["-boot", text]).boot == expected


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("file=a,frob=1", UserError, "unknown parameter 'frob'"),
        ("file=a,if=virtio", NotBuiltError, "if=virtio is not built yet"),
        ("file=a,if=frob", UserError, "unsupported bus type 'frob'"),
        ("file=a,media=tape", UserError, "'tape' invalid media"),
        ("file=a,format=frob", UserError, "Unknown driver 'frob'"),
        ("file=a,format=host_device", NotBuiltError, "format=host_device is not built yet"),
        ("file=a,cache=none", NotBuiltError, "cache=none (O_DIRECT) is not built yet"),
        ("file=a,cache=frob", UserError, "invalid cache option"),
        ("file=a,werror=frob", UserError, "'frob' invalid write error action"),
        ("file=a,rerror=enospc", UserError, "'enospc' invalid read error action"),
        ("file=a,aio=native", NotBuiltError, "aio=native is not built yet"),
        ("file=a,aio=frob", UserError, "'frob' invalid aio option"),
        ("file=a,discard=frob", UserError, "'frob' invalid discard option"),
        ("file=a,detect-zeroes=on", NotBuiltError, "detect-zeroes=on is not built yet"),
        ("file=a,copy-on-read=on", NotBuiltError, "copy-on-read is not built yet"),
        ("file=a,bps=5", NotBuiltError, "bps= is not built yet"),
        ("file=a,throttling.bps-total=5", NotBuiltError, "throttling.bps-total= is not built yet"),
        ("file=a,file.locking=off", NotBuiltError, "file.locking= is not built yet"),
        ("file=a,index=x", UserError, "Parameter 'index' expects a number"),
        ("file=a,id=1x", UserError, "expects an identifier"),
        ("file=a,snapshot=maybe", UserError, "give on or off"),
    ],
)
def test_wrong_drives(text: str, error: type[PellucidError], said: str) -> None:
    with pytest.raises(error) as caught:
        parse_drive(text)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("e", "Invalid boot device for PC"),
        ("Z", "Invalid boot device 'Z'"),
        ("cc", "given twice"),
        ("acdn", "Too many boot devices"),
        ("menu=perhaps", "give on or off"),
        ("splash=a.bmp", "splash= is not built yet"),
        ("splash-time=70000", "milliseconds from 0 to 65535"),
        ("frob=1", "unknown parameter 'frob'"),
    ],
)
def test_wrong_boot(text: str, said: str) -> None:
    with pytest.raises(PellucidError) as caught:
        read_options(["-boot", text])
    assert said in str(caught.value)


def test_a_disk_boots_itself_where_firmware_does() -> None:
    assert read_options(["-M", "pc", "disk.img"]).boots_from_drives
    assert not read_options(["-M", "microvm", "disk.img"]).boots_from_drives
    assert read_options(["disk.img"]).boots_from_drives and not read_options(["disk.img"]).wants_guest()
    assert not read_options(["-M", "pc"]).boots_from_drives and read_options(["-M", "pc"]).wants_guest()
