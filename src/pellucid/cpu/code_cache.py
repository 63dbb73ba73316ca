"""The structs of translated code: operations, blocks, the cache that holds them and the templates they are made from.

An operand in an `Op` is a byte offset into CpuState (see `state`), so that AH is simply the second byte of RAX.
"""

from pellucid.native import array, struct, u8, u16, u32, u64
from pellucid.native.layout import Struct
from pellucid.native.types import i64


@struct(own=True)
class Op(Struct):
    """One pre-decoded operation, 64 bytes. Slots are byte offsets into CpuState."""

    handler: u64   # address of the native handler; in a template, its number
    dst: u16       # operand 0
    src: u16       # operand 1
    src2: u16      # operand 2
    seg: u16       # slot added to a memory operand: a segment base, or zero
    base: u16
    index: u16
    scale: u8      # shift of the index, 0..3
    length: u8     # bytes of the instruction
    row: u16       # number of the instruction's table row
    disp: i64
    imm: u64       # immediate, sign-extended; for a relative branch, target minus block start
    ip: u16        # instruction's start minus block start
    next_ip: u16   # its end minus block start
    flags: u32     # OP_*
    target: u64    # chained op for a taken branch, or 0
    fall: u64      # chained op for the fall-through, or 0


# Op.flags in templates: what the translator patches.
OP_RIP_RELATIVE = 1      # disp counts from the instruction's end
OP_BRANCH = 2            # imm counts from the instruction's end
OP_HAS_DISP = 8          # the displacement bytes are added to disp
OP_HAS_IMM = 16          # the immediate bytes become imm
OP_STACK = 32            # 64-bit mode: its memory is reached through SS, or ...
OP_STACK_TOO = 64        # ... through SS besides another segment: a non-canonical address is #SS(0)
OP_CALL = 128            # a branch that pushes its return address
OP_NOTRACK = 256         # an indirect branch with the NO_TRACK prefix
OP_OUTSIDE = 512         # no transaction may hold it
OP_BEFORE = 24           # bits 31:24 of a translated op: instructions of its block before its own, if counted
OP_TAKES_CC = 4          # handler number is the first of a run, one for each known cc_kind


@struct
class Block(Struct):
    """Header of a translated block; its ops follow."""

    host: u64      # host address of its first code byte
    host2: u64     # host address of the second page, where an instruction crosses, else 0
    next: u64      # next block of the same page
    mode: u32
    size: u32      # bytes of guest code
    count: u32     # ops
    dead: u32      # 1 after invalidation
    ops: u64       # address of the first op
    gpa: u64       # guest-physical address of the first byte
    info2: u64     # PageInfo of the second page
    next2: u64     # next block that crosses a page
    region: u64    # 1: compiled code of a region holds a copy of this block
    reach: u64     # bytes from its start that must lie within the code segment
    branch: u64    # of its last instruction: IS_BRANCH, IS_CONDITIONAL


@struct(own=True)
class JumpEntry(Struct):
    """One way of the block cache, keyed by host address and mode; two share a cache line, the later one first."""

    host: u64
    mode: u64
    ops: u64
    host2: u64


JUMP_WAYS = 2
JUMP_SETS = 1 << 15


@struct
class CodeCache(Struct):
    """Translated code of one CPU: arena of blocks and ops, shape trie, templates."""

    arena: u64
    arena_size: u64
    arena_used: u64
    trie: u64              # address of TrieEdge[TRIE_EDGES]
    templates: u64         # address of Template[MAX_TEMPLATES]
    template_ops: u64      # address of Op[MAX_TEMPLATE_OPS]
    handlers: u64          # address of u64[]: handler number -> address
    cross: u64             # first block that crosses a page, linked by next
    scratch: u64           # address of memory for one instruction's ops
    fetch: u64             # address of 32 bytes: code that crosses a page, joined
    want: u64              # host address of the bytes of an instruction without template
    want_count: u64        # how many bytes stand there
    want_mode: u64
    invalid_at: u64        # host address of bytes that Python found to be no instruction
    invalid_count: u64     # how many of them it looked at, and which
    invalid_bytes: array[u8, 16]
    invalid_long: u64      # 1: more than 15 bytes, #GP(0) instead of #UD
    short_at: u64          # host address of bytes that Python found to go on in the next page
    flush_wanted: u64
    ud_handler: u64        # handler numbers the translator itself uses
    long_handler: u64
    endbranch_handler: u64
    limit_handler: u64
    next_handler: u64
    leave_handler: u64
    counted_handler: u64
    record_handler: u64
    dead_handler: u64
    fused: u64             # address of u32[]: handler number -> first of its sixteen fused with a jump, or 0
    blocks: u64            # blocks translated, for statistics


@struct
class TrieEdge(Struct):
    """node * 256 + byte + 1 -> node or TERMINAL | template."""

    key: u32
    value: u32


TRIE_EDGES = 1 << 19
TRIE_TERMINAL = 1 << 31
MAX_TEMPLATES = 1 << 16
MAX_TEMPLATE_OPS = 1 << 17


@struct
class Template(Struct):
    """One instruction shape: everything but displacement and immediate."""

    length: u8
    count: u8              # ops
    disp_at: u8
    disp_size: u8
    imm_at: u8
    imm_size: u8
    flags: u16             # T_*
    first: u32             # number of its first op
    cc_out: u32            # cc_kind after it where that is known, else CC_UNKNOWN; CC_SAME: unchanged
    needs: array[u64, 2]   # features (isa.features) that CPUID must show, or ...
    without: u32           # ... this template counts in its place; 0: the bytes are no instruction then


T_JCC = 2                  # a conditional jump of 64-bit mode; its op's src is the condition
T_ENDS = 1                 # ends the block
T_BRANCHES = 2             # bits 3:2 are ...
IS_BRANCH, IS_CONDITIONAL = 1, 2   # ... a branch instruction of whichever kind; which may not be taken
T_KIND = 4                 # bits 7:4: its bit in MSR_LBR_SELECT, or 0 (see `lbr`)
T_KINDS = 15
T_NOTHING = 1 << 8         # NOP: it is counted, and has no op in a block
