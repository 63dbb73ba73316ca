"""Transactions (RTM; SDM vol. 1, 16.3): executed one instruction at a time, undone where they cannot go on.

One begins only while every other processor of the VM is outside native code, as for LOCK across two pages, and the run
loop returns to nobody before it has ended: so no other processor ever sees half of one, or stores beneath it, and
what is left to do is to undo it: registers from a copy, memory from the undo log. Whatever would leave native code (a
device, an MSR, HLT) aborts instead, as do exceptions, instructions whose work is not undone (`isa.rtm.runs_inside`),
and having executed `Transaction.longest` of them, which bounds how long others wait. An interrupt waits for the end.

Those who are no processor are not held: a device's DMA and a monitor that reads memory may see stores of a
transaction that then aborts, and what a device stores to the very bytes that the transaction has stored to is lost.
"""

from pellucid.cpu.host_sse import guest_mxcsr, set_guest_mxcsr
from pellucid.cpu.lbr import branch_address, record_abort
from pellucid.cpu.memory import drop_write_tags, flush_tlb
from pellucid.cpu.segments import update_mode
from pellucid.cpu.state import LEVEL_ABORTED, LEVEL_INSIDE, XMM_BYTES, CpuState, slot_of
from pellucid.cpu.undo_log import ABORT_NESTED, SAVED_BYTES, Transaction, undo_stores
from pellucid.native import at, memcpy, native, ptr, ref, static, u8, u32, u64


def _fields(first: str, last: str) -> tuple[int, int]:
    """Offset and bytes of neighbours in CpuState."""
    field = CpuState.fields[last]
    return slot_of(first), field.offset + field.type.size - slot_of(first)


_RANGES = (_fields("gpr", "gpr"), _fields("cc_kind", "flags"), _fields("dr", "dr"), _fields("st", "fpu_ds"),
           (slot_of("xmm"), 16 * XMM_BYTES), _fields("ssp", "s_cet"))
SAVED = tuple((offset, sum(size for _, size in _RANGES[:n]), size) for n, (offset, size) in enumerate(_RANGES))
"""What instructions inside may change: offset in CpuState, offset in the copy, bytes. RIP and MXCSR stand apart."""
assert sum(size for _, size in _RANGES) <= SAVED_BYTES


@native
def copies(s):
    """The address of the copy."""
    return u64(ref(ptr[Transaction](s.transaction), "saved"))


@native(inline=False)
def begin_transaction(s, fallback: u64) -> None:
    """From here on all can be undone. RIP is the caller's to move."""
    t = ptr[Transaction](s.transaction)
    for offset, copy, size in static(SAVED):
        memcpy(ptr[u8](copies(s) + copy), at(s, offset, u8), u64(size))
    t.mxcsr = u64(guest_mxcsr(s))
    t.fallback = fallback
    t.left = t.longest
    t.status = 0
    t.lines = 0
    s.tx = 1
    drop_write_tags(s)


@native(inline=False)
def abort_transaction(s, status: u32) -> None:
    """Undo everything, and go on at the fallback with `status` (ABORT_*) in EAX; between two instructions.

    Pages may have been walked through entries that the transaction had stored: no translation stays.
    """
    t = ptr[Transaction](s.transaction)
    if s.tx > 1:
        status = status | ABORT_NESTED
    undo_stores(s)
    for offset, copy, size in static(SAVED):
        memcpy(at(s, offset, u8), ptr[u8](copies(s) + copy), u64(size))
    set_guest_mxcsr(s, u32(t.mxcsr))
    s.gpr[0] = u64(status)
    source = branch_address(s, s.rip)
    s.rip = t.fallback
    record_abort(s, source)
    s.db_pending = 0
    s.tx = 0
    if s.metered != 0:
        s.level = s.level + (LEVEL_ABORTED - LEVEL_INSIDE)
    flush_tlb(s, True)
    update_mode(s)
