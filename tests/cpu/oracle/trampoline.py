"""The native code of the host runner, and the shared-memory formats it works on.

The child calls `enter`. It walks the records from CURRENT to END; for each it copies the record's code and memory
into the fixed layout, loads selectors, FS/GS bases, the XSAVE image and the registers, and leaves by IRETQ, which
sets RIP, CS, RFLAGS (TF too), RSP and SS in one instruction, for 64-bit and 32-bit code alike. Every case ends with a
signal (INT3 at the latest). The handler, on its own stack, copies the kernel's picture of the registers (ucontext and
its XSAVE frame) into the record, copies the memory back, drops the frame without rt_sigreturn (the signals are
SA_NODEFER, so no mask needs restoring) and takes the next record. So one pair of pipe messages serves a whole batch.

A signal while no case runs is the child's own fault: the handler leaves with exit status EXIT_FOREIGN_SIGNAL.
While a case runs, the kernel's syscall user dispatch (when it is there) turns its system calls into SIGSYS.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from iced_x86 import Code, Encoder, Instruction, MemoryOperand, Register

from . import layout

from pellucid.records import dataclass

SHARED = 0x7000_0000
"""Where the child maps the shared memory.

Control page, native code, guest-visible code and read-only pages, records.
"""

NATIVE = 0x6F00_0000
"""Where the child maps the native code, read and execute."""

SIGNAL_STACK = 0x6E00_0000
SIGNAL_STACK_SIZE = 0x20000

EXIT_FOREIGN_SIGNAL = 97

# Shared memory, offsets in bytes. CODE and READONLY are mapped a second time, without write permission, where the
# layout says; native code fills CODE through this alias, so to the case it is a read-only page as in the guest.
CURRENT = 0x00
END = 0x08
ACTIVE = 0x10
HOST_RSP = 0x18
HOST_FS_BASE = 0x20
HOST_GS_BASE = 0x28
DISPATCH = 0x30  # syscall user dispatch selector, one byte: 0 allow, 1 block
NATIVE_IMAGE = 0x1000
CODE_ALIAS = 0x2000
READONLY_ALIAS = CODE_ALIAS + layout.CODE_SIZE
RECORDS = READONLY_ALIAS + layout.READONLY_SIZE

# A record, offsets in bytes.
GPR = 0x000  # 16 quadwords, in the order of the encoding
IRET = 0x080  # RIP, CS, RFLAGS, RSP, SS
FS_BASE = 0x0A8
GS_BASE = 0x0B0
CODE_AT = 0x0B8  # address in CODE_ALIAS
CODE_LEN = 0x0C0
SIGNAL = 0x0C8  # result: signal number, 0 while the case has not ended
SELECTORS = 0x0D0  # result: DS, ES, FS, GS, a quadword each
GREGS = 0x100  # result: the kernel's gregs array, 23 quadwords, then the fpstate pointer
OUT_FS_BASE = 0x1C0
OUT_GS_BASE = 0x1C8
XSAVE = 0x200
CODE_BYTES = 0x540
MEMORY = 0x1000
RECORD_SIZE = MEMORY + len(layout.WRITABLE_PAGES) * layout.PAGE

XSAVE_SIZE = 832
XSAVE_MASK = 7  # x87, SSE, AVX

# Indices into the gregs array of Linux's struct sigcontext.
GREG_ORDER = (13, 14, 12, 11, 15, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7)
"""Place of RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8..R15 in gregs."""
GREG_RIP, GREG_EFLAGS, GREG_CSGSFS, GREG_ERR, GREG_TRAPNO, GREG_CR2 = 16, 17, 18, 19, 20, 22
GREG_COUNT = 23

_UC_MCONTEXT = 40  # offset of gregs in struct ucontext
_EXIT_GROUP = 231
_R: Any = Register
_C: Any = Code


def _shared(offset: int) -> MemoryOperand:
    return MemoryOperand(displ=SHARED + offset, displ_size=8)


def _record(offset: int) -> MemoryOperand:
    return MemoryOperand(_R.RBX, displ=offset, displ_size=8 if offset else 0)


class _Assembler:
    """Instructions and labels. Every instruction has one length wherever it stands, so two passes settle the labels."""

    def __init__(self) -> None:
        self._code: list[Callable[[], Instruction]] = []
        self._marks: dict[int, list[str]] = {}
        self.labels: dict[str, int] = {}

    def label(self, name: str) -> None:
        self._marks.setdefault(len(self._code), []).append(name)

    def add(self, *instructions: Instruction) -> None:
        for instruction in instructions:
            self._code.append(lambda fixed=instruction: fixed)  # type: ignore[misc]

    def branch(self, code: Any, label: str) -> None:
        self._code.append(lambda: Instruction.create_branch(code, self.labels.get(label, NATIVE)))

    def load(self, register: Any, memory: MemoryOperand) -> None:
        self.add(Instruction.create_reg_mem(_C.MOV_R64_RM64, register, memory))

    def store(self, memory: MemoryOperand, register: Any) -> None:
        self.add(Instruction.create_mem_reg(_C.MOV_RM64_R64, memory, register))

    def lea(self, register: Any, memory: MemoryOperand) -> None:
        self.add(Instruction.create_reg_mem(_C.LEA_R64_M, register, memory))

    def constant(self, register: Any, value: int) -> None:
        self.add(Instruction.create_reg_u32(_C.MOV_R32_IMM32, register, value))

    def copy_quadwords(self, count: int) -> None:
        """[RDI] from [RSI]; changes RCX, RSI, RDI."""
        self.constant(_R.ECX, count)
        self.add(Instruction.create_rep_movsq(64))

    def assemble(self, base: int) -> bytes:
        for _ in range(2):
            encoder = Encoder(64)
            position = base
            for index, make in enumerate(self._code):
                for name in self._marks.get(index, ()):
                    self.labels[name] = position
                position += encoder.encode(make(), position)
        return encoder.take_buffer()


def _emit_enter(a: _Assembler) -> None:
    """enter(): keep what the C ABI and the thread need, then fall into `next`."""
    for register in (_R.RBX, _R.RBP, _R.R12, _R.R13, _R.R14, _R.R15):
        a.add(Instruction.create_reg(_C.PUSH_R64, register))
    for read, slot in ((_C.RDFSBASE_R64, HOST_FS_BASE), (_C.RDGSBASE_R64, HOST_GS_BASE)):
        a.add(Instruction.create_reg(read, _R.RAX))
        a.store(_shared(slot), _R.RAX)
    a.store(_shared(HOST_RSP), _R.RSP)
    a.constant(_R.EAX, 1)
    a.store(_shared(ACTIVE), _R.RAX)


def _emit_place(a: _Assembler) -> None:
    """Put the record at CURRENT in place, or leave after the last."""
    a.label("next")
    a.load(_R.RBX, _shared(CURRENT))
    a.add(Instruction.create_reg_mem(_C.CMP_R64_RM64, _R.RBX, _shared(END)))
    a.branch(_C.JE_REL32_64, "done")
    a.lea(_R.RSI, _record(CODE_BYTES))
    a.load(_R.RDI, _record(CODE_AT))
    a.load(_R.RCX, _record(CODE_LEN))
    a.add(Instruction.create_rep_movsb(64))
    a.lea(_R.RSI, _record(MEMORY))
    a.constant(_R.EDI, layout.DATA)
    a.copy_quadwords(layout.DATA_SIZE // 8)
    a.constant(_R.EDI, layout.STACK)
    a.copy_quadwords(layout.STACK_SIZE // 8)


def _emit_start(a: _Assembler) -> None:
    """Load the record's registers and go. A selector load changes a base, so the bases come after it."""
    for value, registers in ((0, (_R.FS, _R.GS)), (layout.SS, (_R.DS, _R.ES))):
        a.constant(_R.EAX, value)
        for register in registers:
            a.add(Instruction.create_reg_reg(_C.MOV_SREG_RM16, register, _R.AX))
    for write, slot in ((_C.WRFSBASE_R64, FS_BASE), (_C.WRGSBASE_R64, GS_BASE)):
        a.load(_R.RAX, _record(slot))
        a.add(Instruction.create_reg(write, _R.RAX))
    a.constant(_R.EAX, XSAVE_MASK)
    a.constant(_R.EDX, 0)
    a.add(Instruction.create_mem(_C.XRSTOR64_MEM, _record(XSAVE)))
    a.add(Instruction.create_mem_i32(_C.MOV_RM8_IMM8, _shared(DISPATCH), 1))
    a.lea(_R.RSP, _record(IRET))
    names = ("RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", *(f"R{n}" for n in range(8, 16)))
    for number, name in enumerate(names):
        if name not in ("RBX", "RSP"):  # RSP comes from the IRET frame; RBX points to the record until the end
            a.load(getattr(_R, name), _record(GPR + 8 * number))
    a.load(_R.RBX, _record(GPR + 8 * names.index("RBX")))
    a.add(Instruction.create(_C.IRETQ))


def _emit_done(a: _Assembler) -> None:
    """Return from enter(). The kernel gave the handler clean x87, MXCSR and DF, as the C ABI wants them."""
    a.label("done")
    a.constant(_R.EAX, 0)
    a.store(_shared(ACTIVE), _R.RAX)
    for register in (_R.R15, _R.R14, _R.R13, _R.R12, _R.RBP, _R.RBX):
        a.add(Instruction.create_reg(_C.POP_R64, register))
    a.add(Instruction.create(_C.RETNQ))


def _emit_handler(a: _Assembler) -> None:
    """handler(signal: EDI, siginfo: RSI, ucontext: RDX): take back the thread's bases, keep the case's selectors.

    The case's AC flag is still set on entry (the kernel clears DF, TF and RF only), hence the POPFQ first.
    """
    a.label("handler")
    a.add(Instruction.create_i32(_C.PUSHQ_IMM8, 2), Instruction.create(_C.POPFQ))
    a.add(Instruction.create_mem_i32(_C.MOV_RM8_IMM8, _shared(DISPATCH), 0))
    a.add(Instruction.create_mem_i32(_C.CMP_RM64_IMM8, _shared(ACTIVE), 0))
    a.branch(_C.JE_REL32_64, "foreign")
    a.load(_R.RBX, _shared(CURRENT))
    for number, register in enumerate((_R.DS, _R.ES, _R.FS, _R.GS)):
        a.add(Instruction.create_reg_reg(_C.MOV_R32M16_SREG, _R.EAX, register))
        a.store(_record(SELECTORS + 8 * number), _R.RAX)
    for read, write, out, slot in (
        (_C.RDFSBASE_R64, _C.WRFSBASE_R64, OUT_FS_BASE, HOST_FS_BASE),
        (_C.RDGSBASE_R64, _C.WRGSBASE_R64, OUT_GS_BASE, HOST_GS_BASE),
    ):
        a.add(Instruction.create_reg(read, _R.RAX))
        a.store(_record(out), _R.RAX)
        a.load(_R.RAX, _shared(slot))
        a.add(Instruction.create_reg(write, _R.RAX))


def _emit_capture(a: _Assembler) -> None:
    """Copy registers and memory to the record, wipe the code, drop the signal frame, take the next record."""
    a.add(Instruction.create_mem_reg(_C.MOV_RM32_R32, _record(SIGNAL), _R.EDI))
    a.lea(_R.RSI, MemoryOperand(_R.RDX, displ=_UC_MCONTEXT, displ_size=1))
    a.lea(_R.RDI, _record(GREGS))
    a.copy_quadwords(GREG_COUNT + 1)
    a.load(_R.RSI, _record(GREGS + 8 * GREG_COUNT))
    a.lea(_R.RDI, _record(XSAVE))
    a.copy_quadwords(XSAVE_SIZE // 8)
    a.lea(_R.RDI, _record(MEMORY))
    a.constant(_R.ESI, layout.DATA)
    a.copy_quadwords(layout.DATA_SIZE // 8)
    a.constant(_R.ESI, layout.STACK)
    a.copy_quadwords(layout.STACK_SIZE // 8)
    a.load(_R.RDI, _record(CODE_AT))
    a.load(_R.RCX, _record(CODE_LEN))
    a.constant(_R.EAX, layout.INT3)
    a.add(Instruction.create_rep_stosb(64))
    a.load(_R.RSP, _shared(HOST_RSP))
    a.add(Instruction.create_mem_i32(_C.ADD_RM64_IMM32, _shared(CURRENT), RECORD_SIZE))
    a.branch(_C.JMP_REL32_64, "next")
    a.label("foreign")
    a.constant(_R.EDI, EXIT_FOREIGN_SIGNAL)
    a.constant(_R.EAX, _EXIT_GROUP)
    a.add(Instruction.create(_C.SYSCALL))


@dataclass(frozen=True)
class NativeCode:
    """Bytes for address NATIVE; `enter` and `handler` are absolute addresses in it."""

    image: bytes
    enter: int
    handler: int


def assemble() -> NativeCode:
    """Assemble the native code of the runner."""
    a = _Assembler()
    for emit in (_emit_enter, _emit_place, _emit_start, _emit_done, _emit_handler, _emit_capture):
        emit(a)
    image = a.assemble(NATIVE)
    return NativeCode(image, NATIVE, a.labels["handler"])
