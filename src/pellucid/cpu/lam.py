"""Linear-address masking: data addresses whose high bits are metadata (SDM vol. 1, 3.3.7.1; vol. 3, 4.1).

In 64-bit mode the processor ignores bits 62:57 or 62:48 of a data address below (bit 63 clear; CR3.LAM_U57, LAM_U48) or
above (CR4.LAM_SUP; the width is that of paging), and extends bit 63 over them; then the address must be canonical as
any other. Fetches, targets of branches and what registers may hold are not masked. The TLB holds a translation for each
tag of a page, under the address with the tag: so masking costs nothing where an entry is found.
"""

from pellucid.cpu.paging import canonical
from pellucid.cpu.state import CR3_LAM_U48, CR3_LAM_U57, CR4_LA57, CR4_LAM_SUP, MODE_64, MODE_SIZE
from pellucid.native import native, u64, unlikely

WIDTH_48, WIDTH_57 = 0x7FFF << 48, 0x3F << 57
"""The bits that are metadata, by the width of what is left."""


@native
def lam_on(s):
    """Whether any data address is masked now."""
    return (s.cr3 & (CR3_LAM_U48 | CR3_LAM_U57)) != 0 or (s.cr4 & CR4_LAM_SUP) != 0


@native
def metadata(s, lin):
    """The bits of a data address that are ignored; LAM_U57 goes before LAM_U48."""
    bits: u64 = 0
    if lin >> 63 == 0:
        if (s.cr3 & CR3_LAM_U57) != 0:
            bits = WIDTH_57
        elif (s.cr3 & CR3_LAM_U48) != 0:
            bits = WIDTH_48
    elif (s.cr4 & CR4_LAM_SUP) != 0:
        bits = WIDTH_57 if (s.cr4 & CR4_LA57) != 0 else u64(WIDTH_48)
    return bits


@native(inline=False)
def masked_address(s, lin: u64) -> u64:
    """The address that a data access through `lin` uses; not canonical where it faults.

    With a width of 48 bits, bit 47 must equal bit 63 under 5-level paging too: what fails is given back with the wrong
    bit 62.
    """
    bits = metadata(s, lin)
    masked = lin & ~bits
    if lin >> 63 != 0:
        masked = lin | bits
    if bits == WIDTH_48 and (lin >> 47) & 1 != lin >> 63:
        masked = masked ^ (u64(1) << 62)
    return masked


@native
def data_address(s, lin):
    """`lin` without its metadata."""
    where = lin
    if unlikely(lam_on(s)) and (s.mode & MODE_SIZE) == MODE_64:
        where = masked_address(s, lin)
    return where


@native
def canonical_data(s, lin):
    """Whether a data access through `lin` is one to a canonical address."""
    return canonical(s, data_address(s, lin))
