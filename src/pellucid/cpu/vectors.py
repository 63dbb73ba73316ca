"""The vectors of a local APIC, as far as native code sends, delivers and ends them (SDM vol. 3, 11.8).

IRR, ISR and the priorities are the processor's own: its thread alone changes them, in native code or outside. Other
processors' native code posts (`post_vector`): it sets the vector's bit in `apic_posted`, then `vectors_posted`, then
PENDING_VECTOR. The processor looks at the second before it executes on, so no vector is lost when Python clears
`pending`; it clears it before it takes the bits, so none is lost that comes meanwhile. What Python's side of the APIC
requests is kept there until the processor is outside native code, which a request to its hypervisor's loop makes it.

`vector_due` says that a vector is above the processor priority. It follows every change, so that the run loop asks one
word; a vector that RFLAGS.IF or a shadow holds back needs no other mark, since what ends either comes back to the loop.
"""

from pellucid.cpu.state import PENDING_REQUEST, PENDING_VECTOR, RFLAGS_IF
from pellucid.native import (
    atomic_and, atomic_load, atomic_or, atomic_store, atomic_xchg, clz, native, ref, static, u32, u64, unlikely)

APIC_GLOBAL_ENABLE = 1 << 11     # of IA32_APIC_BASE
CLASS = 0xF0
FIRST_VECTOR = 16                # those below are for exceptions: no APIC takes them


@native
def word_of(vector):
    return u64(vector) >> 6


@native
def bit_of(vector):
    return u64(1) << (u64(vector) & 63)


@native
def highest(vectors) -> u64:
    """The highest vector of a set, 0 where it is empty."""
    found: u64 = 0
    for i in static(range(4)):
        if vectors[i] != 0:
            found = u64(i * 64 + 63) - u64(clz(vectors[i]))
    return found


@native
def update_priorities(s) -> None:
    """PPR, and whether a vector is due, after a change of IRR, ISR or TPR (SDM vol. 3, 11.8.3.1)."""
    in_service = highest(s.apic_isr) & CLASS
    s.apic_ppr = s.apic_tpr if (s.apic_tpr & CLASS) >= in_service else in_service
    above = (highest(s.apic_irr) & CLASS) > (s.apic_ppr & CLASS)
    s.vector_due = u64(above and (s.apic_base & APIC_GLOBAL_ENABLE) != 0)


@native
def set_priority(s, tpr: u64) -> None:
    """Write the task priority, 8 bits."""
    if tpr != s.apic_tpr:
        s.apic_tpr = tpr
        update_priorities(s)


@native
def takes_vectors(s, vector):
    """Whether native code may send it this vector: edge-triggered, and the last time, too."""
    return atomic_load(ref(s, "apic_enabled")) != 0 and (s.apic_tmr[word_of(vector)] & bit_of(vector)) == 0


@native
def post_vector(s, vector) -> None:
    """Send a vector to the processor `s`; from any thread."""
    atomic_or(ref(s.apic_posted, word_of(vector)), bit_of(vector))
    atomic_store(ref(s, "vectors_posted"), u64(1))
    atomic_or(ref(s, "pending"), u64(PENDING_VECTOR))


@native(inline=False)
def collect_vectors(s) -> None:
    """What was posted is requested now. Where an offer to end an interrupt in memory is open, the hypervisor looks
    first whether it was taken.
    """
    atomic_and(ref(s, "pending"), ~u64(PENDING_VECTOR))
    if atomic_xchg(ref(s, "vectors_posted"), u64(0)) != 0:
        for i in static(range(4)):
            s.apic_irr[i] = s.apic_irr[i] | atomic_xchg(ref(s.apic_posted, i), u64(0))
        update_priorities(s)
        if unlikely(s.eoi_offered != 0):
            atomic_or(ref(s, "pending"), u64(PENDING_REQUEST))


@native
def vector_is_due(s):
    """Whether a vector would be taken at this very instruction, but for other events."""
    return s.vector_due != 0 and (s.flags & RFLAGS_IF) != 0 and s.shadow == 0


@native
def may_take_vector(s):
    """Whether native code may deliver it: no SMI, 8259 or request comes before."""
    return s.smi_due == 0 and s.irq_window == 0 and s.eoi_offered == 0 and (s.pending & PENDING_REQUEST) == 0


@native
def acknowledge(s) -> u32:
    """The processor takes the highest requested vector, which is in service then."""
    vector = highest(s.apic_irr)
    at = word_of(vector)
    s.apic_irr[at] = s.apic_irr[at] & ~bit_of(vector)
    s.apic_isr[at] = s.apic_isr[at] | bit_of(vector)
    update_priorities(s)
    return u32(vector)


@native
def end_vector(s, awaited):
    """EOI, unless somebody waits for the end of this vector: for a level-triggered one, or one of the set `awaited`.

    Whether it is done. Where nothing is in service, nothing ends.
    """
    vector = highest(s.apic_isr)
    at = word_of(vector)
    ends = s.eoi_offered == 0 and ((s.apic_tmr[at] | awaited[at]) & bit_of(vector)) == 0
    if ends:
        s.apic_isr[at] = s.apic_isr[at] & ~bit_of(vector)
        update_priorities(s)
    return ends
