"""Debian's guest on `pc` and `q35` sees what it sees on QEMU: addresses, ports, lines, PCI registers, ACPI tables."""

from pathlib import Path

import pytest

from tests.boot.guest_view import BOARDS, END, options, read_golden, sections
from tests.boot.machine import OURS, run
from tests.boot.test_power import MISSING

pytestmark = pytest.mark.skipif(bool(MISSING) or not OURS, reason=f"ours, with Debian's firmware: no {MISSING}")

@pytest.mark.parametrize("board", BOARDS)
def test_the_guest_sees_what_it_sees_on_qemu(debian: Path, tmp_path: Path, board: str) -> None:
    done = run(*options(board, tmp_path))
    assert END in done.stdout and done.returncode == 0, done.stderr
    ours, theirs = sections(done.stdout), read_golden(board)
    assert ours.keys() == theirs.keys() and len(theirs) > 10
    differences = {name: (ours[name], theirs[name]) for name in theirs if ours[name] != theirs[name]}
    assert not differences, done.stdout
