"""Translation: guest bytes to ops, natively, by instruction shapes that Python taught once.

x86 puts displacement and immediate last, so the bytes before them (prefixes, opcode, ModRM, SIB) name the shape
and its length. A trie over those bytes, rooted by mode, ends in a template: ready ops that lack only the two
constants. An unknown shape leaves to Python (`learn`), which decodes it with iced-x86 and adds it; from then on
every instruction of that shape, at any address in any process, translates here in some 20 ns. Templates hold no
address, so they serve the next boot as they are.
"""

from pellucid.cpu.code_pages import claim_code, granules, jump_entry
from pellucid.cpu.faults import Stop, general_protection
from pellucid.cpu.flags import CC_SAME, CC_UNKNOWN
from pellucid.cpu.lbr import SELECT_NEAR_REL_CALL, ZERO_LENGTH
from pellucid.cpu.memory import fill, mmio_read
from pellucid.cpu.physical import code_bits, find_slot, page_info
from pellucid.cpu.code_cache import (
    IS_BRANCH, OP_BEFORE, OP_BRANCH, OP_HAS_DISP, OP_HAS_IMM, OP_RIP_RELATIVE, OP_TAKES_CC, T_BRANCHES, T_ENDS,
    T_JCC, T_KIND, T_KINDS, T_NOTHING, Block, CodeCache, Op,
)
from pellucid.cpu.state import (
    CS, EXIT_SMC, FETCH, MODE_64, MODE_COUNTED, MODE_ENDBRANCH, MODE_LBR, MODE_SEGMENTED, MODE_SHAPE, MODE_SIZE,
    MODE_STEP, PAGE_MASK,
)
from pellucid.engine.matching import SHORT, lacks, match, template_for
from pellucid.native import atomic_load, i64, memcpy, minimum, native, ptr, u8, u16, u32, u64

MAX_INSTRUCTIONS = 48
MAX_LENGTH = 15           # bytes of an instruction
MAX_BLOCK_OPS = 128
ARENA_RESERVE = 64 * (MAX_BLOCK_OPS + 4)

# Results of translate() that are no address.
NEEDS_PYTHON, NEEDS_SECOND_PAGE, NEEDS_FLUSH = 0, 1, 2


@native(inline=False)
def constant_at(code: u64, size: u64) -> i64:
    """A little-endian constant of 1 to 8 bytes, sign-extended."""
    value: u64 = 0
    for i in range(size):
        value = value | (u64(ptr[u8](code)[i]) << (i * 8))
    shift = (8 - size) * 8
    return i64(value << shift) >> shift


@native
def emit(s, c, out, t, code, ip, known_cc, before):
    """Copy a template's ops to `out` and fill in what the shape left open; `before`: the OP_BEFORE bits."""
    length = u64(t.length)
    disp: i64 = 0
    imm: i64 = 0
    if t.disp_size != 0:
        disp = constant_at(code + u64(t.disp_at), u64(t.disp_size))
    if t.imm_size != 0:
        imm = constant_at(code + u64(t.imm_at), u64(t.imm_size))
    for i in range(u64(t.count)):
        source = ptr[Op](c.template_ops + (u64(t.first) + i) * Op.size)
        op = ptr[Op](out + i * Op.size)
        memcpy(op, source, Op.size)
        number = op.handler
        if (op.flags & OP_TAKES_CC) != 0:
            number = number + u64(known_cc)
        op.flags = op.flags | before
        op.handler = ptr[u64](c.handlers)[number]
        op.ip = u16(ip)
        op.next_ip = u16(ip + length)
        if (op.flags & OP_HAS_DISP) != 0:
            op.disp = op.disp + disp
        if (op.flags & OP_RIP_RELATIVE) != 0:
            op.disp = op.disp + i64(ip + length)
        if (op.flags & OP_HAS_IMM) != 0:
            op.imm = u64(imm)
        if (op.flags & OP_BRANCH) != 0:
            op.imm = op.imm + ip + length


@native
def closing(c, out, handler, ip, before):
    """One op of the engine's own: next block, leave, or #UD; `before`: its OP_BEFORE bits."""
    op = ptr[Op](out)
    op.handler = ptr[u64](c.handlers)[handler]
    op.ip = u16(ip)
    op.next_ip = u16(ip)
    op.target = 0
    op.fall = 0
    op.row = 0
    op.flags = before


@native
def invalid_handler(c, mode, too_long):
    """What stands for bytes that are no instruction. A missing ENDBR comes first (SDM vol. 3, table 6-2)."""
    handler = c.ud_handler
    if too_long:
        handler = c.long_handler
    if (mode & MODE_ENDBRANCH) != 0:
        handler = c.endbranch_handler
    return handler


@native
def end_handler(c, mode):
    """What ends a block that no branch ends."""
    handler = c.next_handler
    if (mode & MODE_SIZE) != MODE_64:
        handler = handler + 1
    if (mode & MODE_STEP) != 0:
        handler = c.leave_handler
    return handler


@native
def fuse(c, out, t, previous):
    """Have the op before `out` take the conditional jump at `out` along, where a handler does both."""
    if (t.flags & T_JCC) != 0 and previous != 0:
        first = ptr[u32](c.fused)[previous]
        if first != 0:
            ptr[Op](out - Op.size).handler = ptr[u64](c.handlers)[first + u32(ptr[Op](out).src)]


@native
def record(c, last, t, before):
    """Put the op that records a branch before it: `last` is its op, the last of template `t`."""
    branch = ptr[Op](last + Op.size)
    memcpy(branch, ptr[Op](last), Op.size)
    kind = u64(1) << (u64(t.flags >> T_KIND) & T_KINDS)
    if kind == SELECT_NEAR_REL_CALL and branch.imm == u64(branch.next_ip):
        kind = kind | ZERO_LENGTH
    closing(c, last, c.record_handler, branch.ip, before)
    ptr[Op](last).imm = kind


@native
def last_handler(c, t):
    """The number of the handler of a template's last op; 0 where that depends on the kind of flags."""
    last = ptr[Op](c.template_ops + u64(t.first + u32(t.count) - 1) * Op.size)
    number: u64 = 0
    if (last.flags & OP_TAKES_CC) == 0:
        number = last.handler
    return number


@native
def kind_after(t, kind):
    """The kind of flags behind an instruction that had `kind` before it; 0 where it is not known."""
    after: u32 = kind
    if t.cc_out != CC_SAME:
        after = 0
        if t.cc_out != CC_UNKNOWN:
            after = t.cc_out
    return after


@native
def ask_python(c, code, available, mode):
    """Have the instruction at host address `code` learned."""
    c.want = code
    c.want_count = available
    c.want_mode = u64(mode)
    return u64(NEEDS_PYTHON)


@native(inline=False)
def translate(s, out: u64, code: u64, available: u64, mode: u32, limit: u64, done: ptr[Block]) -> u64:
    """Ops for up to `limit` instructions at host address `code`, written to `out`.

    `done` gets size and count. Returns `out`, or NEEDS_PYTHON (CodeCache.want says for what), or
    NEEDS_SECOND_PAGE where the first instruction reaches past `available`.
    """
    c = ptr[CodeCache](s.code)
    root = (mode & MODE_SHAPE) + 1
    ip: u64 = 0
    count: u64 = 0
    n: u64 = 0
    known_cc: u32 = 0
    previous: u64 = 0
    reach: u64 = 0
    ended: bool = False
    branch: u64 = 0
    before: u32 = 0
    bounded = limits_code(mode)
    head = u64(bounded)
    counts = (mode & (MODE_COUNTED | MODE_STEP)) == MODE_COUNTED
    recorded = (mode & MODE_LBR) != 0
    count = head + u64(counts)
    while n < limit and count < MAX_BLOCK_OPS - 8 and not ended:
        number = match(c, code + ip, available - ip, root)
        if number >= SHORT:
            if c.invalid_at == code + ip and still_invalid(c, code + ip, available - ip):
                closing(c, out + count * Op.size, invalid_handler(c, mode, c.invalid_long != 0), ip, before)
                count += 1
                reach = ip + 1
                ip += c.invalid_count
                ended = True
                break
            if number == SHORT or c.short_at == code + ip:
                c.short_at = 0
                if n == 0:
                    return u64(NEEDS_SECOND_PAGE)
                break
            return ask_python(c, code + ip, available - ip, mode)
        t = template_for(s, c, number)
        if lacks(s, t):
            closing(c, out + count * Op.size, invalid_handler(c, mode, False), ip, before)
            count += 1
            ip += u64(t.length)
            reach = ip
            ended = True
            break
        if (t.flags & T_NOTHING) == 0:
            emit(s, c, out + count * Op.size, t, code + ip, ip, known_cc, before)
            if not recorded:
                fuse(c, out + count * Op.size, t, previous)
            previous = last_handler(c, t)
            count += u64(t.count)
            if recorded and (u64(t.flags >> T_KIND) & T_KINDS) != 0:
                record(c, out + (count - 1) * Op.size, t, before)
                count += 1
        ip += u64(t.length)
        reach = ip
        n += 1
        if counts:
            before = u32(n) << OP_BEFORE
        known_cc = kind_after(t, known_cc)
        ended = (t.flags & T_ENDS) != 0
        branch = u64(t.flags >> T_BRANCHES) & 3
        if ip == available:
            break
    if not ended:
        closing(c, out + count * Op.size, end_handler(c, mode), ip, before)
        count += 1
    if bounded:
        closing(c, out, c.limit_handler, u64(0), u32(0))
        ptr[Op](out).imm = reach - 1
    if counts:
        closing(c, out + head * Op.size, c.counted_handler, u64(0), u32(0))
        ptr[Op](out + head * Op.size).imm = n
        ptr[Op](out + head * Op.size).disp = i64(branch & IS_BRANCH)
    done.size = u32(ip)
    done.reach = reach
    done.count = u32(count)
    done.branch = branch
    done.ops = out
    c.invalid_at = 0
    return out


@native
def limits_code(mode):
    """Whether blocks begin by checking that they lie within the code segment. Single instructions are checked apart."""
    return (mode & (MODE_SEGMENTED | MODE_STEP)) == MODE_SEGMENTED and (mode & MODE_SIZE) != MODE_64


@native(inline=False)
def still_invalid(c, code: u64, available: u64) -> bool:
    """Whether the bytes are those that Python looked at: other code may have run, and written here, since then."""
    same = c.invalid_count <= available
    if same:
        for i in range(c.invalid_count):
            same = same and ptr[u8](code)[i] == c.invalid_bytes[i]
    return same


@native(inline=False)
def second_page(s, lin: u64) -> u64:
    """Host address of the page after the one of `lin`, for an instruction that crosses; raises its fault."""
    following = (lin & PAGE_MASK) + 4096
    if (s.mode & MODE_SIZE) != MODE_64:
        following = following & 0xFFFF_FFFF
    return fill(s, following, u32(FETCH), s.tlb_index)


@native
def join(c, code, first, second):
    """The bytes of an instruction that crosses a page, side by side in CodeCache.fetch."""
    for i in range(u64(32)):
        ptr[u8](c.fetch)[i] = 0
    for i in range(first):
        ptr[u8](c.fetch)[i] = ptr[u8](code)[i]
    for i in range(u64(15)):
        ptr[u8](c.fetch)[first + i] = ptr[u8](second)[i]


@native
def alone(s) -> None:
    """This code cannot be kept as a block: execute one instruction of it by itself."""
    s.exit_reason = EXIT_SMC
    raise Stop


@native(inline=False)
def find_block(s, lin: u64, host: u64) -> u64:
    """The block at `lin`, whose page has just been looked up (`host`, CpuState.mmio_gpa), translated if need be; 0 when
    Python must help. Raises EXIT_SMC for code on a device, which is executed one instruction at a time.
    """
    if host == 0:
        alone(s)
    gpa = s.mmio_gpa
    slot = find_slot(s, gpa)
    info = page_info(slot, gpa)
    block = ptr[Block](info.blocks)
    before = ptr[Block](u64(0))
    while u64(block) != 0:
        if block.host == host and block.mode == s.mode and block.dead == 0:
            if block.host2 == 0:
                put_first(info, block, before)
                remember(s, block)
                return block.ops
            if second_page(s, lin) == block.host2:
                return block.ops
        before = block
        block = ptr[Block](block.next)
    return make_block(s, lin, host, gpa)


@native
def put_first(info, block, before):
    """Move a block to the head of its page's list, where the next search finds it; `before` it is null at the head."""
    if u64(before) != 0:
        before.next = block.next
        block.next = info.blocks
        info.blocks = u64(block)


@native
def remember(s, block):
    """Put a block into the block cache, in front of the one that was used last in its set."""
    j = jump_entry(s, block.host, block.mode, 0)
    older = jump_entry(s, block.host, block.mode, 1)
    older.host = j.host
    older.mode = j.mode
    older.ops = j.ops
    j.host = block.host
    j.mode = u64(block.mode)
    j.ops = block.ops


@native(inline=False)
def make_block(s, lin: u64, host: u64, gpa: u64) -> u64:
    c = ptr[CodeCache](s.code)
    if c.arena_used + ARENA_RESERVE > c.arena_size:
        c.flush_wanted = 1
        return u64(0)
    block = ptr[Block](c.arena + c.arena_used)
    out = u64(block) + Block.size
    available = 4096 - (lin & 0xFFF)
    host2: u64 = 0
    result = translate_claimed(s, out, host, gpa, available, block)
    if result == NEEDS_SECOND_PAGE:
        host2 = second_page(s, lin)
        gpa2 = s.mmio_gpa
        if host2 == 0:
            alone(s)
        claim_code(s, gpa, granules(gpa, available))
        claim_code(s, gpa2, u64(1))
        join(c, host, available, host2)
        result = translate(s, out, c.fetch, available + 15, s.mode, u64(1), block)
        block.info2 = u64(page_info(find_slot(s, gpa2), gpa2))
    if result == NEEDS_PYTHON:
        return result
    block.host = host
    block.host2 = host2
    block.mode = s.mode
    block.gpa = gpa
    block.dead = 0
    block.region = 0
    register_block(s, c, block, gpa)
    return out


@native(inline=False)
def translate_claimed(s, out: u64, host: u64, gpa: u64, available: u64, block: ptr[Block]) -> u64:
    """translate(), with the code bits of its bytes set before they are read.

    How many bytes there are is known behind it: where they were not all claimed, they are read once more.
    """
    claimed = atomic_load(code_bits(find_slot(s, gpa), gpa))
    while True:
        result = translate(s, out, host, available, s.mode, u64(MAX_INSTRUCTIONS), block)
        if result == NEEDS_PYTHON or result == NEEDS_SECOND_PAGE:
            break
        size = u64(block.size)
        if size > available:
            size = available
        wanted = granules(gpa, size)
        if (wanted & ~claimed) == 0:
            break
        claim_code(s, gpa, wanted)
        claimed = claimed | wanted
    return result


@native
def register_block(s, c, block, gpa):
    info = page_info(find_slot(s, gpa), gpa)
    block.next = info.blocks
    info.blocks = u64(block)
    block.next2 = 0
    if block.host2 != 0:
        block.next2 = c.cross
        c.cross = u64(block)
    else:
        block.info2 = 0
        remember(s, block)
    c.arena_used = c.arena_used + Block.size + u64(block.count) * Op.size
    c.blocks += 1
    s.count_translated += 1


@native
def check_fetch(s, size):
    """#GP(0) where an instruction of `size` bytes at RIP reaches beyond the code segment."""
    if (s.mode & MODE_SEGMENTED) != 0 and (s.mode & MODE_SIZE) != MODE_64:
        if s.rip + size - 1 > u64(s.seg_limit[CS]):
            general_protection(s, 0)


@native(inline=False)
def step_block(s, lin: u64) -> u64:
    """Ops for the instruction at RIP, whose linear address is `lin`, in the scratch memory; 0 when Python must help.
    Raises fetch faults.

    Code may lie on a device, wholly or with one of its two pages: its bytes are read like those of any access.
    """
    c = ptr[CodeCache](s.code)
    check_fetch(s, u64(1))
    code = fill(s, lin, u32(FETCH), s.tlb_index)
    available = 4096 - (lin & 0xFFF)
    if code == 0:
        available = minimum(available, u64(MAX_LENGTH))
        fetch_device(s, c, s.mmio_gpa, u64(0), available)
        code = c.fetch
    block = ptr[Block](c.scratch)
    out = c.scratch + Block.size
    mode = s.mode | MODE_STEP
    result = translate(s, out, code, available, mode, u64(1), block)
    if result == NEEDS_SECOND_PAGE:
        second = second_page(s, lin)
        if second == 0:
            gpa = s.mmio_gpa
            copy_code(c, code, available)
            fetch_device(s, c, gpa, available, u64(MAX_LENGTH))
        elif code != c.fetch:
            join(c, code, available, second)
        else:
            memcpy(ptr[u8](c.fetch + available), ptr[u8](second), u64(MAX_LENGTH))
        result = translate(s, out, c.fetch, available + MAX_LENGTH, mode, u64(1), block)
    if result != NEEDS_PYTHON:
        check_fetch(s, block.reach)
    return result


@native
def copy_code(c, code, size):
    if code != c.fetch:
        memcpy(ptr[u8](c.fetch), ptr[u8](code), size)


@native(inline=False)
def fetch_device(s, c, gpa: u64, at: u64, size: u64) -> None:
    """Read code from a device into CodeCache.fetch + at, byte by byte."""
    s.count_mmio_fetch += 1
    for i in range(size):
        ptr[u8](c.fetch)[at + i] = u8(mmio_read(s, gpa + i, u64(1)))
