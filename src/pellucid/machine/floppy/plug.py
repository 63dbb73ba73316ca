"""`-device floppy`: a drive connected to the board's controller, with QEMU's words for what does not fit."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pellucid.errors import UserError
from pellucid.machine.block_device import check_block_properties
from pellucid.machine.drives import Drives
from pellucid.machine.floppy.drive import ANY_UNIT, FloppyDrive


class FloppyPlaces(Protocol):
    """A controller: its drives are there from the start, connected or not."""

    drives: Sequence[FloppyDrive]


def plug_floppy(
    drives: Drives, controller: FloppyPlaces, values: Mapping[str, Any], given: Mapping[str, object]
) -> FloppyDrive:
    """Connect one of the controller's drives. Raises UserError."""
    check_block_properties(given, "floppy")
    places = controller.drives
    unit: int = values["unit"]
    if unit == ANY_UNIT:
        unit = next((place.unit for place in places if place.backend is None), len(places))
    if unit >= len(places):
        raise UserError(f"Can't create floppy unit {unit}, bus supports only {len(places)} units")
    if places[unit].backend is not None:
        raise UserError(f"Floppy unit {unit} is in use")
    drive = drives.find("floppy", values["drive"]) if values["drive"] else drives.add_empty("floppy")
    drives.take(drive)
    drive.backend.removable = True
    places[unit].connect(drive.backend, values["drive-type"])
    return places[unit]
