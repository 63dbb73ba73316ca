"""Guest-physical memory: which slot answers, and where its bytes are in the host."""

from pellucid.cpu.state import ADDRESS_SPACES, PAGE, PageInfo, Slot, SlotTable
from pellucid.native import likely, native, ptr, ref, static, u64, unlikely


@native
def find_slot(s, gpa):
    """The memory slot that holds `gpa`, or null. The first is the largest: it has nearly all of RAM."""
    slots = ptr[SlotTable](s.slot_table).slots
    slot = ref(slots, 0)
    if unlikely(gpa - slot.gpa >= slot.size):
        slot = search_slots(s, gpa)
    return slot


@native(inline=False)
def search_slots(s, gpa: u64) -> ptr[Slot]:
    table = ptr[SlotTable](s.slot_table)
    slots = table.slots
    for i in range(table.count):
        slot = ref(slots, i)
        if gpa - slot.gpa < slot.size:
            return slot
    return ptr[Slot](u64(0))


@native
def host_address(s, gpa):
    """Host address of the RAM or ROM at `gpa`, or 0 where a device or nothing answers."""
    slot = find_slot(s, gpa)
    host: u64 = 0
    if likely(u64(slot) != 0):
        host = slot.hva + (gpa - slot.gpa)
    return host


@native(inline=False)
def find_host(s, host: u64) -> ptr[Slot]:
    """A memory slot, of whichever address space, that shows the byte at this host address; or null."""
    found = ptr[Slot](u64(0))
    for space in static(range(ADDRESS_SPACES)):
        table = ptr[SlotTable](s.slot_tables + space * SlotTable.size)
        slots = table.slots
        for i in range(table.count):
            slot = ref(slots, i)
            if host - slot.hva < slot.size:
                found = slot
    return found


@native
def host_in(slot, gpa):
    """Host address of `gpa`, which is in `slot`."""
    return slot.hva + (gpa - slot.gpa)


@native
def host_code_bits(slot, host):
    """The VM's word of code bits for the page that holds the byte at `host`, which `slot` shows."""
    return ptr[u64](slot.code + (host - slot.hva) // PAGE * 8)


@native
def code_bits(slot, gpa):
    """The VM's word of code bits for the page that holds `gpa` in `slot`."""
    return ptr[u64](slot.code + (gpa - slot.gpa) // PAGE * 8)


@native
def host_page_info(slot, host):
    """The processor's PageInfo of the page that holds the byte at `host`, which `slot` shows."""
    return ptr[PageInfo](slot.pages + (host - slot.hva) // PAGE * PageInfo.size)


@native
def page_info(slot, gpa):
    """The processor's PageInfo of the page that holds `gpa` in `slot`."""
    return ptr[PageInfo](slot.pages + (gpa - slot.gpa) // PAGE * PageInfo.size)
