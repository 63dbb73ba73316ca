"""Power management of `pc` with SeaBIOS, our ACPI tables and Debian's kernel: suspend, wake-up, button, reset, off."""

import time
from pathlib import Path

import pytest

from pellucid.cli.guest import build_initrd
from pellucid.cli.guest.scripts import BANNER
from tests.boot.machine import APPEND, OURS, Terminal

MISSING = [
    path
    for path in ("/usr/share/seabios/bios-256k.bin", "/usr/share/qemu/linuxboot_dma.bin")
    if not Path(path).is_file()
]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs Debian's seabios and qemu-system-data: no {MISSING}")

SLEEPS = f"""\
#!/bin/sh
/bin/busybox --install -s /bin; export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
echo "{BANNER}"
tables=/sys/firmware/acpi/tables
echo "tables:" $(cd $tables; for each in *; do [ -f $each ] && echo $each; done | sort)
echo "machine:" $(cat /sys/class/dmi/id/product_name /sys/class/dmi/id/product_serial)
echo "states:" $(cat /sys/power/state)
kept=$$.$(cat /proc/sys/kernel/random/boot_id)
echo "sleeps"
echo mem > /sys/power/state
[ "$kept" = "$$.$(cat /proc/sys/kernel/random/boot_id)" ] && echo "awake again: $(dmesg | grep -c 'Low-level resume')"
echo +2 > /sys/class/rtc/rtc0/wakealarm
echo mem > /sys/power/state
echo "alarm: $(dmesg | grep -c 'Low-level resume')"
button=/sys/firmware/acpi/interrupts/ff_pwr_btn
before=$(cut -c 1-8 $button)
echo "waits for the button"
while [ "$before" = "$(cut -c 1-8 $button)" ]; do sleep 0.1; done
echo "button pressed"
poweroff -f
"""


def initrd(folder: Path, init: str) -> Path:
    path = folder / "initrd.gz"
    path.write_bytes(build_initrd(init))
    return path


def options(debian: Path, archive: Path) -> list[str | Path]:
    start: list[str | Path] = ["-M", "pc", "-accel", "tcg", "-nodefaults", "-display", "none", "-serial", "mon:stdio"]
    return [*start, "-m", "128M", "-kernel", debian, "-initrd", archive, "-append", APPEND]


def until_status(machine: Terminal, wanted: str) -> None:
    """Ask the monitor until the machine has got there."""
    for _ in range(100):
        machine.send("info status\r")
        if wanted in machine.expect("\n(qemu) "):
            return
        time.sleep(0.1)
    raise AssertionError(f"the machine did not become {wanted}")


def test_suspend_wake_up_button_and_power_off(debian: Path, tmp_path: Path) -> None:
    smbios = ("-smbios", "type=1,serial=S-123")
    with Terminal(*options(debian, initrd(tmp_path, SLEEPS)), *smbios) as machine:
        machine.expect(BANNER)
        described = machine.expect("sleeps\n")
        assert "tables: APIC DSDT FACP FACS HPET WAET" in described and "freeze mem" in described
        assert "machine: Standard PC (i440FX + PIIX, 1996) S-123" in described
        machine.send("\x01c")
        machine.expect("(qemu) ")
        until_status(machine, "VM status: paused (suspended)")
        machine.send("cont\r")
        until_status(machine, "VM status: paused (suspended)")
        machine.send("system_wakeup\r")
        machine.expect("awake again: 1\n")
        machine.expect("alarm: 2\n")
        machine.expect("waits for the button\n")
        machine.send("system_wakeup\r")
        machine.expect("Error: Unable to wake up: guest is not in suspended state")
        machine.send("system_powerdown\r")
        machine.expect("button pressed\n")
        assert machine.wait() == 0


REBOOTS = f"""\
#!/bin/sh
/bin/busybox mount -t proc proc /proc
echo "{BANNER}"
/bin/busybox reboot -f
"""


def test_reboot_starts_seabios_anew(debian: Path, tmp_path: Path) -> None:
    if not OURS:
        pytest.skip("QEMU does the same, more slowly")
    with Terminal(*options(debian, initrd(tmp_path, REBOOTS))) as machine:
        machine.expect(BANNER)
        machine.expect(BANNER)
        machine.send("\x01x")
        assert machine.wait() == 0
