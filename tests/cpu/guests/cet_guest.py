"""A guest with control-flow enforcement: shadow-stack pages, their tokens and the registers that enable it."""

from pellucid.cpu.state import CET_SHADOW, CET_TRACK, CET_WAIT, CET_WRITE_SHADOW, CP, CR4_CET, PF

from . import tables
from .machine import Machine

USER_SHADOW, SHADOW, IST_SHADOW = 0x10_1000, 0x10_3000, 0x10_5000
"""Pages of shadow stacks: two of level 3, which lie beside each other, and one each of level 0 and of IST 1."""
USER_TOP, TOP, IST_TOP = USER_SHADOW + 0x800, SHADOW + 0xFF8, IST_SHADOW + 0xFF8
"""SSPs; the last two are of tokens."""
SSP_TABLE = 0x1_F000
SHADOW_USER = tables.P | tables.U | tables.A | tables.D
SHADOW_KERNEL = tables.P | tables.A | tables.D
ON, WRITES, TRACKS, WAITS = CET_SHADOW, CET_WRITE_SHADOW, CET_TRACK, CET_WAIT


def enforce(m: Machine, user: int = 0, kernel: int = 0) -> Machine:
    """Give a machine in a paged mode its shadow stacks, and set IA32_U_CET and IA32_S_CET."""
    s = m.state
    assert m.pages is not None
    m.pages.map(USER_SHADOW - 0x1000, USER_SHADOW - 0x1000, SHADOW_USER)
    m.pages.map(USER_SHADOW, USER_SHADOW, SHADOW_USER)
    for page in (SHADOW, IST_SHADOW):
        m.pages.map(page, page, SHADOW_KERNEL)
    m.write(TOP, TOP, 8)
    m.write(IST_TOP, IST_TOP, 8)
    m.write(SSP_TABLE + 8, IST_TOP, 8)
    s.cr0 |= 1 << 16
    s.cr4 |= CR4_CET
    s.cr4_allowed |= CR4_CET
    s.cet_allowed = (1 << 64) - 1 - 0x3C0
    s.u_cet, s.s_cet = user, kernel
    s.pl_ssp[0], s.pl_ssp[3], s.ssp_table = TOP, USER_TOP, SSP_TABLE
    s.ssp = USER_TOP if s.cpl == 3 else SHADOW + 0x800
    m.refresh()
    return m


def long(source: str, *, cpl: int = 0, user: int = 0, kernel: int = 0, compat: bool = False) -> Machine:
    """64-bit or compatibility mode."""
    m = Machine()
    m.long(source, cpl=cpl, compat=compat)
    return enforce(m, user, kernel)


def violated(m: Machine, error: int) -> None:
    """Run, and see #CP with this error code."""
    assert (m.catch(), m.state.exc_error) == (CP, error)


def page_fault(m: Machine, address: int, error: int) -> None:
    """Run, and see #PF."""
    assert (m.catch(), m.state.cr2, m.state.exc_error) == (PF, address, error)
