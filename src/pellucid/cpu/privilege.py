"""Who may execute what: the checks that privileged instructions begin with."""

from pellucid.cpu.descriptors import in_real_mode, in_v86
from pellucid.cpu.faults import general_protection, undefined
from pellucid.cpu.state import CR4_UMIP
from pellucid.native import native, u32


@native
def require_cpl0(s):
    """#GP(0) outside privilege level 0."""
    if s.cpl != 0:
        general_protection(s, 0)


@native
def require_protected(s):
    """#UD in real and virtual-8086 mode."""
    if in_real_mode(s) or in_v86(s):
        undefined(s)


@native
def above_iopl(s):
    """Whether CPL is above IOPL, so that CLI and STI do not reach IF; in real mode it never is."""
    return not in_real_mode(s) and s.cpl > u32(s.flags >> 12) & 3


@native
def require_iopl(s):
    """#GP(0) where CPL is above IOPL: INT n of virtual-8086 mode, where CPL is 3."""
    if above_iopl(s):
        general_protection(s, 0)


@native
def require_umip(s):
    """#GP(0) for SGDT, SIDT, SLDT, SMSW and STR outside CPL 0 with CR4.UMIP."""
    if (s.cr4 & CR4_UMIP) != 0 and s.cpl != 0:
        general_protection(s, 0)
