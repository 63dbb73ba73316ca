"""Operands by form: how an instruction's function reads and writes what the table row says it has.

A `Form` is the compile-time half of an operand list; the run-time half (slots, displacement, immediate) stands
in the `Op`. Operand kinds:
    r  general register of the operand's width        m  memory
    i  immediate                                      x  XMM register        y  YMM register        n  MMX register
Reading and writing go by operand number, so that one function serves every form.
"""


from pellucid.cpu.memory import load, load_locked, load_rw, locked_pointer, store
from pellucid.cpu.state import MODE_64, MODE_SIZE, XMM_BYTES, slot_of
from pellucid.native import at, cas, is_constant, native, ptr, u32, u64, uint
from pellucid.records import dataclass


@dataclass(frozen=True, slots=True)
class Form:
    """One specialization of an instruction: operand kinds and widths (bytes), operand size, prefixes."""

    kinds: str = ""                    # one letter per operand
    w: int = 0                         # operand size in bytes
    widths: tuple[int, ...] = ()       # width of each operand in bytes
    lock: bool = False
    rep: str = ""                      # "", "rep", "repne"
    asize: int = 8                     # address size in bytes
    m64: bool = True                   # executes in 64-bit mode
    extra: int = 0                     # condition number, segment register, ... by instruction
    vex: bool = False                  # encoded with a VEX prefix

    @property
    def name(self) -> str:
        """A short unique spelling, used in handler names and dumps."""
        parts = [self.kinds or "-", str(self.w), ".".join(map(str, self.widths))]
        parts += ["lock"] * self.lock + [self.rep] * bool(self.rep)
        parts += [f"a{self.asize}"] * (self.asize != 8) + ["legacy"] * (not self.m64) + ["vex"] * self.vex
        return "_".join(parts + [f"e{self.extra}"] * bool(self.extra))


SLOT = ("dst", "src", "src2")
ZERO = slot_of("zero")


@native
def fourth_slot(s, o):
    """The vector register in bits 7:4 of the immediate (/is4); bit 7 counts in 64-bit mode only (SDM vol. 2, 3.1.1)."""
    number = (o.imm >> 4) & 15
    if (s.mode & MODE_SIZE) != MODE_64:
        number = number & 7
    return number * XMM_BYTES + slot_of("xmm")


@native
def slot_pointer(s, o, n, T):
    """A pointer to the register of operand `n`, as a T."""
    if n == 0:
        return at(s, u64(o.dst), T)
    if n == 1:
        return at(s, u64(o.src), T)
    if n == 3:
        return at(s, fourth_slot(s, o), T)
    return at(s, u64(o.src2), T)


@native
def register(s, slot, T):
    """The register at a state offset. A region knows the offset, and so that there is none."""
    if is_constant(slot) and slot == ZERO:
        return T(0)
    return at(s, u64(slot), T)[0]


@native
def address(s, o):
    """The linear address of the memory operand."""
    index = register(s, o.index, u64) << u64(o.scale)
    return register(s, o.base, u64) + index + u64(o.disp) + register(s, o.seg, u64)


@native
def offset(s, o):
    """The effective address without its segment base (LEA)."""
    return register(s, o.base, u64) + (register(s, o.index, u64) << u64(o.scale)) + u64(o.disp)


@native
def read(s, o, f, n):
    """Operand `n`, as an unsigned integer of its width."""
    T = uint(f.widths[n])
    if f.kinds[n] == "i":
        return T(o.imm)
    if f.kinds[n] == "m":
        return load(s, address(s, o), T)
    return slot_pointer(s, o, n, T)[0]


@native
def read_rw(s, o, f, n):
    """Operand `n` of a read-modify-write; a write of it after this cannot fault."""
    T = uint(f.widths[n])
    if f.kinds[n] == "m":
        if f.lock:
            return load_locked(s, address(s, o), T)
        return load_rw(s, address(s, o), T)
    return slot_pointer(s, o, n, T)[0]


@native
def write(s, o, f, n, value):
    """Replace operand `n`; a 32-bit register write clears the upper half (SDM vol. 1, 3.4.1.1)."""
    T = uint(f.widths[n])
    if f.kinds[n] == "m":
        store(s, address(s, o), value, T)
    elif f.kinds[n] == "r" and f.widths[n] == 4:
        slot_pointer(s, o, n, u64)[0] = u64(value)
    else:
        slot_pointer(s, o, n, T)[0] = value


@native
def update(s, o, f, n, old, new):
    """Finish a read-modify-write; False where LOCK found another value, and the caller tries again."""
    if f.lock and f.kinds[n] == "m":
        T = uint(f.widths[n])
        lin = address(s, o)
        host = locked_pointer(s, lin, u64(T.size))
        if host != 0:
            return cas(ptr[T](host), old, new)
        store(s, lin, new, T)
        return True
    else:
        write(s, o, f, n, new)
        return True


@native
def set_register(s, slot, w, value):
    """Write a general register by state offset, with the rule for 32-bit writes."""
    T = uint(w)
    if w == 4:
        at(s, u64(slot), u64)[0] = u64(value)
    else:
        at(s, u64(slot), T)[0] = value


@native
def gpr(s, number, w):
    """General register by number (not AH..BH)."""
    T = uint(w)
    return T(s.gpr[number])


@native
def set_gpr(s, number, w, value):
    """Write general register `number`."""
    if w >= 4:
        s.gpr[number] = u64(value)
    else:
        keep = ~u64((1 << (w * 8)) - 1)
        s.gpr[number] = (s.gpr[number] & keep) | u64(value)


@native
def immediate(o):
    return u32(o.imm)
