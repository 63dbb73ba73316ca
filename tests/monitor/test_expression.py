"""Expressions of monitor commands: values, C's rules, and no input that breaks the parser."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.monitor.errors import CommandError
from pellucid.monitor.expression import MASK, evaluate, signed


def value(text: str) -> int:
    value, rest = evaluate(text, {"rax": 5, "pc": 0xFFFFFFF0}.get)
    if rest:
        raise CommandError(f"left: {rest}")
    return value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0), ("42", 42), ("010", 8), ("0x1F", 31), ("0Xff", 255), ("'a'", 97), ("1 + 2*3", 7), ("(1+2)*3", 9),
        ("7%4", 3), ("1|2&3^4", 7), ("~0", MASK), ("-1", MASK), ("-7/2", MASK - 2), ("-7 % 2", MASK), ("--3", 3),
        ("$rax", 5), ("$pc+0x10*2", 0x100000010), ("0xffffffffffffffff + 1", 0), ("  ( $rax ) ", 5), ("10-2-3", 5),
    ],
)  # fmt: skip
def test_values(text: str, expected: int) -> None:
    assert value(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unexpected end of expression"), ("1+", "unexpected end of expression"), ("foo", "invalid char 'f'"),
        ("$nonsense", "unknown register"), ("$", "unknown register"), ("(1", "')' expected"),
        ("1/0", "division by zero"), ("1%0", "division by zero"), ("1 2", "left: 2"), ("1)", "left: )"),
        ("0x", "left: x"),
        ("0x1ffffffffffffffff", "number too large"), ("9" * 5000, "number too large"), ("'a", "missing terminating"),
        ("(" * 5000, "nested too deeply"), ("-" * 5000, "nested too deeply"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(text: str, message: str) -> None:
    with pytest.raises(CommandError, match=message.replace("(", r"\(").replace(")", r"\)")):
        value(text)


@given(st.integers(0, MASK), st.integers(0, MASK), st.sampled_from("+-*&|^"))
def test_arithmetic_wraps_as_64_bit_words_do(left: int, right: int, operator: str) -> None:
    expected = {"+": left + right, "-": left - right, "*": left * right, "&": left & right, "|": left | right}
    assert value(f"{left:#x} {operator} {right}") == expected.get(operator, left ^ right) & MASK


@given(st.integers(-(1 << 63), (1 << 63) - 1), st.integers(1, (1 << 63) - 1))
def test_division_truncates(left: int, right: int) -> None:
    quotient, remainder = signed(value(f"{left} / {right}")), signed(value(f"{left} % {right}"))
    assert quotient * right + remainder == left
    assert abs(remainder) < right and (remainder == 0 or (remainder < 0) == (left < 0))


@given(st.text(alphabet="0123456789abcxXf()+-*/%&|^~$'. ", max_size=60))
def test_any_text_gives_a_value_or_an_answer(text: str) -> None:
    try:
        assert 0 <= value(text) <= MASK
    except CommandError as error:
        assert str(error)
