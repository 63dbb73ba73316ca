"""Single random instructions: any prefixes in any order, any opcode, any operands; valid or not.

The generator of `generate` makes what an assembler makes. This one finds what only a decoder meets: repeated and
clashing prefixes, a REX that is overridden, VEX fields that must be ones, reserved ModRM extensions, instructions of
16 bytes. What iced-x86 calls invalid is kept, for the host must raise #UD on it too.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from typing import Any

import iced_x86

from . import layout
from .catalog import (
    EXCLUDED,
    X86_64_V3,
    features_of,
    host_features,
    is_privileged,
    mnemonic_name,
    op_info,
    vendor_dependent,
)
from .encoding import Variant, random_address
from .generate import Case, case_for
from .situation import Pool

_LEGACY_PREFIXES = (0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x66, 0x67, 0xF0, 0xF2, 0xF2, 0xF3, 0xF3)
_LENGTH = 16
_FETCHED_ALWAYS = 8


def _random_bytes(rng: random.Random, bits: int) -> bytes:
    """Prefixes, an opcode map, then anything."""
    head = bytearray(rng.choice(_LEGACY_PREFIXES) for _ in range(rng.choice((0, 0, 0, 1, 1, 2, 3))))
    if bits == 64 and rng.randrange(3) == 0:
        head.append(rng.randrange(0x40, 0x50))
    choice = rng.randrange(8)
    if choice < 2:
        head += b"\x0f"
    elif choice == 2:
        head += rng.choice((b"\x0f\x38", b"\x0f\x3a"))
    elif choice == 3:
        head += bytes((0xC5, rng.getrandbits(8) | (0xC0 if bits == 32 else 0)))
    elif choice == 4:
        head += bytes((0xC4, rng.choice((0xE1, 0xE2, 0xE3, 0xC2, 0x62, rng.getrandbits(8))), rng.getrandbits(8)))
    return bytes(head) + rng.randbytes(_LENGTH)


def _comparable(instruction: Any, data: bytes, bits: int, features: frozenset[int]) -> bool:
    """Whether the host must do with it what the manual says, and an engine with `features` too."""
    code = instruction.code
    info = op_info(code)
    if mnemonic_name(code) in EXCLUDED or info.fwait or not features_of(code) <= features:
        return False
    if mnemonic_name(code) == "INT" and instruction.immediate8 == 0x80:
        return False
    if mnemonic_name(code) in ("LOOPE", "LOOPNE") and (0xF2 in data[:-2] or 0xF3 in data[:-2]):
        return (
            False  # a reserved use of REP: AMD family 1Ah takes the condition from the prefix, others from the opcode
        )
    if bits == 64 and (vendor_dependent(code) or _operand_size_on_branch(instruction, data)):
        return False
    return not is_privileged(code) or info.is_privileged


def _invalid_everywhere(data: bytes, bits: int) -> bool:
    """Whether AMD's decoder refuses the bytes too (LOCK MOV CR0 means CR8 there), and not for want of more bytes."""
    decoder = iced_x86.Decoder(bits, data, iced_x86.DecoderOptions.AMD, ip=layout.START)
    return decoder.decode().code == 0 and decoder.last_error != iced_x86.DecoderError.NO_MORE_BYTES


def _operand_size_on_branch(instruction: Any, data: bytes) -> bool:
    """A branch with a 66 byte in it: as a prefix, in 64-bit code, Intel ignores it and AMD obeys."""
    return instruction.flow_control != iced_x86.FlowControl.NEXT and 0x66 in data


def random_cases(
    count: int, seed: int = 0, bits: int = 64, features: Collection[int] | None = None, invalid: bool = True
) -> Iterator[Case]:
    """`count` cases of one random instruction each.

    It is of the given features (default: `X86_64_V3`) as far as the host has them. With `invalid`, bytes that are no
    instruction at all are among them.
    """
    allowed = frozenset(X86_64_V3 if features is None else features) & host_features()
    rng = random.Random(f"fuzz/{seed}/{bits}")
    pool = Pool(random.Random(f"pool/{seed}"))
    made = 0
    while made < count:
        data = _random_bytes(rng, bits)
        instruction, data = _aimed(rng, data, bits)
        if instruction.code == 0:
            if not invalid or rng.randrange(4) or not _invalid_everywhere(data, bits):
                continue
        elif not _comparable(instruction, data[: instruction.len], bits, allowed):
            continue
        elif _branches_into_itself(instruction):
            continue
        size = instruction.len if instruction.code else min(instruction.len + _FETCHED_ALWAYS, _LENGTH)
        variant = Variant(instruction.code, data[:size], bits, layout.START, instruction, valid=instruction.code != 0)
        case = case_for(rng, pool, variant)
        if case is not None:
            made += 1
            yield case


def _aimed(rng: random.Random, data: bytes, bits: int) -> tuple[Any, bytes]:
    """Decode. A displacement that alone is an address or a branch target is replaced by one that hits the layout."""
    decoder = iced_x86.Decoder(bits, data, ip=layout.START)
    instruction: Any = decoder.decode()
    offsets = decoder.get_constant_offsets(instruction)
    register: Any = iced_x86.Register
    relative = instruction.memory_base in (register.RIP, register.EIP)
    place, size, value = 0, 0, 0
    if instruction.op0_kind in (iced_x86.OpKind.NEAR_BRANCH32, iced_x86.OpKind.NEAR_BRANCH64):
        place, size = offsets.immediate_offset, offsets.immediate_size
        value = layout.START + rng.choice((-1, 1)) * rng.randrange(0x20, 0x60) - instruction.next_ip
    elif offsets.has_displacement and instruction.memory_index == register.NONE:
        if relative or instruction.memory_base == register.NONE:
            place, size = offsets.displacement_offset, offsets.displacement_size
            value = random_address(rng, 8, edges=rng.randrange(4) == 0) - (instruction.next_ip if relative else 0)
    if size in (4, 8):
        data = data[:place] + (value & (1 << 8 * size) - 1).to_bytes(size, "little") + data[place + size :]
        instruction = iced_x86.Decoder(bits, data, ip=layout.START).decode()
    return instruction, data


def _branches_into_itself(instruction: Any) -> bool:
    """A branch to its own bytes would never end."""
    kinds = (iced_x86.OpKind.NEAR_BRANCH16, iced_x86.OpKind.NEAR_BRANCH32, iced_x86.OpKind.NEAR_BRANCH64)
    if instruction.op0_kind not in kinds:
        return False
    return bool(instruction.ip <= instruction.near_branch_target < instruction.next_ip)
