"""String instructions beyond what user mode on the host shows: real mode, devices, interrupts, changing code."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from pellucid.cpu.faults import Stop
from pellucid.cpu.operands import Form
from pellucid.cpu.code_cache import Op
from pellucid.cpu.state import EXIT_EXCEPTION, EXIT_HLT, EXIT_PENDING, GP, RFLAGS_DF, SS_FAULT, CpuState, slot_of
from pellucid.isa import string
from pellucid.native import ptr
from tests.cpu.bare import MMIO, RAM, Access, Bare

RAX, RCX, RDX, RSI, RDI = 0, 1, 2, 6, 7
HLT = b"\xf4"
REP, REPNE = b"\xf3", b"\xf2"
CODE = 0x1000
_OPCODES = {"movs": 0xA4, "cmps": 0xA6, "stos": 0xAA, "lods": 0xAC, "scas": 0xAE}


def encode(name: str, width: int, bits: int) -> bytes:
    """A string instruction of this element size, without REP."""
    prefix = b""
    if width == 8:
        prefix = b"\x48"
    elif width != 1 and (width == 2) != (bits == 16):
        prefix = b"\x66"
    return prefix + bytes([_OPCODES[name] | (width != 1)])


def set_up(machine: Bare, **registers: int) -> None:
    numbers = {"rax": RAX, "rcx": RCX, "rdx": RDX, "rsi": RSI, "rdi": RDI}
    for name, value in registers.items():
        machine.state.gpr[numbers[name]] = value


def start(machine: Bare, code: bytes, down: bool = False) -> int:
    machine.load(CODE, code + HLT)
    machine.state.flags = 2 | (RFLAGS_DF if down else 0)
    return machine.run(CODE)


def model_movs(memory: bytearray, source: int, destination: int, count: int, width: int, step: int) -> None:
    """Element by element, as the manual says it."""
    for _ in range(count):
        memory[destination:destination + width] = memory[source:source + width]
        source, destination = source + step, destination + step


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_rep_movs_and_stos_match_a_model(bits: int) -> None:
    rng = random.Random(bits)
    machine = Bare(bits)
    area, room = 0x2000, 0xC000
    for _ in range(150):
        name = rng.choice(("movs", "stos"))
        width = rng.choice((1, 2, 4, 8) if bits == 64 else (1, 2, 4))
        down = rng.random() < 0.3
        count = rng.choice((0, 1, 2, 7, rng.randrange(64), rng.randrange(room // 4 // width)))
        source = area + rng.randrange(room // 4, room // 2)
        near = rng.choice((-width, width, 1, -1, 3, rng.randrange(-600, 600), rng.randrange(-room // 4, room // 4)))
        destination = source + near
        memory = bytearray(rng.randbytes(room))
        machine.load(area, bytes(memory))
        value = rng.choice((0, 0x4141_4141_4141_4141, rng.getrandbits(64)))
        set_up(machine, rax=value, rcx=count, rsi=source, rdi=destination)
        assert start(machine, REP + encode(name, width, bits), down) == EXIT_HLT
        step = -width if down else width
        whole = bytearray(area) + memory
        if name == "movs":
            model_movs(whole, source, destination, count, width, step)
        else:
            for i in range(count):
                at = destination + i * step
                whole[at:at + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
        assert machine.bytes(area, room) == bytes(whole[area:area + room])
        assert machine.state.gpr[RCX] == 0
        assert machine.state.gpr[RDI] == destination + count * step
        assert machine.state.gpr[RSI] == source + (count * step if name == "movs" else 0)


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_scas_stops_at_the_match_in_a_later_page(bits: int) -> None:
    machine = Bare(bits)
    machine.load(0x2000, b"x" * 0x5000)
    machine.load(0x5123, b"y")
    set_up(machine, rax=ord("y"), rcx=0x5000, rdi=0x2000)
    assert start(machine, REPNE + encode("scas", 1, bits)) == EXIT_HLT
    assert machine.state.gpr[RDI] == 0x5124
    assert machine.state.gpr[RCX] == 0x5000 - 0x3124
    assert machine.processor.get_rflags() & 0x40


def test_cmps_compares_source_with_destination() -> None:
    machine = Bare(64)
    machine.load(0x2000, b"a" * 0x1800 + b"b")
    machine.load(0x5000, b"a" * 0x1800 + b"c")
    set_up(machine, rcx=0x2000, rsi=0x2000, rdi=0x5000)
    assert start(machine, REP + encode("cmps", 1, 64)) == EXIT_HLT
    assert machine.state.gpr[RSI] == 0x3801
    assert machine.processor.get_rflags() & 0x41 == 1  # b - c borrows


def test_sixteen_bit_addresses_wrap_and_the_upper_halves_stay() -> None:
    machine = Bare(16)
    machine.load(0xFFF0, bytes(range(16)))
    set_up(machine, rcx=0xABCD_0010, rsi=0x1111_FFF0, rdi=0x2222_3000)
    assert start(machine, REP + encode("movs", 1, 16)) == EXIT_HLT
    assert machine.bytes(0x3000, 16) == bytes(range(16))
    assert machine.state.gpr[RSI] == 0x1111_0000
    assert machine.state.gpr[RDI] == 0x2222_3010
    assert machine.state.gpr[RCX] == 0xABCD_0000


def test_an_element_across_the_segment_limit_faults_with_the_ones_before_it_done() -> None:
    machine = Bare(16)
    set_up(machine, rax=0x1234, rcx=8, rdi=0xFFFB)
    assert start(machine, REP + encode("stos", 2, 16)) == EXIT_EXCEPTION
    assert (machine.state.exc_vector, machine.state.exc_error, machine.state.rip) == (GP, 0, CODE)
    assert machine.state.gpr[RCX] == 6
    assert machine.state.gpr[RDI] == 0xFFFF
    assert machine.bytes(0xFFFB, 5) == b"\x34\x12\x34\x12\x00"


def test_the_source_segment_can_be_overridden_and_is_checked() -> None:
    machine = Bare(32)
    machine.state.seg_base[2], machine.state.seg_limit[2] = 0x4000, 0xFF
    machine.processor.refresh_mode()
    machine.load(0x40F0, b"0123456789abcdef")
    set_up(machine, rcx=0x20, rsi=0xF0, rdi=0x3000)
    assert start(machine, b"\x36" + REP + encode("movs", 1, 32)) == EXIT_EXCEPTION
    assert machine.state.exc_vector == SS_FAULT
    assert machine.bytes(0x3000, 17) == b"0123456789abcdef\x00"
    assert machine.state.gpr[RCX] == 0x10


def test_a_null_fs_is_checked_although_the_other_segments_are_flat() -> None:
    machine = Bare(32)
    machine.state.seg_attr[4] = 1 << 16
    set_up(machine, rsi=0x3000, rdi=0x4000)
    assert start(machine, b"\x64" + encode("movs", 1, 32)) == EXIT_EXCEPTION
    assert machine.state.exc_vector == GP


def test_each_element_of_a_device_is_read_once() -> None:
    machine = Bare(64, read=lambda address, size: address * 3 + 1)
    set_up(machine, rcx=5, rsi=MMIO, rdi=0x3000)
    assert start(machine, REP + encode("movs", 2, 64)) == EXIT_HLT
    assert machine.accesses == [Access(MMIO + 2 * i, 2, None) for i in range(5)]
    expected = b"".join((((MMIO + 2 * i) * 3 + 1) & 0xFFFF).to_bytes(2, "little") for i in range(5))
    assert machine.bytes(0x3000, 10) == expected
    assert machine.state.gpr[RCX] == 0


def test_device_to_device_and_a_long_fill_of_a_device() -> None:
    machine = Bare(64, read=lambda address, size: address & 0xFF)
    set_up(machine, rcx=3, rsi=MMIO, rdi=MMIO + 0x100)
    assert start(machine, REP + encode("movs", 4, 64)) == EXIT_HLT
    assert machine.accesses == [access for i in (0, 4, 8)
                                for access in (Access(MMIO + i, 4, None), Access(MMIO + 0x100 + i, 4, i))]
    machine.accesses.clear()
    set_up(machine, rax=0x77, rcx=400, rdi=MMIO)  # more than the replay log holds
    assert start(machine, REP + encode("stos", 1, 64)) == EXIT_HLT
    assert machine.accesses == [Access(MMIO + i, 1, 0x77) for i in range(400)]


def test_from_memory_into_a_device_behind_it() -> None:
    """The chunk ends with memory; what lies beyond goes one by one."""
    machine = Bare(64)
    machine.load(0x2000, bytes(range(32)))
    set_up(machine, rcx=32, rsi=0x2000, rdi=RAM - 16)
    assert start(machine, REP + encode("movs", 1, 64)) == EXIT_HLT
    assert machine.bytes(RAM - 16, 16) == bytes(range(16))
    assert [access.value for access in machine.accesses] == list(range(16, 32))


def test_scas_over_a_device_compares_what_it_read() -> None:
    machine = Bare(64, read=lambda address, size: int(address == MMIO + 3))
    set_up(machine, rax=1, rcx=100, rdi=MMIO)
    assert start(machine, REPNE + encode("scas", 1, 64)) == EXIT_HLT
    assert len(machine.accesses) == 4
    assert machine.state.gpr[RCX] == 96


def test_a_request_stops_between_two_chunks_with_registers_at_the_next_element() -> None:
    """As plain Python, where the moment is ours to choose."""
    machine = Bare(64)
    state, cpu = machine.state, ptr[CpuState](machine.processor.address)
    machine.load(0x2800, bytes(range(256)) * 20)
    set_up(machine, rcx=5000, rsi=0x2800, rdi=0x8900)
    op = ptr[Op](machine.processor.code.scratch)
    op.seg = slot_of("zero")
    form = Form(kinds="--", w=1, widths=(0, 0), rep="rep")
    counts = [5000]
    state.pending = 1
    while counts[-1]:
        state.exit_reason = 0
        try:
            string.movs(cpu, op, form)
        except Stop:
            assert state.exit_reason == EXIT_PENDING
        counts.append(state.gpr[RCX])
        assert state.gpr[RSI] == 0x2800 + 5000 - counts[-1]
    assert all(0 < before - after <= 0x1000 for before, after in pairwise(counts))
    assert machine.bytes(0x8900, 5000) == (bytes(range(256)) * 20)[:5000]


@pytest.mark.parametrize("down", [False, True])
def test_code_written_by_a_string_instruction_is_executed_anew(down: bool) -> None:
    machine = Bare(64)
    target, new = 0x3000, bytes.fromhex("b802000000c3")            # mov eax,2; ret
    machine.load(target, bytes.fromhex("b801000000c3"))
    machine.load(0x5000, new)
    call = b"\xe8" + (target - CODE - 5).to_bytes(4, "little")
    copy = REP + encode("movs", 1, 64)
    back = b"\xe8" + (target - CODE - 5 - len(copy) - 2 - 5).to_bytes(4, "little", signed=True)
    code = call + b"\x89\xc2" + copy + back                        # mov edx,eax keeps the first answer
    offset = 5 if down else 0
    set_up(machine, rcx=6, rsi=0x5000 + offset, rdi=target + offset)
    assert start(machine, code, down) == EXIT_HLT
    assert (machine.state.gpr[RDX], machine.state.gpr[RAX]) == (1, 2)


def test_a_string_instruction_may_overwrite_what_follows_it() -> None:
    """The code page is its own destination: HLT becomes NOPs up to the HLT behind them."""
    machine = Bare(64)
    copy = REP + encode("stos", 1, 64)
    code = copy + HLT * 8 + b"\xb3\x07"                            # mov bl,7
    set_up(machine, rax=0x90, rcx=8, rdi=CODE + len(copy))
    assert start(machine, code) == EXIT_HLT
    assert machine.state.gpr[3] == 7
    assert machine.state.rip == CODE + len(code) + 1


def test_single_step_traps_after_each_iteration() -> None:
    machine = Bare(64)
    set_up(machine, rax=0x55, rcx=3, rdi=0x3000)
    machine.load(CODE, REP + encode("stos", 1, 64) + HLT)
    ends: list[tuple[int, int, int]] = []
    for _ in range(3):
        machine.state.flags = 0x102
        assert machine.run(None if ends else CODE) == EXIT_EXCEPTION
        ends.append((machine.state.exc_vector, machine.state.rip - CODE, machine.state.gpr[RCX]))
    assert ends == [(1, 0, 2), (1, 0, 1), (1, 2, 0)]
