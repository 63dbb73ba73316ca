"""Debian's guest with `intel_iommu=on`: its disk's DMA translated, its interrupts remapped."""

import hashlib
from pathlib import Path

import pytest

from pellucid.cli import guest
from pellucid.errors import UserError
from tests.boot.machine import APPEND, run
from tests.boot.test_boot import lines
from tests.boot.test_disks import DISK_SIZE, FIRMWARE, START, WAIT, content

COPY = """\
echo "disk $(sha1sum < $first)"
dd if=$first of=$first bs=1M count=3 seek=8 2>/dev/null
sync
grep -h -o "IR-PCI-MSI.*ahci.*\\|IR-IO-APIC.*timer\\|DMAR-MSI.*" /proc/interrupts
dmesg | grep -o "DMAR-IR: Enabled IRQ remapping.*\\|DMAR: Intel(R) Virtualization Technology.*\\|DMAR:.*fault.*"
echo "groups $(ls /sys/kernel/iommu_groups | wc -l)"
echo "end of test"
reboot -f
"""
UNIT = ("-M", "q35,kernel-irqchip=split", "-device", "intel-iommu,intremap=on,aw-bits=48")

pytestmark = pytest.mark.skipif(not FIRMWARE.is_file(), reason="needs SeaBIOS (Debian: seabios)")


@pytest.fixture(scope="module")
def generic() -> tuple[Path, bytes]:
    """Debian's kernel for all machines (the cloud kernel has no driver for AHCI), and an initrd that copies."""
    try:
        kernel = guest.generic_kernel()
        files = guest.module_files(("ahci", "sd_mod"), kernel)
    except UserError as error:
        pytest.skip(f"no generic kernel here: {error}")
    loads = "".join(f"insmod /{name}\n" for name in files)
    return kernel, guest.build_initrd(START + loads + WAIT + COPY, files)


def test_a_disk_behind_the_iommu(generic: tuple[Path, bytes], tmp_path: Path) -> None:
    disk = content(DISK_SIZE, 5)
    (tmp_path / "a.img").write_bytes(disk)
    archive = tmp_path / "initrd.gz"
    archive.write_bytes(generic[1])
    done = run(*UNIT, "-smp", "2", "-m", "256M", "-nographic", "-no-reboot", "-nic", "none", "-drive",
               f"file={tmp_path}/a.img,format=raw", "-kernel", generic[0], "-initrd", archive, "-append",
               f"{APPEND} intel_iommu=on iommu.strict=1")  # fmt: skip
    console = lines(done)
    assert f"disk {hashlib.sha1(disk).hexdigest()}  -" in console and "end of test" in console, done.stdout
    assert (tmp_path / "a.img").read_bytes() == disk[: 8 << 20] + disk[: 3 << 20] + disk[11 << 20 :]
    text = done.stdout
    assert "DMAR-IR: Enabled IRQ remapping" in text and "DMAR: Intel(R) Virtualization Technology for" in text
    assert "fault" not in text
    assert "IR-PCI-MSI" in text and "IR-IO-APIC" in text and "groups 0" not in console
