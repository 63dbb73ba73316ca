"""`info memtype` beside what SeaBIOS sets up and Linux thinks: /proc/mtrr, and the kernel's list of its mappings."""

import re
from pathlib import Path

import pytest

from tests.boot.machine import APPEND, OURS, Terminal
from tests.boot.test_disks import FIRMWARE, OPTIONS, START, initrd

LISTS = (
    START
    + """\
mount -t debugfs debug /sys/kernel/debug
echo 1 > /proc/sys/kernel/kptr_restrict
cat /proc/mtrr /sys/kernel/debug/x86/pat_memtype_list
grep ioremap /proc/vmallocinfo
echo "these are all"
sleep 1000
"""
)
KINDS = {"write-back": "WB", "uncached-minus": "UC-", "uncached": "UC", "write-combining": "WC", "uncachable": "UC"}
PHYSICAL = [
    (0x1000, "WB", "IA32_MTRR_FIX64K_00000 0x0-0xffff"),
    (0x9_F000, "WB", "IA32_MTRR_FIX16K_80000 0x9c000-0x9ffff"),
    (0xB_8000, "UC", "IA32_MTRR_FIX16K_A0000 0xb8000-0xbbfff"),  # VGA
    (0xC_8000, "WP", "IA32_MTRR_FIX4K_C8000 0xc8000-0xc8fff"),  # PAM: option ROMs
    (0xF_0000, "WP", "IA32_MTRR_FIX4K_F0000 0xf0000-0xf0fff"),  # and SeaBIOS in shadow RAM
    (0x10_0000, "WB", "no range matches: the default type"),
    (0xC000_0000, "UC", "IA32_MTRR_PHYSBASE0 0x80000000-0xffffffff"),  # the PCI hole
    (0xFEE0_0000, "UC", "IA32_MTRR_PHYSBASE0 0x80000000-0xffffffff"),
    (0x1_0000_0000, "WB", "no range matches: the default type"),
]

pytestmark = pytest.mark.skipif(not (OURS and FIRMWARE.is_file()), reason="our monitor; needs SeaBIOS")


def ask(machine: Terminal, line: str) -> str:
    machine.send(line + "\n")
    machine.expect("\n")
    return machine.expect("(qemu) ")


def test_the_types_are_those_that_linux_sees(debian: Path, tmp_path: Path) -> None:
    append = f"{APPEND} loglevel=1"
    with Terminal(*OPTIONS, "-kernel", debian, "-initrd", initrd(tmp_path, LISTS), "-append", append) as machine:
        lists = machine.expect("these are all")
        machine.send("\x01c")
        machine.expect("(qemu) ")
        for address, kind, reason in PHYSICAL:
            answer = ask(machine, f"info memtype -p 0x{address:x}")
            assert f"0x{address:x}: {kind}\n" in answer and reason in answer

        ranges = re.findall(r"reg\d+: base=(\w+) .*size= *(\d+)MB, count=1: (\w+)", lists)
        assert ranges, lists
        for base, size, name in ranges:
            for address in (int(base, 16), int(base, 16) + (int(size) << 20) - 1):
                assert f"0x{address:x}: {KINDS[name]}\n" in ask(machine, f"info memtype -p 0x{address:x}")

        listed = {int(first, 16): KINDS[name] for first, name in re.findall(r"mem (\w+)-\w+\] ([\w-]+)", lists)}
        maps = re.findall(r"(0x\w+)-0x\w+ .*phys=(\w+) ioremap", lists)
        known = [(linear, physical) for linear, physical in maps if int(physical, 16) in listed]
        assert {listed[int(physical, 16)] for _, physical in known} >= {"WB", "UC-"}, lists
        for linear, physical in known:
            answer = ask(machine, f"info memtype {linear}")
            assert f"{linear} (physical 0x{int(physical, 16):x})" in answer
            assert f"IA32_PAT 0x0407050600070106: {listed[int(physical, 16)]}\n" in answer
