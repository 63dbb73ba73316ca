"""I/O ports read and written by hand."""

from pellucid.monitor.command import Address, Fmt, command
from pellucid.monitor.dump import Format, parse_format
from pellucid.monitor.session import Session

PORT_MASK = 0xFFFF
LETTERS = {1: "b", 2: "w", 4: "l"}


def _size(fmt: str | None) -> int:
    return min(parse_format(fmt or "", Format()).size, 4)


@command(hmp="i", help="I/O port read", syntax="/fmt addr")
def i(session: Session, fmt: Fmt, addr: Address) -> str:
    """What a guest's IN would get; /b, /h or /w says how wide."""
    size, port = _size(fmt), addr & PORT_MASK
    value = session.machine.port_read(port, size)
    return f"port{LETTERS[size]}[0x{port:04x}] = 0x{value:0{size * 2}x}\n"


@command(hmp="o", help="I/O port write", syntax="/fmt addr value")
def o(session: Session, fmt: Fmt, addr: Address, value: Address) -> None:
    """What a guest's OUT would do."""
    size = _size(fmt)
    session.machine.port_write(addr & PORT_MASK, size, value & (1 << 8 * size) - 1)
