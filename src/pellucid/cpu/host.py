"""What is specific to an x86 host: its float control registers, fence and pause.

A port to another host replaces this file.
"""

from pellucid.native import asm, native, ref

MXCSR_HOST = 0xFFFF
"""What every host's register has: MXCSR.MM is of AMD's processors, and ours to obey."""
MXCSR_MM = 1 << 17


@native
def load_mxcsr(p):
    asm(None, "ldmxcsr ($0)", "r,~{memory}", p)


@native
def store_mxcsr(p):
    asm(None, "stmxcsr ($0)", "r,~{memory}", p)


@native
def enter_guest_float(s):
    """The guest's MXCSR becomes the host's, with every exception masked (strict code checks the flags itself)."""
    store_mxcsr(ref(s, "host_mxcsr"))
    s.guest_mxcsr = (s.mxcsr & MXCSR_HOST) | 0x1F80
    load_mxcsr(ref(s, "guest_mxcsr"))


@native
def leave_guest_float(s):
    """Keep the flags that guest arithmetic raised; the host's own MXCSR comes back."""
    store_mxcsr(ref(s, "guest_mxcsr"))
    s.mxcsr = s.mxcsr | (s.guest_mxcsr & 0x3F)
    load_mxcsr(ref(s, "host_mxcsr"))


@native
def wait_for_earlier():
    """Nothing later, RDTSC neither, begins before every instruction until here is done: LFENCE (SDM vol. 2)."""
    asm(None, "lfence", "~{memory}")


@native
def relax():
    """In a loop that waits: let the other thread of the host's core go first for a moment (PAUSE, SDM vol. 2)."""
    asm(None, "pause", "~{memory}")
