"""PIRQ lines and their steering to ISA interrupts, as PIIX3 and ICH9 do it: one routing register for each line.

Several lines may lead to one ISA interrupt, so that interrupt is high while any line that leads to it is.
"""

from collections.abc import Callable, Sequence

from pellucid.machine.irq import IrqLine

ROUTING_DISABLED, ROUTED_TO = 0x80, 0x0F
UNROUTABLE = (0, 1, 2, 8, 13)
"""ISA interrupts that the data sheets reserve."""


def routed_to(register: int) -> int | None:
    """The ISA interrupt that a routing register's value leads to; reserved ones are as good as none."""
    irq = register & ROUTED_TO
    return None if register & ROUTING_DISABLED or irq in UNROUTABLE else irq


class PirqLines:
    """`count` lines.

    `line_of(slot, pin)` says which line a pin (0 is INTA#) is wired to, `routing(line)` reads the routing register of a
    line, `isa_irqs` are the 16 inputs of the PIC pair. `direct`, where a chip has it, hears of each line's level too.
    """

    def __init__(
        self,
        count: int,
        line_of: Callable[[int, int], int],
        routing: Callable[[int], int],
        isa_irqs: Sequence[IrqLine],
        direct: Sequence[IrqLine] = (),
    ) -> None:
        self.count = count
        self._line_of, self._routing, self._isa_irqs, self._direct = line_of, routing, isa_irqs, direct
        self._pins: dict[tuple[int, int], int] = {}
        """How many functions hold a slot's pin."""
        self._high: set[int] = set()
        self._lines: set[int] = set()

    def change(self, slot: int, pin: int, level: bool) -> None:
        """A function's pin rose or fell."""
        self._pins[slot, pin] = self._pins.get((slot, pin), 0) + (1 if level else -1)
        self.drive()

    def drive(self) -> None:
        """Bring everything up to date with pins, wiring and registers."""
        lines = {self._line_of(*place) for place, holders in self._pins.items() if holders}
        routes = {routed_to(self._routing(line)) for line in lines}
        irqs = {irq for irq in routes if irq is not None}
        _drive(self._isa_irqs, self._high, irqs)
        if self._direct:
            _drive(self._direct, self._lines, lines)
        self._high, self._lines = irqs, lines


def _drive(lines: Sequence[IrqLine], before: set[int], now: set[int]) -> None:
    for number in before - now:
        lines[number].set(False)
    for number in now - before:
        lines[number].set(True)
