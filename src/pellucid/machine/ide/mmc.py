"""What a CD or DVD drive answers to packets: the commands of SPC-3 and MMC-5 that systems and firmware use.

Each command is a function of (drive, packet); it ends in `good`, `reply`, `read_blocks` or `check_condition`. Fields
are big-endian.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from pellucid.records import dataclass

if TYPE_CHECKING:
    from pellucid.machine.ide.atapi import IdeCd

BLOCK, RAW_BLOCK = 2048, 2352
FRAMES, LEAD_IN = 75, 150
"""Blocks of a second, and of the two seconds before block 0."""
LARGEST_CD = 80 * 60 * FRAMES
"""Blocks: a larger medium is taken for a DVD."""
MOST_REFORMED = 256
"""Blocks that one READ CD may ask for in another form."""

NOT_READY, MEDIUM_ERROR, ILLEGAL_REQUEST, UNIT_ATTENTION = 2, 3, 5, 6
NO_MEDIUM = (NOT_READY, 0x3A)
MEDIUM_CHANGED = (UNIT_ATTENTION, 0x28)
UNRECOVERED_READ = (MEDIUM_ERROR, 0x11)
INVALID_COMMAND = (ILLEGAL_REQUEST, 0x20)
OUT_OF_RANGE = (ILLEGAL_REQUEST, 0x21)
INVALID_FIELD = (ILLEGAL_REQUEST, 0x24)
INVALID_MODE = (ILLEGAL_REQUEST, 0x64)
SAVING_UNSUPPORTED = (ILLEGAL_REQUEST, 0x39)
REMOVAL_PREVENTED = (ILLEGAL_REQUEST, 0x53, 0x02)

Form = Callable[[int, bytearray], bytes]
"""(first block, its bytes and those behind it) to what is sent."""
Packet = bytes


def big(packet: Packet, at: int, size: int) -> int:
    """A field."""
    return int.from_bytes(packet[at : at + size], "big")


def msf(block: int) -> bytes:
    """Minute, second and frame of a block."""
    minutes, rest = divmod(block + LEAD_IN, 60 * FRAMES)
    return bytes((minutes & 0xFF, *divmod(rest, FRAMES)))


@dataclass(frozen=True)
class Command:
    """A row of the table: whether it needs a medium, and whether it is carried out in spite of a unit attention."""

    run: Callable[["IdeCd", Packet], None]
    medium: bool = False
    always: bool = False


def execute(drive: "IdeCd", packet: Packet) -> None:
    """Carry out one packet."""
    command = COMMANDS.get(packet[0])
    if command is None:
        drive.check_condition(*INVALID_COMMAND)
    elif drive.attention and not command.always:
        drive.attention = False
        drive.check_condition(*MEDIUM_CHANGED)
    elif command.medium and not drive.backend.inserted:
        drive.check_condition(*NO_MEDIUM)
    else:
        command.run(drive, packet)


def _good(drive: "IdeCd", _: Packet) -> None:
    drive.good()


def _request_sense(drive: "IdeCd", packet: Packet) -> None:
    sense = bytearray(18)
    sense[0], sense[2], sense[7] = 0xF0, drive.sense_key, 10
    sense[12], sense[13] = drive.sense_code, drive.sense_qualifier
    drive.reply(bytes(sense), packet[4])


def _inquiry(drive: "IdeCd", packet: Packet) -> None:
    if packet[1] & 1:
        _inquiry_page(drive, packet)
        return
    if packet[2]:
        drive.check_condition(*INVALID_FIELD)
        return
    names = drive.names
    head = bytes((0x05, 0x80, 0x00, 0x21, 31, 0, 0, 0))
    model, firmware = names.model.encode("ascii", "replace")[:16], names.firmware.encode("ascii", "replace")[:4]
    drive.reply(head + b"QEMU    " + model.ljust(16) + firmware.ljust(4), packet[4])


def _inquiry_page(drive: "IdeCd", packet: Packet) -> None:
    """Vital product data: the list of pages, and the identification."""
    names = drive.names
    if packet[2] == 0x00:
        page = bytes((0x00, 0x83))
    elif packet[2] == 0x83:
        serial, model = names.padded
        page = bytes((0x02, 0x00, 0x00, 20)) + serial + bytes((0x02, 0x01, 0x00, 68)) + b"ATA     " + model + serial
        if names.wwn:
            page += bytes((0x01, 0x03, 0x00, 8)) + names.wwn.to_bytes(8, "big")
    else:
        drive.check_condition(*INVALID_FIELD)
        return
    drive.reply(bytes((0x05, packet[2])) + len(page).to_bytes(2, "big") + page, big(packet, 3, 2))


def _read(drive: "IdeCd", packet: Packet) -> None:
    first = big(packet, 2, 4)
    count = big(packet, 7, 2) if packet[0] == 0x28 else big(packet, 6, 4)
    if not count:
        drive.good()
    elif first + count > drive.blocks:
        drive.check_condition(*OUT_OF_RANGE)
    else:
        drive.read_blocks(first, count)


def _read_cd(drive: "IdeCd", packet: Packet) -> None:
    first, count, parts = big(packet, 2, 4), big(packet, 6, 3), packet[9] & 0xF8
    if not count or not parts:
        drive.good()
    elif first + count > drive.blocks:
        drive.check_condition(*OUT_OF_RANGE)
    elif parts == 0x10:
        drive.read_blocks(first, count)
    elif parts == 0xF8 and count <= MOST_REFORMED:
        drive.read_then(first, count, count * RAW_BLOCK, raw_blocks)
    else:
        drive.check_condition(*INVALID_FIELD)


def raw_blocks(first: int, content: bytearray) -> bytes:
    """Blocks with all that a CD of mode 1 has around them: sync, header, and no error correction."""
    blocks = []
    for index in range(len(content) // BLOCK):
        data = content[index * BLOCK : (index + 1) * BLOCK]
        head = b"\0" + b"\xff" * 10 + b"\0" + msf(first + index) + b"\1"
        blocks.append(head + data + bytes(RAW_BLOCK - BLOCK - len(head)))
    return b"".join(blocks)


def _seek(drive: "IdeCd", packet: Packet) -> None:
    if big(packet, 2, 4) > drive.blocks:
        drive.check_condition(*OUT_OF_RANGE)
    else:
        drive.good()


def _read_capacity(drive: "IdeCd", _: Packet) -> None:
    drive.reply((drive.blocks - 1 & 0xFFFF_FFFF).to_bytes(4, "big") + BLOCK.to_bytes(4, "big"), 8)


def _read_toc(drive: "IdeCd", packet: Packet) -> None:
    in_msf, form, start = bool(packet[1] & 2), packet[9] >> 6, packet[6]

    def place(block: int) -> bytes:
        return b"\0" + msf(block) if in_msf else block.to_bytes(4, "big")

    if form == 0:
        if start > 1 and start != 0xAA:
            drive.check_condition(*INVALID_FIELD)
            return
        track = b"" if start > 1 else bytes((0, 0x14, 1, 0)) + place(0)
        content = bytes((1, 1)) + track + bytes((0, 0x16, 0xAA, 0)) + place(drive.blocks)
    elif form == 1:
        content = bytes((1, 1)) + bytes(8)
    elif form == 2:
        content = bytes((1, 1)) + _raw_toc(place, drive.blocks, in_msf)
    else:
        drive.check_condition(*INVALID_FIELD)
        return
    drive.reply(len(content).to_bytes(2, "big") + content, big(packet, 7, 2))


def _raw_toc(place: Callable[[int], bytes], blocks: int, in_msf: bool) -> bytes:
    """The points A0 (first track), A1 (last track), A2 (lead-out) and track 1."""

    def point(number: int, where: bytes) -> bytes:
        return bytes((1, 0x14, 0, number, 0, 0, 0)) + where

    return (
        point(0xA0, bytes((0, 1, 0, 0)))
        + point(0xA1, bytes((0, 1, 0, 0)))
        + point(0xA2, place(blocks))
        + point(0x01, place(0))
    )


def _mode_sense(drive: "IdeCd", packet: Packet) -> None:
    control, page, room = packet[2] >> 6, packet[2] & 0x3F, big(packet, 7, 2)
    if control == 3:
        drive.check_condition(*SAVING_UNSUPPORTED)
    elif control != 0 or page not in MODE_PAGES:
        drive.check_condition(*INVALID_FIELD)
    else:
        content = bytearray(MODE_PAGES[page])
        if page == 0x2A and drive.backend.locked:
            content[6] |= 2
        drive.reply((len(content) + 6).to_bytes(2, "big") + bytes((0x70, 0, 0, 0, 0, 0)) + bytes(content), room)


MODE_PAGES = {
    0x01: bytes((0x01, 6, 0, 5, 0, 0, 0, 0)),  # error recovery: 5 tries
    0x0E: bytes((0x0E, 14, 0, 0, 0, 0, 0, 0)) + bytes(8),  # audio
    0x2A: (  # capabilities: reads CD-R, CD-RW, DVD-ROM; a tray that can be locked and opened
        bytes((0x2A, 20, 0x3B, 0, 0x71, 3 << 5, 0x29, 0))
        + (704).to_bytes(2, "big")
        + bytes((0, 2))
        + (512).to_bytes(2, "big")
        + (704).to_bytes(2, "big")
        + bytes(6)
    ),
}


def _get_configuration(drive: "IdeCd", packet: Packet) -> None:
    """The one feature that QEMU's drive tells of, the profiles: DVD-ROM and CD-ROM, as the medium is."""
    if big(packet, 2, 2):
        drive.check_condition(*INVALID_FIELD)
        return
    profile = 0 if not drive.blocks else 0x10 if drive.blocks > LARGEST_CD else 0x08
    profiles = bytes((0, 0x10, profile == 0x10, 0, 0, 0x08, profile == 0x08, 0))
    feature = bytes((0, 0, 0x03, len(profiles))) + profiles
    head = (len(feature) + 4).to_bytes(4, "big") + bytes((0, 0)) + profile.to_bytes(2, "big")
    drive.reply(head + feature, big(packet, 7, 2))


def _event_status(drive: "IdeCd", packet: Packet) -> None:
    """GET EVENT STATUS NOTIFICATION, polled: the media class is the one there is."""
    if not packet[1] & 1:
        drive.check_condition(*INVALID_FIELD)
        return
    if not packet[4] & 0x10:
        drive.reply(bytes((0, 0, 0x80, 0x10)), big(packet, 7, 2))
        return
    event = 1 if drive.eject_wanted else 2 if drive.new_medium else 0
    drive.eject_wanted = drive.new_medium = False
    backend = drive.backend
    state = (1 if backend.tray_open else 0) | (2 if backend.node is not None else 0)
    drive.reply(bytes((0, 4, 0x04, 0x10, event, state, 0, 0)), big(packet, 7, 2))


def _start_stop(drive: "IdeCd", packet: Packet) -> None:
    backend, start, load_eject = drive.backend, packet[4] & 1, packet[4] & 2
    if load_eject:
        if not start and not backend.tray_open and backend.locked:
            drive.check_condition(*REMOVAL_PREVENTED if backend.node is not None else NO_MEDIUM)
            return
        backend.tray_open = not start
        if start and backend.node is not None:
            drive.medium_changed()
    drive.good()


def _prevent(drive: "IdeCd", packet: Packet) -> None:
    drive.backend.locked = bool(packet[4] & 1)
    drive.good()


def _mechanism_status(drive: "IdeCd", packet: Packet) -> None:
    drive.reply(bytes((0, 0, 0, 0, 0, 1, 0, 0)), big(packet, 8, 2))


def _disc_information(drive: "IdeCd", packet: Packet) -> None:
    if packet[1] & 7:
        drive.check_condition(*INVALID_FIELD)
        return
    content = bytearray(34)
    content[1], content[2] = 32, 0x0E  # complete, last session complete
    content[3] = content[4] = content[5] = content[6] = 1
    content[7] = 0x20
    drive.reply(bytes(content), big(packet, 7, 2))


COMMANDS = {
    0x00: Command(_good, medium=True),
    0x03: Command(_request_sense, always=True),
    0x12: Command(_inquiry, always=True),
    0x1B: Command(_start_stop),
    0x1E: Command(_prevent),
    0x25: Command(_read_capacity, medium=True),
    0x28: Command(_read, medium=True),
    0x2B: Command(_seek, medium=True),
    0x43: Command(_read_toc, medium=True),
    0x46: Command(_get_configuration, always=True),
    0x4A: Command(_event_status, always=True),
    0x51: Command(_disc_information, medium=True),
    0x5A: Command(_mode_sense),
    0xA8: Command(_read, medium=True),
    0xBB: Command(_good),
    0xBD: Command(_mechanism_status),
    0xBE: Command(_read_cd, medium=True),
}
