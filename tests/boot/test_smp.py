"""Several processors: Debian's kernel starts them all, they run at the same time, and the machine goes down."""

from pathlib import Path

import pytest

from pellucid.cli.guest.scripts import BANNER
from tests.boot.machine import run
from tests.boot.test_boot import OPTIONS, initrd, lines

COUNT = f"""\
#!/bin/sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox --install -s /bin
export PATH=/bin
echo "{BANNER}"
echo "processors: $(grep -c ^processor /proc/cpuinfo)"
cd /sys/devices/system/cpu
echo "places: $(cat possible)"
echo "grouped:" $(for n in 0 1 2 3; do
    cd cpu$n/topology 2>&- && echo $(cat physical_package_id die_id core_id thread_siblings_list) / && cd ../..
done)
for n in 1 2 3 4 5 6 7 8; do (i=0; while [ $i -lt 500 ]; do i=$((i + 1)); done; /bin/true && echo $n >> /done) & done
wait
echo "children: $(wc -l < /done)"
poweroff -f
"""


@pytest.mark.parametrize(("options", "processors", "places", "grouped"), [
    (("-smp", "2"), 2, "0-1", "0 0 0 0 / 0 0 1 1 /"),
    (("-M", "pc", "-cpu", "Nehalem", "-smp", "4,sockets=2,dies=2,cores=1,threads=2,maxcpus=8"), 4, "0-7",
     "0 0 0 0-1 / 0 0 0 0-1 / 0 1 1 2-3 / 0 1 1 2-3 /"),
])
def test_every_processor_is_started(
    debian: Path, tmp_path: Path, options: tuple[str, ...], processors: int, places: str, grouped: str
) -> None:
    """Package, die, core and the core's threads of each, as the kernel sees them under QEMU too."""
    done = run(*OPTIONS, *options, "-kernel", debian, "-initrd", initrd(tmp_path, COUNT),
               "-append", "console=ttyS0 panic=-1")
    printed = lines(done)
    assert done.returncode == 0
    assert f"processors: {processors}" in printed
    assert f"places: {places}" in printed and f"grouped: {grouped}" in printed
    assert "children: 8" in printed
