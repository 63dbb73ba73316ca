"""MXCSR, the end of MMX, fences and cache lines."""

from pellucid.cpu.faults import general_protection
from pellucid.cpu.host import MXCSR_HOST, MXCSR_MM, wait_for_earlier
from pellucid.cpu.host_sse import guest_mxcsr, set_guest_mxcsr
from pellucid.cpu.operands import read, write
from pellucid.cpu.segments import update_mode
from pellucid.cpu.simd import check_x87
from pellucid.isa.features import shows
from pellucid.isa.table import LEAVE, instruction
from pellucid.native import fence, native, u32



@native
def mxcsr_mask(s):
    """The bits of MXCSR that may be set."""
    mask: u32 = MXCSR_HOST
    if shows(s, "misalignsse"):
        mask = mask | MXCSR_MM
    return mask


@instruction("VLDMXCSR", name="ldmxcsr", fpu=True, avx=True, ends=LEAVE)
@instruction("LDMXCSR", fpu=True, sse=True, ends=LEAVE)
@native
def ldmxcsr(s, o, f):
    value = read(s, o, f, 0)
    if (value & ~mxcsr_mask(s)) != 0:
        general_protection(s, 0)
    set_guest_mxcsr(s, value)
    update_mode(s)


@instruction("VSTMXCSR", name="stmxcsr", fpu=True, avx=True)
@instruction("STMXCSR", fpu=True, sse=True)
@native
def stmxcsr(s, o, f):
    write(s, o, f, 0, guest_mxcsr(s))


@instruction("EMMS", fpu=True, mmx=True)
@native
def emms(s, o, f):
    check_x87(s)
    s.fpu_top = 0
    s.fpu_tags = 0


@instruction("SFENCE")
@native
def sfence(s, o, f):
    fence()


@instruction("LFENCE", "MFENCE", name="fences")
@native
def fences(s, o, f):
    """Loads and stores in order, and RDTSC too, as LFENCE has it everywhere and MFENCE on AMD's processors."""
    fence()
    wait_for_earlier()


@instruction("CLFLUSH", "CLFLUSHOPT", "CLWB")
@native
def clflush(s, o, f):
    """Caches are coherent here: only the faults of a one-byte load remain (SDM vol. 2)."""
    read(s, o, f, 0)
