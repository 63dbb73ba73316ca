"""The pair of cascaded 8259A interrupt controllers of a PC, with the ELCR of the ISA bridge.

Data sheet: Intel 8259A. As in the chipsets that integrate the pair (and in KVM), trigger mode is chosen per pin by the
ELCR instead of ICW1's LTIM, the cascade on master pin 2 is hard-wired, so ICW1's SNGL and ICW3's content do not matter,
and a request on an edge pin stays latched when its line falls.

Master pin 2 is not an input of its own but follows the slave's INT output at every change.
"""

from collections.abc import Callable

from pellucid.kvm.errors import StateError
from pellucid.kvm.irqchip.apicdef import IrqchipLock
from pellucid.kvm.irqchip.state import PicState

PIC_MASTER_BASE = 0x20
PIC_SLAVE_BASE = 0xA0
PIC_ELCR_BASE = 0x4D0
PIC_CASCADE_PIN = 2
SPURIOUS_PIN = 7

_ELCR_MASK = (0xF8, 0xDE)  # IRQ 0, 1, 2, 8 and 13 are edge-triggered always

_READY, _WAIT_ICW2, _WAIT_ICW3, _WAIT_ICW4 = range(4)


class _Chip:
    """One 8259A: registers, priority resolution and commands. `PicPair` owns lock and wiring."""

    __slots__ = (
        "auto_eoi", "elcr", "elcr_mask", "ended", "imr", "init4", "init_state", "irq_base", "irr", "is_master", "isr",
        "last_irr", "poll", "priority_add", "read_reg_select", "rotate_on_auto_eoi", "special_fully_nested_mode",
        "special_mask",
    )  # fmt: skip

    def __init__(self, is_master: bool) -> None:
        self.is_master = is_master
        self.elcr_mask = _ELCR_MASK[0 if is_master else 1]
        self.ended = 0
        """Pins whose interrupt was ended since the owner looked: a bit set."""
        self.elcr = 0
        self.reset()

    def reset(self) -> None:
        """As after power-up; trigger modes and line levels stay with the board."""
        self.last_irr = self.irr = self.imr = self.isr = 0
        self.priority_add = self.irq_base = 0
        self.read_reg_select = self.poll = self.special_mask = 0
        self.init_state = _READY
        self.auto_eoi = self.rotate_on_auto_eoi = self.special_fully_nested_mode = self.init4 = 0

    # ---- requests

    def set_line(self, pin: int, level: bool) -> None:
        """The level of an input pin."""
        mask = 1 << pin
        if not level:
            self.last_irr &= ~mask
            if self.elcr & mask:
                self.irr &= ~mask
        else:
            if self.elcr & mask or not self.last_irr & mask:
                self.irr |= mask
            self.last_irr |= mask

    def _highest(self, pins: int) -> int:
        """Rank of the first pin of a set in the present rotation, 0 the highest; 8 for the empty set."""
        if not pins:
            return 8
        rotated = (pins | pins << 8) >> self.priority_add & 0xFF
        return (rotated & -rotated).bit_length() - 1

    def request(self) -> int | None:
        """The pin to interrupt for: unmasked, and above everything in service; None when there is none."""
        pending = self.irr & ~self.imr
        if not pending:
            return None
        in_service = self.isr
        if self.special_mask:
            in_service &= ~self.imr
        if self.special_fully_nested_mode and self.is_master:
            in_service &= ~(1 << PIC_CASCADE_PIN)
        rank = self._highest(pending)
        return (rank + self.priority_add) & 7 if rank < self._highest(in_service) else None

    def acknowledge(self, pin: int) -> None:
        """INTA for `pin`: into service, or with automatic EOI ended at once."""
        mask = 1 << pin
        if not self.elcr & mask:
            self.irr &= ~mask
        if not self.auto_eoi:
            self.isr |= mask
            return
        if self.rotate_on_auto_eoi:
            self.priority_add = (pin + 1) & 7
        self.ended |= mask

    def inta(self) -> int:
        """The interrupt-acknowledge cycle: the pin taken, or the spurious one when the request is gone."""
        pin = self.request()
        if pin is None:
            return SPURIOUS_PIN
        self.acknowledge(pin)
        return pin

    def _end(self, pin: int) -> None:
        self.isr &= ~(1 << pin)
        self.ended |= 1 << pin

    # ---- command words

    def write_command(self, value: int) -> None:
        """A write at offset 0: ICW1, OCW2 or OCW3."""
        if value & 0x10:
            self._icw1(value)
        elif value & 0x08:
            self._ocw3(value)
        else:
            self._ocw2(value >> 5, value & 7)

    def _icw1(self, value: int) -> None:
        self.init4 = value & 1
        self.last_irr = 0
        self.irr &= self.elcr
        self.imr = self.priority_add = 0
        self.special_mask = self.read_reg_select = self.poll = 0
        self.ended |= self.isr
        self.isr = 0
        self.auto_eoi = self.rotate_on_auto_eoi = self.special_fully_nested_mode = 0
        self.init_state = _WAIT_ICW2

    def _ocw3(self, value: int) -> None:
        self.poll = value >> 2 & 1
        if value & 0x02:
            self.read_reg_select = value & 1
        if value & 0x40:
            self.special_mask = value >> 5 & 1

    def _ocw2(self, command: int, pin: int) -> None:
        if command in (1, 5):  # non-specific EOI, with rotation
            rank = self._highest(self.isr & ~self.imr if self.special_mask else self.isr)
            if rank < 8:
                ended = (rank + self.priority_add) & 7
                self._end(ended)
                if command == 5:
                    self.priority_add = (ended + 1) & 7
        elif command in (3, 7):  # specific EOI, with rotation
            self._end(pin)
            if command == 7:
                self.priority_add = (pin + 1) & 7
        elif command == 6:  # set priority: `pin` becomes the lowest
            self.priority_add = (pin + 1) & 7
        elif command in (0, 4):  # rotate in automatic EOI mode: clear, set
            self.rotate_on_auto_eoi = command >> 2

    def write_data(self, value: int) -> None:
        """A write at offset 1: OCW1 (the mask), or the next initialization word."""
        if self.init_state == _READY:
            self.imr = value
        elif self.init_state == _WAIT_ICW2:
            self.irq_base = value & 0xF8
            self.init_state = _WAIT_ICW3
        elif self.init_state == _WAIT_ICW3:
            self.init_state = _WAIT_ICW4 if self.init4 else _READY
        else:
            self.special_fully_nested_mode = value >> 4 & 1
            self.auto_eoi = value >> 1 & 1
            self.init_state = _READY

    def read(self, offset: int) -> int:
        """IRR or ISR at offset 0, IMR at 1. The answer to a poll command is the owner's."""
        if offset:
            return self.imr
        return self.isr if self.read_reg_select else self.irr

    # ---- saved state

    def get_state(self) -> PicState:
        """The registers in KVM's structure."""
        return PicState(**{name: getattr(self, name) for name in PicState.__dataclass_fields__})

    def set_state(self, state: PicState) -> None:
        """Take over registers; `StateError` for values no 8259A holds."""
        _check_state(state)
        for name in PicState.__dataclass_fields__:
            if name != "elcr_mask":
                setattr(self, name, getattr(state, name))
        self.elcr &= self.elcr_mask


def _check_state(state: PicState) -> None:
    limits = {"priority_add": 7, "init_state": _WAIT_ICW4, "read_reg_select": 1, "poll": 1, "special_mask": 1}
    flags = ("auto_eoi", "rotate_on_auto_eoi", "special_fully_nested_mode", "init4")
    for name, limit in {**limits, **dict.fromkeys(flags, 1)}.items():
        if getattr(state, name) > limit:
            raise StateError(f"PicState.{name}: {getattr(state, name)} is above {limit}")
    if state.irq_base & 7:
        raise StateError(f"PicState.irq_base: {state.irq_base:#x} is not a multiple of 8")


class PicPair:
    """Master and slave 8259A. Pins are 0 to 15, the slave's being 8 to 15.

    `output_changed(level)` hears of every change of INTR; `acked(pin)` of every ended interrupt;
    `mask_changed(pin, masked)` of changed mask bits. All are called with the lock held.
    """

    def __init__(
        self,
        lock: IrqchipLock,
        *,
        output_changed: Callable[[bool], None] = lambda level: None,
        acked: Callable[[int], None] = lambda pin: None,
        mask_changed: Callable[[int, bool], None] = lambda pin, masked: None,
    ) -> None:
        self._lock = lock
        self._output_changed = output_changed
        self._acked = acked
        self._mask_changed = mask_changed
        self._chips = (_Chip(is_master=True), _Chip(is_master=False))
        self.output = False
        """The level of INTR."""

    def reset(self) -> None:
        """As after power-up."""
        with self._lock:
            for chip in self._chips:
                chip.reset()
            self._update()

    def set_irq(self, pin: int, level: bool) -> None:
        """The level of an input pin; pin 2 is the cascade and has no line."""
        if pin == PIC_CASCADE_PIN:
            return
        with self._lock:
            self._chips[pin >> 3].set_line(pin & 7, level)
            self._update()

    def read_irq(self) -> int:
        """The INTA cycle: the vector of the interrupt to take, the spurious one (pin 7's) when the request is gone."""
        master, slave = self._chips
        with self._lock:
            pin = master.inta()
            vector = slave.irq_base + slave.inta() if pin == PIC_CASCADE_PIN else master.irq_base + pin
            self._update()
            return vector

    def _update(self) -> None:
        """Carry the slave's INT to master pin 2 and the master's to INTR, then tell of ended interrupts."""
        master, slave = self._chips
        if slave.request() is None:
            master.irr &= ~(1 << PIC_CASCADE_PIN)
        else:
            master.irr |= 1 << PIC_CASCADE_PIN
        output = master.request() is not None
        if output != self.output:
            self.output = output
            self._output_changed(output)
        self._tell_ended()

    def _tell_ended(self) -> None:
        # Last, and taken off before each call: an ack notifier may raise the pin again, which comes back here.
        for base, chip in zip((0, 8), self._chips, strict=True):
            while chip.ended:
                pin = chip.ended.bit_length() - 1
                chip.ended ^= 1 << pin
                self._acked(base + pin)

    # ---- registers

    def read(self, chip: int, offset: int) -> int:
        """IN from offset 0 or 1 of the master (chip 0) or slave (1)."""
        with self._lock:
            target = self._chips[chip]
            if not target.poll:
                return target.read(offset)
            # Poll mode: the read is the INTA (8259A data sheet, "Poll command").
            target.poll = 0
            pin = target.request()
            if pin is not None:
                target.acknowledge(pin)
            self._update()
            return 0 if pin is None else 0x80 | pin

    def write(self, chip: int, offset: int, value: int) -> None:
        """OUT to offset 0 or 1 of the master (chip 0) or slave (1)."""
        with self._lock:
            target = self._chips[chip]
            old_mask = target.imr
            if offset:
                target.write_data(value & 0xFF)
            else:
                target.write_command(value & 0xFF)
            changed = old_mask ^ target.imr
            self._update()
            for pin in range(8):
                if changed >> pin & 1:
                    self._mask_changed(8 * chip + pin, bool(target.imr >> pin & 1))

    def read_elcr(self, chip: int) -> int:
        """IN from the edge/level control register: a bit set means level-triggered."""
        return self._chips[chip].elcr

    def write_elcr(self, chip: int, value: int) -> None:
        """OUT to the edge/level control register; the pins of timer, keyboard, cascade, RTC and FPU stay edge."""
        with self._lock:
            target = self._chips[chip]
            target.elcr = value & target.elcr_mask
            self._update()

    # ---- saved state

    def get_state(self, chip: int) -> PicState:
        """State of the master (0) or slave (1) as KVM_GET_IRQCHIP gives it."""
        with self._lock:
            return self._chips[chip].get_state()

    def set_state(self, chip: int, state: PicState) -> None:
        """Take over saved state of one chip; set both before the guest runs."""
        with self._lock:
            self._chips[chip].set_state(state)
            self._update()
