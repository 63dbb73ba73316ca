"""Transactions: XBEGIN, XEND, XABORT, XTEST, what aborts one, and what that undoes (SDM vol. 1, 16.3)."""

from __future__ import annotations

import pytest
from pellucid.cpu.observe import CodeBlock, Event
from pellucid.cpu.state import (
    CR4_FSGSBASE,
    CR4_OSXSAVE,
    DR6_FIXED,
    EXIT_BUDGET,
    EXIT_HLT,
    EXIT_PENDING,
    GP,
    RFLAGS_TF,
    CpuState,
)
from pellucid.cpu.undo_log import LINES, LONGEST, Transaction, log_store, undo_stores
from pellucid.isa.rtm import DEEPEST
from pellucid.native import ptr, u64

from .machine import CODE, CODE64, DATA, DEVICE, STACK3, Machine

XABORT, CAPACITY, DEBUG, NESTED = 1, 8, 16, 32
DONE, ABORTED = 0x30, 0x31
# Something of every kind that an abort undoes.
BODY = """
mov qword [DATA], 0x1111
mov [DATA + 0xFFC], rdi
mov rbx, 1
lea r15, [rsp + rsi]
movups xmm1, xmm0
fld1
push rdi
std
stc
"""


def transaction(body: str, *, cpl: int = 0, cr4: int = 0) -> Machine:
    """Code that begins a transaction with `body`, and stops with INT DONE behind it, INT ABORTED at the fallback.

    Before it, data and stack have been stored to, so that the TLB would let fast stores through.
    """
    m = Machine()
    m.labels |= {"DATA": DATA, "DEVICE": DEVICE, "CODE64": CODE64}
    source = f"xchg [DATA], rdx\nxchg [DATA], rdx\npush rax\npop rax\nclc\nbegin: xbegin fallback\n{body}\nint {DONE}"
    m.long(f"{source}\nfallback: int {ABORTED}", cpl=cpl, cr4=cr4)
    m.write(DATA, 0x7777, 8)
    m.state.gpr[7], m.state.gpr[3], m.state.gpr[0] = 0x1234_5678_9ABC_DEF0, 9, (1 << 64) - 1
    m.write(m.state.gpr[4] - 8, m.state.gpr[0], 8)
    m.state.xmm[0], m.state.xmm[64] = 0x55, 0x66
    return m


def visible(m: Machine) -> dict[str, object]:
    """All that BODY changes; of memory, what no INT pushes to."""
    s = m.state
    seen = {name: list(getattr(s, name)) for name in ("gpr", "st", "xmm", "dr")}
    return seen | {"tags": s.fpu_tags, "top": s.fpu_top, "opcode": s.fpu_opcode, "mxcsr": s.mxcsr, "ssp": s.ssp,
                   "data": m.read_bytes(DATA, 0x8000), "stack": m.read_bytes(STACK3 - 64, 64)}


def aborted(m: Machine, status: int) -> None:
    """Run to the fallback, where nothing but EAX differs from the start."""
    before, flags = visible(m), m.rflags
    assert m.catch() == ABORTED, m.history()
    frame = m.stack(5, 8)
    assert (m.state.gpr[0], m.state.tx, frame[0], frame[2]) == (status, 0, m.labels["fallback"] + 2, flags)
    m.state.gpr[0], m.state.gpr[4] = before["gpr"][0], frame[3]  # type: ignore[index]
    after = visible(m)
    assert {name for name in before if before[name] != after[name]} == set()


def test_commit() -> None:
    m = transaction(BODY + "xend")
    assert m.catch() == DONE
    assert m.read(DATA, 8) == 0x1111 and m.read(DATA + 0xFFC, 8) == m.state.gpr[7] and m.state.gpr[3] == 1
    assert m.state.gpr[0] == (1 << 64) - 1 and m.state.tx == 0 and m.state.xmm[64] == 0x55


@pytest.mark.parametrize("cpl", [0, 3])
@pytest.mark.parametrize(("ending", "status"), [
    ("xabort 0x5A", XABORT | 0x5A << 24),
    ("xbegin inner\ninner: xabort 0xFF", XABORT | NESTED | 0xFF << 24),
    ("ud2", 0),
    ("mov eax, [0x300000]", 0),
    ("mov [0x300000], eax", 0),
    ("div r14", 0),
    ("int3", DEBUG),
    ("int1", DEBUG),
    ("int 0x30", 0),
    ("cpuid", 0),
    ("pause", 0),
    ("wbinvd", 0),
    ("invd", 0),
    ("clflush [DATA]", 0),
    ("syscall", 0),
    ("sti", 0),
    ("popfq", 0),
    ("hlt", 0),
    ("mov eax, DATA\nxor ecx, ecx\nmonitor", 0),
    ("mov eax, DATA\numonitor rax", 0),
    ("swapgs", 0),
    ("mov ax, ds\nmov ds, ax", 0),
    ("in al, 0x80", 0),
    ("out 0x80, eax", 0),
    ("rdmsr", 0),
    ("mov [DEVICE], eax", 0),
    ("mov eax, [DEVICE]", 0),
    ("mov edi, DEVICE\ncall rdi", 0),
    ("jmp 0x300000", 0),
    ("near: nop\n" + "xbegin near\n" * DEEPEST, NESTED),
    (f"cld\nmov ecx, {LINES + 1} * 64\na: mov [rcx + DATA], al\nsub ecx, 64\njnz a", CAPACITY),
    (f"cld\nmov edi, DATA + 1\nmov ecx, {LINES * 64}\nrep stosb", CAPACITY),
    ("forever: jmp forever", 0),
    ("cld\nmov rcx, -1\nmov esi, DATA\nb: lodsb\nand esi, DATA\nloop b", 0),
    ("xor ecx, ecx\ndec rcx\nmov esi, DATA\nstd\nrep lodsb", 0),
])
def test_aborts(ending: str, status: int, cpl: int) -> None:
    """Whatever the cause, everything is as before, and the device has heard of nothing."""
    m = transaction(BODY + ending + "\nxend", cpl=cpl, cr4=0)
    aborted(m, status)
    assert m.trace == [] and m.history()[-1][0] == ABORTED and len(m.history()) == 1


@pytest.mark.parametrize("inside", [
    "cld\nmov edi, DATA + 0x40\nmov ecx, 4096\nrep stosb",
    f"mov ecx, {LINES - 4} * 64\na: mov [rcx + DATA], al\nsub ecx, 64\njnz a",
    "lock xadd [DATA], rbx",
    "lock cmpxchg16b [DATA + 16]",
    "cmpxchg [DATA], rdi",
    "mov ax, ds",
    "rdtsc",
    "pushfq",
    "fxsave [DATA + 0x100]",
    "cld\nmov esi, DATA\nmov edi, DATA + 64\nmov ecx, 64\nrep movsb",
    "call c\njmp d\nc: ret\nd:",
    "movnti [DATA], rdi",
    "sfence",
    "xbegin e\nxend\ne:",
    "ldmxcsr [DATA + 0x800]",
    "stmxcsr [DATA]",
])
def test_what_may_be_inside(inside: str) -> None:
    """It commits; and what it did is undone where XABORT follows."""
    m = transaction(f"{inside}\nxend")
    m.write(DATA + 0x800, 0x1F80, 4)
    assert m.catch() == DONE
    m = transaction(f"{BODY}{inside}\nxabort 7")
    m.write(DATA + 0x800, 0x1F80, 4)
    aborted(m, XABORT | 7 << 24)


def test_wide_vectors_and_sticky_flags() -> None:
    m = transaction("db 0xC5, 0xFC, 0x28, 0xC8\ndivss xmm2, xmm3\nxabort 0", cr4=CR4_OSXSAVE)  # vmovaps ymm1, ymm0
    m.state.xcr0 = 7
    m.refresh()
    for n in range(12):
        m.state.xmm[128 + n], m.state.xmm[192 + n] = 3, 9
    m.state.xmm[31], m.state.mxcsr = 0x77, 0x1F80
    aborted(m, XABORT)
    assert m.state.mxcsr == 0x1F80


def test_nested_ones_are_one() -> None:
    m = transaction("xbegin inner\nmov qword [DATA], 5\nxend\nxtest\nsetnz bl\nxabort 1\ninner: nop")
    aborted(m, XABORT | 1 << 24)
    m = transaction("near: nop\n" + "xbegin near\n" * (DEEPEST - 1) + "mov qword [DATA], 5\n" + "xend\n" * DEEPEST)
    assert m.catch() == DONE and m.read(DATA, 8) == 5


def test_outside() -> None:
    """XTEST, XABORT and XEND where no transaction is."""
    m = Machine()
    m.long("stc\nxtest\nsetz bl\nsetc bh\nxabort 3\nxbegin other\nxtest\nsetz cl\nxend\nlast: xend\nother: hlt")
    m.state.gpr[1], m.state.gpr[3] = 0xFF07, 0xFF07
    assert m.catch() == GP and m.stack(2, 8) == [0, m.labels["last"]]
    assert (m.state.gpr[3] & 0xFFFF, m.state.gpr[1] & 0xFF) == (1, 0)


def test_disabled() -> None:
    """IA32_TSX_CTRL.RTM_DISABLE: aborts at once."""
    m = transaction(BODY + "xend")
    m.state.tsx_ctrl = 1
    aborted(m, 0)


@pytest.mark.parametrize(("bits", "fallback"), [(16, 0x180), (32, 0x1_2000)])
def test_legacy_modes(bits: int, fallback: int) -> None:
    m = Machine()
    source = "xbegin other\nmov byte [0x5000], 7\nxabort 1\nother: xbegin again\nmov byte [0x5001], 7\nxend\nagain: hlt"
    m.real(source) if bits == 16 else m.protected(source)
    assert m.run().reason == EXIT_HLT
    assert (m.read(0x5000, 1), m.read(0x5001, 1), m.state.gpr[0]) == (0, 7, XABORT | 1 << 24)


def test_operand_size_of_16_bits() -> None:
    """In 64-bit mode the distance is short; elsewhere the fallback's address is cut, and must lie in the segment."""
    m = Machine()
    m.long("db 0x66, 0xC7, 0xF8, 3, 0\nxabort 9\nhlt")
    assert m.run().reason == EXIT_HLT and m.state.gpr[0] == XABORT | 9 << 24 and m.state.rip == CODE + 9
    m = Machine()
    m.protected("db 0x66, 0xC7, 0xF8, 3, 0\nxabort 9\nhlt")
    m.load("hlt", CODE & 0xFFFF | 8, 32)
    assert m.run().reason == EXIT_HLT and m.state.rip == (CODE + 8 & 0xFFFF) + 1
    m = Machine()
    m.real("db 0x66, 0xC7, 0xF8, 0, 0, 1, 0\nhlt")
    assert m.catch() == GP


def test_single_step_and_breakpoints() -> None:
    """A #DB aborts, is not delivered, and leaves the debug registers."""
    m = Machine()
    m.long("xbegin fallback\nnop\nxend\nfallback: nop\nbehind: nop")
    m.rflags = 2 | RFLAGS_TF
    assert m.catch() == 1 and m.state.gpr[0] == DEBUG and m.stack(1, 8) == [m.labels["behind"]]
    for kind, address in ((0, "inside"), (0xD_0000, DATA + 0x40)):
        m = transaction(BODY + "inside: mov [DATA + 0x40], eax\nxend")
        m.state.dr[0], m.state.dr[7] = m.labels.get(str(address), address), 0x402 | kind
        m.refresh()
        aborted(m, DEBUG)
        assert m.state.dr[6] == DR6_FIXED and m.state.db_pending == 0


def test_code_that_a_transaction_writes() -> None:
    """It executes what it wrote; after the abort, what was there before executes again."""
    code = CODE + 0x400
    m = Machine()
    m.long(f"call {code}\nxbegin fallback\nmov byte [{code}], 0xC3\ncall {code}\nxabort 1\nfallback: call {code}\nhlt")
    m.load("inc rbx\nret", code)
    m.state.gpr[3] = 0
    assert m.run().reason == EXIT_HLT and m.state.gpr[3] == 2
    m = Machine()
    m.long(f"call {code}\nxbegin over\nmov byte [{code}], 0xC3\ncall {code}\nxend\nover: call {code}\nhlt")
    m.load("inc rbx\nret", code)
    m.state.gpr[3] = 0
    assert m.run().reason == EXIT_HLT and m.state.gpr[3] == 1


def test_pages_that_a_transaction_maps() -> None:
    """What was reached through an entry that the transaction stored is not reached behind its abort."""
    m = Machine()
    m.labels["FAR"] = 0x7000_0000
    m.long("mov rax, [FAR]\nhlt")
    assert m.pages is not None
    entry = m.pages.map(0x7000_0000, DATA)
    m.write(DATA, 0x77, 8)
    m.write(entry, m.read(entry, 8) & ~1, 8)
    m.load(f"mov ecx, {entry}\nxbegin behind\nor byte [rcx], 1\nmov rdx, [FAR]\nmov byte [FAR], 5\nxabort 1\n"
           "behind: mov rbx, [FAR]\nhlt")
    m.refresh()
    assert m.catch() == 14 and m.state.gpr[2] == 0 and m.read(DATA, 8) == 0x77


def test_a_request_waits_for_the_end() -> None:
    """Nothing leaves in the middle, and one that does not end has an end all the same."""
    m = transaction(BODY + "forever: jmp forever")
    m.state.rip = m.labels["begin"]
    m.state.pending = m.state.step_once = 1
    assert m.run().reason == EXIT_PENDING
    assert m.state.rip == m.labels["fallback"] and m.state.tx == 0 and m.state.gpr[0] == 0


def test_counted_execution() -> None:
    """Instructions inside count, aborted ones too; a budget that is used up aborts, as a timer's interrupt would."""
    m = transaction("nop\n" * 10 + "xend")
    m.processor.count_instructions(True)
    m.processor.grant(100)
    assert m.catch() == DONE and m.state.budget == 100 - 6 - 10 - 1 - 1 - 1
    m = transaction("nop\n" * 10 + "xend")
    m.processor.count_instructions(True)
    m.processor.grant(10)
    assert m.run().reason == EXIT_BUDGET
    assert m.state.rip == m.labels["fallback"] and m.state.tx == 0 and m.state.budget == 0
    m = transaction("forever: jmp forever")
    m.processor.count_instructions(True)
    m.processor.grant(1 << 20)
    assert m.catch() == ABORTED and (1 << 20) - m.state.budget in range(LONGEST + 6, LONGEST + 9)


class Log:
    """An observer of everything."""

    def __init__(self) -> None:
        self.new_blocks = self.blocks = self.events = True
        self.pcs: list[int] = []
        self.vectors: list[int] = []

    def block(self, block: CodeBlock, fresh: bool) -> None:
        self.pcs.append(block.pc)

    def event(self, event: Event) -> None:
        self.vectors.append(event.vector)

    def reset(self) -> None:
        raise AssertionError


def test_looked_on() -> None:
    """An observer is told of instructions inside, and of no exception that only aborts."""
    m = transaction("inside: mov qword [DATA], 1\nlast: ud2\nxend")
    log = Log()
    m.processor.observe(log)
    aborted(m, 0)
    assert log.vectors == [ABORTED] and [pc for pc in log.pcs if pc >= CODE][:4] == [
        CODE, m.labels["inside"], m.labels["last"], m.labels["fallback"]]


def test_elision_prefixes_mean_nothing() -> None:
    """XACQUIRE and XRELEASE, and REP before XCHG without LOCK, as a lock has them."""
    m = Machine()
    m.labels["DATA"] = DATA
    m.long("db 0xF2\nlock inc dword [DATA]\nxtest\nsetz bl\ndb 0xF2\nxchg [DATA + 4], eax\n"
           "db 0xF3\nlock dec dword [DATA]\ndb 0xF3\nmov dword [DATA + 4], 6\ndb 0xF3\nmov [DATA + 8], ecx\nhlt")
    m.state.gpr[0], m.state.gpr[1], m.state.gpr[3] = 3, 8, 0
    assert m.run().reason == EXIT_HLT and m.words(DATA, 3, 4) == [0, 6, 8] and m.state.gpr[3] == 1


def test_a_base_is_not_changed_inside() -> None:
    m = transaction(BODY + "wrfsbase rdi\nxend", cr4=CR4_FSGSBASE)
    aborted(m, 0)
    assert m.state.seg_base[4] == 0


def test_a_locked_counter() -> None:
    m = Machine()
    m.labels["DATA"] = DATA
    m.long("mov ecx, 100\nagain: xbegin missed\nlock inc qword [DATA]\nxend\ndec ecx\njnz again\nhlt\n"
           "missed: inc r15\njmp again")
    m.state.gpr[15] = 0
    assert m.run().reason == EXIT_HLT and m.read(DATA, 8) == 100 and m.state.gpr[15] == 0


def test_what_a_device_stores_beside_it_stays() -> None:
    """Undone is what the transaction stored to, not the lines around; here in plain Python."""
    m = Machine()
    s, host = ptr[CpuState](m.processor.address), m.ram.address + DATA
    t = Transaction.view(m.state.transaction)
    for n in range(192):
        m.write(DATA + n, n, 1)
    for at, size in ((3, 2), (62, 4), (120, 16), (70, 1), (3, 1)):
        log_store(s, u64(host + at), u64(size))
        m.write_bytes(DATA + at, b"\xff" * size)
    assert t.lines == 3
    m.write(DATA + 5, 0xEE, 1)
    undo_stores(s)
    assert m.read_bytes(DATA, 192) == bytes(n if n != 5 else 0xEE for n in range(192))
