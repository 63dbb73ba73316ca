"""CMPccXADD: compare, and add where the condition holds, in one atomic access (SDM vol. 2)."""

from pellucid.cpu.faults import general_protection
from pellucid.cpu.flags import CC_SUB, flags_condition, kind_flags, set_cc
from pellucid.cpu.memory import load_locked, locked_pointer, store
from pellucid.cpu.operands import address, read, write
from pellucid.isa.table import instruction
from pellucid.native import cas, native, ptr, u64, uint

CONDITIONS = tuple("O NO B NB Z NZ BE NBE S NS P NP L NL LE NLE".split())
MNEMONICS = tuple(f"CMP{condition}XADD" for condition in CONDITIONS)


@instruction(*MNEMONICS, extra=lambda code: MNEMONICS.index(code.removeprefix("VEX_").split("_")[0]), cc_out=CC_SUB)
@native
def cmpccxadd(s, o, f):
    """The register that memory is compared with gets what memory held; memory is written in any case."""
    w = f.widths[0]
    T = uint(w)
    lin = address(s, o)
    bound = read(s, o, f, 1)
    addend = read(s, o, f, 2)
    if (lin & (w - 1)) != 0:
        general_protection(s, 0)
    while True:
        old = load_locked(s, lin, T)
        new = old
        if flags_condition(kind_flags(u64(old - bound), u64(bound), CC_SUB, w), f.extra):
            new = old + addend
        host = locked_pointer(s, lin, u64(w))
        if host == 0:
            store(s, lin, new, T)
            break
        if cas(ptr[T](host), old, new):
            break
    write(s, o, f, 1, old)
    set_cc(s, CC_SUB, w, old - bound, bound)
