"""Ports: what leaves the engine, once each, and who may use them."""

from __future__ import annotations

import random

import pytest
from pellucid.cpu.state import EXIT_EXCEPTION, EXIT_HLT, EXIT_IO, EXIT_MMIO, GP, RFLAGS_VM, TR
from tests.cpu.bare import MMIO, Access, Bare

RAX, RCX, RDX, RSI, RDI = 0, 1, 2, 6, 7
CODE, TSS, HLT = 0x1000, 0x6000, b"\xf4"
IO_MAP_BASE = 102


def execute(machine: Bare, code: bytes) -> int:
    machine.load(CODE, code + HLT)
    return machine.run(CODE)


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize(("code", "size"), [("e471", 1), ("e571", 4), ("66e571", 2), ("ec", 1), ("ed", 4)])
def test_in(bits: int, code: str, size: int) -> None:
    if bits == 16 and size > 1:
        size = 6 - size
    machine = Bare(bits, read=lambda address, length: 0x8899_AABB)
    machine.state.gpr[RAX], machine.state.gpr[RDX] = 0x1122_3344_5566_7788, 0x1_0000_0071
    assert execute(machine, bytes.fromhex(code)) == EXIT_HLT
    assert machine.accesses == [Access(0x71, size, None)]
    expected = {1: 0x1122_3344_5566_77BB, 2: 0x1122_3344_5566_AABB, 4: 0x8899_AABB}
    assert machine.state.gpr[RAX] == expected[size]


@pytest.mark.parametrize(("code", "size"), [("e680", 1), ("e780", 4), ("66e780", 2), ("ee", 1), ("ef", 4)])
def test_out(code: str, size: int) -> None:
    machine = Bare(64)
    machine.state.gpr[RAX], machine.state.gpr[RDX] = 0x1122_3344, 0x80
    assert execute(machine, bytes.fromhex(code)) == EXIT_HLT
    assert machine.accesses == [Access(0x80, size, 0x1122_3344 & (1 << 8 * size) - 1)]
    assert machine.state.gpr[RAX] == 0x1122_3344


def test_rep_insw_reads_once_for_each_element_and_outsb_writes_once() -> None:
    words = iter(range(0x100, 0x200))
    machine = Bare(64, read=lambda address, size: next(words))
    s = machine.state
    s.gpr[RDX], s.gpr[RCX], s.gpr[RDI] = 0x1F0, 200, 0x2FF1
    assert execute(machine, bytes.fromhex("f3666d")) == EXIT_HLT
    assert machine.accesses == [Access(0x1F0, 2, None)] * 200
    assert machine.bytes(0x2FF1, 400) == b"".join(i.to_bytes(2, "little") for i in range(0x100, 0x100 + 200))
    machine.accesses.clear()
    s.gpr[RCX], s.gpr[RSI] = 3, 0x2FF1
    assert execute(machine, bytes.fromhex("f36e")) == EXIT_HLT
    assert [access.value for access in machine.accesses] == [0, 1, 1]
    assert (s.gpr[RCX], s.gpr[RSI]) == (0, 0x2FF4)


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize(("code", "size"), [("f36c", 1), ("f36d", 4), ("f3666d", 2)])
def test_ins_takes_as_many_elements_as_there_are_up_to_the_end_of_the_page(bits: int, code: str, size: int) -> None:
    """Whatever a device gives at once, memory and registers end as with one element after the other."""
    size = 6 - size if bits == 16 and size > 1 else size
    rng = random.Random(bits + size)
    stream = rng.randbytes(9000 // size * size)
    machine = Bare(bits)
    s = machine.state
    s.gpr[RDX], s.gpr[RCX], s.gpr[RDI] = 0x1F0, len(stream) // size, 0x2F00
    machine.load(CODE, bytes.fromhex(code) + HLT)
    s.rip = CODE
    sent = most = 0
    while machine.processor.run() == EXIT_IO:
        assert (s.io_address, s.io_size, s.io_write) == (0x1F0, size, 0)
        count = max(s.io_count, 1)
        at = 0x2F00 + sent
        assert at % 4096 + count * size <= 4096 or count == 1, "no further than the page"
        take = rng.randrange(1, count + 1)
        most = max(most, take)
        if s.io_count:
            machine.processor.complete_string(stream[sent : sent + take * size])
        else:
            machine.processor.complete(int.from_bytes(stream[sent : sent + size], "little"))
            take = 1
        sent += take * size
    assert s.exit_reason == EXIT_HLT and sent == len(stream) and most > 100
    assert machine.bytes(0x2F00, len(stream)) == stream
    assert (s.gpr[RCX], s.gpr[RDI]) == (0, 0x2F00 + len(stream))


def test_ins_goes_one_by_one_where_it_must() -> None:
    """Downwards, and into a device."""
    for flags, destination in ((0x402, 0x2FF0), (2, MMIO)):
        machine = Bare(64)
        s = machine.state
        s.gpr[RDX], s.gpr[RCX], s.gpr[RDI], s.flags = 0x60, 4, destination, flags
        machine.load(CODE, bytes.fromhex("f36c") + HLT)
        s.rip = CODE
        while (reason := machine.processor.run()) in (EXIT_IO, EXIT_MMIO):
            assert s.io_count == 0
            machine.processor.complete(0x5A)
        assert reason == EXIT_HLT and s.gpr[RCX] == 0


def test_ins_over_code_that_was_translated() -> None:
    """What INS has written is executed, not what stood there."""
    machine = Bare(64)
    s = machine.state
    machine.load(0x3000, bytes.fromhex("b001") + HLT)  # mov al, 1
    assert machine.run(0x3000) == EXIT_HLT and s.gpr[RAX] & 0xFF == 1
    s.gpr[RDX], s.gpr[RCX], s.gpr[RDI] = 0x60, 2, 0x3000
    machine.load(CODE, bytes.fromhex("f36c") + HLT)
    s.rip = CODE
    while machine.processor.run() == EXIT_IO:
        machine.processor.complete_string(bytes.fromhex("b077")[2 - s.gpr[RCX] :])
    assert machine.run(0x3000) == EXIT_HLT and s.gpr[RAX] & 0xFF == 0x77


def test_a_port_is_not_read_when_the_destination_faults() -> None:
    machine = Bare(64)
    machine.state.gpr[RDI], machine.state.gpr[RDX] = 1 << 63, 0x60
    assert execute(machine, b"\x6c") == EXIT_EXCEPTION
    assert machine.accesses == []


def test_outs_from_a_device_to_a_port() -> None:
    machine = Bare(64, read=lambda address, size: 0x5A)
    machine.state.gpr[RSI], machine.state.gpr[RDX] = MMIO, 0x60
    assert execute(machine, b"\x6e") == EXIT_HLT
    assert machine.accesses == [Access(MMIO, 1, None), Access(0x60, 1, 0x5A)]


# --- permission ------------------------------------------------------------------------------------------


def user(bits: int, denied: set[int], limit: int = 0x1100, iopl: int = 0) -> Bare:
    """CPL 3 with a TSS that denies these ports."""
    machine = Bare(bits)
    s = machine.state
    s.cpl, s.flags = 3, 2 | iopl << 12
    s.seg_base[TR], s.seg_limit[TR], s.seg_attr[TR] = TSS, limit, 0x8B
    bitmap = bytearray(0x400)
    for port in denied:
        bitmap[port >> 3] |= 1 << (port & 7)
    machine.load(TSS + IO_MAP_BASE, (0x80).to_bytes(2, "little"))
    machine.load(TSS + 0x80, bytes(bitmap) + b"\xff" * 8)
    machine.processor.refresh_mode()
    return machine


def allowed(machine: Bare, port: int, size: int) -> bool:
    machine.state.gpr[RDX] = port
    machine.accesses.clear()
    code = {1: b"\xec", 2: b"\x66\xed", 4: b"\xed"}[size] if machine.bits != 16 else {1: b"\xec", 2: b"\xed"}[size]
    assert execute(machine, code + b"\x0f\x0b") == EXIT_EXCEPTION
    if machine.state.exc_vector == 6:
        assert machine.accesses == [Access(port, size, None)]
        return True
    assert (machine.state.exc_vector, machine.state.exc_error, machine.state.rip) == (GP, 0, CODE)
    assert machine.accesses == []
    return False


@pytest.mark.parametrize("bits", [32, 64])
def test_the_bitmap_decides_for_every_byte_of_the_access(bits: int) -> None:
    denied = {0x61, 0x67, 0x70, 0x3F8, 0x1FFF}
    machine = user(bits, denied)
    rng = random.Random(bits)
    for port in [0x5F, 0x60, 0x61, 0x64, 0x66, 0x68, 0x6D, 0x3F5, 0x3F8, 0x1FFC] + rng.sample(range(0x2000), 20):
        for size in (1, 2, 4):
            assert allowed(machine, port, size) == denied.isdisjoint(range(port, port + size)), (port, size)


def test_a_port_beyond_the_limit_of_the_tss_is_denied() -> None:
    machine = user(64, set(), limit=0x80 + 4)
    assert allowed(machine, 0x1F, 1)          # bytes 3 and 4 of the map
    assert not allowed(machine, 0x20, 1)      # bytes 4 and 5
    machine = user(64, set(), limit=IO_MAP_BASE)
    assert not allowed(machine, 0, 1)


def test_iopl_and_the_kind_of_tss() -> None:
    machine = user(64, {0x60}, iopl=3)
    assert allowed(machine, 0x60, 1)
    machine = user(32, set())
    machine.state.seg_attr[TR] = 0x83         # a 16-bit TSS has no map
    assert not allowed(machine, 0x60, 1)


def test_virtual_8086_mode_asks_the_bitmap_whatever_the_iopl() -> None:
    machine = user(32, {0x60}, iopl=3)
    s = machine.state
    s.flags |= RFLAGS_VM
    for number in range(6):
        s.seg_attr[number], s.seg_limit[number] = 0xF3, 0xFFFF
    machine.bits = 16
    machine.processor.refresh_mode()
    assert not allowed(machine, 0x60, 1)
    assert allowed(machine, 0x61, 1)
    assert allowed(machine, 0x61, 2)
    assert not allowed(machine, 0x5F, 2)


def test_rep_checks_the_port_even_for_a_count_of_zero() -> None:
    machine = user(64, {0x60})
    machine.state.gpr[RCX], machine.state.gpr[RDX] = 0, 0x60
    assert execute(machine, b"\xf3\x6c") == EXIT_EXCEPTION
    assert machine.state.exc_vector == GP
