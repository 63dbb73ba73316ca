"""What a Linux guest sees of a board: resources, every PCI function's configuration space, ACPI's tables.

`python -m tests.boot.guest_view` writes QEMU's side anew, into golden/. The same kernel command line and CPU model on
both sides leave only the machine to differ; KASLR is off, so that the kernel lies where it lay.
"""

import os
import re
import subprocess
from pathlib import Path

from pellucid.cli.guest import build_initrd, default_kernel

GOLDEN = Path(__file__).parent / "golden"
BOARDS = {
    "pc": ("-M", "pc"),
    "q35": ("-M", "q35"),
    "q35-iommu": ("-M", "q35,kernel-irqchip=split", "-device", "intel-iommu,intremap=on,eim=off"),
}
"""What is looked at, and the words for it."""
END = "end of the view"
INIT = f"""\
#!/bin/sh
/bin/busybox --install -s /bin; export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys
dmesg -n 1
echo "[iomem]"; cat /proc/iomem
echo "[ioports]"; cat /proc/ioports
echo "[interrupts]"; cut -d: -f1,2- /proc/interrupts
for each in /sys/bus/pci/devices/*; do echo "[pci ${{each##*/}}]"; hexdump -v -e '16/1 "%02x " "\\n"' $each/config; done
for each in /sys/firmware/acpi/tables/[A-Z]*; do
    echo "[acpi ${{each##*/}}]"; hexdump -v -e '16/1 "%02x " "\\n"' $each
done
echo "{END}"
poweroff -f
"""


def options(board: str, folder: Path) -> list[str]:
    """The words that start a machine of this board for the view."""
    archive = folder / "view.gz"
    archive.write_bytes(build_initrd(INIT))
    words = [*BOARDS[board], "-accel", "tcg", "-nodefaults", "-display", "none", "-serial", "stdio", "-m", "128M"]
    words += ["-cpu", "Nehalem", "-no-reboot", "-kernel", str(default_kernel()), "-initrd", str(archive)]
    return [*words, "-append", "console=ttyS0 quiet nokaslr intel_iommu=on"]


def sections(text: str) -> dict[str, list[str]]:
    """The lines below each heading; of the interrupts, who is on which line, without counts and the processor's own."""
    found: dict[str, list[str]] = {}
    for line in text.replace("\r", "").partition(END)[0].splitlines():
        if head := re.fullmatch(r"\[(.+)\]", line.strip()):
            found[head[1]] = []
        elif found:
            found[list(found)[-1]].append(line.rstrip())
    lines = (re.fullmatch(r"\s*(\d+):[\s\d]+(.*)", line) for line in found.get("interrupts", []))
    found["iomem"] = [line for line in found.get("iomem", []) if " : Kernel " not in line]  # another version's differ
    found["interrupts"] = [f"{match[1]}: {' '.join(match[2].split())}" for match in lines if match]
    return found


def read_golden(board: str) -> dict[str, list[str]]:
    """QEMU's view."""
    return sections((GOLDEN / f"view-{board}.txt").read_text())


def main() -> None:
    """Ask QEMU, which is tried again where its guest hangs."""
    folder = Path(os.environ.get("TMPDIR", "/tmp"))
    GOLDEN.mkdir(exist_ok=True)
    for board in BOARDS:
        for _ in range(5):
            try:
                done = subprocess.run(
                    ["qemu-system-x86_64", *options(board, folder)],
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    errors="replace",
                    timeout=90,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                continue
            view = done.stdout.replace("\r", "")
            if END in view:
                start = view.index("[iomem]")
                (GOLDEN / f"view-{board}.txt").write_text(view[start : view.index(END) + len(END)] + "\n")
                break


if __name__ == "__main__":
    main()
