"""Whatever an op can name by its offset is a register to the compiler: regions hold it across accesses of memory."""

import iced_x86 as iced
import pytest

from pellucid.cpu.code_cache import Op
from pellucid.cpu.state import CpuState, slot_of
from pellucid.engine.learn import SLOTS
from pellucid.native.aliasing import REGISTERS
from tests.engine.code import CODE, Compiled

_R = iced.Register
GENERAL = [*range(_R.AL, _R.R15 + 1), *range(_R.XMM0, _R.XMM0 + 16), *range(_R.YMM0, _R.YMM0 + 16),
           *range(_R.MM0, _R.MM7 + 1)]


def field_at(slot: int) -> str:
    """The field that a state offset lies in."""
    return next(f.name for f in reversed(CpuState.fields.values()) if f.offset <= slot)


@pytest.mark.parametrize("register", [r for r in GENERAL if r in SLOTS])
def test_a_named_register_is_one(register: int) -> None:
    assert CpuState.fields[field_at(SLOTS[register])].memory == REGISTERS


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_an_address_is_made_of_registers(bits: int) -> None:
    machine = Compiled(bits)
    code = bytes.fromhex("8b04" "8b8044101122" "a1001000000000000000" "678b00" "648b00" "65a5" "8b0500000000" "f4")
    machine.load(CODE, code)
    machine.run(CODE)
    ops = machine.block(CODE)
    for n in range(4):
        op = Op.view(ops + n * Op.size)
        for slot in (op.base, op.index, op.seg):
            assert slot == 0 or CpuState.fields[field_at(slot)].memory == REGISTERS, field_at(slot)


def test_the_slots_that_code_names_are_registers() -> None:
    for name in ("zero", "ea", "rip", "seg_base", "seg_selector", "gpr", "xmm", "st"):
        assert CpuState.fields[name].memory == REGISTERS
        assert field_at(slot_of(name)) == name
