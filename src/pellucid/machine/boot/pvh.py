"""The PVH boot protocol for an ELF vmlinux (Xen's docs/misc/pvh.pandoc and public/arch-x86/hvm/start_info.h).

The kernel names its entry point in an ELF note. It is entered in 32-bit protected mode without paging, EBX pointing at
a start_info structure that leads to the memory map, the modules and the RSDP.
"""

import io
import struct
from typing import TYPE_CHECKING

from pellucid.errors import UserError
from pellucid.machine.boot import cpu_state
from pellucid.machine.boot.plan import (
    COMMAND_LINE_ADDRESS,
    FOUR_GIB,
    LONGEST_COMMAND_LINE,
    PVH_INFO_ADDRESS,
    BootPlan,
    GuestRam,
    MiB,
    in_units,
    page_down,
    page_up,
)
from pellucid.records import dataclass

XEN_ELFNOTE_PHYS32_ENTRY = 18
START_INFO_MAGIC, START_INFO_VERSION = 0x336E_C578, 1
MEMORY_MAP_ENTRY, MODULE_ENTRY = struct.Struct("<QQII"), struct.Struct("<QQQQ")
START_INFO = struct.Struct("<IIIIQQQQII")

if TYPE_CHECKING:
    from elftools.elf.elffile import ELFFile


@dataclass(frozen=True)
class LoadSegment:
    """A PT_LOAD segment: `content` at `address`, zeros up to `memory_size`."""

    address: int
    content: bytes
    memory_size: int


@dataclass(frozen=True)
class PvhKernel:
    """An ELF kernel as read from `name`."""

    name: str
    entry: int
    segments: tuple[LoadSegment, ...]

    @classmethod
    def parse(cls, content: bytes, name: str) -> "PvhKernel":
        """From a whole file that begins with the ELF magic. Raises UserError."""
        from elftools.elf.elffile import ELFFile  # a tenth of a start, which most kernels do not need

        try:
            elf = ELFFile(io.BytesIO(content))
            machine = elf["e_machine"]
            if machine not in ("EM_X86_64", "EM_386"):
                raise UserError(f"{name}: is an ELF file for {machine!s}; give a kernel for x86")
            entry = _phys32_entry(elf)
            loads = tuple(
                LoadSegment(segment["p_paddr"], segment.data(), segment["p_memsz"])
                for segment in elf.iter_segments("PT_LOAD")
            )
        except UserError:
            raise
        except Exception as error:
            # pyelftools lets out whatever its parsing trips over: its own errors, construct's, Python's.
            raise UserError(f"{name}: is a damaged ELF file ({type(error).__name__}: {error})") from None
        if entry is None:
            raise UserError(
                f"{name}: is an ELF file without a PVH entry note; build the kernel with CONFIG_PVH=y or give a bzImage"
            )
        for load in loads:
            if len(load.content) > load.memory_size or load.address + load.memory_size > FOUR_GIB:
                raise UserError(f"{name}: is a damaged ELF file: its segment at {load.address:#x} cannot be loaded")
        if not any(load.address <= entry < load.address + load.memory_size for load in loads):
            raise UserError(f"{name}: is a damaged ELF file: its PVH entry {entry:#x} lies in no segment")
        return cls(name, entry, loads)

    def plan(
        self,
        ram: GuestRam,
        command_line: bytes,
        initrd: bytes,
        *,
        rsdp_address: int = 0,
        rng_seed: bytes = b"",
        long_mode: bool = True,
    ) -> BootPlan:
        """Where everything goes. PVH has no place for a seed; the kernel goes to long mode by itself."""
        if len(command_line) >= LONGEST_COMMAND_LINE:
            raise UserError(f"-append is {len(command_line)} bytes long; at most {LONGEST_COMMAND_LINE - 1} fit")
        self._check_fits(ram)
        kernel_end = max(load.address + load.memory_size for load in self.segments)
        initrd_address = page_down(ram.below_4g - len(initrd))
        if initrd and initrd_address < page_up(kernel_end):
            raise UserError(
                f"the initrd of {in_units(len(initrd))} does not fit between the kernel's end at {kernel_end:#x} "
                f"and the end of RAM at {ram.below_4g:#x}; give more memory with -m or a smaller initrd"
            )
        segments, regs, sregs = cpu_state.protected_mode(self.entry, rbx=PVH_INFO_ADDRESS)
        for load in self.segments:
            segments.append((load.address, load.content.ljust(load.memory_size, b"\0")))
        segments.append((COMMAND_LINE_ADDRESS, command_line + b"\0"))
        segments.append((PVH_INFO_ADDRESS, _start_info(ram, (initrd_address, len(initrd)), rsdp_address)))
        if initrd:
            segments.append((initrd_address, initrd))
        how = f"PVH entry at {self.entry:#x}" + (f", initrd at {initrd_address:#x}" if initrd else "")
        return BootPlan(segments, regs, sregs, how)

    def _check_fits(self, ram: GuestRam) -> None:
        for load in self.segments:
            end = load.address + load.memory_size
            if end > ram.below_4g:
                raise UserError(
                    f"{self.name}: its segment at {load.address:#x} ends at {in_units(end)}, "
                    f"but the guest has {in_units(ram.below_4g)} of RAM below 4 GiB; give more with -m"
                )
            if load.address < MiB:
                raise UserError(
                    f"{self.name}: its segment at {load.address:#x} lies below 1 MiB, where loading needs room"
                )


def _phys32_entry(elf: "ELFFile") -> int | None:
    """The address in the XEN_ELFNOTE_PHYS32_ENTRY note, which has 4 or 8 bytes; None when there is none."""
    from elftools.elf.segments import NoteSegment

    for segment in elf.iter_segments():
        if isinstance(segment, NoteSegment):
            for note in segment.iter_notes():
                # pyelftools gives the names of types that it knows, and the number of any other.
                note_type: object = note["n_type"]
                if note["n_name"] == "Xen" and note_type == XEN_ELFNOTE_PHYS32_ENTRY:
                    return int.from_bytes(note["n_descdata"][:8], "little") & 0xFFFF_FFFF
    return None


def _start_info(ram: GuestRam, initrd: tuple[int, int], rsdp_address: int) -> bytes:
    """struct hvm_start_info, followed by the memory map and the one module that it points at."""
    map_address = PVH_INFO_ADDRESS + START_INFO.size
    entries = b"".join(MEMORY_MAP_ENTRY.pack(e.address, e.size, e.type, 0) for e in ram.memory_map)
    module_address = map_address + len(entries)
    has_module = bool(initrd[1])
    info = START_INFO.pack(
        START_INFO_MAGIC,
        START_INFO_VERSION,
        0,
        int(has_module),
        module_address if has_module else 0,
        COMMAND_LINE_ADDRESS,
        rsdp_address,
        map_address,
        len(ram.memory_map),
        0,
    )
    return info + entries + (MODULE_ENTRY.pack(initrd[0], initrd[1], 0, 0) if has_module else b"")
