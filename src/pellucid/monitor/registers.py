"""`info registers`, laid out as QEMU does, and the names of registers in expressions.

The 64-bit layout is for a CPU in 64-bit mode (EFER.LMA and CS.L); descriptor tables and CR2, CR3 widen with EFER.LMA.
Hidden descriptor words are the second doubleword of a descriptor, Intel SDM vol. 3, 3.4.5.
"""

from pellucid.kvm.regs import Fpu, MpState, Regs, Segment, Sregs
from pellucid.monitor.guest_state import CpuRegisters

EFER_LMA = 1 << 10
CR0_PE = 1 << 0
RFLAGS_STATUS = 0x8D5
GENERAL = ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp")
NUMBERED = tuple(f"r{number}" for number in range(8, 16))
SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")
FLAG_LETTERS = (("D", 10), ("O", 11), ("S", 7), ("Z", 6), ("A", 4), ("P", 2), ("C", 0))
SYSTEM_TYPES_32 = (
    "Reserved", "TSS16-avl", "LDT", "TSS16-busy", "CallGate16", "TaskGate", "IntGate16", "TrapGate16",
    "Reserved", "TSS32-avl", "Reserved", "TSS32-busy", "CallGate32", "Reserved", "IntGate32", "TrapGate32",
)  # fmt: skip
SYSTEM_TYPES_64 = (
    "<hiword>", "Reserved", "LDT", "Reserved", "Reserved", "Reserved", "Reserved", "Reserved",
    "Reserved", "TSS64-avl", "Reserved", "TSS64-busy", "CallGate64", "Reserved", "IntGate64", "TrapGate64",
)  # fmt: skip


def long_mode_active(sregs: Sregs) -> bool:
    """EFER.LMA."""
    return bool(sregs.efer & EFER_LMA)


def in_64_bit_mode(sregs: Sregs) -> bool:
    """Whether the CPU executes 64-bit code."""
    return long_mode_active(sregs) and sregs.cs.l


def code_bits(sregs: Sregs) -> int:
    """Default operand and address size of the code that the CPU executes: 16, 32 or 64."""
    return 64 if in_64_bit_mode(sregs) else 32 if sregs.cs.db else 16


def register_value(state: CpuRegisters, name: str) -> int | None:
    """The register that an expression calls $name. $pc is linear (CS base included); $rip and $eip are offsets."""
    regs, sregs = state.regs, state.sregs
    lower = name.lower()
    if lower == "pc":
        base = 0 if in_64_bit_mode(sregs) else sregs.cs.base
        return (regs.rip + base) & ((1 << 64) - 1 if in_64_bit_mode(sregs) else 0xFFFFFFFF)
    if lower in ("rflags", "eflags"):
        return regs.rflags
    if lower in SEGMENTS:
        return _segment(sregs, lower).selector
    if lower.endswith(".base") and lower[:-5] in SEGMENTS:
        return _segment(sregs, lower[:-5]).base
    if lower in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer"):
        return int(getattr(sregs, lower))
    if lower in ("rip", *NUMBERED) or (lower[:1] == "r" and lower[1:] in GENERAL):
        return int(getattr(regs, lower))
    if lower == "eip" or (lower[:1] == "e" and lower[1:] in GENERAL):
        return int(getattr(regs, "r" + lower[1:])) & 0xFFFFFFFF
    return None


def registers_text(index: int, state: CpuRegisters) -> str:
    """The whole block of `info registers` for CPU number `index`."""
    return f"\nCPU#{index}\n{state_text(state)}"


def state_text(state: CpuRegisters, *, fpu: bool = True, lazy_flags: bool = False) -> str:
    """That block less its heading; `lazy_flags` adds the line that QEMU's log has."""
    sregs = state.sregs
    wide = in_64_bit_mode(sregs)
    lines = [*_general_lines(state.regs, wide), _instruction_line(state, wide)]
    lines += [_segment_line(f"{name.upper():<3}", _segment(sregs, name), sregs, wide) for name in SEGMENTS]
    lines += [_segment_line("LDT", sregs.ldt, sregs, wide), _segment_line("TR ", sregs.tr, sregs, wide)]
    lines += _system_lines(state, 16 if long_mode_active(sregs) else 8)
    if lazy_flags:
        digits = 16 if wide else 8
        lines.insert(-1, f"CCS={state.regs.rflags & RFLAGS_STATUS:0{digits}x} CCD={0:0{digits}x} CCO=EFLAGS")
    if fpu:
        lines += _fpu_lines(state.fpu, 16 if wide else 8)
    return "\n".join(lines) + "\n"


def _segment(sregs: Sregs, name: str) -> Segment:
    segment = getattr(sregs, name)
    assert isinstance(segment, Segment)
    return segment


def _general_lines(regs: Regs, wide: bool) -> list[str]:
    prefix, digits = ("R", 16) if wide else ("E", 8)
    mask = (1 << 4 * digits) - 1
    cells = [f"{prefix}{name.upper()}={getattr(regs, 'r' + name) & mask:0{digits}x}" for name in GENERAL]
    if wide:
        cells += [f"{name.upper():<3}={getattr(regs, name):016x}" for name in NUMBERED]
    return [" ".join(cells[start : start + 4]) for start in range(0, len(cells), 4)]


def _instruction_line(state: CpuRegisters, wide: bool) -> str:
    regs, sregs = state.regs, state.sregs
    where = f"RIP={regs.rip:016x} RFL" if wide else f"EIP={regs.rip & 0xFFFFFFFF:08x} EFL"
    letters = "".join(letter if regs.rflags >> bit & 1 else "-" for letter, bit in FLAG_LETTERS)
    # Privilege level: the DPL of SS (SDM vol. 3, 5.5); real mode has none, and virtual-8086 mode keeps SS.DPL at 3.
    level = sregs.ss.dpl if sregs.cr0 & CR0_PE else 0
    halted = int(state.mp_state is MpState.HALTED)
    return (
        f"{where}={regs.rflags & 0xFFFFFFFF:08x} [{letters}] CPL={level} II={int(state.interrupt_shadow)} "
        f"A20={int(state.a20)} SMM={int(state.smm)} HLT={halted}"
    )


def _segment_line(label: str, segment: Segment, sregs: Sregs, wide: bool) -> str:
    digits = 16 if wide else 8
    base = segment.base if wide else segment.base & 0xFFFFFFFF
    attributes = descriptor_word(segment)
    line = f"{label}={segment.selector:04x} {base:0{digits}x} {segment.limit:08x} {attributes:08x}"
    if not sregs.cr0 & CR0_PE or not segment.present or segment.unusable:
        return line
    return f"{line} DPL={segment.dpl} {_segment_kind(segment, sregs)}"


def descriptor_word(segment: Segment) -> int:
    """The attributes as the second doubleword of a descriptor, its base bytes left out; 0 for an unusable segment."""
    if segment.unusable:
        return 0
    limit = segment.limit >> 12 if segment.g else segment.limit
    word = (limit & 0xF0000) | segment.type << 8 | segment.s << 12 | segment.dpl << 13 | segment.present << 15
    return word | segment.avl << 20 | segment.l << 21 | segment.db << 22 | segment.g << 23


def _segment_kind(segment: Segment, sregs: Sregs) -> str:
    if not segment.s:
        return (SYSTEM_TYPES_64 if long_mode_active(sregs) else SYSTEM_TYPES_32)[segment.type]
    accessed = "A" if segment.type & 1 else "-"
    if segment.type & 8:
        size = "CS64" if segment.l else "CS32" if segment.db else "CS16"
        return f"{size} [{'C' if segment.type & 4 else '-'}{'R' if segment.type & 2 else '-'}{accessed}]"
    size = "DS  " if segment.db or in_64_bit_mode(sregs) else "DS16"
    return f"{size} [{'E' if segment.type & 4 else '-'}{'W' if segment.type & 2 else '-'}{accessed}]"


def _system_lines(state: CpuRegisters, digits: int) -> list[str]:
    sregs, debug = state.sregs, state.debugregs
    db = " ".join(f"DR{number}={value:016x}" for number, value in enumerate(debug.db))
    return [
        f"GDT=     {sregs.gdt.base:0{digits}x} {sregs.gdt.limit:08x}",
        f"IDT=     {sregs.idt.base:0{digits}x} {sregs.idt.limit:08x}",
        f"CR0={sregs.cr0:08x} CR2={sregs.cr2:0{digits}x} CR3={sregs.cr3:0{digits}x} CR4={sregs.cr4:08x}",
        f"{db} ",  # QEMU's line ends in a space
        f"DR6={debug.dr6:016x} DR7={debug.dr7:016x}",
        f"EFER={sregs.efer:016x}",
    ]


def _fpu_lines(fpu: Fpu, xmm_count: int) -> list[str]:
    # FTW is shown in FXSAVE's abridged form: a bit per physical register, set unless it is empty (SDM vol. 1, 10.5.1).
    abridged = sum(1 << number for number in range(8) if fpu.ftw >> 2 * number & 3 != 3)
    lines = [
        f"FCW={fpu.fcw:04x} FSW={fpu.fsw:04x} [ST={fpu.fsw >> 11 & 7}] FTW={abridged:02x} MXCSR={fpu.mxcsr:08x}",
    ]
    mantissa = (1 << 64) - 1
    x87 = [f"FPR{number}={value & mantissa:016x} {value >> 64:04x}" for number, value in enumerate(fpu.fpr)]
    sse = [
        f"XMM{number:02d}={fpu.xmm[number] >> 64:016x} {fpu.xmm[number] & mantissa:016x}" for number in range(xmm_count)
    ]
    for cells in (x87, sse):
        lines += [" ".join(cells[start : start + 2]) for start in range(0, len(cells), 2)]
    return lines
