"""What the benchmark boots: one initrd for every machine, told by the kernel's command line which loops to run.

The kernel hands a word `bench=NAME:ITERATIONS,...` that it does not know to /init as an environment variable, so the
same kernel and initrd serve the boots that end at once and those with loops. The kernel's messages, which could cut
the programs' lines in two, end with the first line of user space. Lines of the console that the runner
looks for: scripts.BANNER (the first of user space), those of the programs, PAIR_MARKS, DONE.
"""

import re
from collections.abc import Sequence

from pellucid.cli import guest
from pellucid.cli.bench.asm import assemble
from pellucid.cli.bench.elf import KERNEL_ADDRESS, pvh_kernel
from pellucid.cli.bench.loops import PROGRAMS
from pellucid.cli.bench.programs import GuestProgram
from pellucid.cli.guest.scripts import BANNER
from pellucid.records import dataclass

DONE = "bench done"
PAIR_MARKS = ("one copy", "two copies", "copies done")
"""Lines: a loop begins alone, two begin at once, both have ended."""
FAILED = "bench failed"
FIRST = "!"
"""The line that the probe prints."""

INIT = f"""\
#!/bin/sh
echo "{BANNER}"
/bin/busybox dmesg -n 1
IFS=,
for loop in $bench; do
    /bench/${{loop%%:*}} ${{loop##*:}} || echo "{FAILED} ${{loop%%:*}}"
done
if [ "$pair" ]; then
    loop=/bench/${{pair%%:*}} count=${{pair##*:}}
    $loop $((count / 8 + 1)) >/warm & $loop $((count / 8 + 1)) >/warm2
    wait
    echo "{PAIR_MARKS[0]}"
    $loop $count >/first
    echo "{PAIR_MARKS[1]}"
    $loop $count >/second & $loop $count >/third
    wait
    echo "{PAIR_MARKS[2]}"
    /bin/busybox cat /first /second /third
fi
echo "{DONE}"
/bin/busybox poweroff -f
"""

_RESULT = re.compile(r"bench ([\w-]+) (\d+) (\d+) (\d+)")
_START = re.compile(r"start ([\w-]+)")

PROBE = """
        mov dx, 0x3f8               ; the serial port
        mov al, 33                  ; FIRST
        out dx, al
        mov al, 10
        out dx, al
idle:   hlt
        jmp idle
"""


@dataclass(frozen=True)
class LoopResult:
    """A program's line: nanoseconds are by the guest's clock, `result` is what the loop computed."""

    name: str
    iterations: int
    nanoseconds: int
    result: int


def initrd() -> bytes:
    """The archive with every guest program. Raises UserError when busybox cannot be had."""
    files = {f"bench/{program.name}": guest.InitrdFile(program.elf()) for program in PROGRAMS}
    return guest.build_initrd(INIT, files)


def probe_kernel() -> bytes:
    """A PVH kernel that prints FIRST with its first instructions and halts for ever."""
    return pvh_kernel(assemble(PROBE, KERNEL_ADDRESS, bits=32).code)


def command_line(loops: Sequence[GuestProgram], scale: float = 1.0) -> str:
    """The default guest's command line, with the loops to run; `scale` changes their iterations."""
    counts = ",".join(f"{loop.name}:{max(int(loop.iterations * scale), 1)}" for loop in loops)
    return guest.APPEND + (f" bench={counts}" if counts else "")


def pair_command_line(loop: GuestProgram, scale: float = 1.0) -> str:
    """The default guest's command line, with one loop to run alone and then twice at once."""
    return f"{guest.APPEND} pair={loop.name}:{max(int(loop.iterations * scale), 1)}"


def started(line: str) -> str | None:
    """The name of the loop that this line of the console says has begun."""
    found = _START.fullmatch(line)
    return found[1] if found else None


def finished(line: str) -> LoopResult | None:
    """The loop that this line of the console says has ended."""
    found = _RESULT.fullmatch(line)
    return LoopResult(found[1], int(found[2]), int(found[3]), int(found[4])) if found else None
