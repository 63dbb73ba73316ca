"""Disks and CDs in real guests on the board `pc`: GRUB starts Debian from them, Linux reads and writes them."""

import hashlib
import random
import subprocess
from pathlib import Path
from shutil import which

import pytest

from pellucid.cli import guest
from pellucid.cli.guest.scripts import BANNER
from pellucid.errors import UserError
from tests.boot import media
from tests.boot.machine import APPEND, OURS, Terminal, run
from tests.boot.test_boot import lines

ANY_BOARD = ("-m", "256M", "-nographic", "-no-reboot", "-nic", "none")
OPTIONS = ("-M", "pc", *ANY_BOARD)
FIRMWARE = Path("/usr/share/seabios/bios-256k.bin")
HELLO = f"""\
#!/bin/sh
echo "{BANNER}"
/bin/busybox reboot -f
"""
START = """\
#!/bin/sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mkdir -p /mnt
"""
WAIT = """\
disk() {  # The name of the disk at an address: Linux names two that come at the same time in either order.
    until [ -e /sys/bus/scsi/devices/$1/block ]; do sleep 0.1; done
    until [ -b /dev/$(ls /sys/bus/scsi/devices/$1/block) ]; do sleep 0.1; done
    echo /dev/$(ls /sys/bus/scsi/devices/$1/block)
}
first=$(disk 0:0:0:0)
echo
"""
DISK_SIZE, PIECE = 16 << 20, 3 << 20

pytestmark = pytest.mark.skipif(not FIRMWARE.is_file(), reason="needs SeaBIOS (Debian: seabios)")


def initrd(folder: Path, script: str, modules: tuple[str, ...] = ()) -> Path:
    """An initrd whose /init is `script`, behind the loading of `modules`."""
    try:
        files = guest.module_files(modules) if modules else {}
    except UserError as error:
        pytest.skip(f"the kernel's modules cannot be had here: {error}")
    path = folder / "initrd.gz"
    loads = "".join(f"insmod /{name}\n" for name in files)
    path.write_bytes(guest.build_initrd(script if not modules else START + loads + WAIT + script, files))
    return path


@pytest.mark.parametrize("board", ["pc", "q35"])
def test_grub_boots_from_an_iso_image(debian: Path, tmp_path: Path, board: str) -> None:
    """Through IDE's data register, and through AHCI."""
    iso = media.grub_iso(tmp_path, debian, initrd(tmp_path, HELLO), APPEND)
    done = run("-M", board, *ANY_BOARD, "-cdrom", iso, "-boot", "d")
    console = lines(done)
    assert BANNER in console and "GRUB loads the kernel" in done.stdout and done.returncode == 0


def test_grub_boots_from_a_disk_image(debian: Path, tmp_path: Path) -> None:
    disk = media.grub_disk(tmp_path, debian, initrd(tmp_path, HELLO), APPEND)
    done = run(*OPTIONS, "-drive", f"file={disk},format=raw")
    console = lines(done)
    assert BANNER in console and "GRUB loads the kernel" in done.stdout and done.returncode == 0


def content(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


READ_AND_WRITE = """\
second=$(disk 0:0:1:0)
cd=$(disk 1:0:0:0)
echo "disk $(sha1sum < $first)"
echo "cd $(sha1sum < $cd)"
dd if=$cd of=$first bs=1M count=3 seek=5 2>/dev/null
mke2fs -q $second >/dev/null
mount -t ext4 -o nodelalloc $second /mnt || mount -t ext2 $second /mnt
dd if=$cd of=/mnt/file bs=1M count=3 2>/dev/null
umount /mnt
sync
echo "end of test"
reboot -f
"""


def test_linux_reads_and_writes(debian: Path, tmp_path: Path) -> None:
    """Debian's ata_piix with two disks and a CD: bytes in and out, and a file system that the host finds in order."""
    disk, cd, other = content(DISK_SIZE, 1), content(4 << 20, 2), tmp_path / "b.img"
    (tmp_path / "a.img").write_bytes(disk)
    (tmp_path / "cd.iso").write_bytes(cd)
    with other.open("wb") as out:
        out.truncate(DISK_SIZE)
    archive = initrd(tmp_path, READ_AND_WRITE, ("ata_piix", "sd_mod", "sr_mod"))
    drives = ("-drive", f"file={tmp_path}/a.img,format=raw", "-drive", f"file={other},format=raw,index=1",
              "-cdrom", tmp_path / "cd.iso")  # fmt: skip
    done = run(*OPTIONS, *drives, "-kernel", debian, "-initrd", archive, "-append", APPEND)
    console = lines(done)
    assert f"disk {hashlib.sha1(disk).hexdigest()}  -" in console and f"cd {hashlib.sha1(cd).hexdigest()}  -" in console
    assert "end of test" in console and done.returncode == 0
    written = (tmp_path / "a.img").read_bytes()
    assert written == disk[: 5 << 20] + cd[:PIECE] + disk[8 << 20 :]
    if which("e2fsck") is not None:
        checked = subprocess.run(["e2fsck", "-f", "-n", other], capture_output=True, text=True, timeout=60, check=False)
        assert checked.returncode == 0, checked.stdout


SNAPSHOT = 'dd if=/dev/zero of=$first bs=1M 2>/dev/null; sync; echo "disk $(sha1sum < $first)"; reboot -f\n'


def test_a_snapshot_keeps_the_image(debian: Path, tmp_path: Path) -> None:
    disk = content(DISK_SIZE, 3)
    (tmp_path / "a.img").write_bytes(disk)
    archive = initrd(tmp_path, SNAPSHOT, ("ata_piix", "sd_mod"))
    done = run(*OPTIONS, "-snapshot", "-drive", f"file={tmp_path}/a.img,format=raw", "-kernel", debian, "-initrd",
               archive, "-append", APPEND)  # fmt: skip
    assert f"disk {hashlib.sha1(bytes(DISK_SIZE)).hexdigest()}  -" in lines(done)
    assert (tmp_path / "a.img").read_bytes() == disk


DURABLE = """\
yes durable | dd of=$first bs=64k count=64 iflag=fullblock conv=fsync 2>/dev/null
echo "flushed $((6 * 7))"
sleep 1000
"""


@pytest.mark.skipif(not OURS, reason="our own process is to be killed")
def test_a_flush_survives_kill_9(debian: Path, tmp_path: Path) -> None:
    image = tmp_path / "a.img"
    with image.open("wb") as out:
        out.truncate(DISK_SIZE)
    archive = initrd(tmp_path, DURABLE, ("ata_piix", "sd_mod"))
    drive = ("-drive", f"file={image},format=raw")
    with Terminal(*OPTIONS, *drive, "-kernel", debian, "-initrd", archive, "-append", APPEND) as machine:
        machine.expect("flushed 42")
        machine.process.kill()
        machine.process.wait(60)
    assert image.read_bytes()[: 4 << 20] == (b"durable\n" * (1 << 20))[: 4 << 20]
    # Its locks went with it.
    with Terminal(*OPTIONS, *drive, "-S") as machine:
        machine.send("\x01x")
        machine.expect("Terminated")
