"""`info tlb` and `info mem`: the page tables in force, in words."""

from collections.abc import Callable

from pellucid.monitor.command import command
from pellucid.monitor.guest_state import read_physical
from pellucid.monitor.page_tables import Layout, ReadTable, layout_of, mem_text, tlb_text
from pellucid.monitor.session import Session


def _text(session: Session, render: Callable[[Layout, ReadTable], str]) -> str:
    if not session.threads:
        return "No CPU available\n"
    layout = layout_of(session.registers().sregs)
    if layout is None:
        return "PG disabled\n"
    return render(layout, lambda address, size: read_physical(session.machine, address, size))


@command(info="tlb", help="show virtual to physical memory mappings")
def tlb(session: Session) -> str:
    """The page tables of the CPU talked about, page by page."""
    return _text(session, tlb_text)


@command(info="mem", help="show the active virtual memory mappings")
def mem(session: Session) -> str:
    """The same in ranges."""
    return _text(session, mem_text)
