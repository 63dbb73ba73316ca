"""Keeps cases inside the layout.

On the host, what lies outside the layout's window belongs to the child: a case that reads there sees bytes no guest
has, and one that writes there destroys its runner. `stays_inside` computes every address a case will touch or jump to
from its final state, and the generators drop a case that strays. Allowed are the window, the unmapped lowest pages,
addresses that are not canonical, and the upper half, all of which behave alike on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import iced_x86

from . import layout
from .situation import Situation
from .state import RCX, RSP

_R: Any = iced_x86.Register
_REGISTERS: Any = iced_x86.RegisterExt
_SIZES: Any = iced_x86.MemorySizeExt
_ACCESS: Any = iced_x86.OpAccess
_factory = iced_x86.InstructionInfoFactory()
_WIDTHS = {iced_x86.CodeSize.CODE16: 16, iced_x86.CodeSize.CODE32: 32, iced_x86.CodeSize.CODE64: 64}
_LARGEST_OPERAND = 1024
_MASK64 = (1 << 64) - 1


def is_inside(address: int, size: int = 1) -> bool:
    """Whether `size` bytes at a linear address are where the layout decides what happens."""
    end = address + size
    low, high = layout.WINDOW
    return low <= address and end <= high or end <= layout.LOWEST_MAPPED or address >= 1 << 47


def stays_inside(situation: Situation) -> bool:
    """Whether every access and every indirect branch of the case stays where the layout decides what happens."""
    if situation.variant.decoded.code == 0:
        return True
    if not all(is_inside(address, size) for address, size in _accesses(situation)):
        return False
    return all(is_inside(target) for target in _targets(situation))


def _accesses(situation: Situation) -> Iterator[tuple[int, int]]:
    """Start and size of all that the case may touch."""
    ins, state = situation.instruction, situation.state
    info: Any = _factory.info(ins)
    for used in info.used_memory():
        if used.access in (_ACCESS.NONE, _ACCESS.NO_MEM_ACCESS):
            continue
        size = int(_SIZES.size(used.memory_size)) or _LARGEST_OPERAND
        for address in _linear(situation, used):
            if ins.is_string_instruction and (ins.has_rep_prefix or ins.has_repne_prefix):
                reach = (state.gpr[RCX] & 0xFFFF) * 8
                yield max(address - reach, 0), 2 * reach + 8
            else:
                yield address, size


def _linear(situation: Situation, used: Any) -> Iterator[int]:
    """The linear addresses of one memory operand: several for a gather."""
    state = situation.state
    mask = (1 << _WIDTHS[used.address_size]) - 1
    linear_mask = _MASK64 if situation.bits == 64 else 0xFFFF_FFFF
    offset = used.displacement
    if used.base not in (_R.NONE, _R.RIP, _R.EIP):
        offset += _value(situation, used.base)
    segment = {_R.FS: state.fs_base, _R.GS: state.gs_base}.get(used.segment, 0) if situation.bits == 64 else 0
    for index in _indices(situation, used):
        yield ((offset + index * used.scale & mask) + segment + _bit_offset(situation)) & linear_mask


def _indices(situation: Situation, used: Any) -> list[int]:
    if used.index == _R.NONE:
        return [0]
    if not used.vsib_size:
        return [_value(situation, used.index)]
    content = situation.state.ymm(_REGISTERS.number(used.index)).to_bytes(32, "little")
    step = used.vsib_size
    return [int.from_bytes(content[at : at + step], "little", signed=True) for at in range(0, 32, step)]


def _value(situation: Situation, register: Any) -> int:
    value: int = situation.state.gpr[_REGISTERS.number(_REGISTERS.full_register(register))]
    return value & (1 << 8 * int(_REGISTERS.size(register))) - 1


def _bit_offset(situation: Situation) -> int:
    """What a bit offset in a register adds to the address of BT and its kin, bytes."""
    ins = situation.instruction
    if situation.name not in ("BT", "BTS", "BTR", "BTC") or ins.op0_kind == 0 or ins.op1_kind != 0:
        return 0
    width = situation.operand_width(1)
    value = _value(situation, ins.op1_register)
    signed = value - (1 << width) if value >> width - 1 else value
    return (signed >> width.bit_length() - 1) * (width // 8)


def _targets(situation: Situation) -> Iterator[int]:
    """Where an indirect branch or a return goes, when that can be told (else the read itself faults)."""
    ins, state = situation.instruction, situation.state
    flow = iced_x86.FlowControl
    size = situation.bits // 8
    try:
        if ins.flow_control in (flow.INDIRECT_BRANCH, flow.INDIRECT_CALL):
            if ins.op0_kind == 0:
                yield _value(situation, ins.op0_register)
            elif situation.memory:
                place = next((operand.address for operand in situation.memory if operand.read), None)
                if place is not None:
                    yield _low_offset(situation, state.read(place, int(_SIZES.size(ins.memory_size))))
        elif ins.flow_control == flow.RETURN:
            yield int.from_bytes(state.read(state.gpr[RSP], size), "little")
    except KeyError:
        return


def _low_offset(situation: Situation, data: bytes) -> int:
    """The offset part of a near or far pointer in memory."""
    far = situation.instruction.is_jmp_far_indirect or situation.instruction.is_call_far_indirect
    return int.from_bytes(data[:-2] if far else data, "little")
