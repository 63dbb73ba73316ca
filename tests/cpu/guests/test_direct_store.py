"""MOVDIRI, MOVDIR64B, CLZERO."""

import pytest

from .machine import DATA, DEVICE, Machine

PATTERN = bytes(range(1, 129))


def machine(source: str) -> Machine:
    m = Machine()
    m.long(source + "\nhlt")
    m.write_bytes(DATA, PATTERN)
    s = m.state
    s.gpr[0], s.gpr[6], s.gpr[7] = DATA + 0x79, DATA, DATA + 0x400
    return m


def test_movdiri_is_a_store() -> None:
    m = machine("movdiri [rdi], ebx\nmovdiri [rdi + 8], rbx")
    m.state.gpr[3] = 0x1122_3344_5566_7788
    assert m.run().reason == 5
    assert (m.read(DATA + 0x400, 8), m.read(DATA + 0x408, 8)) == (0x5566_7788, 0x1122_3344_5566_7788)


@pytest.mark.parametrize("source", [0, 3])
def test_movdir64b_copies_a_line(source: int) -> None:
    m = machine(f"movdir64b rdi, [rsi + {source}]")
    assert m.run().reason == 5
    assert m.read_bytes(DATA + 0x400, 64) == PATTERN[source:source + 64]
    assert m.read_bytes(DATA + 0x3F8, 8) == m.read_bytes(DATA + 0x440, 8) == bytes(8)


def test_movdir64b_onto_what_it_reads() -> None:
    m = machine("movdir64b rdi, [rsi + 32]")
    m.state.gpr[7] = DATA
    assert m.run().reason == 5 and m.read_bytes(DATA, 64) == PATTERN[32:96]


@pytest.mark.parametrize("offset", [1, 8, 32, 63])
def test_movdir64b_needs_an_aligned_destination(offset: int) -> None:
    m = machine("movdir64b rdi, [rsi]")
    m.state.gpr[7] += offset
    assert m.catch() == 13
    assert m.read_bytes(DATA + 0x400, 128) == bytes(128)


def test_movdir64b_faults() -> None:
    m = machine("movdir64b rdi, [rsi]")
    m.state.gpr[7] = 1 << 40
    assert m.catch() == 14 and m.state.cr2 == 1 << 40 and m.stack(1, 8)[0] & 2
    m = machine("movdir64b rdi, [rsi]")
    m.state.gpr[6] = 1 << 40
    assert m.catch() == 14 and m.state.cr2 == 1 << 40 and not m.stack(1, 8)[0] & 2
    m = machine("movdir64b rdi, [rsi]")
    m.state.gpr[7] = 1 << 60
    assert m.catch() == 13
    m = machine("movdir64b edi, [esi]")
    m.state.gpr[7] |= 1 << 32
    assert m.run().reason == 5 and m.read_bytes(DATA + 0x400, 64) == PATTERN[:64]


def test_movdir64b_goes_through_es() -> None:
    m = Machine()
    m.protected("movdir64b edi, [esi]\nhlt")
    m.write_bytes(DATA, PATTERN)
    s = m.state
    s.gpr[6], s.gpr[7], s.seg_base[0] = DATA, DATA, 0x1000
    m.refresh()
    assert m.run().reason == 5 and m.read_bytes(DATA + 0x1000, 64) == PATTERN[:64]
    m = Machine()
    m.protected("movdir64b edi, [esi]\nhlt")
    m.state.gpr[6], m.state.gpr[7], m.state.seg_limit[0] = DATA, DATA, DATA + 62
    m.refresh()
    assert m.catch() == 13


def test_movdir64b_to_a_device() -> None:
    m = machine("movdir64b rdi, [rsi]")
    assert m.pages is not None
    m.pages.map(DEVICE, DEVICE, 7)
    m.state.gpr[7] = DEVICE + 0x40
    assert m.run().reason == 5
    written = b"".join(value.to_bytes(size, "little") for kind, _, size, value in m.trace if kind == "write")
    assert written == PATTERN[:64] and [address for _, address, _, _ in m.trace] == [
        DEVICE + 0x40 + 8 * n for n in range(8)]


def test_clzero_zeroes_the_line_around_rax() -> None:
    m = machine("clzero")
    assert m.run().reason == 5
    assert m.read_bytes(DATA, 128) == PATTERN[:64] + bytes(64)
    m = machine("clzero")
    m.state.gpr[0] = 1 << 40
    assert m.catch() == 14 and m.stack(1, 8)[0] & 2


def test_a_line_of_code_is_seen_to_change() -> None:
    """The stored bytes are executed by the instructions right behind."""
    m = machine("movdir64b rdi, [rsi]\njmp rdi")
    m.write_bytes(DATA, (b"\xbb\x05\0\0\0\xf4").ljust(64, b"\x90"))  # mov ebx, 5; hlt
    m.write_bytes(DATA + 0x400, b"\xbb\x09\0\0\0\xff\xe1")  # mov ebx, 9; jmp rcx
    m.state.gpr[1], start = m.state.rip, m.state.rip
    m.state.rip = DATA + 0x400
    m.refresh()
    assert m.run().reason == 5 and m.state.gpr[3] == 5 and start
