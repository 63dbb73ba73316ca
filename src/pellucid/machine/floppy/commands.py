"""What a floppy controller is told: the command bytes, and how many parameter bytes follow (82078, chapter 5).

Bits that do not belong to the command are its options: MT (0x80), MFM (0x40), SK (0x20).
"""

from enum import Enum

from pellucid.records import dataclass

MULTI_TRACK = 0x80


class Transfer(Enum):
    """What a command does with sectors."""

    READ = 0
    WRITE = 1
    SCAN_EQUAL = 2
    SCAN_LOW = 3
    SCAN_HIGH = 4
    VERIFY = 5


SCANS = (Transfer.SCAN_EQUAL, Transfer.SCAN_LOW, Transfer.SCAN_HIGH)


@dataclass(frozen=True)
class Command:
    """`mask` selects the bits of the first byte that make it this command; `action` is the controller's method."""

    code: int
    mask: int
    action: str
    parameters: int = 0
    transfer: Transfer | None = None


COMMANDS = (
    Command(0x06, 0x1F, "transfer", 8, Transfer.READ),
    Command(0x05, 0x3F, "transfer", 8, Transfer.WRITE),
    Command(0x0F, 0xFF, "seek", 2),
    Command(0x08, 0xFF, "sense_interrupt"),
    Command(0x07, 0xFF, "recalibrate", 1),
    Command(0x0D, 0xBF, "format_track", 5),
    Command(0x02, 0xBF, "transfer", 8, Transfer.READ),
    Command(0x4E, 0xFF, "restore", 17),
    Command(0x2E, 0xFF, "save_registers"),
    Command(0x0C, 0x1F, "deleted_data", 8),
    Command(0x11, 0x1F, "transfer", 8, Transfer.SCAN_EQUAL),
    Command(0x16, 0x1F, "transfer", 8, Transfer.VERIFY),
    Command(0x19, 0x1F, "transfer", 8, Transfer.SCAN_LOW),
    Command(0x1D, 0x1F, "transfer", 8, Transfer.SCAN_HIGH),
    Command(0x09, 0x3F, "deleted_data", 8),
    Command(0x0A, 0xBF, "read_id", 1),
    Command(0x03, 0xFF, "specify", 2),
    Command(0x04, 0xFF, "sense_drive", 1),
    Command(0x12, 0xFF, "perpendicular", 1),
    Command(0x13, 0xFF, "configure", 3),
    Command(0x17, 0xFF, "power_down", 2),
    Command(0x33, 0xFF, "option", 1),
    Command(0x8E, 0xFF, "drive_specification", 5),
    Command(0x8F, 0xFF, "step_out", 2),
    Command(0xCF, 0xFF, "step_in", 2),
    Command(0xCD, 0xFF, "invalid", 10),
    Command(0x14, 0x7F, "lock"),
    Command(0x0E, 0xFF, "dump_registers"),
    Command(0x10, 0xFF, "version"),
    Command(0x18, 0xFF, "part_id"),
    Command(0x05, 0x1F, "transfer", 8, Transfer.WRITE),
)
INVALID = Command(0x00, 0x00, "invalid")


def find_command(byte: int) -> Command:
    """The first row that fits; INVALID where none does."""
    return next((command for command in COMMANDS if byte & command.mask == command.code), INVALID)
