"""The task file: an ATA device's command block registers and their bits (ATA8-ACS, chapter 6; ATA/ATAPI-6, 7)."""

ERR, DRQ, DSC, DF, DRDY, BSY = 0x01, 0x08, 0x10, 0x20, 0x40, 0x80
"""Of the status register: error, data request, seek complete, device fault, ready, busy."""
IDLE = DRDY | DSC
ABRT, MCR, IDNF, MC, UNC, ICRC = 0x04, 0x08, 0x10, 0x20, 0x40, 0x80
"""Of the error register: aborted, media change requested, address not found, media changed, uncorrectable, CRC."""
DEVICE_LBA, DEVICE_UNIT, DEVICE_ALWAYS = 0x40, 0x10, 0xA0
CONTROL_NIEN, CONTROL_SRST, CONTROL_HOB = 0x02, 0x04, 0x80
REASON_COMMAND, REASON_INPUT = 0x01, 0x02
"""Interrupt reason of a packet device, in the count register: CoD and IO."""

DATA, ERROR, COUNT, LBA_LOW, LBA_MID, LBA_HIGH, DEVICE, STATUS = range(8)
FEATURES, COMMAND = ERROR, STATUS
DIAGNOSTIC_PASSED = 0x01
SIGNATURE_DISK, SIGNATURE_PACKET, SIGNATURE_NONE = (0x00, 0x00), (0x14, 0xEB), (0xFF, 0xFF)
"""(LBA mid, LBA high) after a reset, by which a driver knows what is there."""
