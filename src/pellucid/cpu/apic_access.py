"""Accesses of the local APIC that native code answers: what sends and ends interrupts (SDM vol. 3, 11.6.1, 11.8.5).

An interrupt command is carried out here where it is an NMI for one processor by its id, or a fixed vector for
processors that all take it (`takes_vectors`) and that the VM's table knows: by an id, by logical ids, or by a
shorthand. All else is the local APIC's own to find out, outside native code; so is an EOI that somebody waits for.
"""

from pellucid.cpu.nmi import post_nmi
from pellucid.cpu.posted import wake_dozing
from pellucid.cpu.state import EXIT_MMIO, EXIT_MSR, EXIT_WAKE, PAGE_MASK, REPLAY_SLOTS, CpuState
from pellucid.cpu.vectors import FIRST_VECTOR, end_vector, post_vector, set_priority, takes_vectors
from pellucid.native import array, atomic_load, ctz, native, ptr, ref, struct, u32, u64
from pellucid.native.layout import Struct

APIC_MODE, XAPIC, X2APIC = 0xC00, 0x800, 0xC00     # IA32_APIC_BASE (SDM vol. 3, table 11-5)
TASK_PRIORITY, EOI, ICR, ICR_HIGH, SELF_IPI = 0x80, 0xB0, 0x300, 0x310, 0x3F0
X2APIC_FIRST = 0x800
ICR_RESERVED, ICR_BUSY = 0xFFF3_2000, 1 << 12
# The parts of the ICR that decide here: delivery mode, destination mode, trigger mode, shorthand.
ICR_KIND, ICR_NMI, ICR_FIXED, ICR_LOGICAL, ICR_SELF, ICR_ALL, ICR_OTHERS = \
    0xC8F00, 0x400, 0, 0x800, 0x40000, 0x80000, 0xC0000
BROADCAST = 0xFF
APIC_IDS, FLAT_IDS = 256, 8

# What became of an exit, with KVM's words: the hypervisor's loop has to handle it; nothing is left to do; it has been
# handled, and the loop has other work.
EXIT_FASTPATH_NONE, EXIT_FASTPATH_REENTER_GUEST, EXIT_FASTPATH_EXIT_HANDLED = range(3)


@struct
class ApicTargets(Struct):
    """Whom a destination names, as addresses of CpuStates, and whose EOIs somebody waits for. Python writes it."""

    states: array[u64, APIC_IDS]     # by APIC id: the one processor that has it, or 0
    flat: array[u64, FLAT_IDS]   # by bit of a logical xAPIC id in the flat model: likewise
    logical_mode: u64            # bits of IA32_APIC_BASE that all APICs have, xAPICs in the flat model; else 0
    present: array[u64, APIC_IDS]   # every processor whose APIC is on
    count: u64                   # of those; 0 while it is not known
    awaited: array[u64, 4]       # vectors, 256 bits, whose EOI somebody waits for though they are edge-triggered


@native
def done(s, answer) -> u32:
    """The access that the processor has left for is done."""
    s.replay[s.replay_count] = answer
    s.replay_count += 1
    return u32(EXIT_FASTPATH_REENTER_GUEST)


@native
def sent(s, target, outcome) -> u32:
    """An event was posted to `target`: its thread may have to be woken."""
    if not wake_dozing(target) and atomic_load(ref(target, "asleep")) != 0:
        s.exit_reason = EXIT_WAKE
        outcome = u32(EXIT_FASTPATH_EXIT_HANDLED)
    return outcome


@native
def command_done(s, icr) -> u32:
    """The ICR was written, and all that it says is about to happen."""
    s.apic_icr = icr & ~u64(ICR_BUSY)
    return done(s, u64(0))


@native
def send_vector(s, target, icr, outcome) -> u32:
    """A fixed vector."""
    post_vector(target, icr & 0xFF)
    return sent(s, target, outcome)


@native
def send_to_one(s, target, icr) -> u32:
    """An NMI or a fixed vector to a processor, or to nobody that is known here (0)."""
    outcome: u32 = EXIT_FASTPATH_NONE
    if u64(target) == 0:
        pass
    elif (icr & ICR_NMI) != 0:
        outcome = command_done(s, icr)
        post_nmi(target)
        outcome = sent(s, target, outcome)
    elif (icr & 0xFF) >= FIRST_VECTOR and takes_vectors(target, icr & 0xFF):
        outcome = send_vector(s, target, icr, command_done(s, icr))
    return outcome


@native
def member(targets, base, mode, n):
    """The processor of bit `n` in a logical destination, or 0."""
    address = atomic_load(ref(targets.flat, n & (FLAT_IDS - 1)))
    if mode == X2APIC:
        address = atomic_load(ref(targets.states, base + n))
    return ptr[CpuState](address)


@native(inline=False)
def send_to_logical(s, icr: u64, destination: u64) -> u32:
    """A fixed vector to logical ids, each of which names one processor: a cluster of x2APICs, or flat xAPIC ids."""
    targets = ptr[ApicTargets](s.apic_targets)
    mode = s.apic_base & APIC_MODE
    base = (destination >> 16) * 16
    ids = destination & 0xFFFF
    if mode != targets.logical_mode or base >= BROADCAST - 16 or (mode == XAPIC and ids >= BROADCAST):
        return u32(EXIT_FASTPATH_NONE)
    left = ids
    while left != 0:
        target = member(targets, base, mode, u64(ctz(left)))
        if u64(target) == 0 or not takes_vectors(target, icr & 0xFF):
            return u32(EXIT_FASTPATH_NONE)
        left = left & (left - 1)
    outcome = command_done(s, icr)
    left = ids
    while left != 0:
        target = member(targets, base, mode, u64(ctz(left)))
        if u64(target) != 0:
            outcome = send_vector(s, target, icr, outcome)
        left = left & (left - 1)
    return outcome


@native
def is_meant(s, target, icr):
    """Whether a shorthand for all, or all others, includes `target`."""
    return u64(target) != 0 and ((icr & ICR_KIND) == ICR_ALL or u64(target) != u64(s))


@native(inline=False)
def send_to_all(s, icr: u64) -> u32:
    """A fixed vector to every processor, with or without this one."""
    targets = ptr[ApicTargets](s.apic_targets)
    count = targets.count
    if count == 0:
        return u32(EXIT_FASTPATH_NONE)
    for i in range(count):
        target = ptr[CpuState](targets.present[i])
        if is_meant(s, target, icr) and not takes_vectors(target, icr & 0xFF):
            return u32(EXIT_FASTPATH_NONE)
    outcome = command_done(s, icr)
    for i in range(count):
        target = ptr[CpuState](targets.present[i])
        if is_meant(s, target, icr):
            outcome = send_vector(s, target, icr, outcome)
    return outcome


@native(inline=False)
def write_icr(s, icr: u64, destination: u64) -> u32:
    """Send what the ICR says, where native code can (SDM vol. 3, 11.6.1)."""
    targets = ptr[ApicTargets](s.apic_targets)
    kind = icr & ICR_KIND
    outcome: u32 = EXIT_FASTPATH_NONE
    if kind == ICR_NMI or kind == ICR_FIXED:
        if destination < BROADCAST:
            outcome = send_to_one(s, ptr[CpuState](atomic_load(ref(targets.states, destination))), icr)
    elif kind == ICR_SELF:
        outcome = send_to_one(s, s, icr)
    elif (icr & 0xFF) < FIRST_VECTOR:
        pass
    elif kind == ICR_LOGICAL:
        outcome = send_to_logical(s, icr, destination)
    elif kind == ICR_ALL or kind == ICR_OTHERS:
        outcome = send_to_all(s, icr)
    return outcome


@native
def end_of_interrupt(s) -> u32:
    """EOI."""
    outcome: u32 = EXIT_FASTPATH_NONE
    if end_vector(s, ptr[ApicTargets](s.apic_targets).awaited):
        outcome = done(s, u64(0))
    return outcome


@native
def write_task_priority(s, value) -> u32:
    """TPR, whose class CR8 shows."""
    set_priority(s, value)
    s.cr8 = value >> 4
    return done(s, u64(0))


@native
def write_xapic(s, offset, low) -> u32:
    """A doubleword stored into the local APIC's page."""
    outcome: u32 = EXIT_FASTPATH_NONE
    if offset == EOI:
        outcome = end_of_interrupt(s)
    elif offset == ICR:
        outcome = write_icr(s, (s.apic_icr >> 32 << 32) | low, s.apic_icr >> 56)
    elif offset == ICR_HIGH:
        s.apic_icr = (low >> 24 << 56) | (s.apic_icr & 0xFFFF_FFFF)
        outcome = done(s, u64(0))
    elif offset == TASK_PRIORITY:
        outcome = write_task_priority(s, low & 0xFF)
    return outcome


@native
def read_xapic(s, offset) -> u32:
    """A doubleword loaded from there."""
    outcome: u32 = EXIT_FASTPATH_NONE
    if offset == ICR:
        outcome = done(s, s.apic_icr & 0xFFFF_FFFF)
    elif offset == ICR_HIGH:
        outcome = done(s, s.apic_icr >> 32)
    elif offset == TASK_PRIORITY:
        outcome = done(s, s.apic_tpr)
    return outcome


@native
def write_x2apic(s, offset, value) -> u32:
    """WRMSR; what has reserved bits set raises #GP, which is the local APIC's to say."""
    outcome: u32 = EXIT_FASTPATH_NONE
    if offset == EOI and value == 0:
        outcome = end_of_interrupt(s)
    elif offset == ICR and (value & ICR_RESERVED) == 0:
        outcome = write_icr(s, value, value >> 32)
    elif offset == SELF_IPI and value >= FIRST_VECTOR and value <= 0xFF and takes_vectors(s, value):
        post_vector(s, value)
        outcome = done(s, u64(0))
    elif offset == TASK_PRIORITY and value <= 0xFF:
        outcome = write_task_priority(s, value)
    return outcome


@native(inline=False)
def access_apic(s, reason: u32) -> u32:
    """What becomes of an access that the processor has left for, if it is one of these: EXIT_FASTPATH_*."""
    outcome: u32 = EXIT_FASTPATH_NONE
    if s.apic_targets == 0 or s.replay_count >= REPLAY_SLOTS:
        return outcome
    mode = s.apic_base & APIC_MODE
    if reason == EXIT_MMIO and mode == XAPIC and s.io_size == 4:
        offset = s.io_address - (s.apic_base & PAGE_MASK)
        if s.io_write != 0:
            outcome = write_xapic(s, offset, s.io_data & 0xFFFF_FFFF)
        else:
            outcome = read_xapic(s, offset)
    elif reason == EXIT_MSR and mode == X2APIC and s.io_write != 0 and s.io_address - X2APIC_FIRST < 0x100:
        outcome = write_x2apic(s, (s.io_address - X2APIC_FIRST) << 4, s.io_data)
    return outcome
