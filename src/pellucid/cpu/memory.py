"""Guest memory as instructions see it: a software TLB in front of the page walk.

A TLB tag is the linear page for which that access needs nothing more; the test `(address + size - 1) & page`
covers alignment, since an access that crosses into the next page never equals the tag of its first page.
Guest memory is read and written by volatile accesses: other processors see them in program order, as x86 promises
(TSO); a host of weaker order needs acquire and release here.
Slow paths stand out of line. A store to a page with translated code always takes the slow path, which throws
away the translations it hits (see `code_pages`).
"""

from pellucid.cpu.breakpoints import on_watched_page, watch
from pellucid.cpu.bus_lock import lock_uncached, note_bus_lock, write_back
from pellucid.cpu.code_pages import after_store, before_pointer_store, before_store, hits_code
from pellucid.cpu.faults import Stop, alignment, general_protection, non_canonical
from pellucid.cpu.lam import canonical_data, lam_on, masked_address
from pellucid.cpu.outside import outside
from pellucid.cpu.paging import Walk, canonical, canonical_base, walk
from pellucid.cpu.physical import code_bits, find_slot
from pellucid.cpu.residency import use_page
from pellucid.cpu.state import (
    EFER_LMA, EXIT_EXCLUSIVE, EXIT_MMIO, FETCH, PAGE_MASK, READ, SLOT_READONLY, TLB_BYTES, TLB_ENTRIES, TLB_INVALID,
    TLB_OFFSET, TLB_SUPERVISOR, TLB_SUPERVISOR_AC, TLB_USER, TLBS, WRITE,
    CR0_AM, CR4_SMAP, MODE_64, MODE_SIZE, RFLAGS_AC, Processors, TlbEntry)
from pellucid.native import (
    fence, foreign, i64, likely, local, native, ptr, static, u8, u16, u32, u64, unlikely, volatile_load, volatile_store)

CACHE_LINE = 64  # bytes, as CPUID tells
LISTED = 8       # CpuState.tlb_global: the entry stands in tlb_fills


@native
def tlb_entry(s, tlb, lin):
    """The one entry that may hold `lin` in the TLB at address `tlb`."""
    return ptr[TlbEntry](tlb + ((lin >> 12) & (TLB_ENTRIES - 1)) * TlbEntry.size)


@native
def tlb_address(s, index):
    """The address of TLB number `index`."""
    return u64(s) + TLB_OFFSET + u64(index) * TLB_BYTES


@native
def load(s, lin, T):
    """Read a T at linear address `lin` with the current privilege."""
    e = tlb_entry(s, s.tlb, lin)
    if likely(e.rtag == (lin + (T.size - 1)) & PAGE_MASK):
        return volatile_load(foreign(ptr[T](e.addend + lin)))
    return T(slow_load(s, lin, T, s.tlb_index))


@native
def load_rw(s, lin, T):
    """Read for a read-modify-write: faults as the write would, so that the store after it cannot."""
    e = tlb_entry(s, s.tlb, lin)
    if likely(e.wtag == (lin + (T.size - 1)) & PAGE_MASK):
        return volatile_load(foreign(ptr[T](e.addend + lin)))
    probe_write(s, lin, u64(T.size))
    return T(slow_load(s, lin, T, s.tlb_index))


@native
def load_locked(s, lin, T):
    """`load_rw` for an instruction with LOCK, whose store `locked_pointer` makes atomic where it can."""
    if T.size > 1:
        if unlikely((lin & (CACHE_LINE - 1)) + T.size > CACHE_LINE):
            lock_split(s, lin)
    e = tlb_entry(s, s.tlb, lin)
    if likely(e.wtag == (lin + (T.size - 1)) & PAGE_MASK):
        return volatile_load(foreign(ptr[T](e.addend + lin)))
    prepare_lock(s, lin, u64(T.size))
    return T(slow_load(s, lin, T, s.tlb_index))


@native(inline=False, spares_registers=True)
def prepare_lock(s, lin: u64, size: u64) -> None:
    """Fault as the store would; where no host instruction is atomic, across pages and on a device, hold others out."""
    s.not_write_back = 0
    host = probe_write(s, lin, size)
    if unlikely(s.not_write_back != 0):
        lock_uncached(s)
    if host == 0 or (lin & 0xFFF) + size > 4096:
        exclude_others(s)


@native(inline=False, spares_registers=True)
def lock_split(s, lin: u64) -> None:
    """LOCK across two cache lines: #AC(0) where MSR_MEMORY_CTRL forbids it, at any CPL; else it is a bus lock."""
    if s.split_lock != 0 and ((s.mode & MODE_SIZE) != MODE_64 or canonical(s, lin)):
        alignment(s)
    note_bus_lock(s)


@native(inline=False, spares_registers=True)
def exclude_others(s) -> None:
    """Leave, so that the instruction is executed while every other processor of the VM is outside native code."""
    if s.exclusive == 0 and ptr[Processors](s.processors).count > 1:
        s.exit_reason = EXIT_EXCLUSIVE
        raise Stop


@native
def store(s, lin, value, T):
    """Write a T at linear address `lin` with the current privilege."""
    e = tlb_entry(s, s.tlb, lin)
    if likely(e.wtag == (lin + (T.size - 1)) & PAGE_MASK):
        volatile_store(foreign(ptr[T](e.addend + lin)), value)
    else:
        slow_store(s, lin, value, T, s.tlb_index)


@native
def load_as(s, lin, T, index):
    """Read through TLB number `index`: with a privilege that may not be the current one."""
    e = tlb_entry(s, tlb_address(s, index), lin)
    if likely(e.rtag == (lin + (T.size - 1)) & PAGE_MASK):
        return volatile_load(foreign(ptr[T](e.addend + lin)))
    return T(slow_load(s, lin, T, u32(index)))


@native
def load_sys(s, lin, T):
    """Read with supervisor privilege whatever the CPL: descriptor tables and task state."""
    return load_as(s, lin, T, TLB_SUPERVISOR)


@native
def store_as(s, lin, value, T, index):
    """Write through TLB number `index`: with a privilege that may not be the current one."""
    e = tlb_entry(s, tlb_address(s, index), lin)
    if likely(e.wtag == (lin + (T.size - 1)) & PAGE_MASK):
        volatile_store(foreign(ptr[T](e.addend + lin)), value)
    else:
        slow_store(s, lin, value, T, u32(index))


@native
def store_sys(s, lin, value, T):
    """Write with supervisor privilege whatever the CPL."""
    store_as(s, lin, value, T, TLB_SUPERVISOR)


@native
def privilege_index(s, cpl):
    """The TLB of explicit accesses at a privilege level that may not be the current one."""
    index: u32 = TLB_SUPERVISOR
    if cpl == 3:
        index = TLB_USER
    elif (s.cr4 & CR4_SMAP) != 0 and (s.flags & RFLAGS_AC) != 0:
        index = TLB_SUPERVISOR_AC
    return index


@native(inline=False, spares_registers=True)
def locked_pointer(s, lin: u64, size: u64) -> u64:
    """Host address for an atomic access of `size` bytes, or 0 where there is no plain RAM in one page."""
    e = tlb_entry(s, tlb_address(s, s.tlb_index), lin)
    if likely(e.wtag == (lin + size - 1) & PAGE_MASK):
        return e.addend + lin
    if (lin & 0xFFF) + size > 4096:
        probe_write(s, lin, size)
        return u64(0)
    host = fill(s, lin, u32(WRITE), s.tlb_index)
    if host != 0:
        watch(s, lin, size, True)
        before_pointer_store(s, s.mmio_gpa, size)
    return host


@native
def check_alignment(s, lin, size, index):
    """#AC(0) for a misaligned data access of 2, 4 or 8 bytes while alignment is checked (SDM vol. 3, 6.15)."""
    if unlikely(s.align_check != 0):
        if index == TLB_USER and size <= 8 and (lin & (size - 1)) != 0:
            if (s.mode & MODE_SIZE) == MODE_64 and not canonical_data(s, lin):
                non_canonical(s, lin)
            alignment(s)


@native
def check_canonical(s, lin):
    """#GP(0) for a non-canonical address in 64-bit mode (SDM vol. 1, 3.3.7.1)."""
    if unlikely(u64(i64(lin << 16) >> 16) != lin):
        check_canonical_slowly(s, lin)


@native(inline=False)
def check_canonical_slowly(s, lin: u64) -> None:
    if (s.efer & EFER_LMA) != 0:
        if not canonical(s, lin):
            general_protection(s, 0)


@native(inline=False)
def check_base(s, address: u64) -> None:
    """#GP(0) for a linear address that no register may hold, in any mode: see `canonical_base`."""
    if not canonical_base(s, address):
        general_protection(s, 0)


@native(inline=False)
def fill(s, lin: u64, access: u32, index: u32) -> u64:
    """Translate and fill the TLB; the host address, or 0 for a device (then s.mmio_gpa is the address)."""
    where = lin
    alike: bool = True   # data accesses and fetches mean the same by this address
    if unlikely((s.mode & MODE_SIZE) == MODE_64):
        if unlikely(lam_on(s)):
            masked = masked_address(s, lin)
            alike = masked == lin
            if access != FETCH:
                where = masked
        if not canonical(s, where):
            non_canonical(s, lin)
    s.count_walks += 1
    w = local(Walk)
    walk(s, w, where, access, index)
    s.mmio_gpa = w.gpa
    fast: bool = w.writable != 0 and w.dirty != 0 and s.tx == 0
    if unlikely(s.lock_types != 0) and not write_back(s, w.gpa, w.pat_bits):
        s.not_write_back = 1
        fast = False
    slot = find_slot(s, w.gpa)
    if u64(slot) == 0:
        return u64(0)
    if unlikely(slot.residency != 0):
        use_page(s, slot, w.gpa)
    host = slot.hva + (w.gpa - slot.gpa)
    if access == WRITE and (slot.flags & SLOT_READONLY) != 0:
        return u64(0)
    if s.align_check != 0 and index == TLB_USER and access != FETCH:
        return host
    page = lin & PAGE_MASK
    if unlikely((s.watch_code | s.watch_data) != 0) and on_watched_page(s, where & PAGE_MASK):
        return host
    e = tlb_entry(s, tlb_address(s, index), lin)
    number = u64(index) * TLB_ENTRIES + ((lin >> 12) & (TLB_ENTRIES - 1))
    if (s.tlb_global[number] & LISTED) == 0:
        used = s.tlb_used[index]
        s.tlb_fills[u64(index) * TLB_ENTRIES + u64(used & (TLB_ENTRIES - 1))] = u16(number)
        s.tlb_used[index] = used + 1
    e.addend = host - lin
    e.rtag = page if w.readable != 0 else u64(TLB_INVALID)
    if s.align_check != 0 and index == TLB_USER:
        e.rtag = TLB_INVALID
    e.xtag = page if w.executable != 0 else u64(TLB_INVALID)
    if unlikely(not alike):
        if access == FETCH:
            e.rtag = TLB_INVALID
        else:
            e.xtag = TLB_INVALID
    e.wtag = TLB_INVALID
    s.tlb_host[number] = host & PAGE_MASK
    s.tlb_page[number] = where & PAGE_MASK
    large: u8 = 0
    if w.large != 0:
        large = 2
        if w.level >= 30:
            large = 4
        note_large(s, where, u64(w.level))
    s.tlb_global[number] = u8(w.is_global) | large | LISTED
    code = code_bits(slot, w.gpa)
    if fast and e.rtag == page and code[0] == 0 and (slot.flags & SLOT_READONLY) == 0:
        e.wtag = page
        fence()
        if code[0] != 0:
            e.wtag = TLB_INVALID
    return host


@native
def mmio_read(s, gpa, size):
    """Read a device at a guest-physical address."""
    return outside(s, u32(EXIT_MMIO), gpa, u64(0), size, u32(0))


@native
def mmio_write(s, gpa, value, size):
    """Write a device at a guest-physical address."""
    outside(s, u32(EXIT_MMIO), gpa, value, size, u32(1))


@native(inline=False, spares_registers=True)
def slow_load(s, lin: u64, T, index: u32):
    check_alignment(s, lin, u64(T.size), index)
    if T.size == 1 or (lin & 0xFFF) + T.size <= 4096:
        host = fill(s, lin, u32(READ), index)
        watch(s, lin, u64(T.size), False)
        if host != 0:
            return ptr[T](host)[0]
        if T.size <= 8:
            return T(mmio_read(s, s.mmio_gpa, u64(T.size)))
        else:
            gpa = s.mmio_gpa
            low = mmio_read(s, gpa, u64(8))
            return T(low) | (T(mmio_read(s, gpa + 8, u64(8))) << 64)
    second = (lin + (T.size - 1)) & PAGE_MASK
    fill(s, lin, u32(READ), index)
    fill(s, linear_wrap(s, second), u32(READ), index)
    value = T(0)
    for i in range(u64(T.size)):
        value = value | (T(slow_load(s, linear_wrap(s, lin + i), u8, index)) << (i * 8))
    return value


@native(inline=False, spares_registers=True)
def slow_store(s, lin: u64, value, T, index: u32) -> None:
    check_alignment(s, lin, u64(T.size), index)
    if T.size == 1 or (lin & 0xFFF) + T.size <= 4096:
        host = fill(s, lin, u32(WRITE), index)
        watch(s, lin, u64(T.size), True)
        if host == 0:
            if T.size <= 8:
                mmio_write(s, s.mmio_gpa, u64(value), u64(T.size))
            else:
                gpa = s.mmio_gpa
                mmio_write(s, gpa, u64(value), u64(8))
                mmio_write(s, gpa + 8, u64(value >> 64), u64(8))
            return
        gpa = s.mmio_gpa
        if unlikely(hits_code(s, gpa, u64(T.size))):
            fence()  # the stores before this one come first, for every processor
            if volatile_load(ptr[T](host)) == value:
                return   # translated code stays what it is
        before_store(s, gpa, u64(T.size))
        ptr[T](host)[0] = value
        after_store(s, gpa, u64(T.size))
        return
    second = (lin + (T.size - 1)) & PAGE_MASK
    fill(s, lin, u32(WRITE), index)
    fill(s, linear_wrap(s, second), u32(WRITE), index)
    for i in range(u64(T.size)):
        slow_store(s, linear_wrap(s, lin + i), u8(value >> (i * 8)), u8, index)


@native
def linear_wrap(s, lin):
    """Linear addresses are 32 bits wide outside 64-bit mode, but for the system's tables in compatibility mode."""
    if (s.mode & MODE_SIZE) == MODE_64 or lin >> 33 != 0:
        return lin
    return lin & 0xFFFF_FFFF


@native(inline=False, spares_registers=True)
def probe_write(s, lin: u64, size: u64) -> u64:
    """Fault as a store of `size` bytes would, without storing; what `fill` says of the first page."""
    check_alignment(s, lin, size, s.tlb_index)
    host = fill(s, lin, u32(WRITE), s.tlb_index)
    if (lin & 0xFFF) + size > 4096:
        fill(s, linear_wrap(s, (lin + size - 1) & PAGE_MASK), u32(WRITE), s.tlb_index)
    return host


@native(inline=False)
def probe_sys(s, lin: u64, size: u64) -> None:
    """Fault as a supervisor's store to every byte of a range within two pages would."""
    fill(s, lin & 0xFFFF_FFFF, u32(WRITE), u32(TLB_SUPERVISOR))
    if (lin & 0xFFF) + size > 4096:
        fill(s, (lin + size - 1) & PAGE_MASK & 0xFFFF_FFFF, u32(WRITE), u32(TLB_SUPERVISOR))


@native(inline=False)
def probe_read(s, lin: u64, size: u64) -> None:
    """Fault as a load of `size` bytes would."""
    check_alignment(s, lin, size, s.tlb_index)
    fill(s, lin, u32(READ), s.tlb_index)
    if (lin & 0xFFF) + size > 4096:
        fill(s, linear_wrap(s, (lin + size - 1) & PAGE_MASK), u32(READ), s.tlb_index)


# --- flushing ------------------------------------------------------------------------------------------


@native(inline=False)
def flush_tlb(s, everything: bool) -> None:
    """Drop all translations, or all but global ones."""
    for index in range(u64(TLBS)):
        used = u64(s.tlb_used[index])
        kept: u64 = 0
        for i in range(used):
            number = s.tlb_fills[index * TLB_ENTRIES + i]
            if everything or (s.tlb_global[number] & 1) == 0:
                drop_listed(s, u64(number))
            else:
                s.tlb_fills[index * TLB_ENTRIES + kept] = number
                kept += 1
        s.tlb_used[index] = u32(kept)
    if everything:
        for i in static(range(8)):
            s.tlb_large[i] = 0


@native
def drop_listed(s, number):
    """Drop an entry that leaves tlb_fills."""
    drop_entry(s, number)
    s.tlb_global[number] = 0


@native(inline=False)
def drop_write_tags(s) -> None:
    """The next store to each page is slow."""
    for index in range(u64(TLBS)):
        for i in range(u64(s.tlb_used[index])):
            number = u64(s.tlb_fills[index * TLB_ENTRIES + i])
            ptr[TlbEntry](u64(s) + TLB_OFFSET + number * TlbEntry.size).wtag = TLB_INVALID


@native
def drop_entry(s, number):
    e = ptr[TlbEntry](u64(s) + TLB_OFFSET + number * TlbEntry.size)
    e.rtag = TLB_INVALID
    e.wtag = TLB_INVALID
    e.xtag = TLB_INVALID
    s.tlb_host[number] = ~u64(0)


@native
def large_bit(lin, level):
    """The bit of CpuState.tlb_large for the page of 1 << level bytes around `lin`. Either half of the addresses has
    half of the bits, since a kernel's large pages must not make INVLPG of its programs' pages slow.
    """
    page = lin >> level
    return (page ^ (page >> 8)) & 255 | (lin >> 63) << 8


@native
def note_large(s, lin, level):
    """A piece of a large page comes into a TLB: from now on INVLPG in that page looks for others."""
    if level == 21 or level == 30:
        bit = large_bit(lin, level)
        s.tlb_large[bit >> 6] = s.tlb_large[bit >> 6] | (u64(1) << (bit & 63))
    else:
        for i in static(range(8)):
            s.tlb_large[i] = ~u64(0)


@native
def large_noted(s, lin, level):
    """Whether a TLB may hold a piece of a page of this size around `lin`."""
    bit = large_bit(lin, level)
    return (s.tlb_large[bit >> 6] >> (bit & 63)) & 1 != 0


@native(inline=False)
def flush_page(s, lin: u64) -> None:
    """INVLPG: drop the translations of one page, with every piece of a large page around it."""
    if large_noted(s, lin, u64(21)) or large_noted(s, lin, u64(30)):
        flush_pieces(s, lin)
    else:
        for index in static(range(TLBS)):
            number = u64(index * TLB_ENTRIES) + ((lin >> 12) & (TLB_ENTRIES - 1))
            if s.tlb_page[number] == lin & PAGE_MASK:
                drop_entry(s, number)


@native(inline=False)
def flush_pieces(s, lin: u64) -> None:
    page = lin & PAGE_MASK
    for index in range(u64(TLBS)):
        used = u64(s.tlb_used[index])
        kept: u64 = 0
        for i in range(used):
            number = s.tlb_fills[index * TLB_ENTRIES + i]
            differs = s.tlb_page[number] ^ page
            size = (s.tlb_global[number] >> 1) & 3
            if differs == 0 or (size == 1 and differs >> 22 == 0) or (size == 2 and differs >> 30 == 0):
                drop_listed(s, u64(number))
            else:
                s.tlb_fills[index * TLB_ENTRIES + kept] = number
                kept += 1
        s.tlb_used[index] = u32(kept)


@native
def select_tlb(s):
    """Choose the TLB for the current privilege: call after CPL, RFLAGS.AC, CR0.AM or CR4.SMAP changed."""
    index: u32 = TLB_SUPERVISOR
    if s.cpl == 3:
        index = TLB_USER
    elif (s.cr4 & CR4_SMAP) != 0 and (s.flags & RFLAGS_AC) != 0:
        index = TLB_SUPERVISOR_AC
    s.tlb_index = index
    s.tlb = tlb_address(s, index)
    checked = u32(index == TLB_USER and (s.flags & RFLAGS_AC) != 0 and (s.cr0 & CR0_AM) != 0)
    if unlikely(checked != s.align_check):
        s.align_check = checked
        forget_user(s)


@native(inline=False)
def forget_user(s) -> None:
    """Drop what the user TLB holds."""
    for i in range(u64(s.tlb_used[TLB_USER])):
        drop_listed(s, u64(s.tlb_fills[TLB_USER * TLB_ENTRIES + i]))
    s.tlb_used[TLB_USER] = 0
