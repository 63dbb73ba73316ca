"""Dumps and disassembly against text captured from QEMU 7.2's monitor."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.monitor.disassembly import disassembly
from pellucid.monitor.dump import Format, memory_text, parse_format, value_text
from pellucid.monitor.errors import CommandError

RESET_VECTOR = bytes.fromhex("e98dff66906690669066906690669090") + bytes(64)


def memory(start: int, content: bytes):  # type: ignore[no-untyped-def]
    def read(address: int, size: int) -> bytes | None:
        offset = address - start
        return content[offset : offset + size] if 0 <= offset and offset + size <= len(content) else None

    return read


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("8ob", "0351 0215 0377 0146 0220 0146 0220 0146"),
        ("4oh", "0106751 063377 063220 063220"),
        ("3ow", "014677706751 014644063220 014644063220"),
        ("2og", "0632203151014677706751 01102203151014644063220"),
        ("4ub", "233 141 255 102"),
        ("3uh", "36329 26367 26256"),
        ("4uw", "1728024041 1720739472 1720739472 2425382544"),
        ("2ug", " 7390519758904331753 10416938708490020496"),
        ("2dg", " 7390519758904331753 -8029805365219531120"),
        ("3xw", "0x66ff8de9 0x66906690 0x66906690"),
        ("xb", "0xe9"),
        ("4c", r"'\xe9' '\x8d' '\xff' 'f'"),
    ],
)
def test_one_line(form: str, text: str) -> None:
    dumped = memory_text(parse_format(form, Format()), 0xFFFF0, memory(0xFFFF0, RESET_VECTOR), 16)
    assert dumped == f"00000000000ffff0: {text}\n"


def test_signed_bytes_are_signed() -> None:
    assert memory_text(Format(2, "d", 1), 0, memory(0, b"\xff\x7f"), 16) == "0000000000000000:  -1 127\n"


def test_bytes_come_eight_to_a_line_and_the_rest_sixteen_bytes() -> None:
    read = memory(0xFFFF0, RESET_VECTOR)
    assert [line[:18] for line in memory_text(Format(10, "x", 1), 0xFFFF0, read, 16).splitlines()] == [
        "00000000000ffff0: ",
        "00000000000ffff8: ",
    ]
    assert len(memory_text(Format(5, "x", 8), 0xFFFF0, read, 16).splitlines()) == 3
    assert len(memory_text(Format(16, "c", 8), 0xFFFF0, read, 16).splitlines()) == 1


def test_it_stops_where_memory_does() -> None:
    dumped = memory_text(Format(4, "x", 8), 0x1000, memory(0x1000, bytes(16)), 16)
    assert dumped == (
        "0000000000001000: 0x0000000000000000 0x0000000000000000\n0000000000001010: Cannot access memory\n"
    )


LONG_MODE = """\
0xffffffffb2e17a10:  eb 07                    jmp      0xffffffffb2e17a19
0xffffffffb2e17a12:  cc                       int3     
0xffffffffb2e17a13:  f4                       hlt      
0xffffffffb2e17a14:  c3                       retq     
0xffffffffb2e17a15: unable to read memory
"""  # noqa: W291 -- QEMU pads the mnemonic

REAL_MODE = """\
0x00010c0c:  66 53                    pushl    %ebx
0x00010c0e:  66 31 c9                 xorl     %ecx, %ecx
0x00010c11:  66 bb 01 00 00 00        movl     $1, %ebx
0x00010c17:  67 66 8b 04 8d ac 46 00  movl     0x46ac(, %ecx, 4), %eax
0x00010c1f:  00
0x00010c20:  0f                       .byte    0x0f
0x00010c21:  00 ff                    addb     %bh, %bh
"""


def test_disassembly_of_64_bit_code() -> None:
    code = memory(0xFFFFFFFFB2E17A10, bytes.fromhex("eb07ccf4c3"))
    assert disassembly(9, 0xFFFFFFFFB2E17A10, near_the_end(code, 0xFFFFFFFFB2E17A15), 64) == LONG_MODE


def near_the_end(read, end: int):  # type: ignore[no-untyped-def]
    """`read`, with zeros behind `end` for reads that begin before it."""
    return lambda address, size: (read(address, end - address) + bytes(size))[:size] if address < end else None


def test_disassembly_of_16_bit_code() -> None:
    code = bytes.fromhex("66536631c966bb0100000067668b048dac460000" + "0f0400ff")
    code = code.replace(bytes.fromhex("0f04"), bytes.fromhex("0f"))
    assert disassembly(6, 0x10C0C, near_the_end(memory(0x10C0C, code), 0x10C0C + len(code)), 16) == REAL_MODE


def test_an_instruction_at_the_end_of_a_page_before_unmapped_memory() -> None:
    text = disassembly(2, 0x1FFE, memory(0x1000, bytes(0xFFE) + b"\xeb\xfe"), 32)
    assert text.splitlines()[0].endswith("jmp      0x1ffe")
    assert text.splitlines()[1] == "0x00002000: unable to read memory"


def test_formats_persist_but_counts_do_not() -> None:
    first = parse_format("4ug", Format())
    assert (first.count, first.kind, first.size) == (4, "u", 8)
    assert parse_format("", first) == Format(1, "u", 8)
    assert parse_format("xb", first) == Format(1, "x", 1)


@pytest.mark.parametrize("text", ["z", "-4x", "4s", "x4"])
def test_unknown_letters(text: str) -> None:
    with pytest.raises(CommandError, match="invalid char in format"):
        parse_format(text, Format())


@pytest.mark.parametrize("form", [Format(1 << 20, "x", 4), Format(1 << 20, "i", 4)])
def test_the_amount_is_bounded(form: Format) -> None:
    with pytest.raises(CommandError, match="count too large"):
        memory_text(form, 0, memory(0, b""), 64)


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("x", 0xFFF0, "0xfff0"), ("x", 0, "0"), ("o", 8, "010"), ("o", 0, "0"), ("c", 65, "'A'"), ("c", 39, r"'\''"),
        ("u", (1 << 64) - 1, "18446744073709551615"), ("d", (1 << 64) - 1, "-1"), ("i", 2, "2"),
    ],
)  # fmt: skip
def test_printed_values(kind: str, value: int, text: str) -> None:
    assert value_text(kind, value) == text


@given(st.binary(min_size=1, max_size=40), st.sampled_from([16, 32, 64]), st.integers(0, (1 << 64) - 1))
def test_any_bytes_disassemble(code: bytes, bits: int, address: int) -> None:
    lines = disassembly(len(code), address, lambda where, size: (code * 2)[: min(size, 15)].ljust(size, b"\x90"), bits)
    assert lines.count("\n") >= len(code)
