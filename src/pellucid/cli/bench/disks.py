"""Firmware and disks: SeaBIOS from reset to its boot attempt, GRUB's ISO to the kernel, a disk read through AHCI.

SeaBIOS with nothing to boot is told to try again at once, so it resets the machine for ever; the time is that from its
last word before a reset to its first boot attempt behind it. What is missing for a row is said by name in a note, and
the row left out.
"""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from shutil import which

from pellucid.cli import guest
from pellucid.cli.bench.console import GuestError, Line, Session, session
from pellucid.cli.bench.machines import MEMORY, Emulator
from pellucid.errors import UserError
from pellucid.machine.board import BOARDS
from pellucid.records import dataclass, field

FIRMWARE = Path("/usr/share/seabios/bios-256k.bin")
GRUB = Path("/usr/lib/grub/i386-pc")
TOOLS = {"grub-mkrescue": "grub-common", "xorriso": "xorriso", "mformat": "mtools"}
RESETS = 5
READ_SIZE = 256 << 20
SILENCE = 120.0
"""Seconds without a line: GRUB says nothing while it loads a kernel."""
NOTHING_TO_BOOT, ATTEMPT, KERNEL = "No bootable device", "Booting from", "Linux version"
READ_BEGINS, READ_ENDS = "read begins", "read ends"
MENU = """\
serial --unit=0 --speed=115200
terminal_input serial
terminal_output serial
set timeout=0
menuentry Debian {
    linux /boot/vmlinuz console=ttyS0
    boot
}
"""
READ = f"""\
#!/bin/sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
%s
until [ -b /dev/sda ]; do sleep 0.1; done
echo; echo "{READ_BEGINS}"
dd if=/dev/sda of=/dev/null bs=1M iflag=direct 2>/dev/null
echo "{READ_ENDS}"
poweroff -f
"""


@dataclass
class DiskTimes:
    """Seconds, of each run."""

    firmware: list[float] = field(default_factory=list)
    grub: list[float] = field(default_factory=list)
    ahci: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Media:
    """What is measured with; None where a row cannot be had. `ahci` is a kernel and an initrd."""

    blank: Path | None = None
    iso: Path | None = None
    ahci: tuple[Path, Path] | None = None
    notes: tuple[str, ...] = ()


def prepare(folder: Path, kernel: Path) -> Media:
    """Make the media in `folder`."""
    notes: list[str] = []
    if not FIRMWARE.is_file():
        return Media(notes=("SeaBIOS is not installed, so nothing boots from disks (Debian: seabios)",))
    blank = folder / "blank.img"
    with blank.open("wb") as out:
        out.truncate(READ_SIZE)
    with blank.open("rb") as image:
        while image.read(1 << 20):  # into the host's page cache: the first to read shall not pay for all
            pass
    return Media(blank, _grub_iso(folder, kernel, notes), _ahci_guest(folder, notes), tuple(notes))


def _grub_iso(folder: Path, kernel: Path, notes: list[str]) -> Path | None:
    missing = {package for tool, package in TOOLS.items() if which(tool) is None}
    missing |= set() if (GRUB / "boot.img").is_file() else {"grub-pc-bin"}
    if missing:
        notes.append(f"GRUB's ISO is left out: it is made with {', '.join(sorted(missing))} (Debian packages)")
        return None
    root, iso = folder / "medium", folder / "grub.iso"
    (root / "boot" / "grub").mkdir(parents=True)
    (root / "boot" / "vmlinuz").write_bytes(kernel.read_bytes())
    (root / "boot" / "grub" / "grub.cfg").write_text(MENU)
    made = subprocess.run(["grub-mkrescue", "-d", GRUB, "-o", iso, root], capture_output=True, text=True, check=False)
    if made.returncode:
        notes.append(f"GRUB's ISO is left out: grub-mkrescue: {made.stderr.strip().splitlines()[-1:]}")
        return None
    return iso


def _ahci_guest(folder: Path, notes: list[str]) -> tuple[Path, Path] | None:
    """Debian's generic kernel: the cloud kernel has no driver for AHCI."""
    if "q35" not in BOARDS:
        notes.append("the AHCI read is left out: board q35 is not built yet")
        return None
    try:
        kernel = guest.generic_kernel()
        modules = guest.module_files(("ahci", "sd_mod"), kernel)
        script = READ % "\n".join(f"insmod /{name}" for name in modules)
        initrd = folder / "ahci-initrd"
        initrd.write_bytes(guest.build_initrd(script, modules))
    except UserError as error:
        notes.append(f"the AHCI read is left out: {error}")
        return None
    return kernel, initrd


def measure_disks(emulator: Emulator, media: Media, logs: Path | None, times: DiskTimes) -> None:
    """One run of each row on one machine. Raises GuestError when a machine does not do its part."""
    common = (*emulator.command, "-accel", "tcg", "-m", MEMORY, "-nographic", "-vga", "none", "-nic", "none")
    if media.blank is not None:
        words = ("-M", "pc", "-boot", "reboot-timeout=0", "-drive", f"file={media.blank},format=raw")
        with _run(emulator, "firmware", (*common, *words), logs) as run:
            times.firmware += _firmware_times(run)
    if media.iso is not None:
        words = ("-M", "pc", "-boot", "d", "-cdrom", str(media.iso))
        with _run(emulator, "grub", (*common, *words), logs) as run:
            times.grub.append(_at(run, KERNEL))
    if media.ahci is not None:
        kernel, initrd = media.ahci
        boots = ("-kernel", str(kernel), "-initrd", str(initrd), "-append", "console=ttyS0 quiet")
        drive = ("-drive", f"file={media.blank},format=raw")
        with _run(emulator, "ahci", (*common, "-M", "q35", *drive, *boots), logs) as run:
            lines = run.lines()
            begun = _at(run, READ_BEGINS, lines)
            times.ahci.append(_at(run, READ_ENDS, lines) - begun)


def _run(
    emulator: Emulator, what: str, words: Sequence[str], logs: Path | None
) -> AbstractContextManager[Session]:
    silence = max(emulator.silence, SILENCE)
    return session(f"{emulator.name} {what}", list(words), emulator.environment, silence, logs)


def _firmware_times(run: Session) -> Iterator[float]:
    before: float | None = None
    count = 0
    for line in run.lines():
        if NOTHING_TO_BOOT in line.text:
            before = line.at
        elif ATTEMPT in line.text and before is not None:
            yield line.at - before
            before, count = None, count + 1
            if count == RESETS:
                return
    raise GuestError(run.complaint("ended before its firmware tried to boot"))


def _at(run: Session, text: str, lines: Iterator[Line] | None = None) -> float:
    """When a line with `text` came."""
    for line in run.lines() if lines is None else lines:
        if text in line.text:
            return line.at
    raise GuestError(run.complaint(f"ended without {text!r}"))
