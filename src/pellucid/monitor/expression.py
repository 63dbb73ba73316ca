"""Addresses and values in monitor commands: C-like expressions over 64-bit numbers and registers.

    expression = sum { ("&" | "|" | "^") sum }          one level for all three, left to right
    sum        = product { ("+" | "-") product }
    product    = unary { ("*" | "/" | "%") unary }
    unary      = ("+" | "-" | "~") unary | "(" expression ")" | "'" char "'" | "$" register | number

Values wrap at 64 bits; division is signed and truncates, as in C. Numbers are decimal, 0x... or 0... octal.
"""

import re
from collections.abc import Callable

from pellucid.monitor.errors import SyntaxProblem

MASK = (1 << 64) - 1
MAX_DEPTH = 100
"""Nesting beyond this is refused, well before the recursion could hurt."""

NUMBER = re.compile(r"0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*", re.ASCII)
REGISTER = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*", re.ASCII)


def evaluate(text: str, register: Callable[[str], int | None]) -> tuple[int, str]:
    """The value of the expression that `text` begins with, 0..2**64-1, and what follows it.

    `register` gives the value of a $name, None when it knows none of this name. SyntaxProblem: no expression.
    """
    parser = _Parser(text, register)
    return parser.expression(0), parser.rest


def signed(value: int, bits: int = 64) -> int:
    """`value` of `bits` bits read as two's complement."""
    return value - (1 << bits) if value >> (bits - 1) & 1 else value


class _Parser:
    def __init__(self, text: str, register: Callable[[str], int | None]) -> None:
        self.rest = text.strip()
        self._register = register

    def _take(self, count: int) -> str:
        taken, self.rest = self.rest[:count], self.rest[count:].lstrip()
        return taken

    def expression(self, depth: int) -> int:
        if depth > MAX_DEPTH:
            raise SyntaxProblem("expression nested too deeply")
        value = self._sum(depth)
        while self.rest[:1] in ("&", "|", "^") and self.rest:
            operator, right = self._take(1), self._sum(depth)
            value = {"&": value & right, "|": value | right, "^": value ^ right}[operator]
        return value

    def _sum(self, depth: int) -> int:
        value = self._product(depth)
        while self.rest[:1] in ("+", "-") and self.rest:
            operator, right = self._take(1), self._product(depth)
            value = (value + right if operator == "+" else value - right) & MASK
        return value

    def _product(self, depth: int) -> int:
        value = self._unary(depth)
        while self.rest[:1] in ("*", "/", "%") and self.rest:
            operator, right = self._take(1), self._unary(depth)
            value = value * right & MASK if operator == "*" else _divide(operator, value, right)
        return value

    def _unary(self, depth: int) -> int:
        if depth > MAX_DEPTH:
            raise SyntaxProblem("expression nested too deeply")
        first = self.rest[:1]
        if first in ("+", "-", "~") and first:
            self._take(1)
            value = self._unary(depth + 1)
            return {"+": value, "-": -value & MASK, "~": ~value & MASK}[first]
        if first == "(":
            self._take(1)
            value = self.expression(depth + 1)
            if self._take(1) != ")":
                raise SyntaxProblem("')' expected")
            return value
        if first == "'":
            return self._character()
        if first == "$":
            return self._register_value()
        return self._number()

    def _character(self) -> int:
        if len(self.rest) < 3 or self.rest[2] != "'":
            raise SyntaxProblem("missing terminating ' character")
        return ord(self._take(3)[1]) & 0xFF

    def _register_value(self) -> int:
        found = REGISTER.match(self.rest, 1)
        value = self._register(found[0]) if found else None
        if found is None or value is None:
            raise SyntaxProblem("unknown register")
        self._take(found.end())
        return value

    def _number(self) -> int:
        if not self.rest:
            raise SyntaxProblem("unexpected end of expression")
        found = NUMBER.match(self.rest)
        if found is None:
            raise SyntaxProblem(f"invalid char '{self.rest[0]}' in expression")
        # Beyond 22 octal digits no 64-bit number is left; Python's limit on decimal digits is far above that.
        text = self._take(found.end())
        value = 1 << 64 if len(text) > 64 else _integer(text)
        if value > MASK:
            raise SyntaxProblem("number too large")
        return value


def _integer(text: str) -> int:
    if text[:2] in ("0x", "0X"):
        return int(text, 16)
    return int(text, 8 if text[0] == "0" else 10)


def _divide(operator: str, left: int, right: int) -> int:
    dividend, divisor = signed(left), signed(right)
    if divisor == 0:
        raise SyntaxProblem("division by zero")
    quotient = abs(dividend) // abs(divisor)
    if (dividend < 0) != (divisor < 0):
        quotient = -quotient
    return (quotient if operator == "/" else dividend - quotient * divisor) & MASK
