"""What the user can say of every device that has a drive of the block layer behind it, under QEMU's names."""

from collections.abc import Mapping
from typing import Any

from pellucid.errors import NotBuiltError, UserError
from pellucid.machine.device import Device, Property
from pellucid.machine.properties import BLOCK_SIZE, BOOL, DRIVE, ON_OFF_AUTO, SIZE

BLOCK_SIZE_SHOWN = 512
NOT_BUILT = (
    "backend_defaults", "physical_block_size", "min_io_size", "opt_io_size", "discard_granularity", "write-cache",
    "share-rw", "account-invalid", "account-failed",
)  # fmt: skip


class BlockDevice(Device):
    """The base: `drive` names the backend. The block size is 512 bytes."""

    drive = Property(DRIVE, "", doc="the backend's name")
    backend_defaults = Property(ON_OFF_AUTO, "auto")
    logical_block_size = Property(BLOCK_SIZE, 0)
    physical_block_size = Property(BLOCK_SIZE, 0)
    min_io_size = Property(SIZE, 0)
    opt_io_size = Property(SIZE, 0)
    discard_granularity = Property(SIZE, 0xFFFF_FFFF)
    write_cache = Property(ON_OFF_AUTO, "auto", name="write-cache")
    share_rw = Property(BOOL, False, name="share-rw")
    account_invalid = Property(ON_OFF_AUTO, "auto", name="account-invalid")
    account_failed = Property(ON_OFF_AUTO, "auto", name="account-failed")

    def __init__(self) -> None:
        super().__init__()
        self.logical_block_size = self.physical_block_size = BLOCK_SIZE_SHOWN


BLOCK_PROPERTIES = tuple(declared.name for declared in BlockDevice.properties)


def check_block_properties(given: Mapping[str, object], bus: str) -> None:
    """Refuse what a drive on such a bus cannot be given, or not yet. Raises UserError."""
    defaults: dict[str, Any] = {declared.name: declared.default for declared in BlockDevice.properties}
    for name in NOT_BUILT:
        if given.get(name, defaults[name]) != defaults[name]:
            raise NotBuiltError(f"{name}={given[name]} is not built yet: leave it out")
    if given.get("logical_block_size", 0) not in (0, BLOCK_SIZE_SHOWN):
        raise UserError(f"logical_block_size must be {BLOCK_SIZE_SHOWN} for {bus}")
