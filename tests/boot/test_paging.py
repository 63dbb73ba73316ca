"""A guest with more RAM than memory: Debian's kernel hears of pages that are out, and its files stay what they were."""

from pathlib import Path

from pellucid.cli.guest.scripts import BANNER
from tests.boot.machine import run
from tests.boot.test_boot import OPTIONS, initrd, lines

FILL = f"""\
#!/bin/sh
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
export PATH=/bin
echo "{BANNER}"
mkdir -p /files
mount -t tmpfs -o size=90% none /files
for n in 1 2 3 4 5 6 7 8; do cat /bin/busybox /bin/busybox /bin/busybox /bin/busybox > /files/$n; done
echo "megabytes: $(du -sm /files | cut -f 1)"
echo "contents: $(md5sum /files/* | cut -d ' ' -f 1 | sort -u | wc -l)"
echo "told: $(grep HYP: /proc/interrupts)"
poweroff -f
"""


def test_debian_with_less_memory_than_ram(debian: Path, tmp_path: Path) -> None:
    done = run(*OPTIONS, "-m", "192M", "-mem-resident", "56M", "-mem-path", tmp_path, "-kernel", debian,
               "-initrd", initrd(tmp_path, FILL), "-append", "console=ttyS0 panic=-1")
    printed = lines(done)
    assert done.returncode == 0
    assert "contents: 1" in printed
    megabytes = next(line for line in printed if line.startswith("megabytes: "))
    assert int(megabytes.split()[1]) > 56
    told = next(line for line in printed if line.startswith("told: "))
    assert int(told.split()[2]) > 1, "more than that the feature was switched on"
