"""`info mtree` and `info ramblock` of our boards against QEMU's: every line.

Compared with QEMU itself where it is on this computer (machines that have not run), else and for machines that SeaBIOS
has set up with the files in `golden/mtree`, which `python -m tests.machine.qemu_mtree` writes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pellucid.machine.board import BOARDS
from pellucid.machine.boards.pc_parts import VAPIC_ROM
from pellucid.machine.config import CpuTopology, MachineConfig
from pellucid.machine.firmware.image import find_firmware, option_rom
from pellucid.machine.machine import Machine
from pellucid.machine.streams import Streams
from pellucid.memory import AddressSpace, info_mtree
from pellucid.memory.mtree_reader import read_mtree
from pellucid.monitor.attach import attach_control
from pellucid.monitor.hmp import execute
from pellucid.monitor.session import Session
from pellucid.records import replace
from pellucid.runtime import BigLock, MainLoop, VirtualClock
from tests.machine.fake_hypervisor import FakeHypervisor
from tests.machine.mtree_blocks import Blocks, blocks
from tests.machine.qemu_mtree import BOOT_ENDS, CASES, TREE, Case, ask_qemu, has_qemu, read_golden

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
        ours, expected = execute(session, command), theirs[command]
        if command == "info ramblock":
            assert ours == expected, case.name
        else:
            assert_equal(case, command, blocks(ours), blocks(expected))


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

    if option_rom(VAPIC_ROM) is None:
        pytest.skip("QEMU's kvmvapic.bin is not installed: it leaves its mark on the tree")
    run_firmware(
        tmp_path,
        until=BOOT_ENDS,
        seconds=120,
        board=case.board,
        memory_size=case.bytes,
        then=lambda machine: compare(case, read_golden(case), machine),
    )


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
