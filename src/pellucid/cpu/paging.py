"""Linear to physical: the page walk of SDM vol. 3, chapter 4, in all paging modes.

The walk checks permissions before it sets accessed and dirty bits, and sets them by compare-and-swap: an entry
that another CPU changed meanwhile starts the walk again.
"""

from pellucid.cpu.faults import page_fault
from pellucid.cpu.physical import find_slot, host_address
from pellucid.cpu.state import (
    CR0_PG, CR0_WP, CR4_LA57, CR4_PAE, CR4_PGE, CR4_PKE, CR4_PKS, CR4_PSE, CR4_SMAP, CR4_SMEP, EFER_LMA, EFER_NXE,
    FEATURE_LA57, FEATURE_PDPE1GB, FEATURE_PSE36, FEATURES_SYSTEM, FETCH, PF_FETCH, PF_PKEY, PF_PRESENT, PF_RSVD,
    PF_SHADOW, PF_USER, PF_WRITE, SLOT_READONLY, TLB_SHADOW_USER, TLB_SUPERVISOR_AC, TLB_USER, WRITE)
from pellucid.native import cas, i64, native, ptr, struct, u32, u64
from pellucid.native.layout import Struct

PTE_P, PTE_W, PTE_U, PTE_A, PTE_D, PTE_PS, PTE_G = 1, 2, 4, 0x20, 0x40, 0x80, 0x100
PTE_NX = 1 << 63
ADDRESS = 0x000F_FFFF_FFFF_F000


@struct
class Walk(Struct):
    """A finished translation."""

    gpa: u64         # of the byte asked for
    readable: u32    # as data, by this TLB's accesses; likewise
    writable: u32    # when dirty tracking allows
    executable: u32
    dirty: u32       # the leaf's dirty bit stands
    is_global: u32
    large: u32       # part of a page larger than 4 KiB
    user: u32
    pat_bits: u32    # PAT << 2 | PCD << 1 | PWT of the leaf
    level: u32


@native
def canonical(s, address: u64) -> bool:
    """Whether a 64-bit linear address is canonical for the paging depth in force (SDM vol. 1, 3.3.7.1)."""
    shift: u64 = 16
    if (s.cr4 & CR4_LA57) != 0:
        shift = 7
    return u64(i64(address << shift) >> shift) == address


@native
def canonical_base(s, address: u64) -> bool:
    """Whether a register that holds a linear address may take this one: by the width that CPUID tells, not CR4.LA57.

    These are MSRs, and the bases of segments and descriptor tables (Intel, "5-Level Paging and 5-Level EPT").
    """
    shift: u64 = 16
    if (s.features[FEATURES_SYSTEM] & FEATURE_LA57) != 0:
        shift = 7
    return u64(i64(address << shift) >> shift) == address


@native
def error_code(s, access, index, present) -> u64:
    """The #PF error code without the reserved and key bits."""
    code: u64 = 0
    if present:
        code = PF_PRESENT
    if access == WRITE:
        code = code | PF_WRITE
    if index == TLB_USER or index == TLB_SHADOW_USER:
        code = code | PF_USER
    if index >= TLB_SHADOW_USER:
        code = code | PF_SHADOW
    if access == FETCH and ((s.efer & EFER_NXE) != 0 and (s.cr4 & CR4_PAE) != 0 or (s.cr4 & CR4_SMEP) != 0):
        code = code | PF_FETCH
    return code


@native(inline=False)
def mark_entry(s, gpa: u64, host: u64, old, new, T) -> bool:
    """Set accessed and dirty bits in a paging-structure entry; False when another CPU changed it meanwhile.

    Tables in a read-only slot are left as they are, as KVM does.
    """
    if (find_slot(s, gpa).flags & SLOT_READONLY) != 0:
        return True
    return cas(ptr[T](host), old, new)


@native(inline=False)
def fail_walk(s, lin: u64, access: u32, index: u32, present: bool, more: u64) -> None:
    page_fault(s, lin, error_code(s, access, index, present) | more)


@native(inline=False)
def walk(s, w, lin: u64, access: u32, index: u32) -> None:
    """Translate `lin` for an access by TLB `index`; raises #PF. Fills `w`."""
    w.dirty = 1
    w.is_global = 0
    w.large = 0
    w.user = 1
    w.pat_bits = 0
    w.level = 0
    w.readable = 1
    w.writable = 1
    w.executable = 1
    if (s.cr0 & CR0_PG) == 0:
        w.gpa = lin & s.a20_mask
        return
    if (s.cr4 & CR4_PAE) != 0:
        walk_wide(s, w, lin, access, index)
    else:
        walk_narrow(s, w, lin, access, index)


@native(inline=False)
def walk_wide(s, w, lin: u64, access: u32, index: u32) -> None:
    """PAE, 4-level and 5-level tables: entries of eight bytes."""
    while True:
        long_mode = (s.efer & EFER_LMA) != 0
        nxe = (s.efer & EFER_NXE) != 0
        reserved = ADDRESS & ~((u64(1) << s.maxphyaddr) - 1)
        if not nxe:
            reserved = reserved | PTE_NX
        table = s.cr3 & ADDRESS
        shift: u64 = 39
        rw: u64 = PTE_W | PTE_U
        upper: u64 = PTE_W
        nx: u64 = 0
        if long_mode:
            if (s.cr4 & CR4_LA57) != 0:
                shift = 48
        else:
            top = s.pdptr[(lin >> 30) & 3]
            if (top & PTE_P) == 0:
                fail_walk(s, lin, access, index, False, u64(0))
            table = top & ADDRESS
            shift = 21
            reserved = reserved | 0x7FF0_0000_0000_0000
        entry: u64 = 0
        host: u64 = 0
        gpa: u64 = 0
        again: bool = False
        while True:
            gpa = (table & s.a20_mask) + ((lin >> shift) & 0x1FF) * 8
            host = host_address(s, gpa)
            entry = 0
            if host != 0:
                entry = ptr[u64](host)[0]
            if (entry & PTE_P) == 0:
                fail_walk(s, lin, access, index, False, u64(0))
            if (entry & reserved) != 0:
                fail_walk(s, lin, access, index, True, u64(PF_RSVD))
            if (entry & PTE_PS) != 0 and shift > 12:
                low = (u64(1) << shift) - 1
                if (entry & low & ADDRESS & ~u64(0x1000)) != 0 or not large_allowed(s, shift, long_mode):
                    fail_walk(s, lin, access, index, True, u64(PF_RSVD))
            upper = rw
            rw = rw & entry
            nx = nx | (entry & PTE_NX)
            if shift == 12 or (entry & PTE_PS) != 0:
                break
            if (entry & PTE_A) == 0:
                if not mark_entry(s, gpa, host, entry, entry | PTE_A, u64):
                    again = True
                    break
            table = entry & ADDRESS
            shift = shift - 9
        if again:
            continue
        check(s, w, lin, access, index, rw, upper, nx, entry, long_mode)
        wanted = entry | PTE_A
        if access == WRITE:
            wanted = wanted | PTE_D
        if wanted != entry and not mark_entry(s, gpa, host, entry, wanted, u64):
            continue
        offset = (u64(1) << shift) - 1
        w.gpa = (((entry & ADDRESS) & ~offset) | (lin & offset)) & s.a20_mask
        w.dirty = u32((wanted & PTE_D) != 0)
        w.is_global = u32((entry & PTE_G) != 0 and (s.cr4 & CR4_PGE) != 0)
        w.large = u32(shift > 12)
        w.level = u32(shift)
        pat = entry >> 7 if shift == 12 else entry >> 12
        w.pat_bits = u32(((pat & 1) << 2) | ((entry >> 3) & 3))
        return


@native
def large_allowed(s, shift, long_mode):
    """Whether an entry of this level may map a page: 2 MiB always, 1 GiB where CPUID says so."""
    return shift == 21 or (shift == 30 and long_mode and (s.features[FEATURES_SYSTEM] & FEATURE_PDPE1GB) != 0)


@native(inline=False)
def walk_narrow(s, w, lin: u64, access: u32, index: u32) -> None:
    """32-bit two-level tables: entries of four bytes, 4 MiB pages with PSE."""
    while True:
        at = (s.cr3 & 0xFFFF_F000 & s.a20_mask) + ((lin >> 22) & 0x3FF) * 4
        directory = host_address(s, at)
        pde: u32 = 0
        if directory != 0:
            pde = ptr[u32](directory)[0]
        if (pde & PTE_P) == 0:
            fail_walk(s, lin, access, index, False, u64(0))
        rw = u64(pde) & (PTE_W | PTE_U)
        if (pde & PTE_PS) != 0 and (s.cr4 & CR4_PSE) != 0:
            if (pde & narrow_reserved(s)) != 0:
                fail_walk(s, lin, access, index, True, u64(PF_RSVD))
            check(s, w, lin, access, index, rw, u64(PTE_W), u64(0), u64(pde), False)
            wanted = pde | PTE_A
            if access == WRITE:
                wanted = wanted | PTE_D
            if wanted != pde and not mark_entry(s, at, directory, pde, wanted, u32):
                continue
            base = u64(pde & 0xFFC0_0000) | (u64((pde >> 13) & 0xFF) << 32)
            finish_narrow(s, w, base | (lin & 0x3F_FFFF), wanted, True)
            return
        if (pde & PTE_A) == 0 and not mark_entry(s, at, directory, pde, pde | PTE_A, u32):
            continue
        at = (u64(pde & 0xFFFF_F000) & s.a20_mask) + ((lin >> 12) & 0x3FF) * 4
        host = host_address(s, at)
        pte: u32 = 0
        if host != 0:
            pte = ptr[u32](host)[0]
        if (pte & PTE_P) == 0:
            fail_walk(s, lin, access, index, False, u64(0))
        rw = rw & u64(pte)
        check(s, w, lin, access, index, rw, u64(pde), u64(0), u64(pte), False)
        wanted = pte | PTE_A
        if access == WRITE:
            wanted = wanted | PTE_D
        if wanted != pte and not mark_entry(s, at, host, pte, wanted, u32):
            continue
        finish_narrow(s, w, u64(pte & 0xFFFF_F000) | (lin & 0xFFF), wanted, False)
        return


@native
def narrow_reserved(s):
    """Reserved bits of a 4 MiB entry: bit 21, and address bits 39:32 (in 20:13) that this processor lacks."""
    reserved: u32 = 0x3F_E000
    if (s.features[FEATURES_SYSTEM] & FEATURE_PSE36) != 0:
        width = s.maxphyaddr
        if width > 40:
            width = 40
        reserved = reserved & ~(((u32(1) << u32(width - 32)) - 1) << 13)
    return reserved


@native
def finish_narrow(s, w, gpa, entry, large):
    w.gpa = gpa & s.a20_mask
    w.dirty = u32((entry & PTE_D) != 0)
    w.is_global = u32((entry & PTE_G) != 0 and (s.cr4 & CR4_PGE) != 0)
    w.large = u32(large)
    w.level = 22 if large else 12
    pat = entry >> 12 if large else entry >> 7
    w.pat_bits = ((pat & 1) << 2) | ((entry >> 3) & 3)


@native
def shadow_page(entry, upper):
    """Whether a leaf maps a shadow-stack page: dirty and not writable, under entries that are (SDM vol. 3, 4.6)."""
    return (entry & (PTE_W | PTE_D)) == PTE_D and (upper & PTE_W) != 0


@native
def check(s, w, lin, access, index, rw, upper, nx, entry, long_mode):
    """Permissions of a leaf: `rw` is the AND of the W and U bits of every level, `upper` that of the levels above,
    `nx` the OR of the NX bits.

    Raises #PF where `access` is not allowed, else says in `w` what is (SDM vol. 3, 4.6).
    """
    user_page = (rw & PTE_U) != 0
    readable: bool = True
    writable = (rw & PTE_W) != 0
    executable = nx == 0
    as_user = index == TLB_USER or index == TLB_SHADOW_USER
    if index >= TLB_SHADOW_USER:
        readable = user_page == as_user and shadow_page(entry, upper)
        writable = readable
        executable = False
    elif as_user:
        if not user_page:
            readable = False
    else:
        if user_page and (s.cr4 & CR4_SMEP) != 0:
            executable = False
        if (s.cr0 & CR0_WP) == 0:
            writable = True
        if user_page and index != TLB_SUPERVISOR_AC and (s.cr4 & CR4_SMAP) != 0:
            readable = False
    more: u64 = 0
    keys: u64 = CR4_PKS
    rights = s.pkrs
    if user_page:
        keys = CR4_PKE
        rights = s.pkru
    if long_mode and (s.cr4 & keys) != 0:
        rights = rights >> (u32((entry >> 59) & 15) * 2)
        guarded = (rights & 2) != 0 and (as_user or (s.cr0 & CR0_WP) != 0)
        if (rights & 1) != 0:
            guarded = True
        if access != FETCH and ((rights & 1) != 0 or (access == WRITE and guarded)):
            more = PF_PKEY
        readable = readable and (rights & 1) == 0
        writable = writable and not guarded
    w.user = u32(user_page)
    w.readable = u32(readable)
    w.writable = u32(readable and writable)
    w.executable = u32(executable and (user_page or index != TLB_USER))
    allowed = w.readable
    if access == WRITE:
        allowed = w.writable
    if access == FETCH:
        allowed = w.executable
    if allowed == 0:
        fail_walk(s, lin, access, index, True, more)
