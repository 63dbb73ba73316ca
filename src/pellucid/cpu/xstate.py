"""State components of the XSAVE family beyond x87 and SSE: where they lie in an image (SDM vol. 1, 13.4).

One row here, and one in `isa.xsave.STATES` that says how a component is saved and restored, is all that a new one
takes: leaf 0xD of CPUID, IA32_XSS and both formats follow.
"""


from pellucid.native import native, static, u64
from pellucid.records import dataclass

X87, SSE, AVX, PKRU = 1, 2, 4, 1 << 9
COMPACTED = 1 << 63
"""Bit of XCOMP_BV: the image has the compacted format."""

HEADER = 512
AREA = 576
"""Where the extended region begins: behind the legacy region and the header."""


@dataclass(frozen=True, slots=True)
class Component:
    """A component. `offset` is its place in the standard format, which supervisor components do not have.

    `features`: CPUID features, by QEMU's names, any of which brings it. `aligned`: it begins at a multiple of 64 bytes
    in the compacted format.
    """

    number: int
    features: tuple[str, ...]
    size: int
    offset: int = 0
    supervisor: bool = False
    aligned: bool = False

    @property
    def bit(self) -> int:
        """Its bit in XCR0 or IA32_XSS, XSTATE_BV and XCOMP_BV."""
        return 1 << self.number


AVX_STATE = Component(2, ("avx",), 256, 576)
PKRU_STATE = Component(9, ("pku",), 8, 2688)
CET_USER_STATE = Component(11, ("shstk", "ibt"), 16, supervisor=True)
CET_SUPERVISOR_STATE = Component(12, ("shstk", "ibt"), 24, supervisor=True)

COMPONENTS = (AVX_STATE, PKRU_STATE, CET_USER_STATE, CET_SUPERVISOR_STATE)
"""By number."""


@native
def standard_bytes(wanted):
    """How far an image of the standard format with these components reaches."""
    size: u64 = AREA
    for c in static(COMPONENTS):
        if not c.supervisor:
            if (wanted & c.bit) != 0:
                size = c.offset + c.size
    return size


@native
def compacted_start(size, c):
    """Where component `c` begins behind `size` bytes."""
    if c.aligned:
        return (size + 63) & ~u64(63)
    return size


@native
def compacted_offset(layout, component):
    """Where a component lies in an image of the compacted format whose XCOMP_BV is `layout`."""
    size: u64 = AREA
    for c in static(COMPONENTS):
        if c.number < component.number:
            if (layout & c.bit) != 0:
                size = compacted_start(size, c) + c.size
    return compacted_start(size, component)


@native
def compacted_bytes(layout):
    """The size of an image of the compacted format."""
    size: u64 = AREA
    for c in static(COMPONENTS):
        if (layout & c.bit) != 0:
            size = compacted_start(size, c) + c.size
    return size
