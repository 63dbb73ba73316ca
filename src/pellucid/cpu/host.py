"""What is specific to an x86 host with Linux: its float control registers, fence and pause, and sleeping (futex(2)).

A port to another host replaces this file.
"""

from pellucid.native import array, asm, i64, local, native, ref, u32, u64

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


# System calls of Linux, and two of futex's operations.
FUTEX, SCHED_SETAFFINITY, SCHED_GETAFFINITY, GETCPU = 202, 203, 204, 309
FUTEX_WAIT_PRIVATE, FUTEX_WAKE_PRIVATE = 128, 129
NS = 1_000_000_000
MOST_CPUS = 1024         # of a host that `leave_cpu` knows


@native
def linux(number, first, second, third, fourth) -> u64:
    """A system call: its result, or minus an errno."""
    return asm(u64, "syscall", "={rax},{rax},{rdi},{rsi},{rdx},{r10},~{rcx},~{r11},~{memory}", u64(number), u64(first),
               u64(second), u64(third), u64(fourth))


@native
def sleep_on(word, value, ns):
    """Sleep while the u32 at `word` has this value, until `wake_up`, and at most so long; a signal ends it, too."""
    timeout = local(array[u64, 2])
    timeout[0] = ns // NS
    timeout[1] = ns % NS
    linux(FUTEX, word, FUTEX_WAIT_PRIVATE, value, timeout)


@native
def wake_up(word):
    """Wake who sleeps on `word`, which has another value by now."""
    linux(FUTEX, word, FUTEX_WAKE_PRIVATE, 1, 0)


@native
def host_cpu() -> u32:
    """The number of the host's CPU that this thread is on."""
    found = local(array[u32, 2])
    linux(GETCPU, found, 0, 0, 0)
    return found[0]


@native
def leave_cpu(cpu) -> None:
    """Have this thread go on on another of the CPUs that it may use, if there is one; it may come back."""
    may_use = local(array[u64, MOST_CPUS // 64])
    size = linux(SCHED_GETAFFINITY, 0, MOST_CPUS // 8, may_use, 0)
    if i64(size) > 0 and cpu < MOST_CPUS:
        at = cpu >> 6
        all_of_these = may_use[at]
        may_use[at] = all_of_these & ~(u64(1) << (u64(cpu) & 63))
        linux(SCHED_SETAFFINITY, 0, size, may_use, 0)
        may_use[at] = all_of_these
        linux(SCHED_SETAFFINITY, 0, size, may_use, 0)
