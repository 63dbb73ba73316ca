"""Data movement between general registers and memory: MOV, MOVZX, MOVSX, LEA, XCHG, PUSH, POP, CMOVcc, SETcc."""

from typing import Any

from pellucid.cpu.flags import condition
from pellucid.cpu.memory import store
from pellucid.cpu.operands import address, offset, read, read_rw, set_register, slot_pointer, update, write
from pellucid.cpu.stack import drop, peek, push
from pellucid.isa.table import instruction
from pellucid.native import native, sint, u8, u64, uint

_GENERAL = "rmi"
CONDITIONS = ("O", "NO", "B", "AE", "E", "NE", "BE", "A", "S", "NS", "P", "NP", "L", "GE", "LE", "G")


def condition_number(prefix):
    """From a code's name (JE_REL8_64, SETNE_RM8, CMOVG_R32_RM32) to the condition's number."""
    return lambda code: CONDITIONS.index(code.split("_")[0].removeprefix(prefix))


def _general(code):
    """MOV codes between general registers, memory and immediates: no segment, control or debug register."""
    return not any(part in ("SREG", "CR", "DR", "TR") for part in code.split("_"))


@instruction("MOV", codes=_general)
@native
def mov(s, o, f):
    write(s, o, f, 0, read(s, o, f, 1))


@instruction("MOVZX")
@native
def movzx(s, o, f):
    T = uint(f.widths[0])
    write(s, o, f, 0, T(read(s, o, f, 1)))


@instruction("MOVSX", "MOVSXD")
@native
def movsx(s, o, f):
    T = uint(f.widths[0])
    S = sint(f.widths[1])
    write(s, o, f, 0, T(S(read(s, o, f, 1))))


@instruction("LEA", address_only=True, asize=True)
@native
def lea(s, o, f):
    T = uint(f.widths[0])
    write(s, o, f, 0, T(offset(s, o) & ((1 << (f.asize * 8)) - 1)))


@instruction("XCHG", lock=True)
@native
def xchg(s, o, f):
    b = slot_pointer(s, o, 1, uint(f.widths[1]))[0]
    if f.kinds[0] == "m" and not f.lock:
        exchange(s, o, LOCKED[f], b)
    else:
        exchange(s, o, f, b)


@native
def exchange(s, o, f, b):
    while True:
        a = read_rw(s, o, f, 0)
        if update(s, o, f, 0, a, b):
            break
    write(s, o, f, 1, a)


class _Locked(dict[Any, Any]):
    """A form with LOCK: XCHG with memory always locks (SDM vol. 2)."""

    def __missing__(self, form):
        from pellucid.records import replace

        self[form] = replace(form, lock=True)
        return self[form]


LOCKED = _Locked()


def _pushes_no_segment(code):
    return not code.endswith(("S", "PUSHW_ES")) or "_" in code and code.split("_")[1][0] in "RI"


@instruction("PUSH", codes=_pushes_no_segment,
             stack=True, name="push", width=lambda code: push_width(code))
@native
def push_(s, o, f):
    T = uint(f.w)
    S = sint(f.widths[0])
    push(s, f, T(S(read(s, o, f, 0))), f.w)


def push_width(code):
    """Operand size of PUSH and POP forms: PUSH_R64, PUSHQ_IMM8, PUSHD_IMM32, PUSHW_IMM8, PUSH_RM16."""
    head = code.split("_")[0]
    if head in ("PUSHQ", "POPQ"):
        return 8
    if head in ("PUSHD", "POPD"):
        return 4
    if head in ("PUSHW", "POPW"):
        return 2
    tail = code.split("_")[1]
    return 8 if "64" in tail else 4 if "32" in tail else 2


@instruction("POP", codes=lambda code: code.split("_")[1][0] == "R", stack=True, name="pop", address_after_pop=True,
             width=lambda code: push_width(code))
@native
def pop_(s, o, f):
    """An address through RSP uses the popped RSP: its displacement has been increased at translation."""
    value = peek(s, f, 0, f.w)
    if f.kinds[0] == "m":
        store(s, address(s, o), value, uint(f.w))
        drop(s, f, f.w)
    else:
        drop(s, f, f.w)
        set_register(s, o.dst, f.w, value)


@instruction(*("CMOV" + c for c in CONDITIONS), cc=True, extra=condition_number("CMOV"))
@native
def cmov(s, o, f, kind):
    value = read(s, o, f, 1)
    T = uint(f.widths[0])
    if condition(s, f.extra, kind):
        write(s, o, f, 0, value)
    elif f.widths[0] == 4:
        write(s, o, f, 0, slot_pointer(s, o, 0, T)[0])


@instruction(*("SET" + c for c in CONDITIONS), cc=True, extra=condition_number("SET"))
@native
def setcc(s, o, f, kind):
    write(s, o, f, 0, u8(u64(condition(s, f.extra, kind))))


@instruction("NOP", "ENDBR64", "ENDBR32", "RESERVEDNOP", "PREFETCHW", "PREFETCHT0", "PREFETCHT1", "PREFETCHT2",
             "PREFETCHNTA", "PREFETCH", "CLDEMOTE", address_only=True)
@native
def nop(s, o, f):
    pass
