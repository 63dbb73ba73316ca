"""Key names (QEMU's QKeyCode) and what a PC keyboard sends for them in scan code sets 1 and 2.

Sets by the IBM PS/2 Hardware Interface Technical Reference, the keys beyond it by Microsoft's Keyboard Scan Code
Specification. A row is set 1's make code, with 0xE0 in its upper byte for the keys that have that prefix.
"""

KEYS: dict[str, int] = {
    name: code
    for first, names in (
        (0x01, "esc 1 2 3 4 5 6 7 8 9 0 minus equal backspace tab"),
        (0x10, "q w e r t y u i o p bracket_left bracket_right ret ctrl a s d f g h j k l"),
        (0x27, "semicolon apostrophe grave_accent shift backslash z x c v b n m comma dot slash shift_r"),
        (0x37, "asterisk alt spc caps_lock f1 f2 f3 f4 f5 f6 f7 f8 f9 f10 num_lock scroll_lock"),
        (0x47, "kp_7 kp_8 kp_9 kp_subtract kp_4 kp_5 kp_6 kp_add kp_1 kp_2 kp_3 kp_0 kp_decimal sysrq"),
    )
    for code, name in enumerate(names.split(), first)
} | {
    "kp_multiply": 0x37, "less": 0x56, "f11": 0x57, "f12": 0x58, "kp_equals": 0x59, "lf": 0x5B,
    "katakanahiragana": 0x70, "ro": 0x73, "hiragana": 0x77, "henkan": 0x79, "muhenkan": 0x7B, "yen": 0x7D,
    "kp_comma": 0x7E, "lang1": 0x72, "lang2": 0x71, "again": 0xE005, "props": 0xE006, "undo": 0xE007,
    "front": 0xE00C, "copy": 0xE078, "open": 0xE064, "paste": 0xE065, "find": 0xE041, "cut": 0xE03C,
    "stop": 0xE068, "help": 0xE075, "audioprev": 0xE010, "audionext": 0xE019, "kp_enter": 0xE01C,
    "ctrl_r": 0xE01D, "audiomute": 0xE020, "calculator": 0xE021, "audioplay": 0xE022, "audiostop": 0xE024,
    "volumedown": 0xE02E, "volumeup": 0xE030, "ac_home": 0xE032, "kp_divide": 0xE035, "print": 0xE037,
    "alt_r": 0xE038, "home": 0xE047, "up": 0xE048, "pgup": 0xE049, "left": 0xE04B, "right": 0xE04D, "end": 0xE04F,
    "down": 0xE050, "pgdn": 0xE051, "insert": 0xE052, "delete": 0xE053, "meta_l": 0xE05B, "meta_r": 0xE05C,
    "compose": 0xE05D, "menu": 0xE01E, "power": 0xE05E, "sleep": 0xE05F, "wake": 0xE063, "ac_bookmarks": 0xE066,
    "ac_refresh": 0xE067, "ac_forward": 0xE069, "ac_back": 0xE06A, "computer": 0xE06B, "mail": 0xE06C,
    "mediaselect": 0xE06D, "pause": 0xE046,
}  # fmt: skip

SET_2 = bytes.fromhex(
    "00 76 16 1e 26 25 2e 36 3d 3e 46 45 4e 55 66 0d 15 1d 24 2d 2c 35 3c 43 44 4d 54 5b 5a 14 1c 1b"
    "23 2b 34 33 3b 42 4b 4c 52 0e 12 5d 1a 22 21 2a 32 31 3a 41 49 4a 59 7c 11 29 58 05 06 04 0c 03"
    "0b 83 0a 01 09 77 7e 6c 75 7d 7b 6b 73 74 79 69 72 7a 70 71 84 60 61 78 07 0f 17 1f 27 2f 37 3f"
    "47 4f 56 5e 08 10 18 20 28 30 38 40 48 50 57 6f 13 19 39 51 53 5c 5f 62 63 64 65 67 68 6a 6d 6e"
)
"""Set 2's code for each of set 1."""
PAUSE_SET_1 = bytes.fromhex("e1 1d 45 e1 9d c5")
PAUSE_SET_2 = bytes.fromhex("e1 14 77 e1 f0 14 f0 77")


def key_bytes(code: int, down: bool, scan_code_set: int) -> bytes:
    """What the keyboard sends when the key with set 1's code `code` goes down or up."""
    if code == KEYS["pause"]:
        # It has no release of its own.
        return (PAUSE_SET_1 if scan_code_set == 1 else PAUSE_SET_2) if down else b""
    prefix = b"\xe0" if code >> 8 else b""
    low = code & 0x7F
    if scan_code_set == 1:
        return prefix + bytes((low | (0 if down else 0x80),))
    return prefix + (b"" if down else b"\xf0") + bytes((SET_2[low],))
