"""Several processors: Debian's kernel starts them all, they run at the same time, and the machine goes down."""

from pathlib import Path

import pytest

from pellucid.cli.guest.scripts import BANNER
from tests.boot.machine import run
from tests.boot.test_boot import OPTIONS, initrd, lines

COUNT = f"""\
#!/bin/sh
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
export PATH=/bin
echo "{BANNER}"
echo "processors: $(grep -c ^processor /proc/cpuinfo)"
echo "packages: $(grep 'physical id' /proc/cpuinfo | sort -u | wc -l)"
for n in 1 2 3 4 5 6 7 8; do (i=0; while [ $i -lt 500 ]; do i=$((i + 1)); done; /bin/true && echo $n >> /done) & done
wait
echo "children: $(wc -l < /done)"
poweroff -f
"""


@pytest.mark.parametrize(("smp", "processors", "packages"), [("2", 2, 1), ("4,sockets=2,cores=1,threads=2", 4, 2)])
def test_every_processor_is_started(debian: Path, tmp_path: Path, smp: str, processors: int, packages: int) -> None:
    done = run(*OPTIONS, "-smp", smp, "-kernel", debian, "-initrd", initrd(tmp_path, COUNT),
               "-append", "console=ttyS0 panic=-1")
    printed = lines(done)
    assert done.returncode == 0
    assert f"processors: {processors}" in printed and f"packages: {packages}" in printed
    assert "children: 8" in printed
