"""Pages of guest RAM that may be out: in a file, or still on another machine.

The memory of such a slot stays mapped, and whoever touches a page that is out waits until it has come: devices, the
monitor, page walks. A vCPU shall not wait like that, since it may have something else to do (asynchronous page faults).
So a slot with a pager has a byte for each page, and filling a TLB looks at it. Nothing else does: where no slot has a
pager this costs nothing, and a page that goes out goes from every TLB first.
"""

from pellucid.cpu.faults import Stop
from pellucid.cpu.physical import host_in
from pellucid.cpu.state import EXIT_PAGER, PAGE, PAGE_MASK, PAGE_PRESENT, PAGE_USED
from pellucid.native import native, ptr, u8, u64


@native(inline=False)
def use_page(s, slot, gpa: u64) -> None:
    """A TLB is filled with the page of `gpa`: note its use, or leave with EXIT_PAGER and its host address."""
    state = ptr[u8](slot.residency + (gpa - slot.gpa) // PAGE)
    if (state[0] & PAGE_PRESENT) == 0:
        if s.bring_in != 0:
            return
        s.exit_reason = EXIT_PAGER
        s.io_address = host_in(slot, gpa) & PAGE_MASK
        raise Stop
    state[0] = state[0] | PAGE_USED
