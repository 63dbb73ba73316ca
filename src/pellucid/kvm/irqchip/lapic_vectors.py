"""The part of a local APIC that every interrupt passes: IRR, ISR, TMR, task and processor priority.

The three 256-bit registers are Python ints, so the highest vector is one `bit_length`. PPR is kept up to date at the
three places that can change it (TPR write, acknowledge, EOI), so asking for the next interrupt costs two reads and a
comparison. Intel SDM vol. 3, 11.8.
"""

from pellucid.kvm.irqchip.apicdef import BIT


class ApicVectors:
    """Requested, in-service and trigger-mode registers with the priorities that follow from them."""

    __slots__ = ("irr", "isr", "ppr", "tmr", "tpr")

    def __init__(self) -> None:
        self.irr = 0
        """Vectors requested, 256 bits."""
        self.isr = 0
        """Vectors in service, 256 bits."""
        self.tmr = 0
        """Vectors whose last request was level-triggered, 256 bits."""
        self.tpr = 0
        """Task priority, 8 bits: class in the upper four."""
        self.ppr = 0
        """Processor priority, 8 bits: what a request's class must exceed."""

    def update_ppr(self) -> None:
        """Recompute PPR after a change of TPR or ISR: the higher class of the two (SDM vol. 3, 11.8.3.1)."""
        tpr = self.tpr
        isr = self.isr
        if isr:
            in_service = (isr.bit_length() - 1) & 0xF0
            self.ppr = tpr if tpr & 0xF0 >= in_service else in_service
        else:
            self.ppr = tpr

    @property
    def requested_class(self) -> int:
        """The priority class of the highest requested vector, 0 where there is none: a lower TPR may let it through."""
        return (self.irr.bit_length() - 1) >> 4 if self.irr else 0

    def highest_request(self) -> int | None:
        """The highest requested vector whose class exceeds the processor priority's, or None."""
        irr = self.irr
        if not irr:
            return None
        vector = irr.bit_length() - 1
        return vector if vector & 0xF0 > self.ppr & 0xF0 else None

    def arbitration_priority(self) -> int:
        """APR: the highest of TPR, requested and in-service priority (SDM vol. 3, 11.6.2.4)."""
        tpr = self.tpr
        requested = (self.irr.bit_length() - 1) & 0xF0 if self.irr else 0
        in_service = (self.isr.bit_length() - 1) & 0xF0 if self.isr else 0
        if tpr & 0xF0 >= requested and tpr & 0xF0 > in_service:
            return tpr
        return max(tpr & 0xF0, requested, in_service)

    def acknowledge(self, vector: int) -> None:
        """Move a requested vector into service; `vector` is what `highest_request` said."""
        bit = BIT[vector]
        self.irr &= ~bit
        self.isr |= bit
        in_service = vector & 0xF0
        tpr = self.tpr
        self.ppr = tpr if tpr & 0xF0 >= in_service else in_service

    def clear_vectors(self) -> None:
        """All registers to zero, as after reset."""
        self.irr = self.isr = self.tmr = self.tpr = self.ppr = 0
