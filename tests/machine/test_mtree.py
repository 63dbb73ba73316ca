"""`info mtree` and `info ramblock` of our boards against QEMU's: every line, but for what is listed as not built.

Compared with QEMU itself where it is on this computer (machines that have not run), else and for machines that SeaBIOS
has set up with the files in `golden/mtree`, which `python -m tests.machine.qemu_mtree` writes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pellucid.machine.board import BOARDS
from pellucid.machine.config import CpuTopology, MachineConfig
from pellucid.machine.firmware.image import find_firmware
from pellucid.machine.machine import Machine
from pellucid.machine.streams import Streams
from pellucid.memory import AddressSpace, info_mtree, read_mtree
from pellucid.monitor.attach import attach_control
from pellucid.monitor.hmp import execute
from pellucid.monitor.session import Session
from pellucid.runtime import BigLock, MainLoop, VirtualClock
from tests.machine.fake_hypervisor import FakeHypervisor
from tests.machine.mtree_blocks import Blocks, blocks, region_name, tree_text, without
from tests.machine.qemu_mtree import BOOT_ENDS, CASES, TREE, Case, ask_qemu, has_qemu, read_golden

NOT_BUILT: dict[str, dict[str, str]] = {
    "pc": {
        "kvmvapic": "QEMU's TPR patching for Windows XP",
        "kvmvapic-rom": "QEMU's TPR patching for Windows XP",
    },
    "q35": {
        "kvmvapic": "QEMU's TPR patching for Windows XP",
        "kvmvapic-rom": "QEMU's TPR patching for Windows XP",
    },
}
"""Regions of QEMU's tree that ours does not have, with the reason. What is built comes off the list."""

SPACES_NOT_BUILT: dict[str, set[str]] = {}
"""Address spaces, likewise."""

BLOCKS_NOT_BUILT: dict[str, set[str]] = {


}
"""RAM blocks, likewise."""

DIFFERENT: dict[str, dict[str, str]] = {
    "pc": {},
}
"""Regions that both have, but not alike: at another place, or in another state, once SeaBIOS has run."""

DISABLED_DIFFERENT: dict[str, dict[str, str]] = {
    "q35": {"pam-pci": "shadow RAM that is written only shows the bus, as the chip's reads do; QEMU's shows RAM"},
    "pc": {"pam-pci": "shadow RAM that is written only shows the bus, as the chip's reads do; QEMU's shows RAM"},
}
"""Regions that differ where they are disabled."""

BUILT = [case for case in CASES if case.board in BOARDS]


@pytest.fixture(scope="module")
def with_qemu() -> bool:
    return has_qemu()


@contextmanager
def machine_of(case: Case) -> Iterator[Machine]:
    """The board as `-M BOARD -nodefaults -S` makes it, on the scripted hypervisor."""
    firmware = find_firmware("bios-256k.bin")
    config = MachineConfig(
        board=case.board,
        board_options={"firmware": str(firmware)},
        memory_size=case.bytes,
        topology=CpuTopology(case.cpus),
        default_drives=False,
        serials=(),
    )
    loop = MainLoop(BigLock())
    machine = Machine(config, FakeHypervisor(), loop, VirtualClock(), lambda text: None)
    try:
        with loop.bql:
            BOARDS[case.board].build(machine, [])
            yield machine
    finally:
        machine.close()
        loop.close()


def compare(case: Case, theirs: dict[str, str], machine: Machine) -> None:
    """Every command's answer, block by block."""
    streams = Streams(replace(machine.config, serials=()), machine.loop, lambda: None)
    session = Session(attach_control(machine, streams))
    for command in case.commands:
        if command == "info ramblock":
            compare_blocks(case, execute(session, command), theirs[command])
        elif "-f" in command:
            compare_flat(case, command, session, theirs)
        else:
            compare_trees(case, command, execute(session, command), theirs[command])


def compare_blocks(case: Case, ours: str, expected: str) -> None:
    missing = BLOCKS_NOT_BUILT.get(case.board, set())
    assert not missing & {line.split()[0] for line in ours.splitlines()}, "built: take it off BLOCKS_NOT_BUILT"
    rows = [row for row in expected.splitlines() if row.split()[0] not in missing]
    if not missing:
        assert ours == expected
    # Offsets are given in the order of making; what is missing may have come before.
    assert [row.split()[::2] for row in ours.splitlines()] == [row.split()[::2] for row in rows]


def compare_trees(case: Case, command: str, ours: str, expected: str) -> None:
    """The trees, without what is listed; what is listed must be absent, or differ."""
    regions, spaces = set(NOT_BUILT.get(case.board, {})), SPACES_NOT_BUILT.get(case.board, set())
    built = regions & {region_name(line) for line in ours.splitlines()}
    assert not built, f"{built} are built now: take them off NOT_BUILT"
    got, want = blocks(ours), without(blocks(expected), regions, spaces)
    assert not any(f"address-space: {name}" in got for name in spaces), "built: take it off SPACES_NOT_BUILT"
    different = different_regions(case)
    for name in different:
        lines = [{line for line in text.splitlines() if region_name(line) == name} for text in (ours, expected)]
        assert lines[0] != lines[1], f"{name} is alike now: take it off DIFFERENT"
    got, want = without(got, different, set()), without(want, different, set())
    for name in DISABLED_DIFFERENT.get(case.board, {}) if "-D" in command else ():
        assert got != want, "alike: empty DISABLED_DIFFERENT"
        got, want = without_disabled(got, name), without_disabled(want, name)
    assert_equal(case, command, got, want)


def compare_flat(case: Case, command: str, session: Session, theirs: dict[str, str]) -> None:
    """The flat views. Where regions are missing, what lies under them is seen: then QEMU's tree without them, rendered,
    is what ours must be; that QEMU's tree whole gives QEMU's flat views is tested below.
    """
    regions, spaces = set(NOT_BUILT.get(case.board, {})), SPACES_NOT_BUILT.get(case.board, set())
    different = different_regions(case)
    ours, expected = execute(session, command), theirs[command]
    if different:
        ours = rendered(command, execute(session, TREE), different, set())
    if regions or spaces or different:
        expected = rendered(command, theirs[TREE], regions | different, spaces)
    assert_equal(case, command, blocks(ours), blocks(expected))


def without_disabled(found: Blocks, name: str) -> Blocks:
    return {
        heads: [line for line in lines if not (" [disabled]" in line and region_name(line) == name)]
        for heads, lines in found.items()
    }


def different_regions(case: Case) -> set[str]:
    return set(DIFFERENT.get(case.board, {})) if case.booted else set()


def rendered(command: str, tree: str, regions: set[str], spaces: set[str]) -> str:
    """The answer to `command` of a tree without these regions and address spaces."""
    return printed(command, read_mtree(tree_text(without(blocks(tree), regions, spaces))))


def printed(command: str, spaces: list[AddressSpace]) -> str:
    return info_mtree(
        spaces,
        flat="-f" in command,
        dispatch_tree="-d" in command,
        owner="-o" in command,
        disabled="-D" in command,
    )


def assert_equal(case: Case, command: str, got: Blocks, want: Blocks) -> None:
    assert got.keys() == want.keys()
    for heads, lines in want.items():
        assert got[heads] == lines, f"{case.name}: {command}: {heads}"


@pytest.mark.parametrize("case", [c for c in BUILT if not c.booted], ids=lambda case: case.name)
def test_a_machine_at_reset(case: Case, with_qemu: bool) -> None:
    theirs = ask_qemu(case) if with_qemu else read_golden(case)
    with machine_of(case) as machine:
        compare(case, theirs, machine)


@pytest.mark.parametrize("case", [c for c in BUILT if c.booted], ids=lambda case: case.name)
def test_a_machine_that_seabios_has_set_up(case: Case, tmp_path: Path) -> None:
    from tests.machine.firmware_run import run_firmware

    run_firmware(
        tmp_path,
        until=BOOT_ENDS,
        seconds=120,
        board=case.board,
        memory_size=case.bytes,
        then=lambda machine: compare(case, read_golden(case), machine),
    )


def test_what_is_listed_as_not_built_is_qemu_s() -> None:
    """A list that only shrinks: a name that QEMU does not print is a mistake or a leftover."""
    for board, names in NOT_BUILT.items():
        texts = [text for case in CASES if case.board == board for text in read_golden(case).values()]
        there = {region_name(line) for text in texts for line in text.splitlines()}
        assert set(names) <= there
        spaces = SPACES_NOT_BUILT.get(board, set())
        assert all(any(f"address-space: {name}\n" in text for text in texts) for name in spaces)
        assert all(any(f" {name} " in text for text in texts) for name in BLOCKS_NOT_BUILT[board])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("source", [TREE, "info mtree"])
def test_the_golden_tree_read_back_is_printed_as_qemu_prints_it(case: Case, source: str) -> None:
    """The printer and the renderer on whole boards, whatever of them is built here."""
    golden = read_golden(case)
    spaces = read_mtree(golden[source])
    for command in case.commands:
        # The short form has neither owners nor the disabled regions.
        if command != "info ramblock" and (source == TREE or not ("-o" in command or "-D" in command)):
            assert blocks(printed(command, spaces)) == blocks(golden[command]), command
