"""The part of a local APIC that every interrupt passes: IRR, ISR, TMR, task and processor priority.

The registers lie in memory that the processor's native code shares (`pellucid.cpu.vectors`, which says who may change
what, and does the same as is done here). What is requested here, on whatever thread, waits in `_asked` until the
processor's own thread takes it over (`collect`); what native code of other processors has posted does so in the memory.
Intel SDM vol. 3, 11.8.
"""

from collections.abc import Callable

from pellucid.cpu.state import CpuState
from pellucid.kvm.irqchip.apicdef import BIT, ApicMode

_FIRST, _LAST = "apic_posted", "halt_poll"
VECTORS_AT = CpuState.fields[_FIRST].offset
VECTORS_BYTES = CpuState.fields[_LAST].offset + 8 - VECTORS_AT
"""Where CpuState has what is used here: a part of it that a local APIC without a processor has alone."""


def _at(name: str) -> int:
    return int(CpuState.fields[name].offset - VECTORS_AT)


_POSTED, _IRR, _ISR, _TMR = (slice(_at(f"apic_{name}"), _at(f"apic_{name}") + 32)
                             for name in ("posted", "irr", "isr", "tmr"))  # fmt: skip
_IRR_WORD, _ISR_WORD, _TMR_WORD = (_at(f"apic_{name}") // 8 for name in ("irr", "isr", "tmr"))
_ANY_POSTED, _TPR, _PPR, _DUE, _ENABLED = (
    _at(name) // 8 for name in ("vectors_posted", "apic_tpr", "apic_ppr", "vector_due", "apic_enabled"))  # fmt: skip


class ApicVectors:
    """Requested, in-service and trigger-mode registers with the priorities that follow from them.

    `memory` is the part of a CpuState that has them, `collect_posted` what makes posted vectors requested ones.
    """

    __slots__ = ("_asked", "_bytes", "_collect_posted", "_mode", "_words")

    def __init__(self, memory: memoryview | None, collect_posted: Callable[[], None]) -> None:
        self._bytes = memoryview(bytearray(VECTORS_BYTES)) if memory is None else memory
        self._words = self._bytes.cast("Q")
        self._collect_posted = collect_posted
        self._mode = ApicMode.XAPIC
        self._asked = 0

    def _set(self, name: slice) -> int:
        return int.from_bytes(self._bytes[name], "little")

    @property
    def irr(self) -> int:
        """Vectors requested, 256 bits, wherever they wait."""
        return self._set(_IRR) | self._set(_POSTED) | self._asked

    @property
    def isr(self) -> int:
        """Vectors in service, 256 bits."""
        return self._set(_ISR)

    @property
    def tmr(self) -> int:
        """Vectors whose last request was level-triggered, 256 bits."""
        return self._set(_TMR)

    @property
    def tpr(self) -> int:
        """Task priority, 8 bits: class in the upper four."""
        return self._words[_TPR]

    @property
    def ppr(self) -> int:
        """Processor priority, 8 bits: what a request's class must exceed."""
        return self._words[_PPR]

    @property
    def mode(self) -> ApicMode:
        """How software reaches the APIC, if at all."""
        return self._mode

    @mode.setter
    def mode(self, mode: ApicMode) -> None:
        self._mode = mode
        self.update()

    def show_enabled(self, enabled: bool) -> None:
        """Whether native code may send it vectors: software has enabled it."""
        self._words[_ENABLED] = int(enabled)

    def request(self, vector: int, level: bool) -> bool:
        """Set the vector's bit in IRR; whether it was not asked for already. With the irqchip lock held."""
        bit, word = BIT[vector], _TMR_WORD + (vector >> 6)
        flag, triggers = 1 << (vector & 63), self._words[word]
        if bool(triggers & flag) != level:
            self._words[word] = triggers ^ flag
        fresh = not self._asked & bit
        self._asked |= bit
        return fresh

    def collect(self) -> None:
        """Take over what was requested and posted. On the processor's thread, with the irqchip lock held."""
        if self._words[_ANY_POSTED]:
            self._collect_posted()
        if self._asked:
            self._bytes[_IRR] = (self._set(_IRR) | self._asked).to_bytes(32, "little")
            self._asked = 0
            self.update()

    def update(self) -> None:
        """Recompute what follows from IRR, ISR and TPR: PPR, the higher class of the last two, and whether a vector is
        above it (SDM vol. 3, 11.8.3.1).
        """
        words, isr, irr = self._words, self._set(_ISR), self._set(_IRR)
        tpr = words[_TPR]
        in_service = (isr.bit_length() - 1) & 0xF0 if isr else 0
        words[_PPR] = ppr = tpr if tpr & 0xF0 >= in_service else in_service
        above = irr != 0 and (irr.bit_length() - 1) & 0xF0 > ppr & 0xF0
        words[_DUE] = int(above and self._mode is not ApicMode.DISABLED)

    def write_tpr(self, value: int) -> None:
        """Set the task priority, 8 bits."""
        self._words[_TPR] = value
        self.update()

    @property
    def is_due(self) -> bool:
        """Whether a vector that was taken over is above the processor priority."""
        return self._words[_DUE] != 0

    def highest_request(self) -> int | None:
        """The highest requested vector whose class exceeds the processor priority's, or None."""
        irr = self.irr
        if not irr:
            return None
        vector = irr.bit_length() - 1
        return vector if vector & 0xF0 > self.ppr & 0xF0 else None

    def arbitration_priority(self) -> int:
        """APR: the highest of TPR, requested and in-service priority (SDM vol. 3, 11.6.2.4)."""
        tpr, irr, isr = self.tpr, self.irr, self.isr
        requested = (irr.bit_length() - 1) & 0xF0 if irr else 0
        in_service = (isr.bit_length() - 1) & 0xF0 if isr else 0
        if tpr & 0xF0 >= requested and tpr & 0xF0 > in_service:
            return tpr
        return max(tpr & 0xF0, requested, in_service)

    def acknowledge(self, vector: int) -> None:
        """Move a vector that was taken over into service; `vector` is what `highest_request` said."""
        words, word, flag = self._words, vector >> 6, 1 << (vector & 63)
        words[_IRR_WORD + word] &= ~flag
        words[_ISR_WORD + word] |= flag
        self.update()

    def end(self, vector: int) -> None:
        """The vector, the highest in service, is not any more."""
        self._words[_ISR_WORD + (vector >> 6)] &= ~(1 << (vector & 63))
        self.update()

    def restore_vectors(self, irr: int, isr: int, tmr: int) -> None:
        """Set the three registers, while the processor does not run; what was on its way is forgotten."""
        self._asked = self._words[_ANY_POSTED] = 0
        self._bytes[_POSTED] = bytes(32)
        for name, value in ((_IRR, irr), (_ISR, isr), (_TMR, tmr)):
            self._bytes[name] = value.to_bytes(32, "little")
        self.update()

    def clear_vectors(self) -> None:
        """All registers to zero, as after reset."""
        self._words[_TPR] = 0
        self.restore_vectors(0, 0, 0)
