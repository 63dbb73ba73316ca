"""Memory dumps for `x`, `xp` and `print`, in QEMU's layout."""

from collections.abc import Callable

from pellucid.monitor.errors import SyntaxProblem
from pellucid.monitor.expression import signed
from pellucid.records import dataclass, replace

Reader = Callable[[int, int], bytes | None]
"""(address, size) -> the bytes, or None when any of them is out of reach."""

SIZES = {"b": 1, "h": 2, "w": 4, "g": 8, "L": 8}
FORMATS = "xduoci"
MAX_BYTES = 1 << 18
"""What one command may show at most, so that a slip of the finger does not hold the machine up."""
MAX_INSTRUCTION = 15
ESCAPES = {ord("'"): "\\'", ord("\\"): "\\\\", ord("\n"): "\\n", ord("\r"): "\\r"}


@dataclass(frozen=True)
class Format:
    """The /fmt of a command: how many, as what (one of FORMATS), of how many bytes each."""

    count: int = 1
    kind: str = "x"
    size: int = 4


def parse_format(text: str, previous: Format) -> Format:
    """`4xg` and the like: a count, then letters in any order. What is not said stays as in the command before."""
    letters = text.lstrip("0123456789")
    digits = text[: len(text) - len(letters)]
    if len(digits) > 9:
        raise SyntaxProblem("count too large in format")
    result = replace(previous, count=int(digits) if digits else 1)
    for letter in letters:
        if letter in FORMATS:
            result = replace(result, kind=letter)
        elif letter in SIZES:
            result = replace(result, size=SIZES[letter])
        else:
            raise SyntaxProblem(f"invalid char in format: '{letter}'")
    return result


def memory_text(form: Format, address: int, read: Reader, bits: int) -> str:
    """The dump of `form.count` items from `address`; `bits` is the code size for instructions."""
    limit = MAX_BYTES // (MAX_INSTRUCTION if form.kind == "i" else form.size)
    if form.count > limit:
        raise SyntaxProblem(f"count too large in format: at most {limit} of these at once")
    if form.kind == "i":
        from pellucid.monitor.disassembly import disassembly  # with a decoder that no other form needs

        return disassembly(form.count, address, read, bits)
    size = 1 if form.kind == "c" else form.size
    per_line = 8 if size == 1 and form.kind != "c" else 16
    lines = []
    left = form.count * size
    while left > 0:
        length = min(left, per_line)
        content = read(address, length)
        if content is None:
            lines.append(f"{address:016x}: Cannot access memory")
            break
        items = (content[start : start + size] for start in range(0, length, size))
        lines.append(f"{address:016x}: " + " ".join(_item(form.kind, item) for item in items))
        address = (address + length) & (1 << 64) - 1
        left -= length
    return "".join(line + "\n" for line in lines)


def value_text(kind: str, value: int) -> str:
    """`print`'s form of a 64-bit value: 0x and 0 are C's prefixes, which zero does not get."""
    if kind == "x":
        return f"0x{value:x}" if value else "0"
    if kind == "o":
        return f"0{value:o}" if value else "0"
    if kind == "u":
        return str(value)
    if kind == "c":
        return character(value & 0xFF)
    return str(signed(value))


def character(byte: int) -> str:
    """A byte as a C character constant."""
    printable = chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}"
    return f"'{ESCAPES.get(byte, printable)}'"


def _item(kind: str, item: bytes) -> str:
    bits = 8 * len(item)
    value = int.from_bytes(item, "little")
    if kind == "c":
        return character(value)
    if kind == "x":
        return f"0x{value:0{bits // 4}x}"
    if kind == "o":
        digits = f"{value:0{(bits + 2) // 3}o}"
        return digits if digits[0] == "0" else "0" + digits
    width = {8: 3, 16: 5, 32: 10, 64: 20}[bits]
    return f"{value if kind == 'u' else signed(value, bits):{width}d}"
