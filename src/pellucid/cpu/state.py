"""The state of one guest CPU, as native code and Python both see it.

The structs here are the only contract between instruction semantics, translator, run loop and backends.
Translated code has its own in `code_cache`. `CpuState` is followed in the same allocation by its TLBs (`TLB_OFFSET`).

Lazy flags: the status flags stand in (cc_kind, cc_dst, cc_src) until someone asks; see `flags`.
`rip` is the instruction pointer at the start of the running block; an op adds its own offset when it faults.
"""

from pellucid.native import array, struct, u8, u16, u32, u64
from pellucid.native.layout import Struct
from pellucid.native.types import i64

# Segment register numbers (Intel SDM vol. 2, table 3-1), then the two system segments.
ES, CS, SS, DS, FS, GS, LDTR, TR = range(8)

# Segment attributes, in the layout of VMX access rights (SDM vol. 3, table 25-2).
ATTR_TYPE, ATTR_S, ATTR_P = 0xF, 1 << 4, 1 << 7
ATTR_L, ATTR_DB, ATTR_G, ATTR_UNUSABLE = 1 << 13, 1 << 14, 1 << 15, 1 << 16
ATTR_DPL_SHIFT = 5

RFLAGS_CF, RFLAGS_PF, RFLAGS_AF, RFLAGS_ZF, RFLAGS_SF, RFLAGS_OF = 1, 4, 0x10, 0x40, 0x80, 0x800
RFLAGS_STATUS = 0x8D5
RFLAGS_TF, RFLAGS_IF, RFLAGS_DF, RFLAGS_IOPL, RFLAGS_NT = 0x100, 0x200, 0x400, 0x3000, 0x4000
RFLAGS_RF, RFLAGS_VM, RFLAGS_AC, RFLAGS_VIF, RFLAGS_VIP, RFLAGS_ID = (1 << n for n in range(16, 22))
RFLAGS_FIXED = 2

CR0_PE, CR0_MP, CR0_EM, CR0_TS, CR0_ET, CR0_NE = (1 << n for n in range(6))
CR0_WP, CR0_AM, CR0_NW, CR0_CD, CR0_PG = 1 << 16, 1 << 18, 1 << 29, 1 << 30, 1 << 31
CR4_VME, CR4_PVI, CR4_TSD, CR4_DE, CR4_PSE, CR4_PAE, CR4_MCE, CR4_PGE, CR4_PCE, CR4_OSFXSR, CR4_OSXMMEXCPT, \
    CR4_UMIP, CR4_LA57, CR4_VMXE, CR4_SMXE = (1 << n for n in range(15))
CR4_FSGSBASE, CR4_PCIDE, CR4_OSXSAVE, CR4_SMEP, CR4_SMAP, CR4_PKE = 1 << 16, 1 << 17, 1 << 18, 1 << 20, 1 << 21, 1 << 22
CR4_CET, CR4_PKS, CR4_LAM_SUP = 1 << 23, 1 << 24, 1 << 28
CR3_LAM_U57, CR3_LAM_U48 = 1 << 61, 1 << 62
XCR0_SSE, XCR0_AVX, XCR0_PKRU = 2, 4, 1 << 9
EFER_SCE, EFER_LME, EFER_LMA, EFER_NXE, EFER_FFXSR = 1, 1 << 8, 1 << 10, 1 << 11, 1 << 14

# Exception vectors (SDM vol. 3, table 6-1).
DE, DB, NMI, BP, OF, BR, UD, NM, DF, _, TS, NP, SS_FAULT, GP, PF, _, MF, AC, MC, XM, VE, CP = range(22)
NO_VECTOR = 0xFFFF

# What raised an exception, CpuState.exc_soft: the processor; INT n, INT3 or INTO; INT1; a device; and a #DB that is a
# fault (general detect), which alone of the #DBs sets RF in the pushed flags.
SOFT_NONE, SOFT_INT, SOFT_ICEBP, EXTERNAL, DEBUG_FAULT = range(5)

# Debug registers (SDM vol. 3, 17.2). DR6_FIXED: bits that read as 1; where bus locks are detected, BLD may be 0.
DR6_BLD, DR6_BD, DR6_BS, DR6_BT, DR6_FIXED = 1 << 11, 1 << 13, 1 << 14, 1 << 15, 0xFFFF0FF0
DR7_FIXED, DR7_GD, DR7_LOCAL = 1 << 10, 1 << 13, 0x155

# IA32_DEBUGCTL (SDM vol. 3, 17.4.1).
DEBUGCTL_LBR, DEBUGCTL_BTF, DEBUGCTL_BUS_LOCK, DEBUGCTL_FREEZE_LBRS, DEBUGCTL_FREEZE_PERFMON = 1, 2, 4, 1 << 11, 1 << 12

# Page-fault error code (SDM vol. 3, 4.7).
PF_PRESENT, PF_WRITE, PF_USER, PF_RSVD, PF_FETCH, PF_PKEY, PF_SHADOW = (1 << n for n in range(7))

# What translated code depends on besides its bytes: CpuState.mode.
MODE_16, MODE_32, MODE_64, MODE_SIZE = 0, 1, 2, 3
MODE_STACK32 = 1 << 2       # SS.B, outside 64-bit mode
MODE_SEGMENTED = 1 << 3     # some segment is not flat: check limits, add bases
MODE_STEP = 1 << 4          # one instruction at a time: RFLAGS.TF, or the engine itself
MODE_FPU_TRAP = 1 << 5      # CR0.EM or CR0.TS: x87, MMX and SSE instructions trap first
MODE_FP_STRICT = 1 << 6     # MXCSR unmasks an exception: check after each SSE operation
MODE_SSE_UD = 1 << 7        # CR4.OSFXSR clear or CR0.EM: SSE raises #UD
MODE_KEYS = 1 << 8
MODE_AVX_UD = 1 << 9        # CR4.OSXSAVE clear, or XCR0 without SSE and AVX state: AVX raises #UD
MODE_VEX_UD = 1 << 10       # real-address or virtual-8086 mode: VEX prefixes raise #UD
MODE_SHADOW = 1 << 11      # shadow stacks are enabled at this CPL
MODE_TRACK = 1 << 12       # indirect branches are tracked at this CPL ...
MODE_ENDBRANCH = 1 << 13   # ... and the next instruction must be ENDBR
MODE_CET = MODE_SHADOW | MODE_TRACK
MODE_COUNTED = 1 << 14     # blocks spend CpuState.budget
MODE_LBR = 1 << 15         # branches that are taken are recorded: see `lbr`
MODE_SHAPE = (1 << 14) - 1  # the bits on which a shape's meaning may depend: each has tries of its own

# Why native code returned: CpuState.exit_reason.
EXIT_NONE, EXIT_PENDING, EXIT_EXCEPTION, EXIT_MMIO, EXIT_IO, EXIT_HLT, EXIT_TRANSLATE, EXIT_COLD, EXIT_SHUTDOWN, \
    EXIT_SMC, EXIT_STEPPED, EXIT_FLUSH, EXIT_LOOKUP, EXIT_MSR, EXIT_FERR, EXIT_RSM, EXIT_EXCLUSIVE, EXIT_BLOCK, \
    EXIT_HYPERCALL, EXIT_PAUSE, EXIT_WAIT, EXIT_BUDGET, EXIT_TRANSACTION = range(23)
EXIT_PAGER = 23             # a page of guest RAM is out: see `residency`
EXIT_WAKE = 28              # an event was posted to a processor whose thread sleeps

COUNTERS = 1 << 32  # CpuState.io_address of EXIT_MSR: RDPMC of the counter in its low half, not an MSR

# CpuState.shadow. Behind a load of SS the single-step trap waits too (SDM vol. 3, 6.8.3).
SHADOW_STI, SHADOW_MOV_SS = 1, 2

# Bits of CpuState.pending.
PENDING_REQUEST, PENDING_STEP, PENDING_SAMPLE, PENDING_MAIL, PENDING_TRACE, PENDING_NMI, PENDING_VECTOR = \
    1, 2, 4, 8, 16, 32, 64

# CpuState.trace: what `run_traced` leaves for.
TRACE_NEW, TRACE_BLOCKS, TRACE_EVENTS = 1, 2, 4

# CpuState.features: what CPUID shows. Word FEATURES_SYSTEM has FEATURE_*, the two from FEATURES_ISA on the bits of
# isa.features.
FEATURES_SYSTEM, FEATURES_ISA = 0, 1
FEATURE_PDPE1GB, FEATURE_PSE36, FEATURE_LA57 = 1, 2, 4
FEATURE_AMD = 8               # AMD's processors, where they differ from Intel's
FEATURE_ERROR_POINTERS = 16   # FXSAVE and its like keep the x87 pointers without an exception too
FEATURE_LAM = 1 << 16         # CR3 may have LAM_U57 and LAM_U48
FEATURE_BUS_LOCK = 1 << 17    # bus-lock detection: DR6.BLD

MISC_ENABLE_FAST_STRINGS, MISC_ENABLE_MONITOR = 1, 1 << 18   # IA32_MISC_ENABLE

# IA32_U_CET and IA32_S_CET (SDM vol. 4).
CET_SHADOW, CET_WRITE_SHADOW, CET_TRACK, CET_LEGACY, CET_NO_TRACK, CET_NO_SUPPRESS = (1 << n for n in range(6))
CET_SUPPRESS, CET_WAIT, CET_SHADOW_BITS, CET_TRACK_BITS = 1 << 10, 1 << 11, 3, 0xFFFF_FFFF_FFFF_FC3C
CP_NEAR_RET, CP_FAR_RET, CP_ENDBRANCH, CP_RSTORSSP, CP_SETSSBSY = range(1, 6)  # error codes of #CP

# IA32_TSX_CTRL (SDM vol. 4).
TSX_RTM_DISABLE, TSX_CPUID_CLEAR = 1, 2

# Accesses (also the column of a TLB entry).
READ, WRITE, FETCH = 0, 1, 2

TLB_ENTRIES = 2048
# SMAP: user pages are reachable only with RFLAGS.AC. The last two serve shadow-stack accesses.
TLB_USER, TLB_SUPERVISOR, TLB_SUPERVISOR_AC, TLB_SHADOW_USER, TLB_SHADOW = range(5)
TLBS = 5
TLB_INVALID = 1                                         # a tag that no page address equals
PAGE = 4096
PAGE_MASK = ~0xFFF & 0xFFFF_FFFF_FFFF_FFFF
REPLAY_SLOTS = 160
XMM_BYTES = 64


@struct(own=True)
class TlbEntry(Struct):
    """One translation. A tag is the linear page where that access needs no slow path, else not a page address."""

    rtag: u64
    wtag: u64
    xtag: u64
    addend: u64    # host address minus linear address


@struct
class Slot(Struct):
    """A KVM memory slot: guest-physical range backed by host memory."""

    gpa: u64
    size: u64
    hva: u64
    pages: u64     # address of this processor's PageInfo[size / 4096]; it and `code` go by host page, so that every
    #                slot that shows a page, in whichever address space, has the same
    code: u64      # address of the VM's u64[size / 4096]: bit n of a page: some processor may have translated bytes
    #                n*64..n*64+63 of it; while a word is not 0, no TLB allows fast stores to that page
    flags: u32     # SLOT_*
    number: u32
    residency: u64 # address of u8[size / 4096], PAGE_* of each page; 0: every page is in, always


PAGE_PRESENT, PAGE_USED = 1, 2   # a page is in; a TLB was filled from it since somebody cleared that
SLOT_READONLY = 2        # KVM_MEM_READONLY
MAX_SLOTS = 64           # in each address space
# Address spaces, KVM's numbers: what a processor sees, and what it sees in system-management mode.
SPACE_NORMAL, SPACE_SMM = 0, 1
ADDRESS_SPACES = 2


@struct
class PageInfo(Struct):
    """What one processor has of one guest page."""

    blocks: u64    # first Block whose code starts here


@struct
class SlotTable(Struct):
    """One address space of a VM as one of its processors sees it, the largest slots first."""

    count: u64
    slots: array[Slot, 64]


@struct
class Processors(Struct):
    """The processors of a VM: who must hear of a change of translated code."""

    count: u64
    states: array[u64, 256]    # addresses of their CpuStates


MAX_PROCESSORS = 256


@struct
class Mailbox(Struct):
    """Code pages that changed, for the processor that owns the box. Any thread adds, only the owner takes.

    An entry is the host address of a page | MAIL_*; order does not matter, and one that is there already serves twice.
    """

    posted: u64            # not 0: look into the entries
    overflow: u64          # MAIL_* bits: entries of this kind were lost; they count for every page
    entries: array[u64, 64]


MAIL_ENTRIES = 64
MAIL_KILL = 1              # drop the translations of this page
MAIL_CHANGED = 2           # have every processor drop them: a store of the owner's may have met a translation
MAIL_ECHO = 8              # have every processor drop them, the code bits stay: the owner's fast stores were taken away
MAIL_STORED = 4            # likewise, for an entry of 64 bytes and only if its code bit is still set


# What operands are slots of, and what else an instruction reads or writes beside them: the slow paths of memory
# accesses look at none of it, and only a write of the mode's own instructions, which end a block, changes the mode.
@struct(registers=("gpr", "zero", "ea", "rip", "cc_kind", "cc_dst", "cc_src", "tlb", "seg_base", "seg_selector", "st",
                   "xmm"), steady=("mode",))
class CpuState(Struct):
    """One guest CPU. Everything native code touches while it runs."""

    gpr: array[u64, 16]
    zero: u64              # always 0: the slot of an absent base, index or segment
    ea: u64                # address computed by a preceding address op
    rip: u64
    cc_kind: u64           # how to read the status flags: flags.CC_*
    cc_dst: u64            # result
    cc_src: u64            # operand
    flags: u64             # RFLAGS less the status flags (those are lazy)
    pending: u64           # not 0: leave at the next block end; set by other threads
    tlb: u64               # address of the TLB in force
    jumps: u64             # address of JumpEntry[JUMP_SETS * JUMP_WAYS]
    cs_base: u64           # what to add to rip for a linear address (0 in 64-bit mode)
    ss_base: u64           # likewise for the stack
    sp_mask: u64           # which bits of RSP the stack uses
    mode: u32              # MODE_*
    cpl: u32
    mxcsr: u32             # valid outside native code; inside it is in the host's register
    irq_window: u32        # 1: leave as soon as RFLAGS.IF is set
    step_once: u32         # 1: execute one instruction alone before anything else
    shadow: u32            # SHADOW_*: STI or MOV SS just retired; no interrupt before the next instruction
    exit_reason: u32
    exc_vector: u32
    exc_error: u32
    exc_has_error: u32
    exc_address: u64       # CR2 of a page fault in flight
    exc_soft: u32          # SOFT_*; behind INT n, INT3, INTO and INT1 the return address is after the instruction
    exc_length: u32
    tlb_index: u32         # TLB_*
    nmi_blocked: u32
    seg_base: array[u64, 8]
    seg_limit: array[u32, 8]
    seg_attr: array[u32, 8]
    seg_selector: array[u16, 8]
    cr0: u64
    cr2: u64
    cr3: u64
    cr4: u64
    cr8: u64
    efer: u64
    xcr0: u64
    gdt_base: u64
    idt_base: u64
    gdt_limit: u32
    idt_limit: u32
    dr: array[u64, 8]
    star: u64
    lstar: u64
    cstar: u64
    sfmask: u64
    kernel_gs_base: u64
    sysenter_cs: u64
    sysenter_esp: u64
    sysenter_eip: u64
    tsc_aux: u64
    pat: u64
    pkru: u32
    pkrs: u32
    tsc_offset: u64        # guest TSC = source * tsc_scale / 2**TSC_FRACTION + tsc_offset
    tsc_scale: u64
    maxphyaddr: u64        # physical address width, bits
    a20_mask: u64
    pdptr: array[u64, 4]   # PAE: the four entries loaded with CR3
    features: array[u64, 3]   # by FEATURES_*
    # x87: physical registers; the stack top is a number into them
    st: array[u8, 128]     # 8 x 16 bytes, f80 each; register i of the stack is (fpu_top + i) & 7
    fpu_cw: u16
    fpu_sw: u16            # without TOP
    fpu_top: u32
    fpu_tags: u32          # bit n: physical register n is in use (not empty)
    fpu_opcode: u32
    fpu_ip: u64
    fpu_dp: u64
    fpu_cs: u16
    fpu_ds: u16
    guest_mxcsr: u32
    host_mxcsr: u32
    pad: array[u8, 28]     # so that no vector register crosses a cache line
    xmm: array[u8, 2048]   # 32 registers of 64 bytes; XMM n is the low 16 bytes of n
    # one access of a device at a time
    io_address: u64
    io_data: u64
    io_size: u32
    io_write: u32
    io_count: u32          # of INS: elements that may be read at once, to the host address in io_data; else 0
    io_reserved: u32
    replay_count: u32      # accesses of the current instruction that are done
    replay_at: u32         # how many of them this execution has consumed
    replay: array[u64, 160]
    # engine
    slot_table: u64        # address of the SlotTable in force, one of
    slot_tables: u64       # SlotTable[ADDRESS_SPACES]
    code: u64              # address of the CodeCache
    cpuid: u64             # address of the CPUID table
    cpuid_count: u64
    leave_op: u64          # address of an op whose handler returns
    cold_row: u32
    cold_op: u64
    tlb_used: array[u32, 8]      # entries filled since the last flush, for each TLB
    tlb_fills: array[u16, 10240]  # which entries: 2048 for each TLB
    tlb_host: array[u64, 10240]   # host address of each entry's page
    tlb_page: array[u64, 10240]   # linear page of each entry
    tlb_global: array[u8, 10240]  # bit 0: survives a CR3 write; bit 1: part of a 2 or 4 MiB page; bit 2: of 1 GiB;
    #                              bit 3: it stands in tlb_fills
    tlb_large: array[u64, 8]     # a filter: see memory.note_large
    count_exceptions: u64
    count_walks: u64
    count_translated: u64
    count_smc: u64
    count_task_gates: u64
    trap_exceptions: u32   # not 0: exceptions leave the engine instead of being delivered
    exc_access: u32        # 1: the #GP(0) is that of a non-canonical data address, exc_address; see dispatch.leave
    align_check: u32       # 1: CPL 3 with CR0.AM and RFLAGS.AC; the user TLB then serves fetches only
    history: array[u64, 64]      # the last exceptions, 4 words each: vector|error<<32, rip, address, cs|cpl<<32|...
    history_at: u64
    apic_base: u64
    mmio_gpa: u64
    mtrr_def_type: u64
    misc_enable: u64
    cr4_allowed: u64       # bits of CR4 that may be set
    efer_allowed: u64
    xcr0_allowed: u64
    xss: u64               # IA32_XSS: supervisor components that XSAVES saves
    xss_allowed: u64
    table_limit: u32       # limit read by LGDT or LIDT
    msr_fault: u32         # the MSR access in flight raises #GP(0)
    delivering: u32        # 1: the event in exc_* is half delivered and goes on when a device answered; 2: not begun
    step_trap: u32         # the instruction that runs alone ends in a single-step trap
    db_pending: u64        # DR6 bits of a #DB that is due behind the current instruction
    watch_code: u32        # bit n: DRn is an instruction breakpoint; likewise for data and for ports
    watch_data: u32
    watch_port: u32
    count_mmio_fetch: u64  # bytes of code fetched from devices, in runs of up to fifteen
    count_mmio_tables: u64 # task switches refused because their descriptor tables lie on a device
    processors: u64        # address of the VM's Processors
    mail: u64              # address of this processor's Mailbox
    alone: u32             # 1: no block is running (one instruction alone, or the delivery of an event)
    smm: u32               # 1: in system-management mode
    smbase: u32
    smi_due: u32           # 1: an SMI waits; it comes before a debug trap behind the last instruction
    smm_inside_nmi: u32    # NMIs were blocked when system-management mode was entered
    smm_db_pending: u64    # db_pending at that time
    smi_count: u64         # IA32_SMI_COUNT
    ignne: u32             # 1: IGNNE# is asserted, until the x87 exception that is pending has been cleared
    exclusive: u32         # 1: no other processor of the VM is in native code
    trace: u32             # TRACE_*
    pause_window: u64      # TSC ticks that a loop with PAUSE may take before it leaves with EXIT_PAUSE; 0: any
    pause_first: u64       # when that loop began, and its last PAUSE
    pause_last: u64
    umwait_control: u64    # IA32_UMWAIT_CONTROL
    wait_until: u64        # guest TSC at which TPAUSE or UMWAIT, under way, ends
    monitor_gpa: u64       # the line that UMONITOR watches | 1, or 0
    monitor_line: array[u64, 8]   # what it held
    wait_limited: u32      # 1: wait_until comes from IA32_UMWAIT_CONTROL
    split_lock: u32        # 1: LOCK across two cache lines raises #AC(0) (MSR_MEMORY_CTRL.SPLIT_LOCK_DISABLE)
    announced: u32         # 1: the block or instruction at RIP has been told of (EXIT_BLOCK)
    # control-flow enforcement (SDM vol. 1, 17)
    ssp: u64               # the shadow stack in use
    cet_allowed: u64       # bits of the two registers below that CPUID permits
    u_cet: u64             # IA32_U_CET and IA32_S_CET: CET_*
    s_cet: u64
    pl_ssp: array[u64, 4]  # IA32_PL0_SSP to IA32_PL3_SSP
    ssp_table: u64         # IA32_INTERRUPT_SSP_TABLE_ADDR
    # counted execution, see MODE_COUNTED and `retire`
    counted: u64           # 1: instructions are counted
    budget: i64            # instructions that may still retire before the processor leaves with EXIT_BUDGET
    spent_ahead: u64       # instructions of the running block, all of which `budget` has paid for at its start
    short: u32             # 1: the budget does not cover the block at RIP: instructions are executed one by one
    clock_on: u32          # 1: the source of the TSC is the instruction clock: ns, which pass as instructions do
    clock_end: u64         # its time when the budget is used up
    clock_shift: u64       # an instruction takes 2**clock_shift ns
    # exits that native code handles itself
    clock_registers: u64   # address of the VM's ClockRegisters, or 0
    cpuid_first: array[u16, 129]   # by the hash of a leaf: its first entry in the CPUID table
    apic_targets: u64      # address of the VM's ApicTargets, or 0
    apic_icr: u64          # the local APIC's interrupt command register
    nmi_posted: u64        # NMIs that other threads sent since the processor last looked; changed atomically
    nmi_pending: u64       # NMIs that wait for the processor, at most two
    asleep: u64            # 1: the processor's thread sleeps, and who posts an event has to wake it
    # guest RAM that may be out, see `residency`
    bring_in: u32          # 1: touching a page that is out brings it in, while this thread waits; nothing leaves
    # transactions, see `transaction`
    transaction: u64       # address of the Transaction
    tsx_ctrl: u64          # IA32_TSX_CTRL: TSX_*
    tx: u32                # how deep transactions nest, 0: none is under way
    # performance monitoring, see `tally`
    metered: u32           # 1: what happens is tallied, for the counters
    level: u32             # of what is being tallied: LEVEL_*
    level_exit: u32        # 1: leave with EXIT_BUDGET where that changes
    branch_ahead: u32      # 1: the running block ends in a branch, which `branches` has in advance
    retired_end: u64       # instructions retired since the start when the budget is used up
    branches: u64          # branch instructions retired since the start, where instructions are counted
    tally_from: array[u64, 4]   # by TALLY_* with a total: the total at the last time
    tally: array[u64, 30]       # by level, then by TALLY_*: what has happened until then
    debugctl: u64          # IA32_DEBUGCTL: DEBUGCTL_*
    # last-branch records, see `lbr`
    lbr_depth: u32         # entries of the stack, a power of 2; 0: there are no such records
    lbr_linear: u32        # 1: they hold linear addresses; 0: offsets into the code segment
    lbr_tos: u64           # MSR_LASTBRANCH_TOS: the latest entry
    lbr_select: u64        # MSR_LBR_SELECT: SELECT_*
    lbr_clock: u64         # instructions retired when the stack last changed, where instructions are counted
    lbr_from: array[u64, 32]
    lbr_to: array[u64, 32]
    lbr_info: array[u64, 32]   # INFO_*, in the layout of MSR_LBR_INFO_0
    ler_from: u64          # MSR_LER_FROM_LIP and MSR_LER_TO_LIP
    ler_to: u64
    # the local APIC's vectors, 256 bits each, see `vectors`
    apic_posted: array[u64, 4]   # sent by native code since the processor last looked; changed atomically
    vectors_posted: u64    # 1: look there
    apic_irr: array[u64, 4]      # requested
    apic_isr: array[u64, 4]      # in service
    apic_tmr: array[u64, 4]      # whose last request was level-triggered
    apic_tpr: u64          # task and processor priority, 8 bits each
    apic_ppr: u64
    vector_due: u64        # 1: the class of the highest requested vector is above PPR's
    apic_enabled: u64      # 1: software-enabled
    eoi_offered: u64       # 1: the guest may end what is in service in its own memory (PV EOI)
    halt_poll: u64         # TSC ticks that HLT looks for an event before its thread sleeps, see `posted`
    halt_longest: u64      # the most of them; 0: it leaves at once
    dozed_ns: u64          # how long it has slept in native code, which is no time of the host's other work
    dozing: u32            # 1: it does; who sets `pending` has to wake it
    halts_unwatched: u32   # so many halts more do not look
    waker_cpu: u32         # the host's CPU that the thread was on that woke it last
    left_cpu: u32          # 1: for that it has left its CPU, which has not helped yet
    # bus locks, see `bus_lock`
    uc_lock: u32           # 1: LOCK on memory that is not write-back raises #GP(0) (MSR_MEMORY_CTRL.UC_LOCK_DISABLE)
    lock_types: u32        # 1: memory types matter to locked accesses
    not_write_back: u32    # 1: one of the pages that `fill` was asked for since this was cleared is not write-back
    mtrr_fixed: array[u64, 11]      # in the order of their MSRs; IA32_MTRR_DEF_TYPE is above
    mtrr_variable: array[u64, 16]   # base and mask of each range
    # runs of branch instructions, one behind the other, where instructions are counted: see `retire`
    branch_runs: u64       # begun since the start
    in_run: u64            # 1: the last instruction was of one
    in_run_before: u64     # in_run when the running block was paid for
    run_ahead: u64         # 1: its branch begins a run, which `branch_runs` has in advance


# Instructions; branches; ticks of the TSC; branches that no branch precedes at their level; changes of the privilege
# level to this one.
TALLY_INSTRUCTIONS, TALLY_BRANCHES, TALLY_TICKS, TALLY_RUNS, TALLY_ENTRIES = range(5)
TALLIES = 5
# Levels: CPL 0 or not; LEVEL_INSIDE more in transactions, and LEVEL_ABORTED more in those that were aborted.
LEVEL_USER, LEVEL_INSIDE, LEVEL_ABORTED, LEVELS = 1, 2, 4, 6

TSC_FRACTION = 48          # bits of tsc_scale behind the point
LBR_ENTRIES = 32           # entries of the deepest stack of last-branch records


TLB_OFFSET = -(-CpuState.size // 4096) * 4096
TLB_BYTES = TLB_ENTRIES * TlbEntry.size
STATE_BYTES = TLB_OFFSET + TLBS * TLB_BYTES


def slot_of(name: str, index: int = 0) -> int:
    """The byte offset of a field (or of element `index` of an array field) in CpuState."""
    field = CpuState.fields[name]
    return int(field.offset + index * getattr(getattr(field.type, "element", None), "size", 0))
