"""Guest-physical memory: which slot answers, and where its bytes are in the host."""

from pellucid.cpu.state import PAGE, PageInfo, Slot, SlotTable
from pellucid.native import native, ptr, ref, u64


@native(inline=False)
def find_slot(s, gpa: u64) -> ptr[Slot]:
    """The memory slot that holds `gpa`, or null."""
    table = ptr[SlotTable](s.slot_table)
    slots = table.slots
    for i in range(table.count):
        slot = ref(slots, i)
        if gpa - slot.gpa < slot.size:
            return slot
    return ptr[Slot](u64(0))


@native(inline=False)
def host_address(s, gpa: u64) -> u64:
    """Host address of the RAM or ROM at `gpa`, or 0 where a device or nothing answers."""
    slot = find_slot(s, gpa)
    if u64(slot) == 0:
        return u64(0)
    return slot.hva + (gpa - slot.gpa)


@native
def code_bits(slot, gpa):
    """The VM's word of code bits for the page that holds `gpa` in `slot`."""
    return ptr[u64](slot.code + (gpa - slot.gpa) // PAGE * 8)


@native
def page_info(slot, gpa):
    """The processor's PageInfo of the page that holds `gpa` in `slot`."""
    return ptr[PageInfo](slot.pages + (gpa - slot.gpa) // PAGE * PageInfo.size)
