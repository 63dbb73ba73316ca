"""The drives of a machine: which image is in which place, and what the machine does to them all.

`-drive`, `-hda` and the like name a place (an IDE bus and a unit on it, or a floppy drive) or none; with if=none a
`-device` takes the drive by its id.
"""

import errno
import logging
from collections.abc import Callable, Iterator, Sequence

from pellucid.block import (
    BlockBackend,
    BlockNode,
    DriveOptions,
    ImageLocked,
    Policy,
    WorkerPool,
    attach,
    medium,
    open_image,
)
from pellucid.errors import UserError
from pellucid.machine.floppy.drive import FloppyDrive
from pellucid.machine.ide.atapi import IdeCd
from pellucid.machine.ide.boot import IdeController, IdePlaces
from pellucid.machine.ide.disk import IdeHd
from pellucid.machine.ide.drive import AtaDrive
from pellucid.machine.pci import PciFunction
from pellucid.machine.qdev import QdevBus, QdevNode
from pellucid.records import dataclass, replace
from pellucid.runtime import MainLoop, RunState, System

_log = logging.getLogger("pellucid.machine.drives")

LAST_RANK = 1 << 20
"""Behind everything that the command line names."""


@dataclass
class Drive:
    """One drive: how it was asked for, where it is (None with if=none), and its end of the block layer.

    rank: its number in the order of the command line.
    """

    options: DriveOptions
    place: tuple[int, int] | None
    backend: BlockBackend
    rank: int


class Drives:
    """All of them, by name; one after the other in the order they were asked for, then those that nobody asked for."""

    def __init__(self, loop: MainLoop, system: System) -> None:
        self._system = system
        self.pool = WorkerPool(loop.call_soon_threadsafe)
        self.by_name: dict[str, Drive] = {}
        self.controllers: list[IdeController] = []
        self.on_plugged: list[Callable[[], None]] = []
        """Called when a drive was added behind the board's back."""
        system.on_event.append(self._run_state_changed)

    def __iter__(self) -> Iterator[Drive]:
        return iter(sorted(self.by_name.values(), key=lambda drive: drive.rank))

    def open(self, wanted: Sequence[DriveOptions], *, buses: int, units: int, default_cdrom: bool = False) -> None:
        """Open every image, for a board with that many IDE buses and units on each.

        Raises UserError for a place that is taken or not there, and for what an image cannot be opened for.
        """
        places: dict[tuple[int, int], DriveOptions] = {}
        for rank, options in enumerate(wanted):
            if options.interface == "floppy":
                continue
            place = None if options.interface == "none" else _place(options, places, buses, units)
            if place is not None:
                places[place] = options
            self._add(options, place, rank)
        default = divmod(2, units)
        if default_cdrom and default not in places and not any(options.is_cdrom for options in wanted):
            self._add(DriveOptions("the default CD drive", media="cdrom"), default, len(wanted))

    def open_floppies(self, wanted: Sequence[DriveOptions], count: int, *, default: bool = False) -> list[FloppyDrive]:
        """Open the images of the floppy drives, for a controller of `count`; its drives, some of them not connected.

        default: the first one is there, empty, where it was not asked for. Raises UserError as open() does.
        """
        places: dict[tuple[int, int], DriveOptions] = {}
        found: dict[int, BlockBackend] = {}
        for rank, options in enumerate(wanted):
            if options.interface == "floppy":
                place = _place(options, places, 1, count)
                places[place] = options
                found[place[1]] = self._add(options, place, rank).backend
        if default and 0 not in found:
            options = DriveOptions("the default floppy drive", interface="floppy")
            found[0] = self._add(options, (0, 0), len(wanted) + 1).backend
        return [FloppyDrive(found.get(unit), unit) for unit in range(count)]

    def _add(self, options: DriveOptions, place: tuple[int, int] | None, rank: int) -> Drive:
        name = options.id or self._default_name(options, place)
        if name in self.by_name:
            raise UserError(f"{options.option}: Duplicate ID '{name}' for drive: give it another id=")
        if options.file is None and not options.is_removable and options.interface != "none":
            raise UserError(f"{options.option}: Device needs media, but drive is empty: give file=PATH")
        node = None if options.file is None else open_image(options, attached=place is not None)
        backend = BlockBackend(name, self.pool, node, options.policy, removable=options.is_removable)
        backend.on_stop = lambda kind, error: self._stop(backend, kind, error)
        made = self.by_name[name] = Drive(replace(options, id=name), place, backend, rank)
        return made

    def _default_name(self, options: DriveOptions, place: tuple[int, int] | None) -> str:
        if place is None:
            return next(name for n in range(1 << 16) if (name := f"none{n}") not in self.by_name)
        if options.interface == "floppy":
            return f"floppy{place[1]}"
        return f"ide{place[0]}-{'cd' if options.is_cdrom else 'hd'}{place[1]}"

    def connect(self, places: Sequence[IdePlaces]) -> list[tuple[int, AtaDrive]]:
        """Make the drives that have a place, and connect them. Returns each with its bus."""
        made = []
        for drive in self:
            if drive.place is not None and drive.options.interface == "ide":
                bus, unit = drive.place
                try:
                    made.append((bus, self.make(drive, places[bus], unit, cd=drive.options.is_cdrom)))
                except UserError as error:
                    raise UserError(f"{drive.options.option}: {error}") from error
        return made

    def make(self, drive: Drive, place: IdePlaces, unit: int, *, cd: bool) -> AtaDrive:
        """The IDE device for a drive, connected. Raises UserError when it cannot be."""
        backend = drive.backend
        self.take(drive)
        if backend.node is None and not cd:
            raise UserError("Device needs media, but drive is empty")
        if not cd and backend.read_only:
            raise UserError("Block node is read-only: use snapshot=on, or media=cdrom")
        backend.removable = cd
        made: AtaDrive = (IdeCd if cd else IdeHd)(backend, self._number(place, unit))
        try:
            place.attach(unit, made)
        except ValueError as error:
            raise UserError(str(error)) from None
        return made

    def find(self, driver: str, name: str) -> Drive:
        """The drive that a device's property names. Raises UserError."""
        found = self.by_name.get(name)
        if found is None:
            raise UserError(f"Property '{driver}.drive' can't find value '{name}'")
        return found

    def take(self, drive: Drive) -> None:
        """A device is to have this drive. Raises UserError when another one has it, or another process."""
        backend = drive.backend
        if backend.user is not None:
            problem = f"Drive '{backend.name}' is already in use"
            if drive.place is None:
                raise UserError(f"{problem} by another device")
            hint = "(did you need 'if=none' in the drive options?)"
            raise UserError(f"{problem} because it has been automatically connected to another device {hint}")
        try:
            if drive.place is None and backend.node is not None:
                attach(backend.node)
        except ImageLocked as error:
            raise UserError(
                f"Failed to get {error.lock} lock. Is another process using the image "
                f"[{drive.options.file}]? Stop it, or use snapshot=on"
            ) from error

    def _number(self, place: IdePlaces, unit: int) -> int:
        """Every place counts, those without a drive too, so that a serial number tells the place."""
        places = [place for controller in self.controllers for place in controller.places]
        return 2 * places.index(place) + unit + 1

    def add_empty(self, driver: str) -> Drive:
        """An empty removable drive without a name: its device was asked for without one."""
        name = next(name for n in range(1 << 16) if (name := f"#{driver}{n}") not in self.by_name)
        backend = BlockBackend("", self.pool, None, Policy(), removable=True)
        backend.on_stop = lambda kind, error: self._stop(backend, kind, error)
        kind = ("floppy", "disk") if driver == "floppy" else ("none", "cdrom")
        options = DriveOptions(driver, interface=kind[0], media=kind[1], id=name)
        made = self.by_name[name] = Drive(options, None, backend, LAST_RANK + len(self.by_name))
        return made

    # Removable media.

    def change(self, name: str, file: str, format: str | None = None, *, force: bool = False) -> None:
        """Put another medium into a drive (`change`). Raises UserError; the old medium stays then."""
        drive = self._removable(name, force)
        options = medium(drive.options, file, format, read_only=drive.options.is_cdrom or drive.options.read_only)
        node: BlockNode = open_image(options)
        drive.backend.tray_open = False
        drive.backend.change(node)
        drive.options = replace(drive.options, file=file)

    def eject(self, name: str, *, force: bool = False) -> None:
        """Take the medium out (`eject`). A guest that has locked the tray is asked instead, unless `force`."""
        drive = self._removable(name, force)
        drive.backend.tray_open = True
        drive.backend.change(None)

    def _removable(self, name: str, force: bool) -> Drive:
        drive = self.by_name.get(name)
        if drive is None:
            raise UserError(f"Device '{name}' not found")
        if not drive.backend.removable:
            raise UserError(f"Device '{name}' is not removable")
        if drive.backend.locked and not drive.backend.tray_open and not force:
            if isinstance(drive.backend.user, IdeCd):
                drive.backend.user.eject_wanted = True
            problem = f"Device '{name}' is locked and force was not specified"
            raise UserError(f"{problem}, wait for tray to open and try again")
        return drive

    # The machine's life.

    def _stop(self, backend: BlockBackend, kind: str, error: OSError) -> None:
        state = "no space" if error.errno == errno.ENOSPC else error.strerror
        _log.warning("%s: %s error: %s: the machine stops; 'cont' tries again", backend.name, kind, state)
        self._system.vm_stop(RunState.IO_ERROR)

    def _run_state_changed(self, event: str, _: object) -> None:
        if event == "STOP":
            self.pool.drain()
            for drive in self:
                if drive.backend.node is not None:
                    drive.backend.node.flush()
        elif event == "RESUME":
            for drive in self:
                drive.backend.resume()

    def close(self) -> None:
        """Finish what is under way, flush and close every image."""
        self.pool.close()
        for drive in self:
            try:
                drive.backend.close()
            except OSError as error:
                _log.error("%s: could not be written to the end: %s", drive.backend.name, error.strerror)


def add_controller(
    drives: Drives, node: QdevNode, function: PciFunction, places: Sequence[IdePlaces]
) -> list[QdevBus]:
    """A controller that is on its bus: its drives get numbers, its channels are buses that the user can name."""
    drives.controllers.append(IdeController(function, places))
    buses = [node.add_bus(place.name, "IDE") for place in places]
    for bus, place in zip(buses, places, strict=True):
        bus.host = place
    return buses


def _place(
    options: DriveOptions, taken: dict[tuple[int, int], DriveOptions], buses: int, units: int
) -> tuple[int, int]:
    """(bus, unit), by QEMU's rules: both in one index, or each by itself, or the first free."""
    bus, unit = options.bus or 0, options.unit
    most = 1 << 16 if options.interface == "floppy" else units
    if options.index is not None:
        if options.bus is not None or options.unit is not None:
            raise UserError(f"{options.option}: index cannot be used with bus and unit")
        bus, unit = divmod(options.index, most)
    if unit is None:
        unit = 0
        while (bus, unit) in taken:
            bus, unit = (bus, unit + 1) if unit + 1 < most else (bus + 1, 0)
    if unit >= most:
        raise UserError(f"{options.option}: unit {unit} too big (max is {most - 1})")
    if (bus, unit) in taken:
        raise UserError(f"{options.option}: drive with bus={bus}, unit={unit} (index={bus * units + unit}) exists")
    if bus >= buses or unit >= units:
        raise UserError(f"{options.option}: machine type does not support if={options.interface},bus={bus},unit={unit}")
    return bus, unit
