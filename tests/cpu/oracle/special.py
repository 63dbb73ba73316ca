"""What single mnemonics need beyond random operands to do their work, and to meet edge cases of their own.

`adjust` is called last for every case. Each function here leaves some cases as they came, so the faults stay covered.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import iced_x86

from . import layout
from .encoding import random_address, random_selector
from .situation import Situation
from .state import RAX, RBP, RCX, RDI, RDX, RSI, RSP, STATUS_FLAGS
from .values import Kind, edge_bytes, edge_int, random_fcw

from pellucid.records import replace

_REGISTERS: Any = iced_x86.RegisterExt
Function = Callable[[Situation], None]
_table: dict[str, Function] = {}


def _for(names: str) -> Callable[[Function], Function]:
    def register(function: Function) -> Function:
        _table.update(dict.fromkeys(names.split(), function))
        return function

    return register


def adjust(situation: Situation) -> None:
    """Apply the mnemonic's function, if there is one."""
    if situation.variant.decoded.code == 0:
        return
    function = _table.get(situation.name)
    if function is not None:
        function(situation)
    if situation.instruction.is_vsib:
        _gather(situation)


@_for("DIV IDIV")
def _divide(s: Situation) -> None:
    """Three in four: a dividend whose quotient fits, or just does not."""
    divisor, width = s.read_operand(0), s.operand_width(0)
    if not divisor or s.rng.randrange(4) == 0 or s.operand_gpr(0) in (RAX, RDX):
        return
    mask = (1 << width) - 1
    quotient, remainder = edge_int(s.rng, width), s.rng.randrange(divisor)
    dividend = quotient * divisor + remainder
    if s.name == "IDIV":
        signed = divisor - (1 << width) if divisor >> width - 1 else divisor
        half = quotient - (1 << width) if quotient >> width - 1 else quotient
        dividend = half * signed + s.rng.randrange(abs(signed)) * (1 if s.rng.getrandbits(1) else -1)
    if width == 8:
        s.set_gpr(RAX, s.state.gpr[RAX] & ~0xFFFF | dividend & 0xFFFF)
        return
    s.set_gpr(RAX, s.state.gpr[RAX] & ~mask | dividend & mask)
    s.set_gpr(RDX, s.state.gpr[RDX] & ~mask | dividend >> width & mask)


@_for("SHL SAL SHR SAR ROL ROR RCL RCR SHLD SHRD SHLX SHRX SARX")
def _shift(s: Situation) -> None:
    """Counts round the widths that matter: 0, 1, each operand width and its neighbours."""
    count = s.rng.choice((0, 1, 2, 7, 8, 9, 15, 16, 17, 18, 31, 32, 33, 63, 64, 65, 255, s.rng.randrange(256)))
    if s.name in ("SHLX", "SHRX", "SARX"):
        s.write_operand(2, s.rng.getrandbits(64) & ~0xFF | count)
    else:
        s.set_gpr(RCX, s.state.gpr[RCX] & ~0xFF | count)


@_for("BT BTS BTR BTC")
def _bit_test(s: Situation) -> None:
    """With memory, a bit offset register reaches beyond the operand, either way."""
    number = s.operand_gpr(1)
    if number is None or s.instruction.op_kind(0) == 0 or s.rng.randrange(16) == 0:
        return
    width = s.operand_width(1)
    offset = s.rng.choice((s.rng.randrange(width), s.rng.randrange(-2000, 2000), s.rng.randrange(-64, 64)))
    mask = (1 << width) - 1
    s.set_gpr(number, s.state.gpr[number] & ~mask | offset & mask)


@_for("CMPXCHG")
def _compare_exchange(s: Situation) -> None:
    value = s.read_operand(0)
    if value is not None and s.rng.getrandbits(1):
        mask = (1 << s.operand_width(0)) - 1
        s.set_gpr(RAX, s.state.gpr[RAX] & ~mask | value)


@_for("CMPXCHG8B CMPXCHG16B")
def _compare_exchange_wide(s: Situation) -> None:
    if s.rng.getrandbits(1):
        half = 32 if s.name == "CMPXCHG8B" else 64
        mask = (1 << half) - 1
        s.write_operand(0, (s.state.gpr[RDX] & mask) << half | s.state.gpr[RAX] & mask)


@_for("BOUND")
def _bound(s: Situation) -> None:
    """Three in four: bounds that hold the index, or miss it by one."""
    width = s.operand_width(0)
    index = s.read_operand(0)
    if index is None or not s.memory or s.rng.randrange(4) == 0:
        return
    signed = index - (1 << width) if index >> width - 1 else index
    mask = (1 << width) - 1
    low, high = signed - s.rng.choice((0, 1, 5, -1)), signed + s.rng.choice((0, 1, 5, -1))
    s.state.write(s.memory[0].address, (low & mask | (high & mask) << width).to_bytes(width // 4, "little"))


@_for(" ".join(name + size for name in ("MOVS", "CMPS", "SCAS", "LODS", "STOS") for size in "BWDQ"))
def _string(s: Situation) -> None:
    """Small counts, overlapping operands, equal stretches to scan.

    (SSE's MOVSD and CMPSD share names, and are not touched.)
    """
    if not s.instruction.is_string_instruction:
        return
    size = max((operand.size for operand in s.memory), default=1) or 1
    repeats = s.instruction.has_rep_prefix or s.instruction.has_repne_prefix
    if repeats:
        s.set_gpr(RCX, s.rng.choice((0, 1, 2, 3, 8, 17, s.rng.randrange(300))) | _above_address(s))
    if s.name.startswith("MOVS") and s.rng.getrandbits(1):
        s.state.gpr[RDI] = s.state.gpr[RSI] + s.rng.randrange(-3, 4) * s.rng.choice((1, size)) & (1 << s.bits) - 1
    if s.name[:4] in ("CMPS", "SCAS") and s.rng.getrandbits(1):
        run = (edge_bytes(s.rng, Kind.INT8, size) * 16)[: size * s.rng.randrange(1, 16)]
        for operand in s.memory:
            s.state.write(operand.address, run)
        if s.name.startswith("SCAS"):
            mask = (1 << 8 * size) - 1
            s.set_gpr(RAX, s.state.gpr[RAX] & ~mask | int.from_bytes(run[:size], "little"))


def _above_address(s: Situation) -> int:
    """Random bits above a 32-bit address size, which a count in ECX must ignore."""
    operand_kinds = {s.instruction.op_kind(index) for index in range(s.instruction.op_count)}
    narrow = operand_kinds & {iced_x86.OpKind.MEMORY_SEG_ESI, iced_x86.OpKind.MEMORY_ESEDI}
    return s.rng.getrandbits(32) << 32 if narrow and s.bits == 64 else 0


def code_target(s: Situation) -> int:
    """An address to jump to: in CODE, as a rule; else no-execute, unmapped or not canonical."""
    if s.rng.randrange(8):
        return s.variant.ip + s.rng.choice((1, -1)) * s.rng.randrange(0x20, 0x400)
    return s.rng.choice(
        (layout.DATA + 4, layout.HOLE, layout.CODE - 1, layout.CODE + layout.CODE_SIZE, 1 << 63, 0x1234)
    )


@_for("LOOP LOOPE LOOPNE JCXZ JECXZ JRCXZ")
def _loop(s: Situation) -> None:
    value = s.rng.choice((0, 1, 2, 0x1_0000, 0x1_0001, 1 << 32, (1 << 32) + 1, s.state.gpr[RCX]))
    s.set_gpr(RCX, value & (1 << s.bits) - 1)


@_for("JMP CALL")
def _indirect(s: Situation) -> None:
    if s.instruction.op_kind(0) == 0:
        s.write_operand(0, code_target(s))
    elif s.instruction.op_kind(0) == iced_x86.OpKind.MEMORY and s.memory:
        explicit = next((operand for operand in s.memory if operand.read), s.memory[0])
        width = explicit.size
        far = s.instruction.is_jmp_far_indirect or s.instruction.is_call_far_indirect
        if far:
            offset_size = width - 2
            selector = random_selector(s.rng, code=True)
            data = _low(code_target(s), offset_size) + struct.pack("<H", selector)
        else:
            data = _low(code_target(s), width)
        s.state.write(explicit.address, data)


def _low(value: int, size: int) -> bytes:
    return (value & (1 << 8 * size) - 1).to_bytes(size, "little")


@_for("RET RETF")
def _return(s: Situation) -> None:
    size = max((operand.size for operand in s.memory), default=s.bits // 8)
    code = s.instruction.stack_pointer_increment
    if s.name == "RETF":
        size = {4: 2, 8: 4, 16: 8}.get(code - (s.instruction.immediate16 if s.instruction.op_count else 0), s.bits // 8)
    data = _low(code_target(s), size)
    if s.name == "RETF":
        data += _low(random_selector(s.rng, code=True), size)
    s.state.write(s.state.gpr[RSP], data)


@_for("IRET IRETD IRETQ")
def _interrupt_return(s: Situation) -> None:
    """A frame that returns to CPL 3; the flags leave TF clear, since what would be stepped then is the INT3 filling."""
    size = {"IRET": 2, "IRETD": 4, "IRETQ": 8}[s.name]
    flags = s.rng.getrandbits(22) & ~0x2_0100 if s.rng.getrandbits(1) else 0x202 | s.rng.getrandbits(12) & STATUS_FLAGS
    stack = s.rng.choice((layout.STACK_TOP, s.state.gpr[RSP] + 64, s.rng.getrandbits(32)))
    selector = s.rng.choice((layout.CS32, layout.CS64)) if s.rng.randrange(4) else random_selector(s.rng, code=True)
    frame = (code_target(s), selector, flags, stack, random_selector(s.rng))
    s.state.write(s.state.gpr[RSP], b"".join(_low(value, size) for value in frame))


@_for("POPF POPFD POPFQ")
def _pop_flags(s: Situation) -> None:
    """Any flags but TF: what would be stepped is the INT3 filling."""
    s.state.write(s.state.gpr[RSP], _low(s.rng.getrandbits(22) & ~0x100, 8))


@_for("LEAVE ENTER")
def _frame(s: Situation) -> None:
    s.state.gpr[RBP] = layout.HOLE
    if s.rng.randrange(8):
        s.state.gpr[RBP] = layout.STACK_TOP + s.rng.randrange(-256, 256)


@_for("MOV")
def _load_segment(s: Situation) -> None:
    if s.instruction.op_kind(0) == 0 and _REGISTERS.is_segment_register(s.instruction.op_register(0)):
        if s.instruction.op_kind(1) == 0:
            s.write_operand(1, s.rng.getrandbits(64) & ~0xFFFF | random_selector(s.rng))
        elif s.memory:
            s.state.write(s.memory[0].address, _low(random_selector(s.rng), 2))


@_for("LAR LSL VERR VERW")
def _inspect_segment(s: Situation) -> None:
    source = s.instruction.op_count - 1
    s.write_operand(source, s.rng.getrandbits(64) & ~0xFFFF | random_selector(s.rng, code=s.rng.getrandbits(1) == 1))


@_for("LDS LES LFS LGS LSS")
def _load_far_pointer(s: Situation) -> None:
    if s.memory:
        operand = s.memory[0]
        s.state.write(operand.address + operand.size - 2, _low(random_selector(s.rng), 2))


@_for("POP")
def _pop_segment(s: Situation) -> None:
    if s.instruction.op_kind(0) == 0 and _REGISTERS.is_segment_register(s.instruction.op_register(0)):
        s.state.write(s.state.gpr[RSP], _low(random_selector(s.rng), 2))


@_for("FSCALE FPREM FPREM1 FYL2X FPATAN F2XM1 FYL2XP1 FSIN FCOS FSINCOS FPTAN")
def _x87_argument(s: Situation) -> None:
    """Half of the time a full stack with arguments of ordinary size, where these instructions have defined results."""
    if s.rng.getrandbits(1):
        return
    s.state.ftw = 0xFF
    for index, spread in ((0, 3), (1, 60 if s.name.startswith("FPREM") else 6)):
        exponent = 0x3FFF + s.rng.randrange(-spread, spread + 1)
        if index == 0 and s.name in ("F2XM1", "FYL2XP1"):
            exponent = 0x3FFF - s.rng.randrange(2, 40)
        sign = s.rng.getrandbits(1) << 79 if (s.name, index) != ("FYL2X", 0) else 0
        s.state.set_st(index, sign | exponent << 64 | 1 << 63 | s.rng.getrandbits(63))


def x87_environment(s: Situation, wide: bool) -> bytes:
    """An FLDENV image (28 bytes, or 14): any tags and pointers, no exception pending unless unmasked on purpose."""
    control = random_fcw(s.rng)
    status = s.rng.getrandbits(16) & (0x7F00 | control & 0x3F)
    words = (control, status, s.rng.getrandbits(16), *(s.rng.getrandbits(16) for _ in range(4)))
    if not wide:
        return struct.pack("<7H", *words)
    return struct.pack("<7I", *(word | 0xFFFF_0000 if place < 3 else word for place, word in enumerate(words)))


@_for("FLDENV FRSTOR")
def _load_environment(s: Situation) -> None:
    if s.memory:
        wide = s.memory[0].size in (28, 108)
        data = x87_environment(s, wide)
        if s.name == "FRSTOR":
            data += b"".join(s.state.st(index).to_bytes(10, "little") for index in range(8))
        s.state.write(s.memory[0].address, data)


@_for("LDMXCSR VLDMXCSR")
def _load_mxcsr(s: Situation) -> None:
    """A value with a reserved bit now and then, but not bit 17, which AMD's processors have (MISALIGNSSE)."""
    if s.memory:
        reserved = 1 << s.rng.choice((16, *range(18, 32))) if s.rng.randrange(4) == 0 else 0
        s.state.write(s.memory[0].address, _low(s.rng.getrandbits(16) | reserved, 4))


_STRING_COMPARES = ("PCMPESTRI", "PCMPESTRI64", "PCMPESTRM", "PCMPESTRM64", "PCMPISTRI", "PCMPISTRM")


@_for(" ".join(prefix + name for name in _STRING_COMPARES for prefix in ("", "V")))
def _string_compare(s: Situation) -> None:
    """Texts of a few characters, some of them zero, so that matches happen; lengths round the register's."""
    letters = bytes(s.rng.choice((0, 1, 2, 0x61, 0x62, 0xFF)) for _ in range(64))
    for index in (0, 1):
        text = s.rng.choice((letters[:16], letters[16:32], bytes(s.rng.choice(b"abcd") for _ in range(16))))
        if s.instruction.op_kind(index) == 0:
            number = _REGISTERS.number(s.instruction.op_register(index))
            s.state.set_ymm(number, s.state.ymm(number) >> 128 << 128 | int.from_bytes(text, "little"))
        elif s.memory:
            s.state.write(s.memory[0].address, text)
    if "ESTR" in s.name:
        for number in (RAX, RDX):
            if s.rng.randrange(8):
                s.set_gpr(number, s.rng.randrange(-20, 21) & (1 << s.bits) - 1)


def _gather(s: Situation) -> None:
    """Indices that land in DATA, with one stray now and then; masks are the random sign bits."""
    ins, rng = s.instruction, s.rng
    lane = 4 if ins.is_vsib32 else 8
    base = _REGISTERS.number(_REGISTERS.full_register(ins.memory_base))
    wide = _REGISTERS.size(ins.memory_base) == 8
    mask = (1 << 64) - 1 if wide else 0xFFFF_FFFF
    scale, middle = ins.memory_index_scale, random_address(rng, 0, edges=rng.randrange(4) == 0)
    s.state.gpr[base] = (middle - ins.memory_displacement) & mask
    segment = {iced_x86.Register.FS: "fs_base", iced_x86.Register.GS: "gs_base"}.get(ins.segment_prefix)
    if segment is not None:
        setattr(s.state, segment, 0)
    lanes = bytearray()
    for _ in range(32 // lane):
        index = rng.randrange(-0x300, 0x300) // scale if rng.randrange(24) else rng.getrandbits(8 * lane - 1)
        lanes += _low(index, lane)
    s.state.set_ymm(_REGISTERS.number(ins.memory_index), int.from_bytes(lanes, "little"))


@_for("FXRSTOR FXRSTOR64")
def _load_fx_image(s: Situation) -> None:
    """A saved image with other contents; MXCSR has a reserved bit set one time in eight."""
    if s.memory:
        s.state.write(s.memory[0].address, _fx_image(s))


def _fx_image(s: Situation) -> bytes:
    image = bytearray(s.rng.randbytes(512))
    control = random_fcw(s.rng)
    struct.pack_into("<HHH", image, 0, control, s.rng.getrandbits(16) & (0x7F00 | control & 0x3F), s.rng.getrandbits(8))
    struct.pack_into("<I", image, 24, s.rng.getrandbits(16) | (1 << 20 if s.rng.randrange(8) == 0 else 0))
    return bytes(image)


@_for("XSAVE XSAVE64 XSAVEC XSAVEC64 XRSTOR XRSTOR64")
def _extended_state(s: Situation) -> None:
    """Only x87, SSE and AVX are asked for: what else XCR0 has is the host's affair.

    XRSTOR gets a header it can accept.
    """
    s.state.gpr[RDX] = 0
    s.state.gpr[RAX] = s.rng.getrandbits(3)
    address = s.memory[0].address if s.memory else None
    aligned = layout.DATA + 0x400 + 64 * s.rng.randrange(0x80)
    number = (
        _REGISTERS.number(_REGISTERS.full_register(s.instruction.memory_base)) if s.instruction.memory_base else None
    )
    if address is None or number in (RAX, RDX) or s.instruction.memory_index:
        return
    if s.instruction.memory_base not in (iced_x86.Register.NONE, iced_x86.Register.RIP, iced_x86.Register.EIP):
        assert number is not None
        delta = aligned - address
        s.state.gpr[number] = (s.state.gpr[number] + delta) & (1 << s.bits) - 1
        address = aligned
        s.memory[0] = replace(s.memory[0], address=aligned)
    if s.name.startswith("XRSTOR"):
        header = struct.pack("<QQ", s.rng.getrandbits(3) | (8 if s.rng.randrange(16) == 0 else 0), 0).ljust(64, b"\0")
        s.state.write(address, _fx_image(s) + header + s.rng.randbytes(256))
