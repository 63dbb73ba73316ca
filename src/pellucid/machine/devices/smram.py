"""The SMRAM control register that 440FX and Q35 have alike (data sheets 290549, 3.2.19 and 316966, 5.1.32)."""

SMRAM_BASE, SMRAM_SIZE = 0xA_0000, 0x2_0000
D_OPEN, D_CLS, D_LCK, G_SMRAME, C_BASE_SEG = 0x40, 0x20, 0x10, 0x08, 0x02
WRITABLE = D_OPEN | D_CLS | D_LCK | G_SMRAME


def smram_written(before: int, written: int) -> int:
    """What the register holds after `written` was written to it, given what it held."""
    value = written & WRITABLE | C_BASE_SEG
    if before & D_LCK:
        # Locked: these three keep what they have, and D_OPEN is 0.
        kept = D_OPEN | D_LCK | G_SMRAME
        value = value & ~kept | before & kept
    if value & D_LCK:
        value &= ~D_OPEN
    return value
