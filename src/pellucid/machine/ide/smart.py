"""SMART of a disk that is always well: attribute values and thresholds (ATA/ATAPI-5, 8.41), checksummed sectors."""

SIGNATURE = (0x4F, 0xC2)
"""What LBA mid and high must hold."""

ATTRIBUTES = (
    # id, flags, value, worst, raw value, threshold
    (0x01, 0x0003, 100, 100, b"", 6),  # raw read error rate
    (0x03, 0x0003, 100, 100, b"\x10", 0),  # spin-up time
    (0x04, 0x0002, 100, 100, b"\x64", 20),  # start/stop count
    (0x05, 0x0003, 100, 100, b"", 36),  # reallocated sectors
    (0x09, 0x0003, 100, 100, b"\x01", 0),  # power-on hours
    (0x0C, 0x0003, 100, 100, b"", 0),  # power cycles
    (0xBE, 0x0003, 69, 69, b"\x1f\x00\x1f\x1f", 50),  # temperature
)
OFFLINE_COLLECTED, COLLECTION_SECONDS = 0x82, 0x0120
TESTS_SUPPORTED, SAVES, LOGS = 0x19, 0x0003, 0x01
TEST_MINUTES = (2, 54, 1)
"""The short, the extended and the conveyance self-test."""


def attributes() -> bytes:
    """SMART READ DATA."""
    content = bytearray(512)
    content[0] = 1
    for index, (number, flags, value, worst, raw, _) in enumerate(ATTRIBUTES):
        at = 2 + 12 * index
        content[at : at + 5] = bytes((number, flags & 0xFF, flags >> 8, value, worst))
        content[at + 5 : at + 5 + len(raw)] = raw
    content[362] = OFFLINE_COLLECTED
    content[364:366] = COLLECTION_SECONDS.to_bytes(2, "little")
    content[367] = TESTS_SUPPORTED
    content[368:370] = SAVES.to_bytes(2, "little")
    content[370] = LOGS
    content[372:375] = bytes(TEST_MINUTES)
    return _with_checksum(content)


def thresholds() -> bytes:
    """SMART READ THRESHOLDS."""
    content = bytearray(512)
    content[0] = 1
    for index, (number, *_, threshold) in enumerate(ATTRIBUTES):
        at = 2 + 12 * index
        content[at], content[at + 1] = number, threshold
    return _with_checksum(content)


def _with_checksum(content: bytearray) -> bytes:
    content[511] = -sum(content[:511]) & 0xFF
    return bytes(content)


DATA = {0xD0: attributes, 0xD1: thresholds}
"""By the subcommand in the features register."""
