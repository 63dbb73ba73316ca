"""`-device ide-hd` and `ide-cd`: a drive that the user puts on a bus, with QEMU's words for what does not fit."""

from collections.abc import Mapping
from typing import Any

from pellucid.block import ErrorAction
from pellucid.errors import UserError
from pellucid.machine.block_device import check_block_properties
from pellucid.machine.drives import Drive, Drives
from pellucid.machine.ide.boot import IdePlaces
from pellucid.machine.ide.disk import IdeHd
from pellucid.machine.ide.drive import ANY_UNIT, AtaDrive
from pellucid.records import replace


def plug_drive(
    drives: Drives, place: IdePlaces, values: Mapping[str, Any], given: Mapping[str, object], *, cd: bool
) -> AtaDrive:
    """Make and connect the drive. `values` has every property, `given` what the user has set. Raises UserError."""
    check_block_properties(given, "IDE")
    unit = _unit(place, values["unit"])
    drive = _find(drives, values["drive"], cd=cd)
    _check_boot_index(drives, values["bootindex"])
    made = drives.make(drive, place, unit, cd=cd)
    _set_policy(drive, values["rerror"], values["werror"])
    if isinstance(made, IdeHd):
        made.choose_geometry((values["cyls"], values["heads"], values["secs"]), values["bios-chs-trans"])
    return made


def _unit(place: IdePlaces, wanted: int) -> int:
    """The place that was asked for, or the first: the second where that is taken, as QEMU chooses."""
    units = len(place.drives)
    unit = wanted if wanted != ANY_UNIT else int(place.drives[0] is not None)
    if unit >= units:
        raise UserError(f"Can't create IDE unit {unit}, bus supports only {units} units")
    if place.drives[unit] is not None:
        raise UserError(f"IDE unit {unit} is in use")
    return unit


def _find(drives: Drives, name: str, *, cd: bool) -> Drive:
    if name:
        return drives.find("ide-cd" if cd else "ide-hd", name)
    if not cd:
        raise UserError("No drive specified")
    return drives.add_empty("ide-cd")


def _check_boot_index(drives: Drives, index: int) -> None:
    users = (drive.backend.user for drive in drives)
    if index >= 0 and any(isinstance(user, AtaDrive) and user.bootindex == index for user in users):
        raise UserError(f"The bootindex {index} has already been used")


def _set_policy(drive: Drive, read: str, write: str) -> None:
    policy = drive.backend.policy
    if read != "auto":
        policy = replace(policy, on_read_error=ErrorAction(read))
    if write != "auto":
        policy = replace(policy, on_write_error=ErrorAction(write))
    drive.backend.policy = policy
