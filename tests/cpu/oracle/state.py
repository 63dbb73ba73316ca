"""The user-visible state of one logical processor, as a case starts with it and as an executor hands it back."""

from __future__ import annotations

import struct

from . import layout

from pellucid.records import dataclass, field

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15 = range(16)
GPR_NAMES = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))

ES, CS, SS, DS, FS, GS = range(6)
SEGMENT_NAMES = ("es", "cs", "ss", "ds", "fs", "gs")

CF, PF, AF, ZF, SF, TF, IF, DF, OF = 1 << 0, 1 << 2, 1 << 4, 1 << 6, 1 << 7, 1 << 8, 1 << 9, 1 << 10, 1 << 11
NT, RF, AC, ID = 1 << 14, 1 << 16, 1 << 18, 1 << 21
STATUS_FLAGS = CF | PF | AF | ZF | SF | OF
FLAG_NAMES = {
    CF: "CF",
    PF: "PF",
    AF: "AF",
    ZF: "ZF",
    SF: "SF",
    TF: "TF",
    IF: "IF",
    DF: "DF",
    OF: "OF",
    NT: "NT",
    RF: "RF",
    AC: "AC",
    ID: "ID",
}
RFLAGS_RESET = 0x202
"""Bit 1, which is always set, and IF."""

XSAVE_SIZE = 832
"""Legacy area (512), header (64), upper YMM halves (256): the standard format for XCR0 = 7, SDM volume 1, 13.4."""

FCW_RESET = 0x37F
MXCSR_RESET = 0x1F80

_FCW, _FSW, _FTW, _FOP, _FIP, _FDP, _MXCSR, _MXCSR_MASK = 0, 2, 4, 6, 8, 16, 24, 28
_ST, _XMM, _RESERVED, _XSTATE_BV, _YMM_HIGH = 32, 160, 416, 512, 576
_COMPONENTS = ((1, _ST, 128), (2, _XMM, 256), (4, _YMM_HIGH, 256))


def _fresh_image() -> bytearray:
    image = bytearray(XSAVE_SIZE)
    struct.pack_into("<H", image, _FCW, FCW_RESET)
    struct.pack_into("<I", image, _MXCSR, MXCSR_RESET)
    image[_XSTATE_BV] = 7
    return image


@dataclass
class UserState:
    """Registers and memory of a case, 64 bits each unless said otherwise.

    `xsave` is a standard-format XSAVE image of x87, SSE and AVX state; the properties read and write its fields.
    `mem` maps the address of each writable page that differs from `layout.BACKGROUND` to its 4,096 bytes.
    `selectors` are results only: a case always starts with those that `layout` names.
    In 32-bit code the upper halves of the first eight registers read as zero, and R8..R15 and the upper eight XMM
    registers keep their values.
    """

    gpr: list[int] = field(default_factory=lambda: [0] * 4 + [layout.STACK_TOP] + [0] * 11)
    rip: int = layout.START
    rflags: int = RFLAGS_RESET
    xsave: bytearray = field(default_factory=_fresh_image)
    fs_base: int = 0
    gs_base: int = 0
    mem: dict[int, bytes] = field(default_factory=dict)
    selectors: tuple[int, ...] = (layout.SS, layout.CS64, layout.SS, layout.SS, 0, 0)

    def copy(self) -> UserState:
        """An independent copy."""
        return UserState(
            self.gpr[:],
            self.rip,
            self.rflags,
            self.xsave[:],
            self.fs_base,
            self.gs_base,
            dict(self.mem),
            self.selectors,
        )

    def read(self, address: int, size: int) -> bytes:
        """`size` bytes at `address`; every page touched must be in the layout (KeyError otherwise)."""
        out = bytearray()
        while size:
            page, offset = address & -layout.PAGE, address & (layout.PAGE - 1)
            count = min(size, layout.PAGE - offset)
            content = self.mem.get(page) or layout.BACKGROUND[page]
            out += content[offset : offset + count]
            address, size = address + count, size - count
        return bytes(out)

    def write(self, address: int, data: bytes) -> None:
        """Put `data` at `address`; bytes outside the writable pages are dropped (the case will fault there)."""
        while data:
            page, offset = address & -layout.PAGE, address & (layout.PAGE - 1)
            part = data[: layout.PAGE - offset]
            if page in layout.WRITABLE_PAGES:
                content = self.mem.get(page) or layout.BACKGROUND[page]
                self.mem[page] = content[:offset] + part + content[offset + len(part) :]
            address, data = address + len(part), data[len(part) :]

    def _get(self, offset: int, size: int) -> int:
        return int.from_bytes(self.xsave[offset : offset + size], "little")

    def _set(self, offset: int, size: int, value: int) -> None:
        self.xsave[offset : offset + size] = value.to_bytes(size, "little")

    @property
    def fcw(self) -> int:
        """x87 control word, 16 bits."""
        return self._get(_FCW, 2)

    @fcw.setter
    def fcw(self, value: int) -> None:
        self._set(_FCW, 2, value)

    @property
    def fsw(self) -> int:
        """x87 status word, 16 bits; TOP is bits 11-13."""
        return self._get(_FSW, 2)

    @fsw.setter
    def fsw(self, value: int) -> None:
        self._set(_FSW, 2, value)

    @property
    def ftw(self) -> int:
        """Abridged tag byte: bit n set means physical register n is not empty."""
        return self._get(_FTW, 1)

    @ftw.setter
    def ftw(self, value: int) -> None:
        self._set(_FTW, 1, value)

    @property
    def fop(self) -> int:
        """Last x87 opcode, 11 bits."""
        return self._get(_FOP, 2)

    @property
    def fip(self) -> int:
        """Last x87 instruction pointer."""
        return self._get(_FIP, 8)

    @property
    def fdp(self) -> int:
        """Last x87 data pointer."""
        return self._get(_FDP, 8)

    @property
    def mxcsr(self) -> int:
        """SSE control and status, 32 bits."""
        return self._get(_MXCSR, 4)

    @mxcsr.setter
    def mxcsr(self, value: int) -> None:
        self._set(_MXCSR, 4, value)

    def st(self, index: int) -> int:
        """ST(index), 80 bits: significand in bits 0-63, exponent and sign above."""
        return self._get(_ST + 16 * index, 10)

    def set_st(self, index: int, value: int) -> None:
        """Set ST(index), 80 bits; the tag is not touched."""
        self._set(_ST + 16 * index, 10, value)

    def mm(self, index: int) -> int:
        """MM(index), 64 bits: the significand of physical register `index`."""
        top = self.fsw >> 11 & 7
        return self.st((index - top) & 7) & (1 << 64) - 1

    def xmm(self, index: int) -> int:
        """XMM(index), 128 bits."""
        return self._get(_XMM + 16 * index, 16)

    def ymm(self, index: int) -> int:
        """YMM(index), 256 bits."""
        return self.xmm(index) | self._get(_YMM_HIGH + 16 * index, 16) << 128

    def set_ymm(self, index: int, value: int) -> None:
        """Set YMM(index), 256 bits."""
        data = value.to_bytes(32, "little")
        self.xsave[_XMM + 16 * index : _XMM + 16 * index + 16] = data[:16]
        self.xsave[_YMM_HIGH + 16 * index : _YMM_HIGH + 16 * index + 16] = data[16:]

    def load_xsave(self, image: bytes | bytearray) -> None:
        """Take a standard-format image.

        Components in their initial state are filled in, what is not state is cleared.
        """
        fresh = bytearray(image[:XSAVE_SIZE])
        present = fresh[_XSTATE_BV]
        for bit, offset, size in _COMPONENTS:
            if not present & bit:
                fresh[offset : offset + size] = bytes(size)
        if not present & 1:
            fresh[:_MXCSR] = bytes(_MXCSR)
            struct.pack_into("<H", fresh, _FCW, FCW_RESET)
        fresh[_MXCSR_MASK : _MXCSR_MASK + 4] = bytes(4)
        fresh[_RESERVED:_YMM_HIGH] = bytes(_YMM_HIGH - _RESERVED)
        fresh[_XSTATE_BV] = 7
        for offset in range(_ST + 10, _XMM, 16):
            fresh[offset : offset + 6] = bytes(6)
        self.xsave = fresh
