"""Pages that hold translated code: who translated from them, and what a store into them does.

Each processor has its own translations; a store on any of them must reach all. The VM keeps one word of code bits
for each guest page (`Slot.code`): bit n says that some processor may have translated from the n-th 64 bytes. A page
here is a page of the host: processors in different address spaces (system-management mode) may see it at different
guest-physical addresses, and other pages at the same. The rules, each a Dekker pair (write, fence, look) so that two
processors cannot miss each other:

- Translating: set the bits, take the fast stores to the page away from every TLB, then read the bytes.
- Filling a TLB for writing: write the tag, then look at the bits again, and take the tag back if any is set.
- Storing to such a page (always by the slow path): store, then look at the bits; those that are hit are cleared,
  and every processor drops what it translated from the page.

A processor's translations are touched by its own thread alone: the others put the page into its `Mailbox` and set
PENDING_MAIL. The run loop empties the box before it executes anything, at the next block end at the latest. One store
may be under way in the fast path of another processor when its tag is taken away; that processor is asked, by
MAIL_ECHO, to have the page dropped everywhere when it is past that instruction. The bits stay set then, or a page of
code and data would be claimed and reported for ever.
"""

from pellucid.cpu.faults import Stop
from pellucid.cpu.physical import code_bits, find_host, find_slot, host_code_bits, host_in, host_page_info
from pellucid.cpu.code_cache import JUMP_SETS, JUMP_WAYS, Block, CodeCache, JumpEntry
from pellucid.cpu.state import (
    EXIT_SMC, MAIL_CHANGED, MAIL_ECHO, MAIL_ENTRIES, MAIL_KILL, MAIL_STORED, PAGE_MASK, PENDING_MAIL, TLB_ENTRIES,
    TLB_INVALID, TLB_OFFSET, TLBS, CpuState, Mailbox, Processors, TlbEntry,
)
from pellucid.cpu.undo_log import log_store
from pellucid.native import (
    atomic_and, atomic_load, atomic_or, atomic_store, atomic_xchg, cas, fence, minimum, native, ptr, ref, static, u64,
    unlikely)

GRANULE_MASK = ~0x3F & 0xFFFF_FFFF_FFFF_FFFF


@native
def granules(address, size):
    """The code bits that `size` bytes at an address (guest-physical or host, in one page) touch."""
    first = (address & 0xFFF) >> 6
    last = ((address & 0xFFF) + size - 1) >> 6
    return (~u64(0) >> (63 - (last - first))) << first


# --- mail ----------------------------------------------------------------------------------------------


@native(inline=False)
def post(state: u64, entry: u64) -> None:
    """Put an entry into the box of the processor whose CpuState is at `state`; from any thread."""
    other = ptr[CpuState](state)
    box = ptr[Mailbox](other.mail)
    entries = box.entries
    kept: bool = False
    for i in range(u64(MAIL_ENTRIES)):
        place = ref(entries, i)
        found = atomic_load(place)
        if found == entry or (found == 0 and cas(place, u64(0), entry)):
            kept = True
            break
    if not kept:
        atomic_or(ref(box, "overflow"), entry & 0x3F)
    atomic_store(ref(box, "posted"), u64(1))
    atomic_or(ref(other, "pending"), u64(PENDING_MAIL))


@native(inline=False)
def post_others(s, entry: u64) -> None:
    """Put an entry into the box of every processor but `s`."""
    everyone = ptr[Processors](s.processors)
    states = everyone.states
    for i in range(everyone.count):
        if states[i] != u64(s):
            post(states[i], entry)


@native(inline=False)
def read_mail(s) -> bool:
    """Empty the box of `s`; True when every translation of `s` must go (some entries were lost)."""
    box = ptr[Mailbox](s.mail)
    entries = box.entries
    atomic_and(ref(s, "pending"), ~u64(PENDING_MAIL))
    atomic_store(ref(box, "posted"), u64(0))
    lost = atomic_xchg(ref(box, "overflow"), u64(0))
    for i in range(u64(MAIL_ENTRIES)):
        if atomic_load(ref(entries, i)) != 0:
            entry = atomic_xchg(ref(entries, i), u64(0))
            if (entry & MAIL_KILL) != 0:
                kill_page(s, entry & PAGE_MASK)
            if (entry & MAIL_STORED) != 0:
                look_behind(s, entry & GRANULE_MASK, u64(1))
            if (entry & MAIL_CHANGED) != 0:
                code_changed(s, entry & PAGE_MASK)
            if (entry & MAIL_ECHO) != 0:
                post_others(s, (entry & PAGE_MASK) | MAIL_KILL)
                kill_page(s, entry & PAGE_MASK)
    if (lost & ~u64(MAIL_KILL)) != 0:
        lose_others(s)
    return lost != 0


@native(inline=False)
def lose_others(s) -> None:
    """The other processors must drop every translation."""
    everyone = ptr[Processors](s.processors)
    states = everyone.states
    for i in range(everyone.count):
        if states[i] != u64(s):
            other = ptr[CpuState](states[i])
            box = ptr[Mailbox](other.mail)
            atomic_or(ref(box, "overflow"), u64(MAIL_KILL))
            atomic_store(ref(box, "posted"), u64(1))
            atomic_or(ref(other, "pending"), u64(PENDING_MAIL))


# --- stores --------------------------------------------------------------------------------------------


@native
def hits_code(s, gpa, size):
    """Whether some processor may have translated from the `size` bytes at `gpa`."""
    return (code_bits(find_slot(s, gpa), gpa)[0] & granules(gpa, size)) != 0


@native(inline=False)
def before_store(s, gpa: u64, size: u64) -> None:
    """Before a slow-path store to RAM: raises EXIT_SMC where it hits translated code and a block is running.

    That block may be the one that changes, so the instruction is executed again, alone. Then the translations go
    behind the store, when the run loop reads the mail.
    """
    slot = find_slot(s, gpa)
    if unlikely(s.tx != 0):
        log_store(s, host_in(slot, gpa), size)
    if (code_bits(slot, gpa)[0] & granules(gpa, size)) == 0:
        return
    if s.alone == 0:
        s.exit_reason = EXIT_SMC
        raise Stop
    s.count_smc += 1
    post(u64(s), (host_in(slot, gpa) & PAGE_MASK) | MAIL_CHANGED)


@native(inline=False)
def before_pointer_store(s, gpa: u64, size: u64) -> None:
    """Likewise for one who stores through a host pointer and does not call `look_behind` himself."""
    before_store(s, gpa, size)
    slot = find_slot(s, gpa)
    if code_bits(slot, gpa)[0] != 0:
        host = host_in(slot, gpa)
        if size <= 64:
            post(u64(s), (host & GRANULE_MASK) | MAIL_STORED)
            post(u64(s), ((host + size - 1) & GRANULE_MASK) | MAIL_STORED)
        else:
            post(u64(s), (host & PAGE_MASK) | MAIL_CHANGED)


@native
def after_store(s, gpa, size):
    """Behind a slow-path store: a processor that translated meanwhile may have read what was there before."""
    fence()
    slot = find_slot(s, gpa)
    if (code_bits(slot, gpa)[0] & granules(gpa, size)) != 0:
        post(u64(s), (host_in(slot, gpa) & PAGE_MASK) | MAIL_CHANGED)


@native(inline=False)
def look_behind(s, host: u64, size: u64) -> None:
    """A store to these bytes is done: everybody drops the page if some processor has translated from them."""
    fence()
    slot = find_host(s, host)
    if u64(slot) != 0:
        if (host_code_bits(slot, host)[0] & granules(host, size)) != 0:
            code_changed(s, host & PAGE_MASK)


@native(inline=False)
def code_changed(s, page: u64) -> None:
    """Every processor drops what it translated from `page`; on the thread of `s`, outside blocks."""
    slot = find_host(s, page)
    if u64(slot) != 0:
        atomic_xchg(host_code_bits(slot, page), u64(0))
        post_others(s, page | MAIL_KILL)
        kill_page(s, page)


@native(inline=False)
def written_outside(s, host: u64, size: u64) -> None:
    """These bytes were written by somebody who is no processor; on any thread, `s` is any processor of the VM."""
    fence()
    end = host + size
    while host < end:
        here = minimum((host & PAGE_MASK) + 4096 - host, end - host)
        slot = find_host(s, host)
        if u64(slot) != 0:
            if (host_code_bits(slot, host)[0] & granules(host, here)) != 0:
                atomic_xchg(host_code_bits(slot, host), u64(0))
                post_others(s, (host & PAGE_MASK) | MAIL_KILL)
                post(u64(s), (host & PAGE_MASK) | MAIL_KILL)
        host += here


# --- blocks --------------------------------------------------------------------------------------------


@native(inline=False)
def kill_page(s, page: u64) -> None:
    """Kill every block of `s` with code in this page."""
    slot = find_host(s, page)
    if u64(slot) == 0:
        return
    info = host_page_info(slot, page)
    c = ptr[CodeCache](s.code)
    block = ptr[Block](info.blocks)
    while u64(block) != 0:
        kill_block(s, c, block)
        block = ptr[Block](block.next)
    info.blocks = 0
    kept: u64 = 0
    block = ptr[Block](c.cross)
    while u64(block) != 0:
        following = block.next2
        if block.info2 == u64(info) and block.dead == 0:
            kill_block(s, c, block)
        if block.dead == 0:
            block.next2 = kept
            kept = u64(block)
        block = ptr[Block](following)
    c.cross = kept


@native
def kill_block(s, c, block):
    """Make a block unreachable: whoever still jumps to its first op is sent back to look again."""
    block.dead = 1
    ptr[u64](block.ops)[0] = ptr[u64](c.handlers)[c.dead_handler]
    for way in static(range(JUMP_WAYS)):
        j = jump_entry(s, block.host, block.mode, way)
        if j.ops == block.ops:
            j.ops = 0
            j.host = 0


@native
def jump_entry(s, host, mode, way):
    """A way of the block cache's set for a host address and mode."""
    h = host ^ (host >> 15) ^ (u64(mode) << 9)
    return ptr[JumpEntry](s.jumps + ((h & (JUMP_SETS - 1)) * JUMP_WAYS + way) * JumpEntry.size)


@native(inline=False)
def claim_code(s, gpa: u64, bits: u64) -> None:
    """Set code bits of the page of `gpa`, before its bytes are read for translation: stores become slow."""
    slot = find_slot(s, gpa)
    if atomic_or(code_bits(slot, gpa), bits) == 0:
        protect_page(s, host_in(slot, gpa) & PAGE_MASK)


@native(inline=False)
def protect_page(s, page: u64) -> None:
    """A page got its first code bit: no TLB allows fast stores to it."""
    everyone = ptr[Processors](s.processors)
    states = everyone.states
    for i in range(everyone.count):
        other = ptr[CpuState](states[i])
        pages = other.tlb_host
        demoted: bool = False
        for number in range(u64(TLBS * TLB_ENTRIES)):
            if pages[number] == page:
                e = ptr[TlbEntry](u64(other) + TLB_OFFSET + number * TlbEntry.size)
                if e.wtag != TLB_INVALID:
                    e.wtag = TLB_INVALID
                    demoted = True
        if demoted and u64(other) != u64(s):
            post(u64(other), page | MAIL_ECHO)
