"""Memory as the guest and the machine have it: dumps, files, address spaces and blocks."""

from collections.abc import Callable
from typing import Annotated

from pellucid.machine.owners import name_owners
from pellucid.memory import info_mtree, info_ramblock
from pellucid.monitor.command import Address, Fmt, Marker, command
from pellucid.monitor.dump import Reader, memory_text, parse_format, value_text
from pellucid.monitor.errors import CommandError
from pellucid.monitor.guest_state import WRAP, read_physical, read_virtual
from pellucid.monitor.registers import code_bits
from pellucid.monitor.session import Session
from pellucid.records import dataclass, replace

CHUNK = 1 << 20
SUM_MOST = 4 << 20
"""Bytes that `sum` takes at once: it goes through them one by one, with the machine held up."""

FlagF = Annotated[bool, Marker("flag", "f")]
FlagD = Annotated[bool, Marker("flag", "d")]
FlagO = Annotated[bool, Marker("flag", "o")]
FlagBigD = Annotated[bool, Marker("flag", "D")]


def _dump(session: Session, fmt: str | None, address: int, read: Reader) -> str:
    form = parse_format(fmt or "", session.format)
    session.format = replace(form, count=1)
    bits = code_bits(session.registers().sregs) if form.kind == "i" else 0
    return memory_text(form, address, read, bits)


@command(hmp="x", help="virtual memory dump starting at 'addr'", syntax="/fmt addr")
def x(session: Session, fmt: Fmt, addr: Address) -> str:
    """Guest memory by the page tables of the CPU talked about."""
    machine, cpu = session.machine, session.thread().index
    return _dump(session, fmt, addr, lambda address, size: read_virtual(machine, cpu, address, size))


@command(hmp="xp", help="physical memory dump starting at 'addr'", syntax="/fmt addr")
def xp(session: Session, fmt: Fmt, addr: Address) -> str:
    """RAM and ROM."""
    return _dump(session, fmt, addr, lambda address, size: read_physical(session.machine, address, size))


@command(hmp="print|p", help="print expression value (use $reg for CPU register access)", syntax="/fmt expr")
def print_(session: Session, fmt: Fmt, expr: Address) -> str:
    """A value."""
    form = parse_format(fmt or "", session.format)
    session.format = replace(form, count=1)
    return value_text(form.kind, expr) + "\n"


@command(hmp="gva2gpa", help="print the guest physical address corresponding to a guest virtual address")
def gva2gpa(session: Session, addr: Address) -> str:
    """By the page tables of the CPU talked about."""
    thread = session.thread()
    gpa = thread.run_on_cpu(lambda: thread.vcpu.translate(addr))
    return "Unmapped\n" if gpa is None else f"gpa: {f'{gpa:#x}' if gpa else 0}\n"


@command(hmp="gpa2hva", help="print the host virtual address corresponding to a guest physical address")
def gpa2hva(session: Session, addr: Address) -> str:
    """Where RAM or ROM lies in this process."""
    found = session.machine.memory.find(addr)
    if found is None:
        return f"No memory is mapped at address {addr:#x}\n"
    block = found.region.block
    if block is None:
        return f"Memory at address {addr:#x} is not RAM\n"
    return f"Host virtual address for {addr:#x} ({found.region.name}) is {block.hva + found.offset:#x}\n"


@command(hmp="sum", help="compute the checksum of a memory region")
def sum_(session: Session, addr: Address, size: int) -> str:
    """The 16-bit sum that System V's sum(1) makes, of guest-physical memory."""
    if size > SUM_MOST:
        raise CommandError(f"sum: {size} bytes are too many at once: at most {SUM_MOST}")
    total = 0
    for start in range(0, max(size, 0), CHUNK):
        for byte in session.machine.memory.read_bytes(addr + start & WRAP, min(CHUNK, size - start)):
            total = (total >> 1 | total << 15 & 0x8000) + byte & 0xFFFF
    return f"{total:05d}\n"


@command(
    "memsave",
    hmp="memsave",
    help="save to disk virtual memory dump starting at 'addr' of size 'size'",
    syntax="addr size file",
)
def memsave(session: Session, val: Address, size: int, filename: str, cpu_index: int | None = None) -> None:
    """Virtual memory, as a CPU sees it, into a file."""
    cpu = session.thread(cpu_index).index
    address = val & WRAP

    def read(offset: int, length: int) -> bytes:
        content = read_virtual(session.machine, cpu, address + offset & WRAP, length)
        if content is None:
            raise CommandError(f"Invalid addr 0x{address:016x}/size {size} specified")
        return content

    _save(filename, size, read)


@command(
    "pmemsave",
    hmp="pmemsave",
    help="save to disk physical memory dump starting at 'addr' of size 'size'",
    syntax="addr size file",
)
def pmemsave(session: Session, val: Address, size: int, filename: str) -> None:
    """Guest-physical memory into a file; where nothing answers, zeros."""
    address = val & WRAP
    _save(filename, size, lambda offset, length: session.machine.memory.read_bytes(address + offset, length))


def _save(filename: str, size: int, read: Callable[[int, int], bytes]) -> None:
    if size < 0:
        raise CommandError(f"size {size} is negative: give the number of bytes")
    try:
        with open(filename, "wb") as file:
            for offset in range(0, size, CHUNK):
                file.write(read(offset, min(CHUNK, size - offset)))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CommandError(f"Could not open '{filename}': {reason}") from None


@command(
    info="mtree",
    help="show memory tree (-f: dump flat view for address spaces;-d: dump dispatch tree, valid with -f only);"
    "-o: dump region owners/parents;-D: dump disabled regions",
    syntax="[-f][-d][-o][-D]",
)
def mtree(session: Session, flat: FlagF, tree: FlagD, owner: FlagO, disabled: FlagBigD) -> str:
    """The address spaces."""
    machine = session.machine
    spaces = machine.address_spaces
    if owner:
        drives = [drive for drive in machine.drives if drive.place is not None]
        floppies = sum(drive.options.interface == "floppy" for drive in drives)
        name_owners(
            machine.config.board, spaces, machine.config.cpu_count, floppies=floppies, disks=len(drives) - floppies
        )
    return info_mtree(spaces, flat=flat, dispatch_tree=tree, owner=owner, disabled=disabled)


@command(info="ramblock", help="Display system ramblock information")
def ramblock(session: Session) -> str:
    """The RAM blocks."""
    return info_ramblock(session.machine.ram)


@dataclass(frozen=True)
class MemoryInfo:
    """In bytes."""

    base_memory: int
    plugged_memory: int


def _memory_text(info: MemoryInfo) -> str:
    return f"base memory: {info.base_memory}\nplugged memory: {info.plugged_memory}\n"


@command(
    "query-memory-size-summary",
    info="memory_size_summary",
    help="show the amount of initially allocated and present hotpluggable (if enabled) memory in bytes.",
    text=_memory_text,
)
def query_memory_size_summary(session: Session) -> MemoryInfo:
    """How much RAM there is; none of it can be plugged."""
    return MemoryInfo(session.machine.config.memory_size, 0)
