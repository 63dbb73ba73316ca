"""What the tests boot: Debian's kernel, where this computer can have it, and guests of a few instructions."""

from pathlib import Path

import pytest

from pellucid.cli import guest
from pellucid.cli.bench import workload
from pellucid.cli.bench.asm import assemble
from pellucid.cli.bench.elf import KERNEL_ADDRESS, pvh_kernel
from pellucid.errors import UserError


@pytest.fixture(scope="session")
def debian() -> Path:
    """Debian's cloud kernel."""
    try:
        guest.busybox()
        return guest.default_kernel()
    except UserError as error:
        pytest.skip(f"the Debian kernel cannot be had here: {error}")


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    """A kernel that prints a line with `!` and halts."""
    path = tmp_path / "probe"
    path.write_bytes(workload.probe_kernel())
    return path


@pytest.fixture
def triple_fault(tmp_path: Path) -> Path:
    """A kernel that has no interrupt table and takes an exception."""
    source = "lidt [empty]\nud2\nempty: .quad 0"
    path = tmp_path / "triple-fault"
    path.write_bytes(pvh_kernel(assemble(source, KERNEL_ADDRESS, bits=32).code))
    return path
