"""The board `none`: address spaces, and nothing in them. Tests and tools start it to ask what else there is."""

from pellucid.errors import UserError
from pellucid.machine.chardev import Chardev
from pellucid.machine.machine import Machine


def build_none(machine: Machine, serials: list[Chardev | None]) -> None:
    """Nothing to build. Raises UserError for options, of which it has none."""
    for name in machine.config.board_options:
        raise UserError(f"-machine none: unknown option '{name}': it has none")
