"""Delivery of exceptions and interrupts, with double and triple faults (SDM vol. 3, chapter 6).

Everything that can fault is done before the first change of state, so that a fault during delivery finds the
state of the interrupted instruction. The tables and stacks that a delivery touches may lie on a device, or in a page
that is out: then it stops with EXIT_MMIO or EXIT_PAGER and CpuState.delivering set, and starts over when the device has
answered or the page has come, like an instruction.
"""

from pellucid.cpu.descriptors import in_long_mode, in_real_mode
from pellucid.cpu.faults import Stop, general_protection
from pellucid.cpu.gates import deliver_long, deliver_protected, return_address
from pellucid.cpu.flags import get_rflags
from pellucid.cpu.lbr import branch_address, record_event
from pellucid.cpu.memory import load_sys
from pellucid.cpu.segments import update_mode
from pellucid.cpu.stacks import Stack, current_stack, push_onto, stack_pointer
from pellucid.cpu.state import (
    CP, CS, DB, DEBUGCTL_BTF, DEBUGCTL_LBR, DF, EXIT_MMIO, EXIT_PAGER, EXTERNAL, MODE_LBR, PF, RFLAGS_AC,
    RFLAGS_IF, RFLAGS_RF, RFLAGS_TF, SOFT_INT, SOFT_NONE)
from pellucid.native import local, native, u16, u32, u64

RSP = 4
# Results of deliver_exception().
TRIPLE_FAULT, DELIVERED, WAITS, INTERRUPTED = 0, 1, 2, 3
# CpuState.delivering.
IDLE, UNDER_WAY, NEXT = 0, 1, 2
# Events in one go after which a delivery looks whether someone wants the processor: a guest can have the delivery of
# #AC raise #GP and that of #GP raise #AC for ever, and hardware does no better.
PATIENCE = 8
RAISED_IN_DELIVERY = 1 << 40  # in the fourth word of a CpuState.history entry


@native
def contributory(vector):
    """Divide error, the segment faults, and control protection (SDM vol. 3, table 6-4)."""
    return vector == 0 or (vector >= 10 and vector <= 13) or vector == CP


@native
def note(s, vector, error, during):
    """Keep the last exceptions for whoever explains a triple fault; `during`: another was being delivered."""
    at = (s.history_at & 15) * 4
    s.history[at] = u64(vector) | (u64(error) << 32)
    s.history[at + 1] = s.rip
    s.history[at + 2] = s.exc_address
    s.history[at + 3] = u64(s.seg_selector[CS]) | (u64(s.cpl) << 32)
    if during:
        s.history[at + 3] = s.history[at + 3] | RAISED_IN_DELIVERY
    s.history_at += 1
    s.count_exceptions += 1


@native(inline=False)
def deliver_exception(s) -> u32:
    """Deliver the event in s.exc_*, and those that its delivery raises: TRIPLE_FAULT, DELIVERED, WAITS
    (CpuState.exit_reason says for what), or INTERRUPTED: it goes on when the processor runs again.
    """
    s.alone = 1  # no block runs: a push over translated code need not leave
    outcome = deliver_until_done(s)
    s.alone = 0
    return outcome


@native(inline=False)
def deliver_until_done(s) -> u32:
    rounds: u32 = 0
    while True:
        vector = s.exc_vector
        soft = s.exc_soft
        if s.delivering != UNDER_WAY:
            note(s, vector, s.exc_error, rounds != 0)
        s.delivering = UNDER_WAY
        s.replay_at = 0
        try:
            if vector == PF and soft == SOFT_NONE:
                s.cr2 = s.exc_address
            source = branch_address(s, s.rip)
            recorded = (s.mode & MODE_LBR) != 0
            deliver_event(s, vector, s.exc_error, s.exc_has_error != 0, soft)
            if vector == DB and soft != SOFT_INT:  # SDM vol. 3, 17.4.2 and 17.4.3
                s.debugctl = s.debugctl & ~u64(DEBUGCTL_LBR | DEBUGCTL_BTF)
                update_mode(s)
            elif recorded:
                record_event(s, source)
            if s.delivering == UNDER_WAY:  # else a task that was switched to begins with a fault
                s.delivering = IDLE
            s.replay_count = 0
            s.shadow = 0
            return u32(DELIVERED)
        except Stop:
            if s.exit_reason == EXIT_MMIO or s.exit_reason == EXIT_PAGER:
                return u32(WAITS)
            s.delivering = IDLE
            s.replay_count = 0
            if s.exc_vector == PF:
                s.cr2 = s.exc_address  # also where the two become a double fault (SDM vol. 3, 6.15)
            if vector == DF and soft == SOFT_NONE:
                note(s, s.exc_vector, s.exc_error, True)
                return u32(TRIPLE_FAULT)
            combine(s, vector, soft)
            rounds += 1
            if rounds > PATIENCE and s.pending != 0:
                s.delivering = NEXT
                return u32(INTERRUPTED)


@native
def combine(s, vector, soft):
    """Two faults in one: a double fault where table 6-5 says so, else the second alone is delivered."""
    second = s.exc_vector
    both = contributory(vector) and contributory(second)
    paging = vector == PF and (contributory(second) or second == PF)
    if soft != SOFT_INT and soft != EXTERNAL and (both or paging):
        note(s, second, s.exc_error, True)
        s.exc_vector = DF
        s.exc_error = 0
        s.exc_has_error = 1
        s.exc_soft = 0


@native(inline=False)
def deliver_interrupt(s, vector: u32) -> bool:
    """Deliver an external interrupt or NMI; False is a triple fault. `run` goes on with one that waits."""
    return deliver_external(s, vector) != TRIPLE_FAULT


@native
def deliver_external(s, vector):
    """`deliver_interrupt` with what deliver_exception says."""
    s.exc_vector = vector
    s.exc_error = 0
    s.exc_has_error = 0
    s.exc_soft = EXTERNAL
    return deliver_exception(s)


@native
def deliver_event(s, vector, error, has_error, soft):
    if in_real_mode(s):
        deliver_real(s, vector, soft)
    elif in_long_mode(s):
        deliver_long(s, vector, error, has_error, soft)
    else:
        deliver_protected(s, vector, error, has_error, soft)


@native(inline=False)
def deliver_real(s, vector: u32, soft: u32) -> None:
    """Through the interrupt vector table: FLAGS, CS and IP on the stack."""
    if vector * 4 + 3 > s.idt_limit:
        general_protection(s, 0)
    entry = load_sys(s, s.idt_base + u64(vector) * 4, u32)
    if (entry & 0xFFFF) > s.seg_limit[CS]:
        general_protection(s, 0)
    k = local(Stack)
    current_stack(s, k, u32(0), u32(0))
    push_onto(s, k, get_rflags(s), 2)
    push_onto(s, k, u64(s.seg_selector[CS]), 2)
    push_onto(s, k, return_address(s, soft), 2)
    s.gpr[RSP] = stack_pointer(s, k)
    s.flags = s.flags & ~u64(RFLAGS_IF | RFLAGS_TF | RFLAGS_AC | RFLAGS_RF)
    s.rip = u64(entry & 0xFFFF)
    s.seg_selector[CS] = u16(entry >> 16)
    s.seg_base[CS] = u64(entry >> 16) << 4
    update_mode(s)
