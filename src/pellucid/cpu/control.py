"""Control registers: what a write checks, and what it changes (SDM vol. 3, 2.5 and 4.1)."""

from pellucid.cpu.breakpoints import update_breakpoints
from pellucid.cpu.descriptors import in_long_mode
from pellucid.cpu.faults import general_protection
from pellucid.cpu.memory import flush_tlb
from pellucid.cpu.physical import host_address
from pellucid.cpu.segments import update_mode
from pellucid.cpu.state import (
    ATTR_L, ATTR_P, ATTR_UNUSABLE, CR0_CD, CR0_ET, CR0_NW, CR0_PE, CR0_PG, CR0_WP, CR4_CET, CR3_LAM_U48,
    CR3_LAM_U57, CR4_DE, CR4_LA57, CR4_LAM_SUP, CR4_PAE, CR4_PCIDE, CR4_PGE, CR4_PKE, CR4_PKS, CR4_PSE, CR4_SMAP,
    CR4_SMEP, CS, EFER_LMA, EFER_LME, FEATURE_LAM, FEATURES_SYSTEM, TR)
from pellucid.cpu.vectors import set_priority
from pellucid.native import array, local, native, ptr, static, u64

CR0_DEFINED = 0xE005003F


@native(inline=False)
def load_pdptrs(s, cr3: u64) -> None:
    """The four page-directory-pointer entries of PAE paging; #GP(0) for reserved bits (SDM vol. 3, 4.4.1)."""
    host = host_address(s, cr3 & 0xFFFF_FFE0 & s.a20_mask)
    reserved = 0x1E6 | (~((u64(1) << s.maxphyaddr) - 1))
    if host == 0:
        general_protection(s, 0)
    entries = local(array[u64, 4])
    for i in static(range(4)):
        entries[i] = ptr[u64](host)[i]
        if (entries[i] & 1) != 0 and (entries[i] & reserved) != 0:
            general_protection(s, 0)
    for i in static(range(4)):
        s.pdptr[i] = entries[i]


@native
def pae_paging(cr0, cr4, efer):
    """PAE paging in the narrow sense: PDPTEs are registers."""
    return (cr0 & CR0_PG) != 0 and (cr4 & CR4_PAE) != 0 and (efer & EFER_LMA) == 0


@native
def task_state_is_16bit(s):
    """A 16-bit TSS in TR forbids to enter IA-32e mode (SDM vol. 3, 9.8.5)."""
    return (s.seg_attr[TR] & (ATTR_UNUSABLE | ATTR_P | 0xD)) == ATTR_P | 1


@native(inline=False)
def write_cr0(s, value: u64) -> None:
    """MOV to CR0; #GP(0) for what the manual forbids."""
    if value >> 32 != 0:
        general_protection(s, 0)
    value = (value & CR0_DEFINED) | CR0_ET
    if (value & CR0_PG) != 0 and (value & CR0_PE) == 0:
        general_protection(s, 0)
    if (value & CR0_NW) != 0 and (value & CR0_CD) == 0:
        general_protection(s, 0)
    if (value & CR0_PG) == 0 and (s.cr4 & CR4_PCIDE) != 0:
        general_protection(s, 0)
    if (value & CR0_WP) == 0 and (s.cr4 & CR4_CET) != 0:
        general_protection(s, 0)
    efer = s.efer
    changed = value ^ s.cr0
    if (changed & CR0_PG) != 0:
        if (value & CR0_PG) != 0:
            if (efer & EFER_LME) != 0:
                if (s.cr4 & CR4_PAE) == 0 or (s.seg_attr[CS] & ATTR_L) != 0 or task_state_is_16bit(s):
                    general_protection(s, 0)
                efer = efer | EFER_LMA
        else:
            if in_long_mode(s) and (s.seg_attr[CS] & ATTR_L) != 0:
                general_protection(s, 0)
            efer = efer & ~u64(EFER_LMA)
    if pae_paging(value, s.cr4, efer) and (changed & (CR0_PG | CR0_CD | CR0_NW)) != 0:
        load_pdptrs(s, s.cr3)
    s.cr0 = value
    s.efer = efer
    if (changed & (CR0_PG | CR0_PE | CR0_WP)) != 0 or ((changed & CR0_CD) != 0 and s.lock_types != 0):
        flush_tlb(s, True)
    update_mode(s)


@native(inline=False)
def write_cr3(s, value: u64) -> None:
    """MOV to CR3: a new address space; translations of global pages stay, unless what their addresses mean changes."""
    if in_long_mode(s):
        if (s.cr4 & CR4_PCIDE) != 0:
            value = value & ~(u64(1) << 63)
        reserved = ~((u64(1) << s.maxphyaddr) - 1)
        if (s.features[FEATURES_SYSTEM] & FEATURE_LAM) != 0:
            reserved = reserved & ~u64(CR3_LAM_U48 | CR3_LAM_U57)
        if (value & reserved) != 0:
            general_protection(s, 0)
    else:
        value = value & 0xFFFF_FFFF
        if pae_paging(s.cr0, s.cr4, s.efer):
            load_pdptrs(s, value)
    masking = (value ^ s.cr3) & (CR3_LAM_U48 | CR3_LAM_U57)
    s.cr3 = value
    flush_tlb(s, masking != 0)


@native(inline=False)
def write_cr4(s, value: u64) -> None:
    """MOV to CR4; bits that CPUID does not advertise raise #GP(0)."""
    if (value & ~s.cr4_allowed) != 0:
        general_protection(s, 0)
    changed = value ^ s.cr4
    if in_long_mode(s) and ((value & CR4_PAE) == 0 or (changed & CR4_LA57) != 0):
        general_protection(s, 0)
    if (changed & value & CR4_PCIDE) != 0 and (not in_long_mode(s) or (s.cr3 & 0xFFF) != 0):
        general_protection(s, 0)
    if (value & CR4_CET) != 0 and (s.cr0 & CR0_WP) == 0:
        general_protection(s, 0)
    paging = changed & (CR4_PGE | CR4_PAE | CR4_PSE | CR4_SMEP)
    if pae_paging(s.cr0, value, s.efer) and paging != 0:
        load_pdptrs(s, s.cr3)
    s.cr4 = value
    if (changed & (CR4_PGE | CR4_PAE | CR4_PSE | CR4_PCIDE | CR4_SMEP | CR4_SMAP | CR4_LA57 | CR4_PKE | CR4_PKS
                    | CR4_LAM_SUP)) != 0:
        flush_tlb(s, True)
    if (changed & CR4_DE) != 0 and update_breakpoints(s):
        flush_tlb(s, True)
    update_mode(s)


@native(inline=False)
def write_cr8(s, value: u64) -> None:
    """The task priority's class; a waiting vector that it lets through comes next (SDM vol. 3, 11.8.6)."""
    if value > 15:
        general_protection(s, 0)
    s.cr8 = value
    set_priority(s, value << 4)
