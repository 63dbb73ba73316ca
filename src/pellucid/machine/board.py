"""The boards by name. A board is a function that fills a `Machine` from its configuration."""

from collections.abc import Callable
from importlib import import_module

from pellucid.errors import UserError
from pellucid.machine.chardev import Chardev
from pellucid.machine.machine import Machine
from pellucid.records import dataclass

BuildBoard = Callable[[Machine, "list[Chardev | None]"], None]
"""`build(machine, serials)`: one chardev for each serial port, None for a port that is to be left out."""


@dataclass(frozen=True)
class Board:
    """A kind of machine (`-machine NAME`)."""

    name: str
    description: str
    build: BuildBoard
    has_firmware: bool = False
    """Whether it starts without -kernel."""
    has_cpus: bool = True
    version: str = ""
    """QEMU's name of the same machine, where that is another one."""
    max_cpus: int = 288
    has_dies: bool = False
    """Whether a socket may have several."""

    @property
    def full_name(self) -> str:
        """What QEMU calls it in messages."""
        return self.version or self.name


def _built_by(name: str) -> BuildBoard:
    """`build_NAME` of boards/NAME.py, imported with all its devices when a machine of that kind is built."""

    def build(machine: Machine, serials: list[Chardev | None]) -> None:
        getattr(import_module(f"pellucid.machine.boards.{name}"), f"build_{name}")(machine, serials)

    return build


BOARDS = {
    board.name: board
    for board in (
        Board("microvm", "a minimal machine without PCI or firmware, for Linux guests", _built_by("microvm")),
        Board("pc", "i440FX and PIIX3, IDE drives, by SeaBIOS; no display yet", _built_by("pc"), has_firmware=True,
              version="pc-i440fx-7.2", max_cpus=255, has_dies=True),
        Board("q35", "Q35 and ICH9 with PCI Express, AHCI drives, by SeaBIOS", _built_by("q35"), has_firmware=True,
              version="pc-q35-7.2", has_dies=True),
        Board("none", "empty machine", _built_by("none"), has_firmware=True, has_cpus=False, max_cpus=1),
    )
}


DEFAULT_BOARD = "pc"


def find_board(name: str) -> Board:
    """The board of that name. Raises UserError, with the names there are."""
    if name not in BOARDS:
        raise UserError(f"unknown machine '{name}'; there are: {', '.join(BOARDS)}")
    return BOARDS[name]
