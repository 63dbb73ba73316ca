"""Device registers whose value is a function of the guest's clock, read without leaving native code.

A guest polls such registers (the ACPI PM timer, the HPET's main counter) by the thousand. The hypervisor keeps a table
of them, one for a VM, with what the guest's time is ahead of the host's monotonic clock; the run loop looks into it
before it leaves for a read. The answer goes to CpuState.replay as any other, so nothing else knows of it. It is the
host's clock that is read, by the same formula as the device's own, so answers from here and from there fit together.

`generation` guards the table: odd while somebody changes it, and a change between its two reads voids an answer, which
is left to the device then.
"""

from pellucid.cpu.state import EXIT_IO, EXIT_MMIO, PAGE, REPLAY_SLOTS
from pellucid.native import array, atomic_load, monotonic_ns, native, ptr, ref, struct, u32, u64
from pellucid.native.layout import Struct

MAX_REGISTERS = 16
NS = 10**9


@struct
class ClockRegister(Struct):
    """At time t, in ns, it reads `(t * hz // 10**9 + base & mask) >> shift`, cut to `size` bytes."""

    address: u64
    hz: u64       # below 2**34, so that the products below do not overflow
    base: u64
    mask: u64
    shift: u32
    size: u32     # of the only access that is answered here, in bytes
    port: u32     # 1: in port space
    pad: u32


@struct
class ClockRegisters(Struct):
    """Those of a VM. Any thread of the hypervisor may change them, one at a time."""

    generation: u64
    running: u64   # 0: the clock stands
    ahead: u64     # of the guest's time before the host's monotonic clock, ns
    count: u64
    registers: array[ClockRegister, 16]


@native
def ticks(now, hz):
    """`now * hz // 10**9`, exactly."""
    return now // NS * hz + now % NS * hz // NS


@native(inline=False)
def find_clock_register(s, reason: u32) -> ptr[ClockRegister]:
    """The register that the processor has left to read, or null."""
    table = ptr[ClockRegisters](s.clock_registers)
    port = u32(reason == EXIT_IO)
    registers = table.registers
    for i in range(table.count):
        r = ref(registers, i)
        if r.address == s.io_address and r.port == port and r.size == s.io_size:
            return r
    return ptr[ClockRegister](u64(0))


@native
def is_plain_read(s, reason):
    """Whether the processor has left for one read that no local APIC and no memory of SMM's may answer."""
    plain = s.io_write == 0 and s.io_count == 0 and s.replay_count < REPLAY_SLOTS
    memory = reason == EXIT_MMIO and s.smm == 0 and s.io_address // PAGE != s.apic_base // PAGE
    return plain and (reason == EXIT_IO or memory)


@native(inline=False)
def answer_from_clock(s, reason: u32) -> bool:
    """Whether what the processor has left for with `reason` was such a read: its answer is in the log then."""
    if s.clock_registers == 0 or not is_plain_read(s, reason):
        return False
    table = ptr[ClockRegisters](s.clock_registers)
    generation = atomic_load(ref(table, "generation"))
    r = find_clock_register(s, reason)
    if u64(r) == 0 or table.running == 0 or (generation & 1) != 0:
        return False
    hz, base, mask, shift = r.hz, r.base, r.mask, r.shift
    # The call stands between the reads above and the one below, for the compiler too.
    now = monotonic_ns() + table.ahead
    if atomic_load(ref(table, "generation")) != generation:
        return False
    value = (ticks(now, hz) + base & mask) >> shift
    s.replay[s.replay_count] = value & ((u64(1) << s.io_size * 8) - 1)
    s.replay_count += 1
    return True
