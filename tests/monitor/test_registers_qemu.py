"""The same accesses to every device of `pc` on QEMU and here: the same answers, but for what is listed."""

import os
import random
import sys
from pathlib import Path

import pytest

from tests.monitor import iommu_scripts
from tests.monitor.qtest_client import QtestClient, qtest_process
from tests.monitor.register_scripts import ACCEPTED, SCRIPTS, ignored
from tests.monitor.test_qtest import FIRMWARE, PELLUCID, QEMU

SETTLE = "inb 0x80"
INTEL = ("-cpu", "Nehalem")
"""With an AMD processor QEMU's memory map has a hole that ours has no reason for."""
SEED = 1


def answers(client: QtestClient, name: str) -> list[tuple[str, str]]:
    """(line, answer) of every line; the interrupts heard come last."""
    client.irqs.clear()
    found = []
    for line in SCRIPTS[name](random.Random(f"{name} {SEED}")):
        found.append((line, client.command(line)))
    client.command(SETTLE)
    return [*found, ("floppy interrupts", " ".join(irq for irq in client.irqs if irq.endswith(" 6")))]


@pytest.mark.skipif(QEMU is None, reason="QEMU is not installed: nothing to compare with")
@pytest.mark.skipif(not FIRMWARE, reason="no SeaBIOS: Debian's package seabios is not installed")
@pytest.mark.parametrize("name", SCRIPTS)
def test_same_answers(tmp_path: Path, name: str) -> None:
    assert QEMU is not None
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    disk = tmp_path / "disk.img"
    content = b"".join(number.to_bytes(4, "little").ljust(512, b"\x5a") for number in range(2880))
    told = []
    for program in ([QEMU, "-S", *INTEL], PELLUCID):
        disk.write_bytes(content)
        board = ["-M", "pc", "-m", "128", "-serial", "null", "-drive", f"if=floppy,format=raw,file={disk}"]
        with qtest_process(tmp_path, [*program, *board]) as client:
            client.command("irq_intercept_in ioapic")
            told.append(answers(client, name))
    theirs, ours = told
    wrong = [(line, want, got) for (line, want), (_, got) in zip(theirs, ours) if not same(name, line, want, got)]
    assert not wrong, f"{len(wrong)} of {len(ours)} answers differ, the first: {wrong[:10]}"


def same(name: str, line: str, want: str, got: str) -> bool:
    if want == got:
        return True
    bits = ignored(name, line)
    return bits != 0 and (int(want, 16) ^ int(got, 16)) & ~bits == 0


def test_what_is_accepted_occurs() -> None:
    for known in ACCEPTED:
        names = [name for name in SCRIPTS if any(name == part for part in known.script.split("|"))]
        assert names and known.reason
        for name in names:
            lines = SCRIPTS[name](random.Random(f"{name} {SEED}"))
            assert any(ignored(name, line) & known.ignore for line in lines), known


@pytest.mark.skipif(QEMU is None, reason="QEMU is not installed: nothing to compare with")
@pytest.mark.skipif(not FIRMWARE, reason="no SeaBIOS: Debian's package seabios is not installed")
@pytest.mark.parametrize("name", iommu_scripts.SCRIPTS)
def test_same_answers_of_the_iommu(tmp_path: Path, name: str) -> None:
    assert QEMU is not None
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    told = []
    for program in ([QEMU, "-S", *INTEL], PELLUCID):
        with qtest_process(tmp_path, [*program, *iommu_scripts.OPTIONS, "-m", "128"]) as client:
            script = iommu_scripts.SCRIPTS[name](random.Random(f"{name} {SEED}"))
            told.append([(line, client.command(line)) for line in script])
    theirs, ours = told
    known, bits = iommu_scripts.ACTUAL_GRANULARITY
    wrong = [
        (line, want, got) for (line, want), (_, got) in zip(theirs, ours)
        if want != got and (line != known or (int(want, 16) ^ int(got, 16)) & ~bits)
    ]  # fmt: skip
    assert not wrong, f"{len(wrong)} of {len(ours)} answers differ, the first: {wrong[:10]}"
