"""x87 arithmetic by the host's own unit: exact by construction. A port to another host replaces this file.

Values travel through memory: `r` is where a result goes, `a` and `b` are where operands stand, each an 80-bit
register image or a memory operand. Every operation answers with the host's status word behind it, whose exception
flags and condition codes (C1: rounded up) are then the guest's.

The host's unit is always left as its ABI wants it: empty stack, control word 0x37F. A guest that computes under that
control word, as nearly all do, pays for nothing else. Any other goes through `careful`, which computes under the
guest's own control word, unmasked exceptions included: the host holds those back until its next waiting instruction,
and FNCLEX, which does not wait, takes them away before.
"""


from pellucid.native import array, asm, likely, local, native, ptr, ref, u16, u64
from pellucid.records import dataclass

X87_IE, X87_DE, X87_ZE, X87_OE, X87_UE, X87_PE, X87_SF = (1 << n for n in range(7))
X87_BEFORE = X87_IE | X87_DE | X87_ZE    # found before the operation is computed (SDM vol. 1, 8.5)
X87_STICKY = 0x7F                        # the exception flags and SF

# Masks, precision and rounding of the control word (SDM vol. 1, 8.1.5), and their value by the host's ABI.
CONTROL_MATTERS, HOST_CONTROL = 0xF3F, 0x37F

REGISTER = array[u64, 2]

_CLOBBERS = ",".join(f"~{{{name}}}" for name in ("st", *(f"st({n})" for n in range(1, 8)), "fpsr", "memory", "flags"))
_FAST, _CAREFUL = f"=&{{ax}},r,r,r,{_CLOBBERS}", f"=&{{ax}},r,r,r,r,r,{_CLOBBERS}"


@dataclass(frozen=True, slots=True)
class X87Op:
    """One operation at compile time: host text that brings operands in, computes, and takes results out.

    $1 is `r`, $2 `a`, $3 `b`. Only `run` may raise exceptions; the status word is read behind it. The result has
    `size` bytes, rounded up to eight; unmasked, the exceptions in `stops` leave none.
    """

    load: str
    run: str
    store: str
    size: int = 16
    stops: int = X87_BEFORE


def unary(name: str) -> X87Op:
    """r = name(a)."""
    return X87Op("fldt ($2)", name, "fstpt ($1)")


def binary(name: str) -> X87Op:
    """r = name(a, b), of two registers; `name` leaves its result in place of a."""
    return X87Op("fldt ($3)\n\tfldt ($2)", name, "fstpt ($1)\n\tfstp %st(0)")


def consuming(name: str) -> X87Op:
    """r = name(a, b), where `name` pops a."""
    return X87Op("fldt ($3)\n\tfldt ($2)", name, "fstpt ($1)")


def with_memory(name: str) -> X87Op:
    """r = name(a, b), b in the memory format that the name says."""
    return X87Op("fldt ($2)", f"{name} ($3)", "fstpt ($1)")


def convert_in(name: str) -> X87Op:
    """r = the register image of b, which is in a memory format; a denormal is loaded, even with #D unmasked."""
    return X87Op("", f"{name} ($3)", "fstpt ($1)", stops=X87_IE)


def convert_out(name: str) -> X87Op:
    """r = a in a memory format; `name` pops."""
    return X87Op("fldt ($2)", f"{name} ($1)", "")


def compare(name: str) -> X87Op:
    """Condition codes of a and b, two registers."""
    return X87Op("fldt ($3)\n\tfldt ($2)", name, "fstp %st(0)\n\tfstp %st(0)", 0)


def compare_memory(name: str) -> X87Op:
    """Condition codes of a and b, b in a memory format."""
    return X87Op("fldt ($2)", f"{name} ($3)", "fstp %st(0)", 0)


def examine(name: str) -> X87Op:
    """Condition codes of a."""
    return X87Op("fldt ($2)", name, "fstp %st(0)", 0)


def constant(name: str) -> X87Op:
    """r = a constant, rounded."""
    return X87Op("", name, "fstpt ($1)")


def pushing(name: str) -> X87Op:
    """r[0:16] = the new top, r[16:32] = what replaces a; where nothing is pushed, r[0:16] = a."""
    return X87Op("fldt ($2)", name, "fstpt ($1)\n\tfstpt 16($1)", 32)


@native
def host_status():
    """The host's status word."""
    return asm(u16, "fnstsw $0", "={ax}")


@native
def run_x87(s, op, r, a, b):
    """Run one operation; the host's status word. With an unmasked exception found before computing, r stays as it is.

    The host's flags are sticky, and clearing them is dear: they are only required to be among the guest's own before.
    """
    if likely((s.fpu_cw & CONTROL_MATTERS) == HOST_CONTROL & CONTROL_MATTERS):
        if likely((host_status() & X87_STICKY & ~s.fpu_sw) == 0):
            return asm(u16, f"{op.load}\n\t{op.run}\n\tfnstsw %ax\n\t{op.store}", _FAST, u64(r), u64(a), u64(b))
    return careful(s, op, u64(r), u64(a), u64(b))


@native(inline=False)
def careful(s, op, r: u64, a: u64, b: u64) -> u16:
    """`run_x87` under any control word."""
    got = local(array[u64, 4])
    controls = local(array[u16, 2])
    controls[0] = s.fpu_cw
    controls[1] = HOST_CONTROL
    before = f"fnclex\n\t{op.load}\n\tfldcw ($4)"
    behind = f"fnstsw %ax\n\tfnclex\n\tfldcw ($5)\n\t{op.store}\n\tfninit"
    sw = asm(u16, f"{before}\n\t{op.run}\n\t{behind}", _CAREFUL, u64(got), a, b, u64(controls), u64(ref(controls, 1)))
    if (sw & ~s.fpu_cw & op.stops) == 0:
        for i in range(u64(op.size // 8)):
            ptr[u64](r)[i] = got[i]
    return sw
